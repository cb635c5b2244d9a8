"""`ltx2 replay`: make a clip again from its manifest, and compare."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .generate import generate
from .identities import environment
from .jobs import storyboard
from .manifest import STORYBOARD, changed_content, changed_environment, changed_inputs, outputs_agree, read_manifest
from .options import OPTIONS
from .values import Options


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "replay",
        help="make a clip again from its manifest, and compare",
        description="Make a clip again from the manifest that lies beside it (FILE.json), and compare what both decode "
        "to. On the same machine, with the same versions and number of threads, all frames and samples are equal. Exit "
        "status 1 if they are not, 2 if the clip is another one than the manifest describes.",
    )
    parser.add_argument("manifest", type=Path, help="the .json file beside a clip")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="file to write; default NAME-replay beside the manifest"
    )
    parser.add_argument("--device", metavar="NAME", help="another device than that of the manifest")
    parser.add_argument(
        "--force", action="store_true", help="go on although an input, the checkpoint or the clip has changed"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check, generate again and compare."""
    manifest = read_manifest(options.manifest)
    agree = outputs_agree(options.manifest, manifest)
    changes = [f"{str(file)!r} is not the file that this manifest describes" for file in agree if agree[file] is False]
    changes += changed_inputs(manifest)
    if changes and not options.force:
        raise ValueError(f"{'; '.join(changes)}; restore it, or go on with --force")
    again = _options(manifest, options)
    changes += changed_environment(manifest["environment"], environment(again["device"]))
    for change in changes:
        print(f"ltx2 replay: warning: {change}", file=sys.stderr)
    made = storyboard.make(again) if STORYBOARD in again else generate(again)
    differences = changed_content(manifest["outputs"], made["outputs"])
    for difference in differences:
        print(f"ltx2 replay: {difference}", file=sys.stderr)
    if not differences:
        compared = options.manifest.stem if all(agree.values()) else f"what {options.manifest.name} describes"
        print(f"identical to {compared}: all frames and samples are equal")
    return 1 if differences else 0


def _options(manifest: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The options of the manifest, with the texts that a language model made of the prompts."""
    name = Path(options.manifest.stem)
    again = {**manifest["options"], "output": str(options.manifest.with_name(f"{name.stem}-replay{name.suffix}"))}
    again |= {name: vars(options)[name] for name in ("output", "device") if vars(options)[name] is not None}
    if STORYBOARD in again:
        return {**again, STORYBOARD: storyboard.as_written(again[STORYBOARD], manifest["result"]["prompts"])}
    if "sampler" not in manifest["result"] and "distilled" not in again:
        # Written when only the distilled recipe took its preset's sampler.
        again.setdefault("sampler", "euler")
    return as_enhanced(again, manifest["result"].get("enhanced_prompt"))


def as_enhanced(options: Options, written: list[str] | None) -> dict[str, Any]:
    """The options with the texts, if any, that a language model wrote, in place of what asked for them."""
    if written is None:
        return dict(options)
    asked = {name for name, option in OPTIONS.items() if "enhance_prompt" in (name, *option.needs)}
    return {name: value for name, value in options.items() if name not in asked} | {"prompt": written}
