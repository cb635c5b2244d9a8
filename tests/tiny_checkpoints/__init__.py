"""Checkpoints of random weights that tests run on: built from seeds when they are first needed, then kept for later runs.

They lie in the folder of temporary files, under a name that follows from the code, the libraries and the kernels that
build them.
"""

import hashlib
import importlib.metadata
import os
import platform
from functools import cache
from pathlib import Path

import examples.mini_world
import ltx2_diffusers
from tests.kept import kept_folder

FOLDERS = {"2.0": "ltx-2-tiny", "2.3": "ltx-2.3-tiny"}
NEWEST = {"2.5": "ltx-2.5-tiny"}
SOURCES = (Path(__file__).parent, Path(examples.mini_world.__file__).parent, Path(ltx2_diffusers.__file__).parent)
# Which kernels compute; other ones round other last places.
KERNELS = ("ATEN_", "MKL_", "ONEDNN_")
LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors")


@cache
def tiny_checkpoint(version: str = "2.0") -> Path:
    """Return a pipeline folder in diffusers' layout, which tests leave as it is.

    Args:
        version: `"2.0"` (sound at 24 kHz), `"2.3"` (48 kHz) or `"2.5"` (see `newest`). The sub-folders `latent_upsampler` and
            `temporal_upsampler` hold the two kinds of upsampler. Default `"2.0"`.
    """
    return kept_folder("tiny-checkpoints", _key(), _build) / (FOLDERS | NEWEST)[version]


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
    # It imports what few tests need, and only the first run builds.
    from .building import build
    from .newest import build_newest

    for version, name in FOLDERS.items():
        build(folder / name, version)
    build_newest(folder / NEWEST["2.5"], folder / FOLDERS["2.3"])
