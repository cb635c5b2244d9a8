"""Access to the golden vectors: `tests/golden`, or a larger set named by `LTX2_GOLDEN_DIR`."""

import json
import math
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open

from ltx2_diffusers.checkpoints.tolerances import TOLERANCES
from tests.golden_parts import GOLDEN_DIR, golden_file

# What two ways to one result may differ by on the same machine, through one model and through a pipeline.
EQUAL_MODELS = TOLERANCES["equal models"].absolute
EQUAL_PIPELINES = TOLERANCES["equal pipelines"].absolute
# The relative error that no comparison may let pass.
PLANTED = 1e-3


def golden_cases(folder: str, pattern: str = "*.safetensors") -> list[Path]:
    """Files of `folder` that match `pattern`, sorted; an empty selection is an error, so that no test vanishes."""
    found = sorted((GOLDEN_DIR / folder).glob(pattern))
    if not found:
        raise FileNotFoundError(f"no golden vectors match {GOLDEN_DIR / folder / pattern}")
    return found


def load_tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file; `path` is relative to the golden folder, or as `golden_cases` returns it."""
    with safe_open(golden_file(path), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)


def load_metadata(path: Path | str) -> dict[str, str]:
    """The safetensors metadata of a file."""
    with safe_open(golden_file(path), framework="pt") as file:
        return file.metadata() or {}


def load_json(path: Path | str) -> dict:
    """A JSON file of the golden folder."""
    return json.loads((GOLDEN_DIR / path).read_text())


def assert_within(actual: torch.Tensor, expected: torch.Tensor, row: str, what: str = "") -> None:
    """`actual` is `expected` as closely as this row of the package's table asks; `what` names it in the message."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), what
    difference, allowed = TOLERANCES[row].worst(actual, expected)
    assert difference <= allowed, f"{what or row}: differs by {difference:.2e}, allowed {allowed:.2e} ({row})"


@torch.no_grad()
def plant_error(matrix: torch.nn.Parameter) -> None:
    """Move a matrix by `PLANTED` times its norm, in a random direction."""
    noise = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0))
    matrix.add_(noise * (PLANTED * matrix.norm() / noise.norm()))


@cache
def golden_frequencies() -> torch.Tensor:
    """The 128 frequencies of the golden timestep sinusoids, to the last bit.

    `exp` may round them to either neighbour; the neighbour whose sinusoids are the recorded ones is the right one.
    """
    recorded = load_tensors("transformer/primitives.safetensors")
    exponents = -math.log(10000.0) * (torch.arange(128, dtype=torch.float32) / 128)
    nearest = exponents.double().exp().float()
    candidates = torch.stack([nearest, *(torch.nextafter(nearest, torch.tensor(end)) for end in (0.0, 2.0))])
    angles = recorded["timestep"][:, None, None] * candidates
    errors = torch.cat([angles.cos(), angles.sin()], dim=-1) - recorded["timestep_sinusoid"][:, None]
    choice = errors.unflatten(-1, (2, 128)).square().sum(dim=(0, 2)).argmin(dim=0)
    return candidates.gather(0, choice[None])[0]


def golden_sinusoid(timestep: torch.Tensor) -> torch.Tensor:
    """What `modulation.timestep_sinusoid` computes, with the recorded frequencies."""
    angles = timestep[:, None].float() * golden_frequencies()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
