"""Linear layers whose weights are stored in eight-bit floating point, float8_e4m3fn.

Shapes: I input features, O output features. A layer is an `nn.Linear` whose tensors have the names of the published
files, so that adapters, offloading and saving treat it as one. Casts of a model leave what is stored in float8, and the
scales, as they are.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils import logging
from torch import nn
from torch.nn import functional as F

from ..kernels.add_round import Rounding, add_round

logger = logging.get_logger(__name__)

FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = 448.0
"""The largest value of float8_e4m3fn; casts beyond it do not saturate everywhere."""
MIN_SCALE = 1e-12
"""The smallest scale of inputs, for those that are all zero."""
UNIT = 16
"""Sizes that float8 units multiply are multiples of this."""
# The first compute capability of CUDA devices with float8 units.
_CAPABILITY = (8, 9)


def quantize_tensor(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a tensor to float8 with one scale for all of it.

    Args:
        weight: Of any shape and floating-point dtype; finite.

    Returns:
        The float8 tensor of the same shape and its scale, float32 without axes: `weight` is about their product. A
        tensor of zeros, or of less than any scale could tell from them, has the scale 1.

    Raises:
        ValueError: If the tensor has values that are not finite.
    """
    values = weight.float()
    largest = values.abs().amax() if values.numel() else values.new_zeros(())
    _check_finite(largest)
    factor = torch.where(largest > FLOAT8_MAX / torch.finfo(torch.float32).max, FLOAT8_MAX / largest, 1.0)
    return (values * factor).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(FLOAT8), 1 / factor


def cast_tensor(weight: torch.Tensor, rounding: Rounding = "nearest", seed: int = 0) -> torch.Tensor:
    """Round a tensor to float8 without a scale.

    Args:
        weight: Of any shape and floating-point dtype; finite.
        rounding: `"nearest"` (default), or `"stochastic"` after rounding to bfloat16: up or down, so that the mean is kept.
        seed: Of what is drawn for the latter. Default 0.

    Raises:
        ValueError: If it has values beyond 448, or that are not finite.
    """
    largest = weight.float().abs().amax() if weight.numel() else torch.zeros(())
    _check_finite(largest)
    if largest > FLOAT8_MAX:
        raise ValueError(
            f"a weight of {largest.item():.4g} is beyond {FLOAT8_MAX:.0f}, the largest that fp8_cast can store; use "
            "fp8_scaled_mm, which scales weights"
        )
    if rounding == "nearest":
        return weight.to(FLOAT8)
    return add_round(torch.zeros_like(weight, dtype=FLOAT8), weight.to(torch.bfloat16), rounding, seed)


def _check_finite(largest: torch.Tensor) -> None:
    if not largest.isfinite():
        raise ValueError("a weight has values that are not finite, which float8 cannot store; fetch the weights again")


