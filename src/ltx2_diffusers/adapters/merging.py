"""The arithmetic of fusing: the weights of one layer with the deltas of adapters in them.

A delta is `strength * (alpha / rank) * B @ A`, with A `[r, in]` and B `[out, r]`, the factors of an adapter of rank r.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer

from ..kernels.add_round import Rounding, add_round
from ..models.stored import stored_tensor
from ..quantization.linear import FLOAT8, FLOAT8_MAX, FP8ScaledLinear, quantize_tensor

# The last code of float8_e4m3fn that is a number, without its sign: 448.
_LAST_CODE = 126


@dataclass(frozen=True)
class Arithmetic:
    """How sums become weights.

    Args:
        rounding: "nearest" (default) or "stochastic", of float8 without scales.
        seed: Of stochastic rounding; every layer uses the same random numbers. Default 0.
        reference: Whether to round where Lightricks' code of LTX-2.0 does, in bfloat16: each product, their sum, and the
            weight. Default `False`: products and sums are float32, and only the weight is rounded.
    """

    rounding: Rounding = "nearest"
    seed: int = 0
    reference: bool = False


def is_cast_to_fp8(base: torch.nn.Module) -> bool:
    """Whether a layer stores its weight in float8 without a scale."""
    return base.weight.dtype == FLOAT8 and not isinstance(base, FP8ScaledLinear)


def changed_tensors(layer: LoraLayer, names: Sequence[str]) -> list[str]:
    """Names of the tensors of a layer's base that the adapters change; none for strengths of 0."""
    acting = [name for name in names if layer.scaling[name]]
    if not acting:
        return []
    scaled = isinstance(layer.get_base_layer(), FP8ScaledLinear)
    return ["weight", *(["weight_scale"] if scaled else []), *(["bias"] if _biased(layer, acting) else [])]


def merged_tensors(
    layer: LoraLayer, names: Sequence[str], how: Arithmetic, safe: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a layer's base with plain adapters in them, one after the other; nothing is changed yet.

    Args:
        layer: The layer.
        names: The adapters, each with factors in this layer.
        how: How sums are rounded.
        safe: Whether to refuse values that are not finite.

    Raises:
        ValueError: If a value cannot be stored, or is not finite.
    """
    base = layer.get_base_layer()
    acting = [name for name in names if layer.scaling[name]]
    if not acting:
        return
    weight = stored_tensor(base, "weight")
    delta = _reference_delta(layer, acting, weight) if how.reference else _delta(layer, acting, weight)
    if isinstance(base, FP8ScaledLinear):
        total = delta.float().add_(weight.float().mul_(stored_tensor(base, "weight_scale").to(weight.device)))
        del delta
        values, scale = quantize_tensor(total)
        yield "weight", values
        yield "weight_scale", scale
    else:
        yield "weight", _checked(_sum(weight, delta, how), weight, acting, safe)
    if _biased(layer, acting):
        bias = stored_tensor(base, "bias")
        shift = torch.zeros_like(bias, dtype=_exact(bias))
        for name in acting:
            if layer.lora_bias.get(name):
                own = stored_tensor(layer.lora_B[name], "bias")
                shift.add_(own.to(shift), alpha=float(layer.scaling[name]))
        yield "bias", _checked(_sum(bias, shift, how), bias, acting, safe)


def _biased(layer: LoraLayer, names: Sequence[str]) -> bool:
    return any(layer.lora_bias.get(name) for name in names)


def _exact(tensor: torch.Tensor) -> torch.dtype:
    """The type that sums are made in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _factors(layer: LoraLayer, name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of an adapter."""
    down, up = (stored_tensor(factors[name], "weight").to(device) for factors in (layer.lora_A, layer.lora_B))
    return down, up


def _delta(layer: LoraLayer, names: Sequence[str], weight: torch.Tensor) -> torch.Tensor:
    """The sum of all deltas `[out, in]`, float32 or, for weights in float64, that."""
    total = None
    for name in names:
        down, up = (factor.to(_exact(weight)) for factor in _factors(layer, name, weight.device))
        strength = float(layer.scaling[name])
        total = torch.mm(up, down).mul_(strength) if total is None else total.addmm_(up, down, alpha=strength)
    assert total is not None
    return total


def _reference_delta(layer: LoraLayer, names: Sequence[str], weight: torch.Tensor) -> torch.Tensor:
    """The same as Lightricks' code of LTX-2.0 rounds it, bfloat16."""
    products = []
    for name in names:
        down, up = _factors(layer, name, weight.device)
        # Matrices are multiplied in float32 and rounded, as kernels for bfloat16 do inside.
        product = torch.mm((up * float(layer.scaling[name])).float(), down.float())
        products.append(product.to(up.dtype).bfloat16())
    return torch.stack(products).sum(dim=0)


def _sum(tensor: torch.Tensor, delta: torch.Tensor, how: Arithmetic) -> torch.Tensor:
    """A tensor and what is added to it, in the type of the tensor. May change `delta`."""
    if tensor.dtype == FLOAT8:
        return add_round(tensor, delta.bfloat16(), how.rounding, how.seed)
    return delta.add_(tensor).to(tensor.dtype)


def _checked(total: torch.Tensor, before: torch.Tensor, names: Sequence[str], safe: bool) -> torch.Tensor:
    """The fused tensor, if it is one."""
    if total.dtype == FLOAT8:
        # Sums beyond its range become the last value of float8.
        at_end = (total.view(torch.uint8) & 127) == _LAST_CODE
        if at_end.any() and not torch.equal(total[at_end].float(), before[at_end].float()):
            raise ValueError(
                f"weights with {list(names)} in them reach {FLOAT8_MAX:.0f}, the largest that fp8_cast can store; lower "
                "the strengths, or use fp8_scaled_mm, which scales weights"
            )
    if safe and not (total.float() if total.dtype == FLOAT8 else total).isfinite().all():
        raise ValueError(f"NaNs detected in the merged weights: one of the adapters {list(names)} seems to be broken")
    return total
