"""Noise schedules as pure functions: lists of sigmas in [0, 1] that fall from 1 to 0.

Everything is computed in float64 on the CPU and rounded to float32 once. Above some 8,000 tokens the shifted sigmas
crowd below 1, where `1 - sigma` in float32 loses up to four digits.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..checks import MAX_STEPS, check_at_least_one, check_most
from ..declared import as_declared, shown

# LTX-2's shift: two (tokens, shift) anchors on a line, scheduler_config.json of the LTX-2 checkpoints.
BASE_TOKENS, MAX_TOKENS = 1024, 4096
BASE_SHIFT, MAX_SHIFT = 0.95, 2.05
TERMINAL_SIGMA = 0.1

# Schedules on which the distilled checkpoints were trained: the eight-step list is `linear_quadratic_sigmas(8)`, the
# second stage takes up its last part.
DISTILLED_SIGMAS = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0)
STAGE_2_DISTILLED_SIGMAS = DISTILLED_SIGMAS[5:]

# As diffusers names and holds them: lists, without the trailing zero.
DISTILLED_SIGMA_VALUES = list(DISTILLED_SIGMAS[:-1])
STAGE_2_DISTILLED_SIGMA_VALUES = list(STAGE_2_DISTILLED_SIGMAS[:-1])
TEMPORAL_ROUND_DISTILLED_SIGMA_VALUES = DISTILLED_SIGMA_VALUES[4:]

# LTX-Core's beta schedule reads its sigmas out of a table of this length, shifted by this amount.
BETA_TABLE_LENGTH, BETA_SHIFT = 10_000, 2.37

# Below it a division by the noise level magnifies the rounding of latents beyond use.
MIN_SIGMA = 1e-6

# Exponent of Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", equation 5.
KARRAS_RHO = 7.0


def require_steps(num_inference_steps: int) -> int:
    """The step count itself if it is a whole number of at least one, `ValueError` otherwise."""
    steps = as_declared("num_inference_steps", num_inference_steps, int)
    check_at_least_one(num_inference_steps=steps)
    check_most(MAX_STEPS, num_inference_steps=steps)
    return steps


def linear_grid(num_inference_steps: int) -> np.ndarray:
    """Unshifted sigmas `[N]` 1, 1 - 1/N, ..., 1/N, without the trailing zero."""
    steps = require_steps(num_inference_steps)
    return 1.0 - np.arange(steps, dtype=np.float64) / steps


def shift_for_tokens(
    num_tokens: int,
    base_shift: float = BASE_SHIFT,
    max_shift: float = MAX_SHIFT,
    base_tokens: int = BASE_TOKENS,
    max_tokens: int = MAX_TOKENS,
) -> float:
    """The shift (mu) of a latent of `num_tokens` tokens: a line through the two anchors, not clamped outside them."""
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, got {num_tokens}; use latent frames * height * width.")
    slope = (max_shift - base_shift) / (max_tokens - base_tokens)
    return slope * num_tokens + base_shift - slope * base_tokens


def time_shift(sigmas: np.ndarray, mu: float, kind: str = "exponential") -> np.ndarray:
    """Moves sigmas in (0, 1] towards 1 by `exp(mu)` (`kind="exponential"`) or by `mu` itself (`kind="linear"`)."""
    factor = math.exp(mu) if kind == "exponential" else mu
    return factor / (factor + (1.0 / sigmas - 1.0))


def stretch_to_terminal(sigmas: np.ndarray, terminal: float) -> np.ndarray:
    """Stretches a falling list (without zero) below 1 so that its last value becomes `terminal`.

    A list that ends at 1, as the one of a single step does, has nothing to stretch and comes back unchanged.
    """
    if not 0.0 < terminal < 1.0:
        raise ValueError(f"The terminal sigma must lie in (0, 1), got {terminal}; LTX-2 uses {TERMINAL_SIGMA}.")
    if sigmas[-1] == 1.0:
        return sigmas
    return 1.0 - (1.0 - sigmas) * ((1.0 - terminal) / (1.0 - sigmas[-1]))


def with_trailing_zero(sigmas: np.ndarray) -> torch.Tensor:
    """Float32 tensor `[N + 1]` of a list `[N]` and a final zero."""
    return torch.from_numpy(np.append(sigmas, 0.0)).to(torch.float32)


def ltx2_sigmas(
    num_inference_steps: int,
    num_tokens: int = MAX_TOKENS,
    max_shift: float = MAX_SHIFT,
    base_shift: float = BASE_SHIFT,
    stretch: bool = True,
    terminal: float = TERMINAL_SIGMA,
) -> torch.Tensor:
    """The LTX-2 schedule: an even grid, shifted according to the token count and stretched to `terminal`.

    Args:
        num_inference_steps: number of steps N, at least 1; a single step gives [1, 0].
        num_tokens: video latent tokens that determine the shift. Default 4096, where the shift is `max_shift`.
        max_shift: shift at 4096 tokens.
        base_shift: shift at 1024 tokens.
        stretch: whether to stretch the list so that its last non-zero value is `terminal`.
        terminal: last non-zero sigma of a stretched list, in (0, 1).

    Returns:
        Float32 tensor `[N + 1]` on the CPU, ending in 0.
    """
    sigmas = time_shift(linear_grid(num_inference_steps), shift_for_tokens(num_tokens, base_shift, max_shift))
    return with_trailing_zero(stretch_to_terminal(sigmas, terminal) if stretch else sigmas)


def linear_quadratic_sigmas(
    num_inference_steps: int, threshold_noise: float = 0.025, linear_steps: int | None = None
) -> torch.Tensor:
    """A schedule that falls evenly to `1 - threshold_noise` and from there along a parabola to 0.

    Args:
        num_inference_steps: number of steps N, at least 1; a single step gives [1, 0].
        threshold_noise: part of the noise removed by the even steps, in (0, 1).
        linear_steps: number of even steps, 1 to N. Default N // 2.

    Returns:
        Float32 tensor `[N + 1]` on the CPU, ending in 0.
    """
    steps = require_steps(num_inference_steps)
    if steps == 1:
        return torch.tensor([1.0, 0.0])
    linear = steps // 2 if linear_steps is None else linear_steps
    if not 1 <= linear <= steps:
        nearest = min(max(linear, 1), steps)
        raise ValueError(f"linear_steps must lie in 1..{steps} for {steps} steps, got {linear}; use {nearest}.")
    if not 0.0 < threshold_noise < 1.0:
        raise ValueError(f"threshold_noise must lie in (0, 1), got {threshold_noise}; the default is 0.025.")
    removed = np.arange(linear, dtype=np.float64) * threshold_noise / linear
    quadratic = steps - linear
    if quadratic > 0:
        excess = linear - threshold_noise * steps
        a = excess / (linear * quadratic**2)
        b = threshold_noise / linear - 2.0 * excess / quadratic**2
        i = np.arange(linear, steps, dtype=np.float64)
        removed = np.append(removed, a * i**2 + b * i + a * linear**2)
    return with_trailing_zero(1.0 - removed)


def beta_quantiles(probabilities: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    """Quantiles of the beta distribution with the two shape parameters."""
    if not (alpha > 0.0 and beta > 0.0):
        raise ValueError(f"alpha and beta must be positive, got alpha={alpha}, beta={beta}; the default is 0.6.")
    # Imported here because scipy takes long to load and only these schedules need it.
    from scipy.stats import beta as beta_distribution

    return beta_distribution.ppf(probabilities, alpha, beta)


def beta_sigmas(num_inference_steps: int, alpha: float = 0.6, beta: float = 0.6) -> torch.Tensor:
    """Sigmas at the quantiles of a beta distribution, read from a fixed shifted table.

    Follows Lee et al. 2024, "Beta Sampling is All You Need". Quantiles that fall on one table entry are taken once,
    so that a list of many steps may come out shorter.

    Args:
        num_inference_steps: number of steps N, at least 1.
        alpha: first shape parameter, positive.
        beta: second shape parameter, positive.

    Returns:
        Float32 tensor of at most `N + 1` values on the CPU, ending in 0.
    """
    quantiles = beta_quantiles(linear_grid(num_inference_steps), alpha, beta)
    indices = np.rint(quantiles * (BETA_TABLE_LENGTH - 1)).astype(np.int64)
    falling_once = np.unique(indices)[::-1]
    return with_trailing_zero(time_shift((falling_once + 1.0) / BETA_TABLE_LENGTH, BETA_SHIFT))


def respace_karras(sigmas: np.ndarray) -> np.ndarray:
    """A list of the same length and end points with the spacing of Karras et al. 2022."""
    first, last = sigmas[0] ** (1.0 / KARRAS_RHO), sigmas[-1] ** (1.0 / KARRAS_RHO)
    return np.linspace(first, last, len(sigmas)) ** KARRAS_RHO


def respace_exponential(sigmas: np.ndarray) -> np.ndarray:
    """A list of the same length and end points, evenly spaced in log(sigma)."""
    return np.exp(np.linspace(math.log(sigmas[0]), math.log(sigmas[-1]), len(sigmas)))


def respace_beta(sigmas: np.ndarray, alpha: float = 0.6, beta: float = 0.6) -> np.ndarray:
    """A list of the same length and end points, placed at the quantiles of a beta distribution."""
    quantiles = beta_quantiles(np.linspace(1.0, 0.0, len(sigmas)), alpha, beta)
    return sigmas[-1] + quantiles * (sigmas[0] - sigmas[-1])


def check_sigmas(sigmas: Sequence[float] | np.ndarray | torch.Tensor, name: str = "sigmas") -> np.ndarray:
    """An explicit list as float64 without its trailing zero, or `ValueError` if it is not a falling list in (0, 1].

    Args:
        sigmas: sigmas `[N]`, or `[N + 1]` with a trailing zero.
        name: how error messages call the list.

    Returns:
        The values `[N]`, N at least 1.
    """
    if isinstance(sigmas, torch.Tensor):
        sigmas = sigmas.detach().cpu().numpy()
    try:
        values = np.asarray(sigmas)
    except ValueError:
        raise ValueError(f"{name} must be a flat list, got {shown(sigmas)}.") from None
    if len(values.shape) and values.dtype.kind not in "fiu" and values.size:
        raise ValueError(f"{name} must hold numbers, got {shown(sigmas)}.")
    values = values.astype(np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} must be a flat list, got shape {tuple(values.shape)}.")
    if len(values) and values[-1] == 0.0:
        values = values[:-1]
    if not len(values):
        raise ValueError(f"{name} must hold at least one value above 0, got none; a single step is [1.0].")
    outside = np.flatnonzero(~((values > 0.0) & (values <= 1.0)))
    if len(outside):
        first = outside[0]
        raise ValueError(
            f"{name} must lie in (0, 1], got {values[first]:g} at position {first}; only the last value may be 0, and "
            "values up to 1000 are timesteps."
        )
    if values[-1] < MIN_SIGMA:
        raise ValueError(f"{name} must be at least {MIN_SIGMA:g} but for a last 0, got {values[-1]:g}; use 0 there.")
    # In the precision in which they are used.
    rising = np.flatnonzero(np.diff(values.astype(np.float32)) >= 0.0)
    if len(rising):
        first = rising[0]
        raise ValueError(
            f"{name} must fall strictly, got {values[first]:g} then {values[first + 1]:g} at position {first + 1}; "
            "sort the list in falling order and drop repeated values."
        )
    return values
