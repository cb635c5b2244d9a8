"""`ltx2 generate`: from options to a file, and a manifest beside it."""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.packaged import PACKAGED
from .environment import environment
from .identities import content_identity
from .loading import best_device, check_device, load_pipeline
from .manifest import input_hashes, manifest_path, write_manifest
from .messages import in_options
from .modes import Mode, call_arguments, choose_mode, mode_table
from .options import OPTIONS, add_options
from .preview import ContactSheet
from .values import Options, flag, input_files

_MINIATURE_SIZE = {"width": 256, "height": 192, "num_frames": 25}
_PREVIEW_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

_EPILOG = f"""\
the options choose what is made; the first of these that is given decides:
{mode_table()}

packaged miniatures make {_MINIATURE_SIZE["width"]} x {_MINIATURE_SIZE["height"]} pixels and \
{_MINIATURE_SIZE["num_frames"]} frames by default

examples:
  ltx2 generate --prompt "a lighthouse in a storm" --seed 7 -o lighthouse.mp4
  ltx2 generate --prompt "she sings" --image singer.png --audio song.wav --two-stage -o song.mp4
  ltx2 generate --prompt "a cat jumps" --video cat.mp4 --retake 1.5:3.0 -o jump.mp4
  ltx2 generate --prompt "the train goes on" --video train.mp4 --extend 5 -o longer.mp4
  ltx2 replay lighthouse.mp4.json
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "generate",
        help="generate a video with sound, from text, pictures, clips and sound",
        usage="ltx2 generate --prompt TEXT -o FILE [options]",
        description="Generate a video with sound and write it to an MP4 file (H.264 and AAC).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Generate and write the file."""
    generate({name: value for name, value in vars(options).items() if name in OPTIONS and value is not None})
    return 0


def generate(given: Options) -> dict[str, Any]:
    """Generate what the options ask for, write it with its manifest, and return the facts of the manifest.

    Args:
        given: Options that were given, by name.

    Raises:
        ValueError: If options contradict each other or a value is not valid; the message names options.
    """
    try:
        mode = choose_mode(given)
        options = with_defaults(given, mode)
        _check(options)
        hashes = input_hashes(options)
        call = call_arguments(mode, options)
        check_device(options["device"])
        started = time.perf_counter()
        pipeline = load_pipeline(options, mode.pipeline_class)
        output = pipeline(**call, **_run_arguments(options))
    except ValueError as error:
        raise ValueError(in_options(str(error), given)) from error
    path = Path(options["output"])
    paths = [output.info["path"]] if "path" in output.info else output.save(path)
    facts: dict[str, Any] = {
        "mode": mode.name,
        "pipeline": mode.pipeline,
        "environment": environment(options["device"]),
        "result": {"prompt": options["prompt"], **output.info, "seconds": round(time.perf_counter() - started, 3)},
        "outputs": [{"file": Path(file).name, **content_identity(Path(file))} for file in paths],
    }
    facts["result"].pop("path", None)
    write_manifest(path, options, hashes, facts)
    for file, made in zip(paths, facts["outputs"]):
        print(f"{file}: {_description(made)}, made in {facts['result']['seconds']:.1f} s: {_settings(mode, output)}")
    if pipeline.config.get("_weights") == "random":
        print(
            f"{options['checkpoint']} has random weights, made for trying things out: it shows noise, not the prompt"
        )
    return facts


def with_defaults(given: Options, mode: Mode) -> dict[str, Any]:
    """The options with everything that a later version might choose otherwise."""
    from ..pipelines.plan import DEFAULT_SIZE

    takes, device = mode.takes, given.get("device") or best_device()
    defaults = {
        name: option.default
        for name, option in OPTIONS.items()
        if option.default is not None and (option.argument is None or option.argument in takes)
    }
    defaults |= {"device": device, "dtype": "float32" if device == "cpu" else "bfloat16"}
    is_packaged = {**defaults, **given}["checkpoint"] in PACKAGED
    if "video" not in given:
        sizes = _MINIATURE_SIZE if is_packaged else dict(zip(("height", "width", "num_frames"), DEFAULT_SIZE))
        defaults |= {name: value for name, value in {**sizes, "frame_rate": 24.0}.items() if name in takes}
    if "extend" in given:
        # The parts of a long clip have the length that makes its duration.
        defaults.pop("num_frames", None)
    if is_packaged and "two_stage" in given and "distilled_lora" not in given:
        defaults["refine_with_same_weights"] = True
    return {**defaults, **given}


def _run_arguments(options: Options) -> dict[str, Any]:
    """Arguments of the call that say where noise comes from and where the result goes."""
    import torch

    generator = torch.Generator("cpu").manual_seed(options["seed"])
    arguments: dict[str, Any] = {"generator": generator, "output_type": "uint8"}
    if "extend" in options:
        # A long clip is written while it is made.
        arguments["save_path"] = options["output"]
    if "preview" in options:
        sheet = ContactSheet(_preview_path(options), options["preview_every"])
        arguments |= {"callback_on_step_end": sheet, "callback_on_step_end_tensor_inputs": sheet.inputs}
    return arguments


def _check(options: Options) -> None:
    """What no pipeline checks: the seed, and names of files that are written: right suffixes, and no input among them."""
    from ..media.files import check_suffix
    from ..media.writing import VIDEO_SUFFIXES

    if not -(2**63) <= options["seed"] < 2**64:
        raise ValueError(f"--seed has to be a whole number of at most 64 bits but is {options['seed']}; use 10")
    output = Path(options["output"])
    if "audio_only" in options:
        check_suffix(output, (".wav",), "--output of --audio-only")
    else:
        check_suffix(output, VIDEO_SUFFIXES, "--output")
    written = {output: "--output", manifest_path(output): "the manifest of --output"}
    if "preview" in options:
        written[check_suffix(_preview_path(options), _PREVIEW_SUFFIXES, "--preview")] = "--preview"
        if options["preview_every"] < 1:
            raise ValueError(f"--preview-every has to be at least 1 but is {options['preview_every']}; use 5")
    inputs = {path.absolute(): flag(option) for path, option in input_files(options).items()}
    for path, what in written.items():
        if option := inputs.get(path.absolute()):
            raise ValueError(f"{what} would overwrite {option} {str(path)!r}; choose another name")


def _preview_path(options: Options) -> Path:
    return Path(options["preview"] or Path(options["output"]).with_suffix(".preview.png"))


def _description(made: Mapping[str, Any]) -> str:
    """Sizes of a written clip in words."""
    from fractions import Fraction

    if "video" not in made:
        return f"{made['audio']['samples'] / made['audio']['sampling_rate']:.2f} s of sound"
    video = made["video"]
    seconds = video["frames"] / float(Fraction(video["frame_rate"]))
    sound = "" if "audio" in made else ", silent"
    return f"{video['frames']} frames of {video['width']}x{video['height']}, {seconds:.2f} s{sound}"


def _settings(mode: Mode, output: Any) -> str:
    """Preset and steps in words."""
    sigmas = output.info["sigmas"]
    steps = [len(stage) - 1 for stage in (sigmas if isinstance(sigmas[0], list) else [sigmas])]
    return f"{mode.name}, {output.info['preset']} preset, {' + '.join(map(str, steps))} steps"
