"""`ltx2 data`: from videos to what training reads."""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

from ..loading import DTYPES, best_device, check_checkpoint, check_device
from ..values import flag
from . import process

AddOptions = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], int]

_KINDS = ("edges", "depth", "pose")
_EXTENSIONS = "mp4,avi,mov,mkv,webm,jpg,jpeg,png"
_SHOWN_SIDE = 72
_SHOWN_NAMES = 5
_EXAMPLES = """examples:
  # long videos into scenes, and a caption for each
  ltx2 data split-scenes films scenes --filter-shorter-than 2s
  ltx2 data caption scenes --model Qwen2.5-Omni-7B

  # what training reads, and a look at it
  ltx2 data process scenes --resolution-buckets 960x544x49 --checkpoint LTX-2-diffusers
  ltx2 data check scenes --checkpoint LTX-2-diffusers

ltx2 data COMMAND --help shows the options of a command.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand with its own subcommands to the parser."""
    parser = commands.add_parser(
        "data",
        help="prepare clips for training",
        description="Prepare clips for training: split, caption, clean, encode and check them.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = parser.add_subparsers(dest="data_command", metavar="COMMAND", required=True)
    process.add_parser(steps)
    for add in (_add_split, _add_caption, _add_clean, _add_references, _add_decode, _add_check):
        add(steps)


def _add(steps: Any, name: str, arguments: Mapping[str, str], add: AddOptions, run: Run, **texts: str) -> None:
    """Add a subcommand with its positional arguments and its options."""
    usage = " ".join(["ltx2 data", name, *(argument.upper() for argument in arguments), "[options]"])
    parser = steps.add_parser(name, usage=usage, **texts)
    for argument, text in arguments.items():
        parser.add_argument(argument, type=Path, metavar=argument.upper(), help=text)
    add(parser)
    parser.set_defaults(run=_in_options(run))


def _in_options(run: Run) -> Run:
    """Let messages name options as they are typed, and missing packages be wrong input."""

    @wraps(run)
    def named(options: argparse.Namespace) -> int:
        try:
            return run(options)
        except (ValueError, ImportError) as error:
            message = str(error)
            for name in vars(options):
                message = message.replace(f"`{name}`", flag(name))
            raise ValueError(message) from error

    return named


# --- scenes ---


def _add_split(steps: Any) -> None:
    _add(
        steps,
        "split-scenes",
        {"video_or_folder": "a video, or a folder of videos", "output_dir": "folder for the scenes, one clip each"},
        _split_options,
        _split,
        help="cut videos into scenes",
        description="Cut videos where the picture changes; every scene becomes an MP4 file with its sound. Times are frames "
        "(123), seconds (12.5s) or HH:MM:SS.nnn.",
    )


def _split_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--detector",
        default="content",
        metavar="NAME",
        help="content (default), adaptive, threshold or histogram (hist)",
    )
    add("--threshold", type=float, help="what counts as a cut, in the unit of the detector; default PySceneDetect's")
    add("--min-scene-length", metavar="TIME", help="least time between two cuts; default 15 frames")
    add("--filter-shorter-than", metavar="TIME", help="leave out scenes that are shorter")
    add("--max-scenes", type=int, metavar="N", help="keep the first N scenes")
    add("--skip-start", metavar="TIME", help="leave out the beginning")
    add("--skip-end", metavar="TIME", help="leave out the end")
    add("-d", "--duration", metavar="TIME", help="look at this much, from the start or behind --skip-start")
    add(
        "--save-images",
        type=int,
        default=0,
        metavar="N",
        help="pictures of each scene, and a page that shows them; default 0",
    )
    add("--stats-file", type=Path, metavar="CSV", help="write what the detector measured of each frame of one video")
    add("--luma-only", action="store_true", default=None, help="look at brightness alone (content, adaptive)")
    add("--adaptive-window", type=int, metavar="FRAMES", help="neighbours to compare with (adaptive)")
    add("--fade-bias", type=float, help="where in the dark to cut, -1 to 1 (threshold)")
    add("--downscale", type=int, metavar="FACTOR", help="search in smaller pictures; default to 256 columns")
    add("--frame-skip", type=int, default=0, metavar="N", help="search in every (N + 1)th frame alone; default 0")
    add("--crf", type=int, default=14, help="quality of the clips, 0 (lossless) to 51; default 14")
    add("--override", action="store_true", help="split anew what was split before")
    add("--quiet", action="store_true", help="no progress bar")


