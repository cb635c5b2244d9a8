"""`ltx2 storyboard`: from a file that tells a long clip shot by shot to the clip, and a manifest beside it."""

import argparse
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...checkpoints.packaged import PACKAGED, PACKAGED_SIZE
from ..generate import check_written, description, identity_of, machine_defaults, preview_arguments
from ..identities import checkpoint_identity, environment
from ..loading import CHECKPOINT, check_checkpoint, check_device, load_pipeline
from ..manifest import STORYBOARD, input_hashes, write_manifest
from ..modes import check_together
from ..options import OPTIONS
from ..values import Options
from .ranks import check_alone

_CLIP_HELP = "file to write, .mp4 or .mov; FILE.json beside it says how it was made"
_TAKEN = {
    "output": ("output", "preview", "preview_every"),
    "checkpoint (default: that of the storyboard)": (
        *("checkpoint", "text_encoder", "device", "dtype", "offload", "tiling", "compile", "step_cache"),
        *("prompt_cache", "no_text_encoder"),
    ),
}
# What overlaps in the miniature's short segments.
_PACKAGED_OVERLAP = 9
_MODEL = ("checkpoint", "text_encoder", "upsampler", "loras", "distilled_lora")
# What a storyboard says in another way than an option.
_IN_A_FILE = {
    "--refine-with-same-weights": "`stage_2_adapters: {}`",
    "--distilled-lora": "`distilled_lora` of `model`",
    "--lora": "`loras` of `model`",
    "--upsampler": "`upsampler` of `model`",
    "--storyboard": "the storyboard's",
    "remake=True": "--remake",
}
_EPILOG = """\
a storyboard is a YAML file:
  prompt, duration_s and perhaps keyframes for each of its shots, and beside shots what holds for all: width, height,
  frame_rate, seed, audio, guidance_scale, two_stage, ...; docs/tasks/storyboard.md shows one

FILE.segments holds the finished segments until the clip is there: after a kill, the same command goes on behind them
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "storyboard",
        help="make a long clip of several shots",
        description="Make a long clip with sound of several shots, segment by segment, and write it to an MP4 file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("storyboard", type=Path, metavar="FILE.yaml", help="the shots, and what holds for all of them")
    for title, names in _TAKEN.items():
        group = parser.add_argument_group(title)
        for name in names:
            option = OPTIONS[name]
            (replace(option, help=_CLIP_HELP) if name == "output" else option).add_to(group)
    parser.add_argument(
        "--remake", action="store_true", help="make segments anew that the storyboard asked for in another way before"
    )
    parser.add_argument("--keep-segments", action="store_true", help="keep FILE.segments when the clip is there")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read the storyboard and make the clip."""
    from ...application.storyboard.board import parse_storyboard
    from ...yaml_files import read_mapping

    given = {name: value for name, value in vars(options).items() if name in OPTIONS and value is not None}
    check_together(given)
    values = read_mapping(options.storyboard, "storyboard", "keys such as `shots:`")
    folder = options.storyboard.parent
    model = values.pop("model", None) or {}
    given = {**_loaded(model, folder), **given}
    board = parse_storyboard(sized(values, given.get("checkpoint", CHECKPOINT)), folder).as_mapping()
    make({**given, STORYBOARD: board}, options.remake, options.keep_segments)
    return 0


def sized(values: Mapping[str, Any], checkpoint: str) -> dict[str, Any]:
    """What a file holds, with the sizes that a packaged checkpoint makes where it says none."""
    return {**(PACKAGED_SIZE | {"overlap_frames": _PACKAGED_OVERLAP} if checkpoint in PACKAGED else {}), **values}


def make(given: Options, remake: bool = False, keep_segments: bool = False) -> dict[str, Any]:
    """Make the clip of a storyboard, write it with its manifest, and return the facts of the manifest.

    Args:
        given: Options that were given, by name, and `storyboard`, what the file holds.
        remake, keep_segments: See [`~ltx2_diffusers.application.storyboard.making.make_storyboard`].
    """
    from ...application.storyboard.board import parse_storyboard
    from ...application.storyboard.finished import FinishedSegments
    from ...application.storyboard.making import StoryboardProgress, make_storyboard
    from ...application.storyboard.plan import plan_storyboard
    from ...media.files import check_suffix
    from ...media.writing import VIDEO_SUFFIXES
    from ...pipelines.recipes.extension.pipeline import LTX2ExtendPipeline

    def tell(progress: StoryboardProgress) -> None:
        if progress.path is not None:
            print(f"segment {progress.segment} of {progress.num_segments}: {progress.path}", flush=True)

    check_alone("a storyboard")
    options = with_defaults(given)
    with _speaking_of_a_file():
        board = parse_storyboard(options[STORYBOARD])
        board.check()
        plan_storyboard(board)
        path = check_suffix(options["output"], VIDEO_SUFFIXES, "--output")
        check_written(options, {path: "--output"})
        hashes = input_hashes(options)
        check_checkpoint(options["checkpoint"])
        check_device(options["device"])
        started = time.perf_counter()
        pipeline = load_pipeline(options, LTX2ExtendPipeline)
        # Segments stay until the manifest is there, without which the clip could not be made again.
        call: dict[str, Any] = {
            "identity": _identity(options, hashes),
            "remake": remake,
            "keep_segments": True,
            "on_progress": tell,
        }
        output = make_storyboard(board, pipeline, path, **call, **preview_arguments(options))
    info = {name: value for name, value in (output.info or {}).items() if name != "path"}
    facts: dict[str, Any] = {
        "mode": STORYBOARD,
        "pipeline": "LTX2ExtendPipeline",
        "environment": environment(options["device"]),
        "result": {**info, "seconds": round(time.perf_counter() - started, 3)},
        "outputs": [identity_of(path)],
    }
    kept = {name: value for name, value in options.items() if name not in ("two_stage", "refine_with_same_weights")}
    write_manifest(path, kept, hashes, facts)
    if not keep_segments:
        FinishedSegments(path).remove()
    print(f"{path}: {description(facts['outputs'][0])}, {info['segments']} segments, {info['preset']} preset")
    return facts


