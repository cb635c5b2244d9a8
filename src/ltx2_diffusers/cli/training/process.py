"""`ltx2 data process`: from clips and captions to the samples that training reads."""

import argparse
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from ..loading import DTYPES, best_device, check_checkpoint, check_device
from ..values import flag

# What a clip has, as options name the columns that hold it.
_COLUMNS = {
    "caption": "the text; default caption, text or prompt",
    "video": "the video or picture; default media_path, video, file_name or video_path",
    "reference": "the reference of a video; default reference_video, ref_media_path or reference_path",
    "audio": "a sound that replaces that of the video; default audio",
    "reference_audio": "the reference of the sound; default reference_audio",
    "video_mask": "where the video is trained; default video_mask",
    "audio_mask": "where the sound is trained; default audio_mask",
}
_NAMED_PROBLEMS = 20
_EPILOG = """\
DATASET is a .csv file with a header, a .json file with a list of objects or a .jsonl file with one object a line, whose
paths are relative to its folder; or a folder, with such a file named metadata or dataset, or with clips and beside each
a .txt or .caption file of the same stem that holds its caption (and, if it has references, NAME_reference.mp4 or .wav).

The samples go to .precomputed beside the clips. A run that was stopped goes on where it stopped when it is started
again; clips, captions and files that changed are made anew. Clips that cannot be used are named, counted, listed in
skipped.json and left out.

Frame rates: without --frame-rate the frames of a file are taken one by one, as many as the bucket has, and its own rate
is stored beside them, as the Lightricks trainer does; clips whose rate varies are named. With --frame-rate every clip is
brought to that rate by the times of its frames: frames are left out or repeated, and sound and picture stay in step.

examples:
  ltx2 data process clips --checkpoint Lightricks/LTX-2 --resolution-buckets 768x448x89
  ltx2 data process clips/metadata.csv --checkpoint ltx-2-19b-dev.safetensors --text-encoder gemma-3-12b-it \\
      --resolution-buckets "960x544x49;544x960x49" --frame-rate 25 --lora-trigger MYSTYLE
  accelerate launch --num_processes 4 -m ltx2_diffusers.cli.main data process clips --checkpoint ... (on several machines)
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser of `ltx2 data`."""
    parser = commands.add_parser(
        "process",
        help="encode clips and captions for training",
        usage="ltx2 data process DATASET --checkpoint NAME --resolution-buckets WxHxF [options]",
        description="Encode clips, their sound and their captions to the samples that training reads.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="metadata file or folder; see below")
    _add_dataset(parser.add_argument_group("dataset"))
    _add_clips(parser.add_argument_group("clips"))
    _add_captions(parser.add_argument_group("captions"))
    _add_running(parser.add_argument_group("checkpoint and running"))
    parser.set_defaults(run=run)


def _add_dataset(group: Any) -> None:
    group.add_argument("--output-dir", type=Path, metavar="FOLDER", help="default .precomputed beside the clips")
    group.add_argument("--overwrite", action="store_true", help="make samples anew that are there")
    for name, what in _COLUMNS.items():
        group.add_argument(flag(f"{name}_column"), metavar="NAME", help=f"column of {what}")


def _add_clips(group: Any) -> None:
    add = group.add_argument
    add("--resolution-buckets", metavar="WxHxF;...", help="sizes of clips: multiples of 32 and 8 k + 1 frames; a clip gets the "
        "one nearest in shape, then with most frames. Needed with videos")  # fmt: skip
    add(
        "--frame-rate",
        type=float,
        metavar="FPS",
        help="bring clips to that rate; default the files' own frames one by one",
    )
    add(
        "--reshape-mode",
        choices=("center", "random"),
        default="center",
        help="where clips are cropped; default center",
    )
    add("--vae-tiling", action="store_true", help="encode clips in tiles of 512 pixels, to save memory")
    sound = group.add_mutually_exclusive_group()
    sound.add_argument("--with-audio", action="store_const", const=True, default=None, help="encode sound, and fail if the "
        "checkpoint has no audio VAE; default where it has one")  # fmt: skip
    sound.add_argument("--skip-audio", dest="with_audio", action="store_const", const=False, help="encode no sound")
    add("--audio-durations", metavar="S;...", help="seconds like 2.0;4.0 to which sounds without video are cut")
    add(
        "--reference-downscale-factor",
        type=int,
        default=1,
        metavar="N",
        help="references are N times smaller; default 1",
    )
    add("--reference-temporal-scale-factor", type=int, default=1, metavar="N",
        help="references keep each N-th frame from frame 1 on; default 1")  # fmt: skip


def _add_captions(group: Any) -> None:
    add = group.add_argument
    add("--lora-trigger", "--id-token", metavar="WORD", help="a word to put in front of every caption")
    add("--remove-llm-prefixes", action="store_true", help="remove beginnings such as 'The video shows'")
    add(
        "--max-sequence-length", type=int, default=1024, metavar="TOKENS", help="longer captions are cut; default 1024"
    )
    add("--batch-size", type=int, default=8, metavar="N", help="captions encoded at a time; default 8")


def _add_running(group: Any) -> None:
    add = group.add_argument
    add("--checkpoint", "--model-path", required=True, metavar="NAME", help="folder or Hub id in diffusers layout, an original "
        ".safetensors file, or the name of a packaged miniature")  # fmt: skip
    add(
        "--text-encoder",
        "--text-encoder-path",
        metavar="NAME",
        help="Gemma folder or Hub id; needed with an original file",
    )
    add("--load-text-encoder-in-8bit", action="store_true", help="quantise it with bitsandbytes")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default the best present")
    add("--dtype", choices=DTYPES, help="default bfloat16 on a GPU, float32 on a CPU")
    add(
        "--offload",
        choices=("none", "model", "sequential"),
        default="none",
        help="keep components on the CPU until they run",
    )
    add("--num-processes", type=int, default=1, metavar="N", help="processes, each with a GPU of its own; default 1")
    add("--no-progress-bar", dest="progress_bar", action="store_false", help="show no progress")


def run(options: argparse.Namespace) -> int:
    """Process the dataset and say what became of it."""
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    from ...data.processing import is_first_process, process

    device = options.device or best_device()
    check_device(device)
    check_checkpoint(options.checkpoint)
    for log in (logging, transformers_logging):
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_args, **_kwargs: print(
                _in_flags(f"note: {message}", vars(options)), file=sys.stderr
            )
            report = process(process_options(options, device))
    except (ValueError, OSError) as error:
        raise type(error)(_in_flags(str(error), vars(options))) from error
    if is_first_process():
        for what, problems in (
            ("skipped", report.skipped),
            ("no sound", report.without_sound),
            ("note", report.remarks),
        ):
            for problem in problems[:_NAMED_PROBLEMS]:
                print(_in_flags(f"{what}: {problem}", vars(options)))
            if len(problems) > _NAMED_PROBLEMS:
                print(f"{what}: {len(problems) - _NAMED_PROBLEMS} more, see {report.folder / 'skipped.json'}")
        print(f"{report.summary()}; samples are in {report.folder}")
    return 0


def process_options(options: argparse.Namespace, device: str) -> Any:
    """What the options ask for, as `ProcessOptions`."""
    import torch

    from ...data.clips import ProcessOptions
    from ...data.encoding import Source

    dtype = options.dtype or ("float32" if device.startswith("cpu") else "bfloat16")
    source = Source(
        options.checkpoint,
        options.text_encoder,
        device,
        getattr(torch, dtype),
        options.offload,
        options.load_text_encoder_in_8bit,
    )
    columns = {name: getattr(options, f"{name}_column") for name in _COLUMNS}
    columns["reference_video"] = columns.pop("reference")
    same = ("output_dir", "batch_size", "frame_rate", "reshape_mode", "vae_tiling", "with_audio", "audio_durations")
    more = ("remove_llm_prefixes", "lora_trigger", "reference_downscale_factor", "reference_temporal_scale_factor")
    rest = ("max_sequence_length", "overwrite", "num_processes", "progress_bar")
    return ProcessOptions(
        options.dataset,
        source,
        options.resolution_buckets,
        columns={name: column for name, column in columns.items() if column is not None},
        **{name: getattr(options, name) for name in (*same, *more, *rest)},
    )


def _in_flags(message: str, known: dict[str, Any]) -> str:
    """A message in which the options that a user types stand for Python's names with an underscore."""
    names = {name: flag(name) for name in known if "_" in name}
    # Parts of paths stay.
    return re.sub(r"(?<![\w/'])`?(\w+_\w+)`?(?![\w/'])", lambda word: names.get(word[1], word[0]), message)