def _split(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from ...data.scenes import SceneOptions, split_video
    from ...data.tables import VIDEO_SUFFIXES

    wishes = SceneOptions(**{field.name: getattr(options, field.name) for field in fields(SceneOptions)})
    videos = _files(options.video_or_folder, VIDEO_SUFFIXES, False)
    _check_apart(videos)
    if len(videos) > 1 and options.stats_file is not None:
        raise ValueError(
            f"--stats-file is for one video, but {options.video_or_folder} holds {len(videos)}; leave it out"
        )
    if videos[0].parent.resolve() == options.output_dir.resolve():
        raise ValueError(f"scenes must not lie among the videos in {str(options.output_dir)!r}; use another folder")
    arguments = (wishes, options.save_images, options.stats_file, options.crf, options.override)
    scenes, dropped, kept, bad = 0, 0, 0, {}
    for video in _progress(videos, "videos", options.quiet):
        try:
            split = split_video(video, options.output_dir, *arguments)
        except (ValueError, OSError) as error:
            if len(videos) == 1:
                raise
            bad[video] = str(error)
            continue
        if split is None:
            kept += 1
        else:
            scenes, dropped = scenes + len(split.files), dropped + split.dropped
    before = f", {kept} videos were split before" if kept else ""
    print(f"{scenes} scenes in {options.output_dir}, {dropped} left out{before}")
    return _tell_bad(bad, "cannot be split", len(videos))


def _check_apart(videos: Sequence[Path]) -> None:
    """Raise `ValueError` if the scenes of two videos would have the same names."""
    by_stem: dict[str, Path] = {}
    for video in videos:
        if (first := by_stem.setdefault(video.stem, video)) != video:
            raise ValueError(f"the scenes of {first.name!r} and {video.name!r} would have the same names; rename one")


# --- captions ---


def _add_caption(steps: Any) -> None:
    _add(
        steps,
        "caption",
        {"input": "a clip, a picture or a folder of them"},
        _caption_options,
        _caption,
        help="describe clips with a local model",
        description="Describe clips and pictures with a local model. What is there stays: broken off and begun again, it goes "
        "on.",
    )


def _caption_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="FILE", help=".json, .jsonl, .csv or .txt; default dataset.json beside")
    add("--model", metavar="FOLDER", help="vision-language model in the layout of transformers, or its Hub id")
    add("--captioner", metavar="MODULE:FUNCTION", help="function that makes a captioner of your own")
    add("-d", "--device", help="where the model runs; default the accelerator, if there is one")
    add("--use-8bit", action="store_true", help="hold the model in 8 bits, with bitsandbytes")
    add("-i", "--instruction", help="what to write; default sections [VISUAL], [SPEECH], [SOUNDS] and [TEXT]")
    add(
        "-e",
        "--extensions",
        default=_EXTENSIONS,
        help="endings of the files to take from a folder; default videos and pictures",
    )
    add("-r", "--recursive", action="store_true", help="look into folders of the folder, too")
    add("-f", "--fps", type=float, default=3.0, help="frames to look at per second; default 3")
    add("--max-frames", type=int, default=96, metavar="N", help="most frames to look at; default 96")
    add("--max-new-tokens", type=int, default=1024, metavar="N", help="longest answer in tokens; default 1024")
    add(
        "--audio",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="describe sound, if the model hears; default on",
    )
    clean = parser.add_mutually_exclusive_group()
    clean.add_argument(
        "--clean-caption", dest="clean", action="store_true", default=True, help='cut "The video shows "; the default'
    )
    clean.add_argument("--raw-caption", dest="clean", action="store_false", help="keep such phrases")
    add("--override", action="store_true", help="describe anew what has a caption")
    add("--save-every", type=int, default=5, metavar="N", help="write the file after so many captions; default 5")
    add("--quiet", action="store_true", help="no progress bar")


