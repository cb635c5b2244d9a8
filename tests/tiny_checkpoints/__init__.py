"""Checkpoints of random weights that tests run on: built from seeds when they are first needed, then kept for later runs.

They lie in the folder of temporary files, under a name that follows from the code, the libraries and the kernels that
build them.
"""

import getpass
import hashlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

from filelock import FileLock

import examples.mini_world
import ltx2_diffusers

FOLDERS = {"2.0": "ltx-2-tiny", "2.3": "ltx-2.3-tiny"}
NEWEST = {"2.5": "ltx-2.5-tiny"}
SOURCES = (Path(__file__).parent, Path(examples.mini_world.__file__).parent, Path(ltx2_diffusers.__file__).parent)
# Which kernels compute; other ones round other last places.
KERNELS = ("ATEN_", "MKL_", "ONEDNN_")
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors")
# Of builds that other code made, seconds since they were last used.
KEPT_S = 24 * 3600


@cache
def tiny_checkpoint(version: str = "2.0") -> Path:
    """Return a pipeline folder in diffusers' layout, which tests leave as it is.

    Args:
        version: `"2.0"` (sound at 24 kHz), `"2.3"` (48 kHz) or `"2.5"` (see `newest`). The sub-folders `latent_upsampler` and
            `temporal_upsampler` hold the two kinds of upsampler. Default `"2.0"`.
    """
    root = Path(tempfile.gettempdir()) / f"ltx2-tiny-checkpoints-{getpass.getuser()}"
    root.mkdir(exist_ok=True)
    folder = root / _key()
    with FileLock(root / "lock"):
        if not folder.is_dir():
            _build(folder)
        os.utime(folder)
        _forget(root)
    return folder / (FOLDERS | NEWEST)[version]


def _key() -> str:
    """What identifies the code, the libraries and the kernels that build a checkpoint."""
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    kernels = sorted(item for item in os.environ.items() if item[0].startswith(KERNELS))
    state = hashlib.sha256(repr((versions, kernels, platform.machine())).encode())
    for source in SOURCES:
        for path in sorted(source.rglob("*.py")):
            state.update(f"{path.relative_to(source)}\n".encode() + path.read_bytes())
    return state.hexdigest()[:16]


def _build(folder: Path) -> None:
    """Build all checkpoints beside `folder`, then give them its name."""
    # It imports what few tests need, and only the first run builds.
    from .building import build
    from .newest import build_newest

    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for version, name in FOLDERS.items():
        build(unfinished / name, version)
    build_newest(unfinished / NEWEST["2.5"], unfinished / FOLDERS["2.3"])
    unfinished.rename(folder)


def _forget(root: Path) -> None:
    """Remove builds that nobody used of late."""
    for folder in root.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > KEPT_S:
            shutil.rmtree(folder, ignore_errors=True)
