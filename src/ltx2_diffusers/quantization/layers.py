"""Which layers of a transformer are stored in float8, by name and shape, and their places in a model."""

import math
import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from .linear import UNIT, FP8CastLinear, FP8ScaledLinear

VARIANTS = ("newest", "2.0")
# Linear layers of a block: projections of every attention, and the feed-forward layers of both streams. Gates of heads,
# norms, tables and everything outside the blocks stay as they are.
_CAST = {
    "newest": r"to_q|to_k|to_v|to_out\.0|(?:audio_)?ff\.net\.0\.proj|(?:audio_)?ff\.net\.2",
    "2.0": r"to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2",
}
_IN_BLOCK = re.compile(r"transformer_blocks\.(\d+)\..+")
_GATES = ".to_gate_logits"

Shapes = Mapping[str, tuple[int, ...]]


def cast_layers(names: Iterable[str], variant: str = "newest") -> list[str]:
    """The linear layers that `fp8_cast` stores in float8.

    Args:
        names: Names of tensors or layers of a transformer, as diffusers has them.
        variant: `"newest"` (default) with the feed-forward layers of the sound, or `"2.0"` without.
    """
    pattern = re.compile(rf"transformer_blocks\.\d+\.(?:.+\.)?(?:{_CAST[variant]})")
    layers = dict.fromkeys(name.removesuffix(".weight").removesuffix(".bias") for name in names)
    return [name for name in layers if pattern.fullmatch(name)]


def scaled_layers(shapes: Shapes) -> list[str]:
    """The linear layers that `fp8_scaled_mm` stores in float8 when the weights are real ones.

    All of the blocks but the first one and the last tenth, rounded up. Gates of heads only if both their sizes are
    multiples of 16.

    Args:
        shapes: Shapes of the tensors of a transformer, under diffusers' names.
    """
    found = [(name, match) for name in shapes if (match := _IN_BLOCK.fullmatch(name))]
    count = 1 + max((int(match[1]) for _, match in found), default=-1)
    blocks = range(1, count - math.ceil(count / 10))
    layers = []
    for name, match in found:
        layer, _, kind = name.rpartition(".")
        if kind != "weight" or len(shapes[name]) != 2 or int(match[1]) not in blocks:
            continue
        if not layer.endswith(_GATES) or all(size % UNIT == 0 for size in shapes[name]):
            layers.append(layer)
    return layers


def put_cast(model: nn.Module, layers: Iterable[str], dtype: torch.dtype | None) -> None:
    """Put empty layers of `fp8_cast` into the places of linear ones; `dtype` is that in which adapters run."""
    for name in layers:
        linear = model.get_submodule(name)
        model.set_submodule(name, FP8CastLinear(*_sizes(name, linear), device=_device(linear), dtype=dtype))


def put_scaled(model: nn.Module, layers: Mapping[str, bool], dtype: torch.dtype | None) -> None:
    """Put empty layers of `fp8_scaled_mm` into the places of linear ones.

    Args:
        model: The model.
        layers: Names of layers, and whether each has a stored scale of its inputs.
        dtype: Of biases, and of adapters beside the layers; default torch's.
    """
    for name, static in layers.items():
        linear = model.get_submodule(name)
        model.set_submodule(name, FP8ScaledLinear(*_sizes(name, linear), static, _device(linear), dtype))


def _sizes(name: str, linear: nn.Module) -> tuple[int, int, bool]:
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            f"{name} is a {type(linear).__name__}, which cannot be stored in float8; only linear layers can"
        )
    return linear.in_features, linear.out_features, linear.bias is not None


def _device(linear: nn.Module) -> torch.device:
    return next(linear.parameters()).device