def as_written(storyboard: Mapping[str, Any], prompts: list[str]) -> dict[str, Any]:
    """What a storyboard's file would hold with the prompts, one per segment, that a director wrote for it."""
    from ...application.storyboard.board import parse_storyboard
    from ...application.storyboard.plan import plan_storyboard

    board = parse_storyboard(storyboard)
    if not board.director:
        return dict(storyboard)
    planned = plan_storyboard(board)
    texts = [
        [text for text, segment in zip(prompts, planned) if segment.shot == place] for place in range(len(board.shots))
    ]
    shots = [replace(shot, prompt=text) for shot, text in zip(board.shots, texts)]
    return replace(board, shots=shots, director=False, prompt=None, director_tokens=None).as_mapping()


def with_defaults(given: Options) -> dict[str, Any]:
    """The options with everything that a later version might choose otherwise."""
    defaults = {name: OPTIONS[name].default for name in ("checkpoint", "offload", "preview_every")}
    options: dict[str, Any] = {**defaults, **machine_defaults(given), **given}
    board = dict(options[STORYBOARD])
    if board.get("two_stage"):
        # By these, loading knows what the checkpoint has to be able to do.
        options["two_stage"] = True
        if "distilled_lora" in options and board.get("stage_2_adapters") is None:
            from ...adapters.active import DISTILLED_ADAPTER

            board["stage_2_adapters"] = {DISTILLED_ADAPTER: options["distilled_lora"][1]}
        elif options["checkpoint"] in PACKAGED and board.get("stage_2_adapters") is None:
            board["stage_2_adapters"] = {}
        if board.get("stage_2_adapters") == {}:
            options["refine_with_same_weights"] = True
    elif unread := [name for name in ("distilled_lora", "upsampler") if name in options]:
        raise ValueError(
            f"`{unread[0]}` of `model` means nothing without a second stage; set `two_stage: true`, or leave it out"
        )
    return {**options, STORYBOARD: board}


def _loaded(model: Any, folder: Path) -> dict[str, Any]:
    """The options that the section `model` of a storyboard stands for."""
    if not isinstance(model, Mapping):
        raise ValueError(f"`model` has to be a mapping with {', '.join(_MODEL)} but is {model!r}")
    if unknown := [name for name in model if name not in _MODEL]:
        raise ValueError(f"model: unknown key `{unknown[0]}`; there are {', '.join(_MODEL)}")
    options: dict[str, Any] = {}
    for name in ("checkpoint", "text_encoder"):
        if (value := model.get(name)) is not None:
            # A name that lies nowhere is one of the Hub.
            place = folder / str(value)
            options[name] = str(place) if place.exists() and value not in PACKAGED else str(value)
    if model.get("upsampler") is not None:
        options["upsampler"] = folder / str(model["upsampler"])
    if model.get("distilled_lora") is not None:
        options["distilled_lora"] = _lora("distilled_lora", model["distilled_lora"], folder)
    loras = model.get("loras") or {}
    if not isinstance(loras, Mapping):
        raise ValueError(f"model: `loras` has to be a mapping of adapter names to files but is {loras!r}")
    if loras:
        options["lora"] = [[*_lora(f"loras.{name}", lora, folder), str(name)] for name, lora in loras.items()]
    return options


def _lora(name: str, value: Any, folder: Path) -> list[Any]:
    """File and strength of a LoRA, which is a file's name or a mapping of both."""
    from ...declared import as_declared

    given = value if isinstance(value, Mapping) else {"file": value}
    if unknown := [key for key in given if key not in ("file", "strength")]:
        raise ValueError(f"model: `{name}` has the unknown key `{unknown[0]}`; there are file, strength")
    file = as_declared(f"model: {name}.file", given.get("file"), str)
    return [folder / file, as_declared(f"model: {name}.strength", given.get("strength", 1.0), float)]


def _identity(options: Options, hashes: Mapping[Path, str]) -> dict[str, Any]:
    """What segments depend on beside the storyboard and the files that it names."""
    loras = [*options.get("lora", []), *([options["distilled_lora"]] if "distilled_lora" in options else [])]
    names = [name for name in ("checkpoint", "text_encoder") if name in options]
    return {
        **{name: checkpoint_identity(options[name]) for name in names},
        "loras": [[hashes[file], *rest] for file, *rest in loras],
        "upsampler": hashes[options["upsampler"]] if "upsampler" in options else None,
        "dtype": options["dtype"],
        "tiling": "tiling" in options,
        # Segments of earlier versions say nothing of it, and had none.
        **({"step_cache": options["step_cache"]} if "step_cache" in options else {}),
        # Compiled code rounds in another way.
        **({"compile": True} if "compile" in options else {}),
    }


@contextmanager
def _speaking_of_a_file() -> Iterator[None]:
    """Put what is wrong in the words of a storyboard and of this command."""
    try:
        yield
    except (ValueError, OSError) as error:
        message = str(error)
        for option, said in _IN_A_FILE.items():
            message = message.replace(option, said)
        raise type(error)(message) from error
