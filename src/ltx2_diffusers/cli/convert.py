"""`ltx2 convert`: checkpoints from the original layout into diffusers' layout and back."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .loading import QUANTIZATIONS, float8_config

LAYOUTS = ("diffusers", "original")
FILES = (".safetensors", ".gguf")
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
DTYPES = (*_SHORT, *_SHORT.values())
# Options that only one direction has.
_ONLY = {
    "diffusers": ("text_encoder", "tokenizer", "latent_upsampler", "max_shard_size", "distilled"),
    "original": ("metadata_from", "per_component"),
}
_EXAMPLES = """examples:
  # an original file into a folder that holds a complete pipeline, text encoder and upscaler included
  ltx2 convert ltx-2-19b-dev.safetensors LTX-2-diffusers --text-encoder gemma-3-12b-it-qat-q4_0-unquantized \\
      --latent-upsampler ltx-2-spatial-upscaler-x2-1.0.safetensors --check

  # and back: transformer, connectors, VAEs and vocoder in one file
  ltx2 convert LTX-2-diffusers ltx-2-19b-dev.safetensors --check

  # LTX-2.5, a folder with a file for each component, and back
  ltx2 convert LTX-2.5 LTX-2.5-diffusers --text-encoder gemma-4-12b
  ltx2 convert LTX-2.5-diffusers LTX-2.5-again --per-component --metadata-from LTX-2.5/transformer.safetensors

  # layers of the transformer in float8, with scales
  ltx2 convert ltx-2-19b-dev.safetensors LTX-2-fp8 --quantize fp8-scaled-mm --calibration amax.json

  # one component
  ltx2 convert ltx-2-temporal-upscaler-x2-1.0.safetensors upscaler

Memory: one tensor at a time. What is written appears under its name only when it is complete.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "convert",
        usage="ltx2 convert SOURCE OUTPUT [options]",
        help="convert a checkpoint between the original and diffusers' layout",
        description="Convert an original checkpoint file into a folder in diffusers' layout, or a folder into a file. "
        "Exit status 1 if --check finds differences.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        help="original .safetensors file or a folder of them, folder of a pipeline or component, or a packaged name",
    )
    parser.add_argument("output", help="folder or .safetensors file to write")
    parser.add_argument("--to", choices=LAYOUTS, help="layout to write (default: the one that the source is not in)")
    parser.add_argument(
        "--check",
        action="store_true",
        help="afterwards compare every config value, tensor name, dtype, shape and byte of input and output",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="cast floating-point tensors (default: as stored; scaled fp8 weights take the dtype of the others)",
    )
    parser.add_argument(
        "--quantize",
        choices=QUANTIZATIONS,
        help="write layers of the transformer in float8 (default: as real weights; scaled fp8-scaled-mm files keep their scales)",
    )
    parser.add_argument(
        "--calibration", metavar="FILE", help="of --quantize fp8-scaled-mm: scales of inputs, from `ltx2 calibrate`"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_directed_options(parser)
    parser.set_defaults(run=run)


def _add_directed_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("into diffusers' layout")
    group.add_argument(
        "--text-encoder",
        metavar="FOLDER",
        help="Gemma folder, a pipeline or an original file that has one, to copy in",
    )
    group.add_argument("--tokenizer", metavar="FOLDER", help="tokenizer (default: in or beside the text encoder)")
    group.add_argument("--latent-upsampler", metavar="FILE", help="upscaler file to add as latent_upsampler/")
    group.add_argument("--max-shard-size", metavar="SIZE", help="largest weight file, e.g. 500MB (default: 5GB)")
    group.add_argument(
        "--distilled",
        action=argparse.BooleanOptionalAction,
        help="write the scheduler of a distilled model (default: if the file's name says distilled)",
    )
    group = parser.add_argument_group("into the original layout")
    group.add_argument(
        "--metadata-from",
        metavar="FILE",
        help="original file whose metadata are carried over (license, unknown fields)",
    )
    group.add_argument(
        "--per-component",
        action="store_true",
        default=None,
        help="write a folder with a file for each component, as LTX-2.5 is published (default: one file)",
    )


def run(options: argparse.Namespace) -> int:
    """Convert, and compare if that is asked for."""
    import torch
    from tqdm import tqdm  # type: ignore[import-untyped]  # it ships no types

    from ..checkpoints import convert

    source = _existing(options.source)
    to = _direction(options, source)
    _check_output(options.output, "files" if options.per_component else to)
    dtype = None if options.dtype is None else getattr(torch, _SHORT.get(options.dtype, options.dtype))
    method = float8_config(options.quantize, options.calibration)
    given = {name: getattr(options, name) for name in _ONLY[to] if getattr(options, name) is not None}
    write = convert.convert_to_diffusers if to == "diffusers" else convert.convert_to_original
    with tqdm(unit=" tensors", disable=options.quiet, file=sys.stderr) as progress:
        write(source, options.output, dtype=dtype, quantization_config=method, on_tensor=_counter(progress), **given)
    if not options.check:
        return 0
    original, folder = (source, options.output) if to == "diffusers" else (options.output, source)
    found = convert.differences(original, folder, dtype, method)
    print("\n".join(found) or "equal")
    return 1 if found else 0


def _counter(progress: Any) -> Callable[[str], None]:
    return lambda _name: progress.update()


def _existing(name: str) -> Path:
    """The file or folder of that name, which may be that of a packaged checkpoint."""
    from ..checkpoints.packaged import checkpoint_path, meant_instead

    path = checkpoint_path(name)
    if not path.exists():
        kind = "file" if path.suffix in FILES else "folder"
        raise ValueError(f"there is no {kind} {name!r}; {meant_instead(name)}")
    return path


def _check_output(name: str, to: str) -> None:
    """What is written can be told from its name: one file, or a folder."""
    path = Path(name)
    if to != "original" and path.suffix in FILES:
        kind = "in diffusers' layout" if to == "diffusers" else "with a file for each component"
        raise ValueError(
            f"{name!r} is the name of a file; a folder {kind} is written, use {str(path.with_suffix(''))!r}"
        )
    if to == "original" and path.suffix != ".safetensors":
        file = path / "model.safetensors" if path.is_dir() else path.with_suffix(".safetensors")
        raise ValueError(f"{name!r} has to be one .safetensors file; use {str(file)!r}")


def _direction(options: argparse.Namespace, source: Path) -> str:
    """The layout to write, which follows from the source; refuse options of the other direction."""
    from ..checkpoints.several_files import holds_originals

    to = "original" if source.is_dir() and not holds_originals(source) else "diffusers"
    if options.to not in (None, to):
        kind = (
            "a folder, which is in diffusers' layout"
            if to == "original"
            else f"a {'folder of files' if source.is_dir() else 'file'}, which is in the original layout"
        )
        raise ValueError(f"--to {options.to} does not fit {options.source!r}: it is {kind}; use --to {to}")
    other = next(layout for layout in LAYOUTS if layout != to)
    if wrong := [name for name in _ONLY[other] if getattr(options, name) is not None]:
        raise ValueError(f"--{wrong[0].replace('_', '-')} belongs to --to {other}; leave it out")
    return to
