"""`ltx2 generate`: from prompt to MP4."""

import argparse
import time
from pathlib import Path
from typing import Any

from .loading import add_loading_arguments, load_pipeline


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "generate",
        help="generate a video with sound and write it to an MP4 file",
        description="Generate a video with sound from text and write it to an MP4 file (H.264 and AAC).",
        epilog='example: ltx2 generate --prompt "a lighthouse in a storm" --seed 7 -o lighthouse.mp4',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--prompt", required=True, help="what to see and hear")
    parser.add_argument("--negative-prompt", default="", help="what to stay away from")
    parser.add_argument("-o", "--output", required=True, type=Path, help="MP4 file to write")
    add_loading_arguments(parser)
    size = parser.add_argument_group("size")
    size.add_argument("--width", type=int, default=768, help="pixels, a multiple of 32")
    size.add_argument("--height", type=int, default=512, help="pixels, a multiple of 32")
    size.add_argument("--num-frames", type=int, default=121, help="frames, 8 k + 1")
    size.add_argument(
        "--frame-rate", type=float, default=24.0, help="frames per second; 23.976 and the like are exact"
    )
    sampling = parser.add_argument_group("sampling (defaults follow the checkpoint)")
    sampling.add_argument("--seed", type=int, default=10, help="equal seeds give equal videos")
    sampling.add_argument("--steps", type=int, default=None, help="denoising steps")
    sampling.add_argument("--guidance-scale", type=float, default=None, help="1 alone switches all guidance off")
    sampling.add_argument("--audio-guidance-scale", type=float, default=None, help="the same for the sound")
    sampling.add_argument("--sampler", default="euler", help="name of the sampler")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Generate and write the file."""
    import torch

    from ..media.files import check_suffix
    from ..media.writing import VIDEO_SUFFIXES

    check_suffix(options.output, VIDEO_SUFFIXES, "--output")
    pipeline = load_pipeline(options)
    extra = {}
    if options.audio_guidance_scale is not None:
        extra["audio_guidance_scale"] = options.audio_guidance_scale
    started = time.perf_counter()
    output = pipeline(
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        height=options.height,
        width=options.width,
        num_frames=options.num_frames,
        frame_rate=options.frame_rate,
        num_inference_steps=options.steps,
        guidance_scale=options.guidance_scale,
        sampler=options.sampler,
        generator=torch.Generator("cpu").manual_seed(options.seed),
        output_type="uint8",
        **extra,
    )
    (path,) = output.save(options.output)
    seconds = options.num_frames / options.frame_rate
    print(
        f"{path}: {options.num_frames} frames of {options.width}x{options.height}, {seconds:.2f} s, "
        f"made in {time.perf_counter() - started:.1f} s with the {output.info['preset']} preset"
    )
    return 0
