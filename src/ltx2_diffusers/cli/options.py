"""The options of `ltx2 generate`, in the groups in which its help shows them.

No option has a default here, so that what was given can be told from what was not; `generate` fills in the rest. An
option that names an input file has the file as a `Path`, by which checks and manifests know it.
"""

import argparse
from pathlib import Path
from typing import Any

from .loading import add_loading_arguments
from .values import AppendPlaced, stretch, weighted_file


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add all options of a generation."""
    add_text(parser.add_argument_group("text"))
    add_pictures(parser.add_argument_group("pictures, clips and sound to follow"))
    add_editing(parser.add_argument_group("working on a clip"))
    add_recipe(parser.add_argument_group("recipe"))
    add_size(parser.add_argument_group("size (default with --video: the clip's)"))
    add_sampling(parser.add_argument_group("sampling (default: the reference values of the checkpoint)"))
    add_guidance(
        parser.add_argument_group(
            "guidance (default: the reference values of the checkpoint)",
            "--guidance-scale 1 alone switches all guidance off. Where only sound is made, the options without "
            "'audio' belong to it.",
        )
    )
    add_output(parser.add_argument_group("output"))
    add_loading_arguments(parser)


def add_text(group: Any) -> None:
    """Prompts, and what becomes of them."""
    group.add_argument(
        "--prompt",
        action="append",
        required=True,
        metavar="TEXT",
        help="what to see and hear; repeat it for several clips, or for the parts of --extend",
    )
    group.add_argument("--negative-prompt", metavar="TEXT", help="what to stay away from")
    group.add_argument(
        "--enhance-prompt",
        action="store_true",
        default=None,
        help="have the language model write out the prompt first",
    )
    group.add_argument("--system-prompt", metavar="TEXT", help="your instructions for --enhance-prompt")
    group.add_argument(
        "--enhance-tokens", type=int, metavar="N", help="of --enhance-prompt: longest text; default 512"
    )
    group.add_argument(
        "--prompt-cache", metavar="DIR", help="keep encoded prompts in this folder, and take them from there"
    )
    group.add_argument(
        "--no-text-encoder",
        action="store_true",
        default=None,
        help="do without the language model; every prompt has to be in --prompt-cache",
    )
    group.add_argument(
        "--max-sequence-length", type=int, metavar="TOKENS", help="longer prompts are cut; default 1024"
    )


def add_pictures(group: Any) -> None:
    """What the result is held to."""
    group.add_argument("--image", type=Path, metavar="FILE", help="the first frame")
    group.add_argument(
        "--image-at",
        nargs=2,
        action=AppendPlaced,
        metavar=("N", "FILE[:STRENGTH]"),
        help="a picture or clip at frame N, negative from the end, shown with a strength from 0 to 1; repeatable",
    )
    group.add_argument(
        "--image-crf", type=int, metavar="CRF", help="H.264 quality that pictures are given; 0 for none"
    )
    group.add_argument(
        "--reference",
        action="append",
        type=weighted_file,
        metavar="FILE[:STRENGTH]",
        help="a clip that an IC-LoRA (see --lora) translates; repeatable",
    )
    group.add_argument(
        "--reference-audio",
        action="append",
        type=weighted_file,
        metavar="FILE[:STRENGTH]",
        help="a sound, such as a voice, that a LoRA follows; repeatable",
    )
    group.add_argument("--audio", type=Path, metavar="FILE", help="the sound of the clip")
    group.add_argument(
        "--audio-fit",
        choices=("crop", "pad", "stretch"),
        help="what happens to sound shorter than the clip: crop (default) is an error, pad adds silence, stretch "
        "changes the tempo",
    )
    group.add_argument("--audio-start", type=float, metavar="SECONDS", help="where in --audio the clip begins")
    group.add_argument(
        "--audio-cond-noise-scale",
        type=float,
        metavar="SCALE",
        help="0 (default) keeps the sound exactly, more makes a new one after it, 1 ignores it",
    )


def add_editing(group: Any) -> None:
    """A clip, and what is to be done with it."""
    group.add_argument("--video", type=Path, metavar="FILE", help="the clip to work on")
    group.add_argument("--retake", type=stretch, metavar="FROM:TO", help="make these seconds of --video anew")
    group.add_argument("--region", type=Path, metavar="MASK", help="of --retake: where, a picture that is white there")
    group.add_argument("--keep-video", action="store_true", default=None, help="of --retake: leave the pictures alone")
    group.add_argument("--keep-audio", action="store_true", default=None, help="of --retake: leave the sound alone")
    group.add_argument(
        "--extend",
        type=float,
        metavar="SECONDS",
        help="make --video so much longer, part by part, or make a clip of this length from nothing; rounded up to "
        "parts of 8 frames",
    )
    group.add_argument("--backwards", action="store_true", default=None, help="of --extend: at the start of the clip")
    group.add_argument("--overlap", type=int, metavar="N", help="of --extend: frames that parts share; default 25")
    group.add_argument(
        "--drift-control", type=float, metavar="SHARE", help="of --extend: hold the colours to the start, 0 to 1"
    )
    group.add_argument("--add-sound", action="store_true", default=None, help="make the sound of --video")


def add_recipe(group: Any) -> None:
    """How a result is made, where there is a choice."""
    group.add_argument(
        "--two-stage",
        action="store_true",
        default=None,
        help="start at half the size with guidance, then refine at full size",
    )
    group.add_argument(
        "--distilled",
        action="store_true",
        default=None,
        help="a distilled checkpoint's 8 + 3 steps without guidance, in two stages",
    )
    group.add_argument("--one-stage", action="store_true", default=None, help="of --distilled: 8 steps at full size")
    group.add_argument(
        "--interpolate",
        action="store_true",
        default=None,
        help="move between the pictures of --image and --image-at, which guide without pinning",
    )
    group.add_argument("--no-audio", action="store_true", default=None, help="make a silent clip")
    group.add_argument("--audio-only", action="store_true", default=None, help="make sound alone, a .wav file")


def add_size(group: Any) -> None:
    """Sizes and timing."""
    group.add_argument("--width", type=int, metavar="PIXELS", help="a multiple of 32; 64 in two stages; default 768")
    group.add_argument("--height", type=int, metavar="PIXELS", help="the same; default 512")
    group.add_argument(
        "--num-frames", type=int, metavar="N", help="8 k + 1; of --extend: those of a part; default 121"
    )
    group.add_argument(
        "--frame-rate",
        type=float,
        metavar="FPS",
        help="23.976 and the like are exact; default 24; miniatures: see below",
    )
    group.add_argument("--duration", type=float, metavar="SECONDS", help="of --audio-only; default 5")
    group.add_argument(
        "--motion-speed", type=float, metavar="SPEED", help="how fast things move, against real time; default 1"
    )
    group.add_argument("--num-videos", type=int, metavar="N", help="clips per prompt; default 1")


def add_sampling(group: Any) -> None:
    """Noise, noise levels and samplers."""
    group.add_argument("--seed", type=int, metavar="N", help="equal seeds give equal clips; default 10")
    group.add_argument("--steps", type=int, metavar="N", help="denoising steps")
    group.add_argument("--sigmas", type=float, nargs="+", metavar="SIGMA", help="noise levels instead of --steps")
    group.add_argument(
        "--stage-2-sigmas", type=float, nargs="+", metavar="SIGMA", help="noise levels of the refining stage"
    )
    group.add_argument(
        "--sampler",
        metavar="NAME",
        help="euler (default), gradient_estimating, euler_ancestral, euler_cfg_pp or res_2s",
    )
    group.add_argument("--decode-timestep", type=float, metavar="T", help="of video VAEs that take one; default 0")
    group.add_argument("--decode-noise-scale", type=float, metavar="SCALE", help="default that of --decode-timestep")


def add_guidance(group: Any) -> None:
    """Guidance scales of both streams."""
    for prefix, what in (("", "the video"), ("audio-", "the sound")):
        group.add_argument(
            f"--{prefix}guidance-scale",
            type=float,
            metavar="SCALE",
            help=f"classifier-free guidance of {what}, off at 1",
        )
        group.add_argument(
            f"--{prefix}stg-scale", type=float, metavar="SCALE", help=f"spatio-temporal guidance of {what}, off at 0"
        )
        group.add_argument(
            f"--{prefix}modality-scale", type=float, metavar="SCALE", help=f"modality guidance of {what}, off at 1"
        )
        group.add_argument(
            f"--{prefix}guidance-rescale",
            type=float,
            metavar="SHARE",
            help=f"rescaling of the guided {what[4:]}, 0 to 1",
        )
    group.add_argument(
        "--stg-blocks", type=int, nargs="+", metavar="BLOCK", help="blocks that spatio-temporal guidance perturbs"
    )
    group.add_argument(
        "--skip-step", type=int, metavar="N", help="steps after each guided one that reuse the video's result"
    )
    group.add_argument("--audio-skip-step", type=int, metavar="N", help="the same for the sound")
    group.add_argument(
        "--cfg-method",
        choices=("cfg", "cfg_star", "apg", "apg_momentum"),
        help="formula of classifier-free guidance: plain (default), rescaled, or projected without and with momentum",
    )
    for name, metavar, what in (
        ("apg-eta", "SHARE", "of apg: share along the prediction that is kept; default 0"),
        ("apg-norm-threshold", "NORM", "of apg: longest guidance; default 0, any"),
        ("apg-momentum", "SHARE", "of apg_momentum: share of earlier guidance"),
        (
            "nag-scale",
            "SCALE",
            "have --negative-prompt act within the attention to the text, at no more forwards; off at 1",
        ),
        ("nag-tau", "NORM", "of --nag-scale: longest guided values; default 2.5"),
        ("nag-alpha", "SHARE", "of --nag-scale: share of the guided values; default 0.25"),
    ):
        group.add_argument(f"--{name}", type=float, metavar=metavar, help=what)


def add_output(group: Any) -> None:
    """What is written. Besides the result, a manifest is: FILE.json, for `ltx2 replay`."""
    group.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="file to write, .mp4, .mov or (--audio-only) .wav; FILE.json beside it says how it was made; several clips "
        "are numbered",
    )
    group.add_argument(
        "--preview",
        nargs="?",
        const="",
        metavar="FILE",
        help="keep a contact sheet of what is being made, a .png or .jpg file; default beside the output",
    )
    group.add_argument(
        "--preview-every", type=int, metavar="N", help="steps from one --preview to the next; default 5"
    )
