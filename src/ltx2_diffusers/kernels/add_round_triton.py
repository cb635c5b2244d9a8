"""The Triton kernel of [`~ltx2_diffusers.kernels.add_round.add_round`]. Needs Triton, which is imported with this module.

Types of one and two bytes are taken apart as whole numbers: devices without float8 run it, the interpreter rounds as a
device does, and nothing depends on how a version of Triton converts.
"""

import torch
import triton
import triton.language as tl

_BLOCK = 1024


@triton.jit
def _from_e4m3(code: tl.tensor) -> tl.tensor:
    """float32 of float8_e4m3fn, given as int32."""
    exponent = (code >> 3) & 15
    mantissa = code & 7
    normal = (((exponent + 120) << 23) | (mantissa << 20)).to(tl.float32, bitcast=True)
    value = tl.where(exponent == 0, mantissa.to(tl.float32) * 0.001953125, normal)
    value = tl.where((code & 127) == 127, float("nan"), value)
    return tl.where((code & 128) != 0, -value, value)


@triton.jit
def _to_bf16(value: tl.tensor) -> tl.tensor:
    """float32 rounded to the nearest bfloat16, as float32; NaN stays."""
    bits = value.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return tl.where(value == value, rounded, value)


@triton.jit
def _to_e4m3(value: tl.tensor) -> tl.tensor:
    """float8_e4m3fn nearest to a float32, as int32; beyond its range the last value."""
    bits = value.to(tl.int32, bitcast=True)
    sign = (bits >> 24) & 128
    size = bits & 0x7FFFFFFF
    # Added to 2^14, of which the last bit is the smallest step of float8.
    small = ((size.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True)) - (141 << 23)
    normal = (size - (120 << 23) + 0x7FFFF + ((size >> 20) & 1)) >> 20
    code = tl.where(size < (121 << 23), small, tl.where(size >= 0x43E00000, 126, normal))
    return tl.where(value == value, code, 127) | sign


@triton.jit
def _add_round(
    weight: tl.tensor,
    delta: tl.tensor,
    result: tl.tensor,
    count: tl.tensor,
    seed: tl.tensor,
    stochastic: tl.constexpr,
    block: tl.constexpr,
) -> None:
    index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = index < count
    w = _from_e4m3(tl.load(weight + index, mask=inside, other=0).to(tl.int32))
    d = (tl.load(delta + index, mask=inside, other=0).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    if stochastic:
        half = w.to(tl.float16) + d.to(tl.float16)
        exponent = tl.maximum((half.to(tl.int16, bitcast=True).to(tl.int32) >> 10) & 31, 1) - 8
        exponent = tl.minimum(tl.maximum(exponent, 1), 15) - 10
        step = ((exponent + 127) << 23).to(tl.float32, bitcast=True)
        total = half.to(tl.float32)
        total += (tl.rand(seed, index.to(tl.int32)) - 0.5) * tl.where(total == 0, 0.0, step)
    else:
        total = w + d
    tl.store(result + index, _to_e4m3(_to_bf16(total)).to(tl.uint8), mask=inside)


def add_round_triton(weight: torch.Tensor, delta: torch.Tensor, rounding: str, seed: int) -> torch.Tensor:
    """The same bits as `add_round_torch`, by one kernel.

    Args:
        weight: float8_e4m3fn, of any shape, on the device that Triton runs on.
        delta: bfloat16 of the same shape.
        rounding: "nearest" or "stochastic".
        seed: Of the random numbers.

    Returns:
        float8_e4m3fn of the same shape.
    """
    weight, delta = weight.contiguous(), delta.contiguous()
    result = torch.empty_like(weight)
    if count := weight.numel():
        stored = weight.view(torch.uint8), delta.view(torch.int16), result.view(torch.uint8)
        # A product and a sum contracted to one rounding would give other bits.
        options = {"stochastic": rounding == "stochastic", "block": _BLOCK, "enable_fp_fusion": False}
        _add_round[(triton.cdiv(count, _BLOCK),)](*stored, count, seed, **options)
    return result
