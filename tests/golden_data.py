"""Access to the golden vectors: `tests/golden`, or a larger set named by `LTX2_GOLDEN_DIR`."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open


GOLDEN_DIR = Path(os.environ.get("LTX2_GOLDEN_DIR", Path(__file__).parent / "golden"))


def golden_cases(folder: str, pattern: str = "*.safetensors") -> list[Path]:
    """Files of `folder` that match `pattern`, sorted; an empty selection is an error, so that no test vanishes."""
    paths = sorted((GOLDEN_DIR / folder).glob(pattern))
    if not paths:
        raise FileNotFoundError(f"no golden vectors match {GOLDEN_DIR / folder / pattern}")
    return paths


def load_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file; a relative path is taken from the golden folder."""
    with safe_open(GOLDEN_DIR / path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


def load_metadata(path: Path | str) -> dict[str, str]:
    """The safetensors metadata of a file."""
    with safe_open(GOLDEN_DIR / path, framework="pt") as file:
        return file.metadata() or {}


def load_json(path: Path | str) -> dict:
    """A JSON file of the golden folder."""
    return json.loads((GOLDEN_DIR / path).read_text())