def _caption(options: argparse.Namespace) -> int:
    from ...data.captioning import CaptionOptions, default_output, write_captions

    if (options.model is None) == (options.captioner is None):
        raise ValueError(
            "give either --model, a folder with a vision-language model, or --captioner, a function of yours"
        )
    if options.captioner is not None and (options.use_8bit or options.device):
        raise ValueError("--device and --use-8bit belong to --model; your own captioner sees to them itself")
    wishes = CaptionOptions(
        options.instruction,
        options.fps,
        options.max_frames,
        options.audio,
        options.clean,
        options.override,
        options.save_every,
    )
    files = _files(options.input, _suffixes(options.extensions), options.recursive)
    output = options.output or default_output(options.input)
    captioner = _captioner(options)
    with _bar(len(files), "clips", options.quiet) as bar:
        report = write_captions(files, output, captioner, wishes, lambda _path: bar.update())
    places = " and ".join(map(str, report.output))
    print(f"{report.written} captions written to {places}, {report.kept} were there already")
    bad = {**report.unreadable, **dict.fromkeys(report.unanswered, "the model had nothing to say")}
    return _tell_bad(bad, "have no caption", len(files))


def _captioner(options: argparse.Namespace) -> Any:
    from ...data.captioning import TransformersCaptioner

    if options.captioner is not None:
        return _made_by(options.captioner, "--captioner")
    device = options.device or best_device()
    check_device(device)
    return TransformersCaptioner.from_pretrained(
        options.model, device, use_8bit=options.use_8bit, max_new_tokens=options.max_new_tokens
    )


def _add_clean(steps: Any) -> None:
    _add(
        steps,
        "clean-captions",
        {"dataset": "a .json, .jsonl or .csv file with captions"},
        _clean_options,
        _clean,
        help="take phrases of language models out of captions",
        description='Take phrases like "In this video," and "The scene shows " out of captions, and show what changes.',
    )


def _clean_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="FILE", help="file to write; default the dataset itself")
    add("--caption-column", metavar="NAME", help="column of the captions; default caption, text or prompt")
    add(
        "--prefixes",
        action=argparse.BooleanOptionalAction,
        default=True,
        help='cut beginnings like "In this video,"; default on',
    )
    add(
        "--phrases",
        action=argparse.BooleanOptionalAction,
        default=True,
        help='cut phrases like "The scene shows "; default on',
    )
    add("--dry-run", action="store_true", help="only show what would change")


def _clean(options: argparse.Namespace) -> int:
    from ...data.captioning import clean_captions

    changed = clean_captions(
        options.dataset, options.output, options.caption_column, options.prefixes, options.phrases, not options.dry_run
    )
    for change in changed:
        print(f"{change.entry}: - {_short(change.before)}\n{' ' * len(str(change.entry))}  + {_short(change.after)}")
    would = "would change" if options.dry_run else f"changed in {options.output or options.dataset}"
    print(f"{len(changed)} captions {would}")
    return 0


# --- references ---


def _add_references(steps: Any) -> None:
    _add(
        steps,
        "references",
        {"input": "a dataset file, a folder of clips or a clip"},
        _references_options,
        _references,
        help="draw references of clips: edges, depth, poses",
        description="Draw a reference of every clip, NAME_reference beside NAME, and name it in the dataset file as "
        "reference_path. A folder with captions in .txt files beside its clips needs no dataset file and gets none.",
    )


def _references_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--kind", choices=_KINDS, default="edges", help="what references show; default edges")
    add("--model", metavar="FOLDER", help="depth model in the layout of transformers, or its Hub id (depth)")
    add("--maker", metavar="MODULE:FUNCTION", help="function that makes a maker of your own, which draws frames")
    add("-o", "--output", type=Path, metavar="FILE", help="dataset file to write; default the one that was read")
    add("--video-column", metavar="NAME", help="column of the clips; default media_path, video or file_name")
    add("--override", action="store_true", help="draw anew what is there")
    add("--batch-size", type=int, default=100, metavar="FRAMES", help="frames to draw at a time; default 100")
    add("-d", "--device", help="where the model runs; default the accelerator, if there is one")
    add("--quiet", action="store_true", help="no progress bar")


