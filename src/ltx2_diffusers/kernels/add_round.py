"""A delta added to weights in float8, rounded to float8 again: to the nearest value, or at random to one of the two around.

On a CUDA device with Triton one kernel reads and writes each element once; elsewhere the twin below computes the same bits.
"""

import importlib.util
from typing import Literal, get_args

import torch

Rounding = Literal["nearest", "stochastic"]

_LARGEST = torch.finfo(torch.float8_e4m3fn).max
_EXPONENT_BIAS, _MANTISSA_BITS = 7, 3
_WORD = 0xFFFFFFFF
# Of Philox 4x32: the factors of a round, and what the key grows by.
_FACTORS, _KEY_STEPS, _ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10
_TO_UNIFORM = 4.6566127342e-10
# Whole numbers of eight bytes are needed on the way; a part of this many elements at a time.
_ELEMENTS = 1 << 18


def check_rounding(rounding: str, seed: int) -> None:
    """Raise `ValueError` for a way of rounding that there is not, or a seed that nothing reads."""
    if rounding not in get_args(Rounding):
        raise ValueError(f'`rounding` has to be one of {list(get_args(Rounding))} but is {rounding!r}; use "nearest"')
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise ValueError(f"`seed` has to be a whole number of 64 bits but is {seed!r}; use 0")
    if rounding == "nearest" and seed:
        raise ValueError(
            f'`seed` is {seed}, but rounding to the nearest value draws nothing; use "stochastic", or seed 0'
        )


def add_round(
    weight: torch.Tensor, delta: torch.Tensor, rounding: Rounding = "nearest", seed: int = 0
) -> torch.Tensor:
    """`weight + delta` in float8.

    Nearest: the sum in bfloat16, rounded to the nearest float8, to even in the middle. Stochastic: the sum in float16 is
    shifted by up to half a step of float8 either way, `(U - 1/2) * step` with U uniform in [0, 1), before that, so that
    each of the two neighbours is met as often as it is near: on average the sum is kept, to half a step of bfloat16.

    Args:
        weight: float8_e4m3fn, of any shape.
        delta: bfloat16, of the same shape, on the same device.
        rounding: "nearest" (default) or "stochastic".
        seed: Of the random numbers, of which element i takes the i-th. Default 0.

    Returns:
        float8_e4m3fn of the same shape; beyond its range 448 or -448.

    Raises:
        ValueError: For other types, shapes that differ, an unknown rounding, or a seed that is not read.
    """
    check_rounding(rounding, seed)
    if weight.dtype != torch.float8_e4m3fn or delta.dtype != torch.bfloat16:
        raise ValueError(
            f"`weight` has to be float8_e4m3fn and `delta` bfloat16, but they are {weight.dtype} and {delta.dtype}"
        )
    if weight.shape != delta.shape or weight.device != delta.device:
        raise ValueError(
            f"`weight` {list(weight.shape)} on {weight.device} and `delta` {list(delta.shape)} on {delta.device} differ"
        )
    if weight.is_cuda and importlib.util.find_spec("triton") is not None:
        from .add_round_triton import add_round_triton

        return add_round_triton(weight, delta, rounding, seed)
    return add_round_torch(weight, delta, rounding, seed)


def add_round_torch(weight: torch.Tensor, delta: torch.Tensor, rounding: Rounding, seed: int) -> torch.Tensor:
    """[`add_round`] in PyTorch, on any device."""
    result = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    flat_weight, flat_delta, flat_result = weight.reshape(-1), delta.reshape(-1), result.view(-1)
    for start in range(0, weight.numel(), _ELEMENTS):
        part = slice(start, start + _ELEMENTS)
        w, d = flat_weight[part], flat_delta[part]
        total = w.to(d.dtype) + d if rounding == "nearest" else shifted(w, d, seed, start)
        # Versions of PyTorch differ in what they make of larger values.
        flat_result[part] = total.clamp(-_LARGEST, _LARGEST).to(weight.dtype)
    return result


def shifted(weight: torch.Tensor, delta: torch.Tensor, seed: int, start: int = 0) -> torch.Tensor:
    """The sum before stochastic rounding: moved by a random part of a step of float8.

    Args:
        weight: float8_e4m3fn `[N]`.
        delta: bfloat16 `[N]`.
        seed: Of the random numbers.
        start: Which of the random numbers the first element takes.

    Returns:
        bfloat16 `[N]`.
    """
    total = weight.half() + delta.half()
    exponent = ((total.view(torch.int16).int() >> 10) & 31).clamp(min=1) - 15 + _EXPONENT_BIAS
    exponent = exponent.clamp(1, 2 * _EXPONENT_BIAS + 1) - _EXPONENT_BIAS - _MANTISSA_BITS
    step = torch.where(total == 0, 0.0, ((exponent + 127) << 23).view(torch.float32))
    noise = uniform(seed, len(total), start, total.device) - 0.5
    return (total.float() + noise * step).bfloat16()


def uniform(seed: int, count: int, start: int = 0, device: torch.device | str = "cpu") -> torch.Tensor:
    """Random numbers `[count]` in [0, 1), float32: those that Triton's `tl.rand(seed, i)` gives for i from `start` on.

    They are the first words of Philox 4x32 with ten rounds, of the counters (i, 0, 0, 0).
    """
    first = torch.arange(start, start + count, dtype=torch.int64, device=device) & _WORD
    second = third = fourth = torch.zeros_like(first)
    key = seed & _WORD, seed >> 32
    for _ in range(_ROUNDS):
        high_1, low_1 = _product(_FACTORS[0], first)
        high_3, low_3 = _product(_FACTORS[1], third)
        first, second, third, fourth = high_3 ^ second ^ key[0], low_3, high_1 ^ fourth ^ key[1], low_1
        key = (key[0] + _KEY_STEPS[0]) & _WORD, (key[1] + _KEY_STEPS[1]) & _WORD
    # As a signed word, of which the negative half is mirrored.
    return torch.where(first >> 31 == 1, _WORD - first, first).float() * _TO_UNIFORM


def _product(factor: int, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Upper and lower word of a product of two words, by halves: all 64 bits have no room beside a sign."""
    low, high = factor * (words & 0xFFFF), factor * (words >> 16)
    middle = (low >> 16) + high
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)
