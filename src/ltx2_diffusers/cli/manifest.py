"""The file beside a result that says how it was made, completely enough to make it again."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .identities import checkpoint_identity, file_sha256
from .loading import CHECKPOINT
from .options import OPTIONS
from .values import Options, flag, flags, input_files, replaced_files

# Raised whenever a reader of the former number would misread the file.
SCHEMA = 1
_KIND = "ltx2 manifest"
STORYBOARD = "storyboard"
"""Name under which a manifest holds a storyboard beside the options with which its clip was made."""
_PARTS = {"inputs": dict, "checkpoints": dict, "environment": dict, "result": dict, "outputs": list}


def manifest_path(output: Path) -> Path:
    """Where the manifest of an output lies."""
    return output.with_name(f"{output.name}.json")


def input_hashes(options: Options) -> dict[Path, str]:
    """Content names of all input files.

    Raises:
        FileNotFoundError: If one is missing; the message names it and its option.
        ValueError: If one is a device or a pipe, which might not end.
    """
    hashes = {}
    for path, option in input_files(options).items():
        if not path.exists():
            raise FileNotFoundError(f"{flag(option)}: there is no file {str(path)!r}")
        if not (path.is_file() or path.is_dir()):
            raise ValueError(f"{flag(option)}: {str(path)!r} is a device or a pipe; give the name of a file")
        hashes[path] = file_sha256(path)
    return hashes


def write_manifest(output: Path, options: Options, hashes: Mapping[Path, str], facts: Mapping[str, Any]) -> None:
    """Write the manifest of an output, never half of it.

    Args:
        output: File that was asked for.
        options: All options, defaults filled in.
        hashes: Content names of the input files.
        facts: What else there is to know: mode, environment, result and outputs with their content names.
    """
    from ..atomic import write_json

    base = output.parent.absolute()
    kept = {name: value for name, value in options.items() if _record(name) != "nothing"}
    kept |= {name: _place(value) for name, value in kept.items() if _record(name) in ("place", "checkpoint")}
    written = {n: replaced_files(value, lambda path: {"file": _stored(path, base)}) for n, value in kept.items()}
    manifest = {
        "kind": _KIND,
        "schema": SCHEMA,
        "options": written,
        "inputs": {_stored(path, base): name for path, name in hashes.items()},
        "checkpoints": {n: checkpoint_identity(kept[n]) for n in kept if _record(n) == "checkpoint"},
        **facts,
    }
    write_json(manifest_path(output), manifest)


def _record(name: str) -> str:
    """How an option stands in a manifest."""
    return "value" if name == STORYBOARD else OPTIONS[name].record


def read_manifest(path: Path) -> dict[str, Any]:
    """A manifest, with the files of its options as paths.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no manifest, or of a later version of this package.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}; give the .json file that lies beside a clip")
    base = path.parent.absolute()

    def located(value: dict[str, Any]) -> Any:
        return Path(os.path.normpath(base / value["file"])) if value.keys() == {"file"} else value

    try:
        manifest = json.loads(path.read_text(encoding="utf-8"), object_hook=located)
    except (ValueError, TypeError, RecursionError) as error:
        advice = f"; give {str(manifest_path(path))!r}" if manifest_path(path).is_file() else ""
        raise ValueError(f"{str(path)!r} cannot be read as a manifest: {error}{advice}") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
        raise ValueError(f"{str(path)!r} is not a manifest; it is the .json file that `ltx2 generate` writes")
    writer = "use the version of ltx2-diffusers that wrote it"
    if manifest.get("schema") != SCHEMA:
        schema = manifest.get("schema")
        raise ValueError(f"{str(path)!r} has the schema {schema}, this version reads {SCHEMA}; {writer}")
    _check_parts(path, manifest, {"options": dict})
    if unknown := sorted(manifest["options"].keys() - OPTIONS - {STORYBOARD}):
        raise ValueError(f"{str(path)!r} has {flags(unknown, 'and')}, which this version does not know; {writer}")
    _check_parts(path, manifest, _PARTS)
    manifest["inputs"] = {Path(os.path.normpath(base / file)): name for file, name in manifest["inputs"].items()}
    return manifest


def _check_parts(path: Path, manifest: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    damaged = [name for name, kind in kinds.items() if not isinstance(manifest.get(name), kind)]
    if "outputs" in kinds and not damaged:
        outputs = manifest["outputs"]
        named = all(isinstance(output, dict) and isinstance(output.get("file"), str) for output in outputs)
        damaged = [] if named else ["outputs"]
    if damaged:
        raise ValueError(
            f"{str(path)!r} is damaged: its {damaged[0]!r} is missing or of another kind; make the clip anew"
        )


def outputs_agree(path: Path, manifest: Mapping[str, Any]) -> dict[Path, bool | None]:
    """Whether the files beside a manifest are those it describes; `None` for one that is not there.

    Manifests of the first versions do not name the content of their files, which gives `None` too.
    """
    outputs, found = manifest["outputs"], {}
    for output in outputs:
        file = path.with_name(Path(output["file"]).name)
        # The two may have been renamed together.
        if len(outputs) == 1 and path.with_suffix("").is_file():
            file = path.with_suffix("")
        known = "sha256" in output and file.is_file()
        found[file] = file_sha256(file) == output["sha256"] if known else None
    return found


def changed_inputs(manifest: Mapping[str, Any]) -> list[str]:
    """What is missing or changed among the input files and checkpoints, in words."""
    found = []
    for path, name in manifest["inputs"].items():
        if not path.exists():
            found.append(f"the input {str(path)!r} is missing")
        elif file_sha256(path) != name:
            found.append(f"the input {str(path)!r} has changed since")
    for option, identity in manifest["checkpoints"].items():
        name = manifest["options"].get(option, CHECKPOINT)
        here = checkpoint_identity(name)
        if here != identity:
            found.append(f"the {option.replace('_', ' ')} {name!r} {'has changed since' if here else 'is not here'}")
    return found


def changed_environment(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is another version or another machine, in words."""
    return [f"{name} was {then.get(name)} and is {now[name]}" for name in now if then.get(name) != now[name]]


def changed_content(then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which streams of which outputs decode to something else, in words."""
    found = [] if len(then) == len(now) else [f"there were {len(then)} clips and are {len(now)}"]
    for before, after in zip(then, now):
        for stream, what in (("video", "frames"), ("audio", "samples")):
            if before.get(stream) != after.get(stream):
                found.append(f"the {what} of {after['file']} differ from those of {before['file']}")
    return found


def _stored(path: Path, base: Path) -> str:
    """A path as it is written down: relative if it lies below the manifest, so that both can move."""
    path = path.absolute()
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def _place(name: str) -> str:
    """A folder or file by its whole path; a Hub id or the name of a packaged checkpoint as it is."""
    from ..checkpoints.packaged import PACKAGED

    return name if name in PACKAGED or not Path(name).exists() else str(Path(name).absolute())
