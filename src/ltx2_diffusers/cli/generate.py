"""`ltx2 generate`: from options to a file, and a manifest beside it."""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..checkpoints.packaged import PACKAGED, PACKAGED_SIZE
from ..checks import check_seed
from .calls import length_bounds
from .identities import content_identity, environment, file_sha256
from .jobs.ranks import check_parallel, own_device, place_to_write, share, sharing
from .loading import best_device, check_checkpoint, check_device, load_pipeline
from .manifest import input_hashes, manifest_path, write_manifest
from .messages import in_options
from .modes import Mode, call_arguments, check_call, choose_mode, mode_table
from .options import OPTIONS, add_options
from .preview import ContactSheet
from .values import Options, flag, input_files

_PREVIEW_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

_EPILOG = f"""\
the options choose what is made; the first of these that is given decides:
{mode_table()}

the packaged miniature makes {PACKAGED_SIZE["width"]} x {PACKAGED_SIZE["height"]} pixels and \
{PACKAGED_SIZE["num_frames"]} frames by default

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
    from ..media.copying import EncodedAnewWarning

    with _speaking_of(given):
        mode = choose_mode(given)
        options = with_defaults(given, mode)
        check_parallel(options)
        _check(options)
        hashes = input_hashes(options)
        call = call_arguments(mode, options)
        check_call(mode, call, options)
        check_checkpoint(options["checkpoint"])
        check_device(options["device"])
        _announce_encoding(options)
    started = time.perf_counter()
    path = Path(options["output"])
    with sharing(options["device"]) as writes, place_to_write(path.parent, writes) as folder:
        with _speaking_of(given), warnings.catch_warnings():
            pipeline = load_pipeline(options, mode.pipeline_class)
            share(pipeline, options)
            # What is encoded anew is said already, of the file that is written.
            warnings.simplefilter("ignore", EncodedAnewWarning)
            output = pipeline(**call, **_run_arguments(options, folder / path.name, writes))
            made = output.info.pop("path")
            files = [Path(file) for file in ([made] if isinstance(made, str) else made)]
        facts: dict[str, Any] = {
            "mode": mode.name,
            "pipeline": mode.pipeline,
            "environment": environment(options["device"]),
            "result": {"prompt": options["prompt"], **output.info, "seconds": round(time.perf_counter() - started, 3)},
            "outputs": [identity_of(file) for file in files],
        }
        if writes:
            # First the manifest, which names the content of the files: should the process be killed before they stand
            # beside it, a replay finds out. The manifest of an older version might name nothing.
            write_manifest(path, options, hashes, facts)
            for file in files:
                os.replace(file, path.with_name(file.name))
    for file, identity in zip(files if writes else (), facts["outputs"]):
        print(
            f"{path.with_name(file.name)}: {description(identity)}, made in {facts['result']['seconds']:.1f} s: "
            f"{_settings(mode, output)}"
        )
    return facts


@contextmanager
def _speaking_of(given: Options) -> Iterator[None]:
    """Put what is wrong with a call in terms of options."""
    try:
        yield
    except ValueError as error:
        raise ValueError(in_options(str(error), given)) from error


def identity_of(file: Path) -> dict[str, Any]:
    """What tells a written file from others, and what it decodes to."""
    return {"file": file.name, "sha256": file_sha256(file), **content_identity(file)}


def with_defaults(given: Options, mode: Mode) -> dict[str, Any]:
    """The options with everything that a later version might choose otherwise."""
    from ..pipelines.plan import DEFAULT_SIZE

    takes = mode.takes
    defaults = {
        name: option.default
        for name, option in OPTIONS.items()
        if option.default is not None and (option.argument is None or option.argument in takes)
    }
    defaults |= machine_defaults(given)
    is_packaged = {**defaults, **given}["checkpoint"] in PACKAGED
    if "video" not in given:
        sizes = PACKAGED_SIZE if is_packaged else dict(zip(("height", "width", "num_frames"), DEFAULT_SIZE))
        defaults |= {name: value for name, value in {**sizes, "frame_rate": 24.0}.items() if name in takes}
    if not given.keys().isdisjoint(("extend", "auto_length")):
        # The parts of a long clip have the length that makes its duration.
        defaults.pop("num_frames", None)
    if "auto_length" in given:
        defaults |= dict(zip(("min_seconds", "max_seconds"), length_bounds(given)))
    if "vram" in given:
        # The plan says where weights wait.
        defaults.pop("offload")
    if is_packaged and "two_stage" in given and "distilled_lora" not in given:
        defaults["refine_with_same_weights"] = True
    options = {**defaults, **given}
    return {**options, "device": own_device(options["device"])}


def machine_defaults(given: Options) -> dict[str, Any]:
    """Where and in which type of numbers a pipeline runs if nobody says."""
    device = given.get("device") or best_device()
    return {"device": device, "dtype": "float32" if device == "cpu" else "bfloat16"}


def _run_arguments(options: Options, path: Path, writes: bool) -> dict[str, Any]:
    """Arguments of the call that say where noise comes from and where the result goes; a preview is written by one process."""
    import torch

    generator = torch.Generator("cpu").manual_seed(options["seed"])
    # The file is written while the clip is decoded.
    arguments: dict[str, Any] = {"generator": generator, "output_type": "uint8", "save_path": path}
    return arguments | (preview_arguments(options) if writes else {})


def preview_arguments(options: Options) -> dict[str, Any]:
    """Arguments of the call that keep a preview, if one is asked for."""
    if "preview" not in options:
        return {}
    sheet = ContactSheet(_preview_path(options), options["preview_every"])
    return {"callback_on_step_end": sheet, "callback_on_step_end_tensor_inputs": sheet.inputs}


def _check(options: Options) -> None:
    """What no pipeline checks: the seed, and the files that are written: their suffixes, that none is an input, and that
    they can be written at all.
    """
    from ..media.files import check_suffix, item_paths
    from ..media.writing import VIDEO_SUFFIXES

    check_seed("seed", options["seed"])
    output = Path(options["output"])
    if "audio_only" in options:
        check_suffix(output, (".wav",), "--output of --audio-only")
    else:
        check_suffix(output, VIDEO_SUFFIXES, "--output")
    # The prompts of an extension are those of its parts.
    clips = 1 if "extend" in options else len(options["prompt"]) * options.get("num_videos", 1)
    written = {Path(name): "--output" for name in item_paths(output, max(1, clips))}
    check_written(options, written)


def check_written(options: Options, written: dict[Path, str]) -> None:
    """Raise `ValueError` if a file that is to be written would overwrite an input, or cannot be written.

    Args:
        options: All options.
        written: The clips, by what they are; the manifest and the preview are added.
    """
    from ..atomic import check_writable
    from ..media.files import check_suffix

    written = {**written, manifest_path(Path(options["output"])): "the manifest of --output"}
    if "preview" in options:
        written[check_suffix(_preview_path(options), _PREVIEW_SUFFIXES, "--preview")] = "--preview"
        if options["preview_every"] < 1:
            raise ValueError(f"--preview-every has to be at least 1 but is {options['preview_every']}; use 5")
    inputs = {path.absolute(): flag(option) for path, option in input_files(options).items()}
    for path, what in written.items():
        if option := inputs.get(path.absolute()):
            raise ValueError(f"{what} would overwrite {option} {str(path)!r}; choose another name")
        try:
            check_writable(path)
        except OSError as error:
            raise ValueError(f"{what}: {error}") from error


def _announce_encoding(options: Options) -> None:
    """Say which given pictures and sound the file to be written cannot hold as they are."""
    from ..media.copying import encoding_notice
    from ..media.reading import probe

    given = {"video": None, "audio": options.get("audio")}
    if options.keys() & {"add_sound", "keep_video"}:
        given["video"] = options["video"]
    if "retake" in options:
        given["audio"] = options.get("audio", options["video"]) if "keep_audio" in options else None
        if given["audio"] is not None and probe(given["audio"]).sampling_rate is None:
            given["audio"] = None
    # A window of a sound, another tempo of it or a new one after it has no packets to copy.
    if options.get("audio_start") or options.get("audio_cond_noise_scale") or options.get("audio_fit") == "stretch":
        given["audio"] = None
    for kind, file in given.items():
        if file is not None and (notice := encoding_notice(file, kind, Path(options["output"]).suffix.lower())):
            print(f"warning: {notice}", file=sys.stderr)


def _preview_path(options: Options) -> Path:
    return Path(options["preview"] or Path(options["output"]).with_suffix(".preview.png"))


def description(made: Mapping[str, Any]) -> str:
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
    words = f"{mode.name}, {output.info['preset']} preset, {' + '.join(map(str, steps))} steps"
    passes = output.info["passes"]
    stages = zip(steps, passes if isinstance(passes, list) else [passes])
    skipped = [(count, one["skip_ratio"]) for count, stage in stages for one in stage.values()]
    share = sum(count * ratio for count, ratio in skipped) / max(1, sum(count for count, _ in skipped))
    return f"{words}, {100 * share:.0f} % of the passes skipped" if share else words
