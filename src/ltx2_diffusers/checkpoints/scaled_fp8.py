"""Scaled fp8 layers of original checkpoints: weight (e4m3) with a scalar `weight_scale` and an `input_scale` beside it."""

from collections.abc import Mapping

import torch

from .safetensors_io import Entry

_SCALES = ("weight_scale", "input_scale")
# Endings that belong to other quantised formats (per-channel or block scales, packed integers).
_UNSUPPORTED = (
    ".pre_quant_scale",
    ".weight_scale_2",
    ".weight_zero_point",
    ".absmax",
    ".scale_weight",
    ".comfy_quant",
)


def scaled_layers(entries: Mapping[str, Entry]) -> list[str]:
    """Names of the layers stored as scaled fp8, told by the weight's dtype and the scale beside it."""
    return [
        name.removesuffix(".weight")
        for name, entry in entries.items()
        if entry.dtype == torch.float8_e4m3fn and f"{name}_scale" in entries
    ]


def dequantized(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Replaces scaled fp8 weights by entries that read as float32 `weight * weight_scale`, and drops the scales.

    Raises:
        ValueError: If the tensors are of another quantised format.
    """
    other = [name for name in entries if name.endswith(_UNSUPPORTED)]
    layers = scaled_layers(entries)
    other += [f"{layer}.weight_scale" for layer in layers if entries[f"{layer}.weight_scale"].shape not in ((), (1,))]
    if other:
        raise ValueError(
            f"the checkpoint is quantised in a format that is not supported (tensor {other[0]!r}); supported are "
            "float8_e4m3fn weights with one scale each; use the bfloat16 file instead"
        )
    result = dict(entries)
    for layer in layers:
        weight, scale = entries[f"{layer}.weight"], entries[f"{layer}.weight_scale"]
        result[f"{layer}.weight"] = _scaled(weight, scale)
        for name in _SCALES:
            result.pop(f"{layer}.{name}", None)
    return result


def _scaled(weight: Entry, scale: Entry) -> Entry:
    def load() -> torch.Tensor:
        values = weight.load()
        return values.float() * scale.load().to(values.device, torch.float32)

    return Entry(torch.float32, weight.shape, load)