def _references(options: argparse.Namespace) -> int:
    from ...data.references import make_references

    if not options.input.exists():
        raise FileNotFoundError(f"there is no file or folder {str(options.input)!r}")
    maker = _maker(options)
    with _bar(None, "clips", options.quiet) as bar:
        report = make_references(
            options.input,
            maker,
            options.output,
            options.video_column,
            options.batch_size,
            options.override,
            on_file=lambda _path: bar.update(),
        )
    named = f", named in {report.table}" if report.table else ""
    print(f"{len(report.made)} references drawn, {len(report.kept)} were there already{named}")
    for media in report.varying:
        print(f"{media}: its frame rate varies; process it with --frame-rate, or its reference does not keep step")
    return _tell_bad(
        report.unreadable, "have no reference", len(report.made) + len(report.kept) + len(report.unreadable)
    )


def _maker(options: argparse.Namespace) -> Any:
    from ...data.references import DepthMaker, edges

    if options.maker is not None:
        if options.model is not None or options.device is not None:
            raise ValueError("--model and --device belong to a depth model; your own --maker sees to them itself")
        return _made_by(options.maker, "--maker")
    if options.kind == "pose":
        raise ValueError("--kind pose needs --maker MODULE:FUNCTION, a function that makes what draws poses")
    if options.kind == "edges":
        if options.model is not None or options.device is not None:
            raise ValueError("--kind edges takes no --model and no --device; leave them out, or use --kind depth")
        return edges
    if options.model is None:
        raise ValueError("--kind depth needs --model, a folder with a depth model, or --maker MODULE:FUNCTION")
    device = options.device or best_device()
    check_device(device)
    return DepthMaker.from_pretrained(options.model, device)


# --- looking at what was computed ---


def _add_decode(steps: Any) -> None:
    _add(
        steps,
        "decode",
        {
            "latents_dir": "dataset, its .precomputed, or one folder of latents",
            "output_dir": "folder for clips, sounds and the contact sheet",
        },
        _decode_options,
        _decode,
        help="decode latents back into clips",
        description="Decode what was computed back into clips (pictures where there is one frame) and sounds.",
    )


def _decode_options(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, required=True)
    add = parser.add_argument
    add(
        "--vae-tiling",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="decode in tiles, to save memory; default on",
    )
    add("--seed", type=int, help="seed of the noise that a decoder adds, if it does")
    add("--with-audio", action=argparse.BooleanOptionalAction, default=True, help="decode sound; default on")
    add("--audio-latents-dir", type=Path, metavar="FOLDER", help="its latents; default audio_latents beside")
    add("--max-samples", type=int, metavar="N", help="decode N samples, spread evenly; default all")


def _decode(options: argparse.Namespace) -> int:
    from ...data.checking import SHEET, DecodePlan, decode_dataset

    plan = DecodePlan.of(options.latents_dir, options.output_dir, options.audio_latents_dir, options.with_audio)
    captions = _captions(options, options.latents_dir)
    decoder = _decoder(options, options.vae_tiling, options.seed)
    with _bar(None, "samples", options.quiet) as bar:
        report = decode_dataset(
            decoder, plan, options.output_dir / SHEET, captions, options.max_samples, lambda _name: bar.update()
        )
    sheet = f", contact sheet {report.sheet}" if report.sheet else ""
    print(f"{len(report.written)} files written to {options.output_dir}{sheet}")
    return _tell_bad(report.damaged, "cannot be decoded", len(report.written) + len(report.damaged))


