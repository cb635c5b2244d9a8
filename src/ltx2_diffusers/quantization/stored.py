"""Scales of float8 layers as files store them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open

SCALES = ("weight_scale", "input_scale")


class Scales(NamedTuple):
    """The scales of one layer, float32 without axes.

    Args:
        weight: What its float8 weight is multiplied with.
        input: What its inputs are divided by; `None` if that is taken from each input.
    """

    weight: torch.Tensor
    input: torch.Tensor | None = None


def scale_names(names: Iterable[str]) -> list[str]:
    """Those names of tensors that are scales."""
    return [name for name in names if name.rpartition(".")[2] in SCALES]


def layer_scales(tensors: Mapping[str, torch.Tensor]) -> dict[str, Scales]:
    """The scales of every layer that has a weight scale.

    Args:
        tensors: Scales by the names of the file.

    Raises:
        ValueError: If a scale is one per row or block, not finite or not above 0, or if a layer has an input scale alone.
    """
    checked = {name: checked_scale(name, tensor) for name, tensor in tensors.items()}
    result = {}
    for name in checked:
        layer, _, kind = name.rpartition(".")
        if f"{layer}.weight_scale" not in checked:
            raise ValueError(f"the layer {layer!r} has the scale {kind}, but no weight_scale; fetch the file again")
        result[layer] = Scales(checked[f"{layer}.weight_scale"], checked.get(f"{layer}.input_scale"))
    return result


def checked_scale(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A scale as float32 without axes; published files have it with an axis of length 1, too."""
    if tuple(tensor.shape) not in ((), (1,)):
        raise ValueError(
            f"the scale {name!r} has the shape {list(tensor.shape)}; float8 with a scale per row or block is not supported, only "
            "one scale for a whole weight; use the bfloat16 file instead"
        )
    scale = tensor.float().reshape(())
    if not scale.isfinite() or scale <= 0:
        raise ValueError(
            f"the scale {name!r} is {scale.item()}, but has to be finite and above 0; fetch the file again"
        )
    return scale


def read_scales(files: Iterable[str]) -> dict[str, torch.Tensor]:
    """All scales in safetensors files, of which nothing else is read."""
    found: dict[str, torch.Tensor] = {}
    for path in files:
        if Path(path).suffix != ".safetensors":
            continue
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in scale_names(file.keys())}
    return found
