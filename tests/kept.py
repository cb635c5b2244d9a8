"""What tests make when it is first needed, and keep in the folder of temporary files for later runs."""

import getpass
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

# Of folders that other code made, seconds since they were last used.
KEPT_S = 24 * 3600


def kept_folder(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """A folder that tests leave as it is.

    Args:
        kind: What it holds, in a word.
        key: What follows from everything that it is made of.
        build: Makes it; called with a folder that does not exist, unless one was kept.
    """
    root = Path(tempfile.gettempdir()) / f"ltx2-{kind}-{getpass.getuser()}"
    root.mkdir(exist_ok=True)
    folder = root / key
    with FileLock(root / "lock"):
        if not folder.is_dir():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            build(unfinished)
            unfinished.rename(folder)
        os.utime(folder)
        _forget(root)
    return folder


def _forget(root: Path) -> None:
    """Remove folders that nobody used of late."""
    for folder in root.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > KEPT_S:
            shutil.rmtree(folder, ignore_errors=True)
