"""Files and folders that appear whole or not at all."""

import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def complete_file(path: Path) -> Iterator[Path]:
    """Give a temporary name in the folder of `path`, and rename it to `path` when the block ends without error.

    Missing folders are created. After an error or an interrupt, nothing is left behind and an older file of that name
    is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


# Names of weight files and of shard indices, as diffusers and transformers write them, with and without variant.
_WEIGHTS = re.compile(r"(?P<name>.+?)(-\d{5}-of-\d{5})?\.(safetensors|bin)")
_INDEX = re.compile(r"(?P<name>.+?)\.(safetensors|bin)\.index(?P<variant>\.[^.]+)?\.json")


@contextmanager
def replaced_folder(folder: str | os.PathLike) -> Iterator[str]:
    """Yield a temporary folder beside `folder`; move its files over when the block ends without an exception.

    Files of `folder` which the block did not write stay, except other files of the weights it wrote: an old shard or
    index must not survive beside a new one. Other variants of the weights stay.
    """
    target = Path(folder).absolute()
    if target.is_file():
        raise ValueError(f"cannot save to {os.fspath(folder)!r}: it is a file; give a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield os.fspath(temporary)
        _move_over(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_over(source: Path, target: Path) -> None:
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / file, target / file)
    saved_weights = {weights for file in files if (weights := _weights_of(file)) is not None}
    for folder in {folder for folder, _ in saved_weights}:
        for path in (target / folder).iterdir():
            file = path.relative_to(target)
            if file not in files and _weights_of(file) in saved_weights:
                path.unlink()


def _weights_of(file: Path) -> tuple[Path, str] | None:
    """Folder and name (with variant) of the weights that a file is a part of; `None` for other files."""
    if match := _INDEX.fullmatch(file.name):
        return file.parent, match["name"] + (match["variant"] or "")
    match = _WEIGHTS.fullmatch(file.name)
    return (file.parent, match["name"]) if match else None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` in diffusers' manner (sorted, two spaces), never leaving half a file."""
    with complete_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
