"""Scaled fp8 layers of original checkpoints: a float8 weight with one scale for all of it, in the spellings of the field.

Lightricks writes `weight_scale` and `input_scale` beside the weight. ComfyUI's older files write `scale_weight` and
`scale_input` and mark the model by an empty `scaled_fp8`; its newer ones write Lightricks' names and say the format of
each layer in `comfy_quant`, JSON stored as bytes.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.quantizers import DiffusersAutoQuantizer

from ..quantization.configs import FP8Config
from ..quantization.stored import SCALES, layer_scales
from .json_files import parse_object
from .safetensors_io import Entry

MARKER = "scaled_fp8"
_BLOB = "comfy_quant"
_DTYPES = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
_SPELLINGS = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
# Endings that belong to other quantised formats (per-channel or block scales, packed integers).
_FOREIGN = re.compile(
    r".*\.(pre_quant_scale|weight_scale_2|weight_zero_point|absmax|weight_scale_inv|.*quant_state.*)"
)


def without_scales(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The tensors of a model itself, without what describes its quantisation."""
    names = {*SCALES, *_SPELLINGS, _BLOB, MARKER}
    return {name: entry for name, entry in entries.items() if name.rpartition(".")[2] not in names}


def dequantized(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Replaces scaled fp8 weights by entries that read as float32 `weight * weight_scale`, and drops what goes with them.

    Raises:
        ValueError: If the tensors are of another quantised format.
    """
    result = without_scales(entries)
    for name, entry in stored_scales(entries).items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight_scale":
            result[f"{layer}.weight"] = _scaled(entries[f"{layer}.weight"], entry, name)
    return result


def stored_scales(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The scales of fp8 layers, under Lightricks' names.

    Raises:
        ValueError: If the tensors are of another quantised format.
    """
    if other := [name for name in without_scales(entries) if _FOREIGN.fullmatch(name)]:
        raise _unsupported(other[0])
    spelled = _one_spelling(entries)
    for name, entry in spelled.items():
        layer, _, kind = name.rpartition(".")
        weight = entries.get(f"{layer}.weight")
        if weight is None or (kind != _BLOB and weight.dtype not in _DTYPES.values()):
            raise _unsupported(name)
        if kind == "weight_scale" and entry.shape not in ((), (1,)):
            raise _unsupported(name)
        if kind == _BLOB:
            _check_format(name, entry, weight.dtype)
            if f"{layer}.weight_scale" not in spelled:
                raise ValueError(f"tensor {name!r} says that its layer is quantised, but there is no weight_scale")
    return {name: entry for name, entry in spelled.items() if not name.endswith(_BLOB)}


def planned(config: FP8Config, entries: Mapping[str, Entry], dtype: torch.dtype | None = None) -> Any:
    """A quantiser that knows the layers and scales of a model.

    Args:
        config: The method.
        entries: Tensors of the model as stored, with scales in any spelling.
        dtype: Data type of what is not stored in float8.

    Raises:
        ValueError: If the tensors cannot be stored by this method.
    """
    quantizer = DiffusersAutoQuantizer.from_config(config, pre_quantized=False)
    quantizer.scales = layer_scales({name: entry.load() for name, entry in stored_scales(entries).items()})
    quantizer.update_torch_dtype(dtype)
    plain = without_scales(entries)
    quantizer.plan({n: e.shape for n, e in plain.items()}, {n: e.dtype for n, e in plain.items()})
    return quantizer


def _one_spelling(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """What describes the quantisation of layers, under Lightricks' names."""
    spelled: dict[str, Entry] = {}
    for name, entry in entries.items():
        layer, _, kind = name.rpartition(".")
        kind = _SPELLINGS.get(kind, kind)
        if kind not in (*SCALES, _BLOB):
            continue
        if f"{layer}.{kind}" in spelled:
            raise ValueError(f"layer {layer!r} has its {kind} under two names")
        spelled[f"{layer}.{kind}"] = entry
    return spelled


def _check_format(name: str, blob: Entry, dtype: torch.dtype) -> None:
    """The layer must be in the format that its description says, and in one that is read here."""
    if blob.dtype not in (torch.uint8, torch.int8):
        raise ValueError(f"tensor {name!r} has to be JSON as bytes but is {blob.dtype}")
    kind = parse_object(blob.load().flatten().numpy().tobytes(), f"tensor {name!r}").get("format")
    if not isinstance(kind, str) or _DTYPES.get(kind) != dtype:
        raise ValueError(
            f"tensor {name!r} says that its layer is quantised as {kind!r}, but its weight is {dtype}; supported "
            f"are {' and '.join(_DTYPES)} with one scale each; use the bfloat16 file instead"
        )


def _unsupported(name: str) -> ValueError:
    return ValueError(
        f"the checkpoint is quantised in a format that is not supported (tensor {name!r}); supported are "
        "float8_e4m3fn and float8_e5m2 weights with one scale each; use the bfloat16 file instead"
    )


def _scaled(weight: Entry, scale: Entry, name: str) -> Entry:
    def load() -> torch.Tensor:
        values, factor = weight.load(), scale.load().float()
        if not factor.isfinite().all():
            raise ValueError(f"the scale {name!r} is not finite; fetch the file again")
        return values.float() * factor.to(values.device)

    return Entry(torch.float32, weight.shape, load)
