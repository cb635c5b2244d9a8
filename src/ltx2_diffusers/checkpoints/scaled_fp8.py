"""Scaled fp8 layers of original checkpoints: weight (e4m3) with a scalar `weight_scale` and an `input_scale` beside it."""

from collections.abc import Mapping

import torch

from .safetensors_io import Entry

_SCALES = ("weight_scale", "input_scale")
# Endings that belong to other quantised formats (per-channel or block scales, packed integers).
_FOREIGN = (".pre_quant_scale", ".weight_scale_2", ".weight_zero_point", ".absmax", ".scale_weight", ".comfy_quant")


def dequantized(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Replaces scaled fp8 weights by entries that read as float32 `weight * weight_scale`, and drops the scales.

    Raises:
        ValueError: If the tensors are of another quantised format.
    """
    fp8 = [name for name, entry in entries.items() if entry.dtype == torch.float8_e4m3fn]
    scales = {name: f"{name}_scale" for name in fp8 if f"{name}_scale" in entries}
    other = [name for name in entries if name.endswith(_FOREIGN)]
    other += [scale for scale in scales.values() if entries[scale].shape not in ((), (1,))]
    if other:
        raise ValueError(
            f"the checkpoint is quantised in a format that is not supported (tensor {other[0]!r}); supported are "
            "float8_e4m3fn weights with one scale each; use the bfloat16 file instead"
        )
    unused = {name.removesuffix("weight") + scale for name in scales for scale in _SCALES}
    kept = {name: entry for name, entry in entries.items() if name not in unused}
    return kept | {name: _scaled(entries[name], entries[scale]) for name, scale in scales.items()}


def _scaled(weight: Entry, scale: Entry) -> Entry:
    def load() -> torch.Tensor:
        values = weight.load()
        return values.float() * scale.load().to(values.device, torch.float32)

    return Entry(torch.float32, weight.shape, load)
