"""Saving that leaves either the whole result under the final name or what was there before."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replaced_folder(folder: str | os.PathLike) -> Iterator[str]:
    """Yield a temporary folder beside `folder`; move its files over when the block ends without an exception.

    Files of `folder` which the block did not write stay, except weight files of a sub-folder that got new ones: an old
    shard must not survive beside a new index.
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
    written = set(files)
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / file, target / file)
    for folder in {file.parent for file in files if file.suffix == ".safetensors"}:
        for stale in (target / folder).glob("*.safetensors*"):
            if stale.relative_to(target) not in written:
                stale.unlink()


class AtomicSaveMixin:
    """Makes `save_pretrained` of a diffusers class write to a temporary folder first."""

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save weights and configuration; an interrupted or failed save leaves nothing under the final name.

        Takes the arguments of diffusers' method.
        """
        if kwargs.get("push_to_hub"):
            # The default repository name comes from the folder's name, which is a temporary one below.
            kwargs.setdefault("repo_id", Path(save_directory).name)
        with replaced_folder(save_directory) as temporary:
            super().save_pretrained(temporary, *args, **kwargs)