def _add_check(steps: Any) -> None:
    _add(
        steps,
        "check",
        {"root": "dataset, or its .precomputed"},
        _check_options,
        _check,
        help="count and measure what was computed, and show it",
        description="Count and measure what was computed, name what is missing, damaged or odd, and with a model draw a contact "
        "sheet. Exit status 1 if something is missing, damaged or does not fit together.",
    )


def _check_options(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, required=False)
    add = parser.add_argument
    add("--sheet", type=Path, metavar="PNG", help="contact sheet to draw; default .precomputed/contact_sheet.png")
    add("--max-samples", type=int, default=24, metavar="N", help="samples on the sheet, spread evenly; default 24")
    add("--json", action="store_true", help="print JSON instead of text")


def _check(options: argparse.Namespace) -> int:
    from ...data import checking, dataset

    if options.checkpoint is None:
        wrong = [name for name in ("sheet", "device", "dtype", "dataset") if getattr(options, name) is not None]
        if wrong:
            raise ValueError(f"{flag(wrong[0])} is for the contact sheet, which needs --checkpoint")
    decoder = None if options.checkpoint is None else _decoder(options, True, None)
    compression = checking.COMPRESSION if decoder is None else decoder.compression
    with _bar(None, "files", options.quiet) as bar:
        check = checking.check_dataset(options.root, compression, lambda _path: bar.update())
    print(json.dumps(_as_json(check), indent=2) if options.json else _described(check))
    if decoder is not None:
        places = {
            name: (check.root / name, None)
            for name in check.counts
            if name in (dataset.LATENTS, dataset.AUDIO_LATENTS)
        }
        # Among the clips it would be taken for one.
        sheet = options.sheet or check.root / checking.SHEET
        plan = checking.DecodePlan(places)
        report = checking.decode_dataset(decoder, plan, sheet, _captions(options, options.root), options.max_samples)
        print(f"contact sheet {report.sheet}" if report.sheet else "no pictures to show", file=sys.stderr)
    return 0 if check.is_sound else 1


def _described(check: Any) -> str:
    """The numbers of a dataset in lines."""
    kinds = ", ".join(f"{count} {name} ({_size(check.bytes[name])})" for name, count in check.counts.items())
    sizes = ", ".join(f"{w}x{h}x{f}: {count}" for (w, h, f), count in check.sizes.most_common())
    rates = ", ".join(f"{rate:g}: {count}" for rate, count in check.rates.most_common())
    lines = [
        f"samples     {check.samples} complete",
        f"files       {kinds}",
        f"sizes       {sizes or 'no pictures'}",
        f"frame rates {rates or 'none'}",
        f"hours       {check.video_s / 3600:.2f} of video, {check.audio_s / 3600:.2f} of sound",
    ]
    if check.tokens is not None:
        lines.append(
            f"captions    {check.tokens[0]} to {check.tokens[2]} tokens, half of them at most {check.tokens[1]}"
        )
    if check.without_sound:
        lines.append(f"no sound    {_some(check.without_sound)}")
    lines += [f"missing     {folder}: {_some(names)}" for folder, names in check.missing.items()]
    lines += [f"lone files  {folder}: {_some(names)}" for folder, names in check.orphans.items()]
    lines += [f"damaged     {path}: {reason}" for path, reason in check.damaged.items()]
    lines += [f"mismatched  {name}: {reason}" for name, reason in check.mismatched.items()]
    lines += [
        f"odd latents {name}: mean {mean:.3f}, standard deviation {deviation:.3f}"
        for name, (mean, deviation) in check.outliers.items()
    ]
    return "\n".join([*lines, "nothing is wrong" if check.is_sound else "not all is well"])


def _as_json(check: Any) -> dict[str, Any]:
    """The same for programs."""
    content = {**asdict(check), "root": str(check.root), "is_sound": check.is_sound}
    content["sizes"] = {f"{w}x{h}x{f}": count for (w, h, f), count in check.sizes.items()}
    content["rates"] = {f"{rate:g}": count for rate, count in check.rates.items()}
    content["damaged"] = {str(path): reason for path, reason in check.damaged.items()}
    return content


