"""Layers that compute in the wider of the dtypes of their weights and their input.

The audio encoder and the bandwidth-extending vocoder lose audible quality below float32. With these layers a network
stored in bfloat16 runs in float32 as soon as it is given float32 activations, and only one layer's weights are
widened at a time. With equal dtypes they are torch's own layers, with the same state-dict keys.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def widen(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Bring activations, weight and bias to the dtype that holds both without loss.

    Args:
        x: activations, any shape.
        weight: weight of the layer, any shape.
        bias: bias of the layer, or None.

    Returns:
        The three arguments in the common dtype.
    """
    dtype = torch.promote_types(x.dtype, weight.dtype)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def input_dtype(model: Any, default: torch.dtype) -> torch.dtype:
    """The data type in which a network takes its input.

    Args:
        model: The network, whose parts may be offloaded or cast layer by layer.
        default: The data type for weights that say nothing of it, because they are stored quantised, and for what is no
            module of torch.
    """
    if not isinstance(model, nn.Module) or getattr(model, "hf_quantizer", None) is not None:
        return default
    is_quantized = any(not parameter.is_floating_point() for parameter in model.parameters())
    dtype: torch.dtype = getattr(model, "dtype", default)
    # Types of one byte are for storage.
    return default if is_quantized or dtype.itemsize < 2 else dtype


class Conv1d(nn.Conv1d):
    """`torch.nn.Conv1d` for `[B, C, N]` that computes in the wider of the weight's and the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(*widen(x, self.weight, self.bias))


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` for `[B, C, T, M]` that computes in the wider of the weight's and the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(*widen(x, self.weight, self.bias))


class ConvTranspose1d(nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` for `[B, C, N]` that computes in the wider of the weight's and the input's dtype."""

    padding: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # torch's also takes the size of the output
        x, weight, bias = widen(x, self.weight, self.bias)
        return F.conv_transpose1d(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` that computes in the wider of the weight's and the input's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        x, weight, bias = widen(x, self.weight, self.bias)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)