class _FP8Linear(nn.Linear):
    """What both kinds share: tensors that casts of a model leave alone, and `compute_dtype`, in which adapters run."""

    compute_dtype: torch.dtype
    _stores_bias = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.compute_dtype = self.weight.dtype
        self.weight = nn.Parameter(torch.zeros_like(self.weight, dtype=FLOAT8), requires_grad=False)
        if self.bias is not None:
            stored = torch.zeros_like(self.bias, dtype=FLOAT8 if self._stores_bias else None)
            self.bias = nn.Parameter(stored, requires_grad=False)

    def reset_parameters(self) -> None:
        """Set everything to zero: float8 tensors have no random values, and loading replaces them."""
        for tensor in self.parameters():
            nn.init.zeros_(tensor)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        def keeping_dtype(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            if changed.dtype == tensor.dtype or (tensor.dtype != FLOAT8 and tensor.ndim > 0):
                return changed
            self.compute_dtype = changed.dtype
            # Back from another dtype, values would be rounded.
            return tensor.to(changed.device)

        return super()._apply(keeping_dtype, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: float8 as bytes, since the storages of float8 tensors are not read back."""
        return {
            **self.__dict__,
            "_parameters": {
                name: tensor.detach().view(torch.uint8) if tensor is not None and tensor.dtype == FLOAT8 else tensor
                for name, tensor in self._parameters.items()
            },
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, tensor in self._parameters.items():
            if tensor is not None and tensor.dtype == torch.uint8:
                self._parameters[name] = nn.Parameter(tensor.view(FLOAT8), requires_grad=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = memo[id(self)] = self.__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


class FP8CastLinear(_FP8Linear):
    """A linear layer stored in float8 without scales, and computed in the dtype of its input.

    Weight `[O, I]` and bias `[O]` are upcast whenever they are used. Values are lost twice: what is smaller than 2**-10
    becomes zero, and others keep three bits of mantissa.

    Args:
        in_features: I.
        out_features: O.
        bias: Whether there is a bias. Default `True`.
        device: Device of its tensors, default torch's.
        dtype: Of the adapters that are put beside it, default torch's; casts change it.
    """

    _stores_bias = True

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., I]` to `[..., O]`, in the dtype of the input."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)

    def dequantized_weight(self) -> torch.Tensor:
        """The weight as it computes, float32 `[O, I]`."""
        return self.weight.detach().float()

    @torch.no_grad()
    def requantize_(self, weight: torch.Tensor) -> None:
        """Store another weight `[O, I]`, rounded to the nearest float8 values, in place.

        Raises:
            ValueError: If it has another shape, values beyond 448, or values that are not finite.
        """
        self.weight.copy_(cast_tensor(_shaped(weight, self.weight)))


class FP8ScaledLinear(_FP8Linear):
    """A linear layer that multiplies in float8: weight and input have one scale each.

    With x `[..., I]` and the scales s_x and s_w it computes `(round(x / s_x) @ weight.T) * s_x * s_w`, rounded to the dtype
    of x, plus the bias. CUDA devices with float8 units multiply on them; on the CPU the same numbers are computed in
    float32. On other devices the weight is dequantised and the input stays as it is.

    Args:
        in_features: I.
        out_features: O.
        bias: Whether there is a bias, of floating-point dtype. Default `True`.
        static_input: Whether the scale of inputs is stored; otherwise it is that of each input. Default `False`.
        device: Device of its tensors, default torch's.
        dtype: Of the bias and of adapters beside the layer, default torch's; casts change it.
    """

    weight_scale: torch.Tensor
    input_scale: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        static_input: bool = False,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        one = torch.ones((), dtype=torch.float32, device=device)
        self.register_buffer("weight_scale", one)
        self.register_buffer("input_scale", one.clone() if static_input else None)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., I]` to `[..., O]`, in the dtype of the input."""
        if input.requires_grad and torch.is_grad_enabled():
            raise ValueError("a layer of fp8_scaled_mm has no gradients; train over fp8_cast, or call it in no_grad()")
        if not _multiplies_float8(input.device):
            bias = None if self.bias is None else self.bias.to(input.dtype)
            return F.linear(input, self.dequantized_weight().to(input.dtype), bias)
        scale = self.input_scale
        if scale is None:
            # Of no tokens at all there is no largest value.
            largest = input.abs().amax().float() if input.numel() else self.weight_scale.new_zeros(())
            scale = (largest / FLOAT8_MAX).clamp(min=MIN_SCALE)
        # The scale has no axes, so that the product is rounded to the input's dtype; clamped, because casts overflow.
        rounded = (input * (1 / scale)).clamp(-FLOAT8_MAX, FLOAT8_MAX).to(FLOAT8)
        result = self._product(rounded.reshape(-1, self.in_features), scale, input.dtype)
        result = result.reshape(*input.shape[:-1], self.out_features)
        # After rounding, as the published kernels do; within the product it would give other bits.
        return result if self.bias is None else result + self.bias.to(input.dtype)

    def _product(self, rounded: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`[N, I]` float8 times the weight, scaled: `[N, O]`."""
        if rounded.is_cuda and self.in_features % UNIT == 0 and self.out_features % UNIT == 0:
            scales = {"scale_a": scale, "scale_b": self.weight_scale}
            return torch._scaled_mm(rounded, self.weight.t(), **scales, out_dtype=dtype, use_fast_accum=True)
        return ((rounded.float() @ self.weight.float().t()) * scale * self.weight_scale).to(dtype)

    def dequantized_weight(self) -> torch.Tensor:
        """The weight that the stored one and its scale stand for, float32 `[O, I]`."""
        return self.weight.detach().float() * self.weight_scale

    @torch.no_grad()
    def requantize_(self, weight: torch.Tensor) -> None:
        """Store another weight `[O, I]` with a scale of its own, in place; the scale of inputs stays.

        Raises:
            ValueError: If it has another shape, or values that are not finite.
        """
        values, scale = quantize_tensor(_shaped(weight, self.weight))
        self.weight.copy_(values)
        self.weight_scale.copy_(scale)


def _shaped(weight: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    if weight.shape != own.shape:
        raise ValueError(f"weight has the shape {list(weight.shape)}, but the layer has {list(own.shape)}")
    return weight


@torch.compiler.assume_constant_result
def _multiplies_float8(device: torch.device) -> bool:
    """Whether float8 is multiplied as such: on the CPU by the same arithmetic in float32, on CUDA by float8 units."""
    if device.type in ("cpu", "meta"):
        return True
    if device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) >= _CAPABILITY:
        return True
    if device not in _WARNED:
        _WARNED.add(device)
        logger.warning(
            f"{device} has no float8 units; fp8_scaled_mm computes there with dequantised weights and inputs as they are, "
            "which saves memory and no time"
        )
    return False


_WARNED: set[torch.device] = set()