def _add_model(parser: argparse.ArgumentParser, required: bool) -> None:
    add = parser.add_argument
    add("--checkpoint", "--model-path", required=required, metavar="NAME", help="folder or Hub id in diffusers layout, an original "
        ".safetensors file, or the name of a packaged miniature")  # fmt: skip
    add(
        "--dataset",
        type=Path,
        metavar="DATASET",
        help="metadata file or folder with the captions for the contact sheet",
    )
    add("--device", help="where networks run; default the accelerator, if there is one")
    add("--dtype", choices=DTYPES, help="data type of weights; default bfloat16 on an accelerator, float32 on a CPU")
    add("--quiet", action="store_true", help="no progress bar")


def _decoder(options: argparse.Namespace, tiling: bool, seed: int | None) -> Any:
    import torch

    from ...data.checking import Decoder
    from ...data.encoding import Source

    check_checkpoint(options.checkpoint)
    device = options.device or best_device()
    check_device(device)
    dtype = getattr(torch, options.dtype or ("float32" if device.startswith("cpu") else "bfloat16"))
    return Decoder(Source(options.checkpoint, device=device, dtype=dtype).load_decoders(), tiling, seed)


def _captions(options: argparse.Namespace, root: Path) -> dict[str, str]:
    """Captions for the sheet: of the dataset that is named, or of the one beside whose clips the samples lie."""
    from ...data.checking import captions_of
    from ...data.dataset import PRECOMPUTED, precomputed_folder

    if options.dataset is not None:
        return captions_of(options.dataset)
    folder = precomputed_folder(root.absolute())
    place = next((place.parent for place in (folder, folder.parent) if place.name == PRECOMPUTED), None)
    if place is None:
        print("the contact sheet has no captions; --dataset names what they stand in", file=sys.stderr)
        return {}
    try:
        return captions_of(place)
    except (ValueError, OSError) as error:
        print(f"the contact sheet has no captions: {error}", file=sys.stderr)
        return {}


# --- what they share ---


def _files(source: Path, suffixes: Sequence[str], recursive: bool) -> list[Path]:
    """The file, or the media files of the folder."""
    from ...data.tables import media_files

    if source.is_file():
        return [source]
    if not source.is_dir():
        raise FileNotFoundError(f"there is no file or folder {str(source)!r}")
    if not (files := media_files(source, suffixes, recursive)):
        deeper = "" if recursive else " itself"
        raise ValueError(f"{str(source)!r}{deeper} holds no files that end in {', '.join(suffixes)}")
    return files


def _suffixes(text: str) -> list[str]:
    """Endings of `mp4,.PNG`."""
    names = [name.strip().lower().removeprefix(".") for name in text.split(",")]
    if not all(names):
        raise ValueError(f"--extensions has to list endings like mp4,png but is {text!r}")
    return [f".{name}" for name in names]


def _made_by(spec: str, option: str) -> Any:
    """What a user's own function makes, which may lie in the current folder."""
    module, _, name = spec.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{option} {spec!r} has to name a function as module:function ({error})") from error
    finally:
        sys.path.pop(0)
    return factory()


def _bar(total: int | None, unit: str, quiet: bool) -> Any:
    from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types

    return tqdm(total=total, unit=f" {unit}", disable=quiet, file=sys.stderr)


def _progress(items: Sequence[Path], unit: str, quiet: bool) -> Iterable[Path]:
    with _bar(len(items), unit, quiet) as bar:
        for item in items:
            yield item
            bar.update()


def _tell_bad(bad: Mapping[Path, str], what: str, total: int) -> int:
    """Name what could not be done; the exit status is 1 if that is all."""
    if bad:
        print(f"{len(bad)} of {total} files {what}:", file=sys.stderr)
    for path, reason in bad.items():
        print(f"  {path}: {reason}", file=sys.stderr)
    return 1 if bad and len(bad) == total else 0


def _short(text: str) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_SIDE else f"{line[:_SHOWN_SIDE]}..."


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"{len(names)}, {', '.join(names[:_SHOWN_NAMES])}{more}"


def _size(count: int) -> str:
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"
