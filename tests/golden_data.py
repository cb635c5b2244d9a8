"""Access to the golden vectors: `tests/golden` (or a larger set named by `LTX2_GOLDEN_DIR`) and the packaged ones.

What `ltx2 doctor` checks on a user's machine lies in the package; the rest lies here. Tests see one folder.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open

import ltx2_diffusers

GOLDEN_DIR = Path(os.environ.get("LTX2_GOLDEN_DIR", Path(__file__).parent / "golden"))
PACKAGED_DIR = Path(ltx2_diffusers.__file__).parent / "resources" / "golden"


def golden_cases(folder: str, pattern: str = "*.safetensors") -> list[Path]:
    """Files of `folder` that match `pattern`, sorted; an empty selection is an error, so that no test vanishes.

    Every path lies under `GOLDEN_DIR` by name, also that of a packaged file; the loaders below find both.
    """
    found = {path.relative_to(root) for root in (GOLDEN_DIR, PACKAGED_DIR) for path in (root / folder).glob(pattern)}
    if not found:
        raise FileNotFoundError(f"no golden vectors match {GOLDEN_DIR / folder / pattern}")
    return sorted(GOLDEN_DIR / path for path in found)


def golden_file(path: Path | str) -> Path:
    """Where a golden file lies; `path` is relative to the golden folder, or as `golden_cases` returns it."""
    own = GOLDEN_DIR / path
    return own if own.exists() else PACKAGED_DIR / own.relative_to(GOLDEN_DIR)


def load_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file."""
    with safe_open(golden_file(path), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)


def load_metadata(path: Path | str) -> dict[str, str]:
    """The safetensors metadata of a file."""
    with safe_open(golden_file(path), framework="pt") as file:
        return file.metadata() or {}


def load_json(path: Path | str) -> dict:
    """A JSON file of the golden folder."""
    return json.loads(golden_file(path).read_text())
