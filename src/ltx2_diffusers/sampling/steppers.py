"""Single steps of the samplers: the noisy sample and a prediction of the clean one in, the next sample out.

Shapes: samples, predictions and noise `[B, T, D]`; sigmas are numbers in [0, 1], or tensors that broadcast `[B, T, 1]`.
A sample at sigma s is (1 - s) * clean + s * noise; its velocity is noise - clean.
"""

import math
from typing import NamedTuple

import torch

Sigma = float | torch.Tensor

# Largest share of a noise level that fresh noise may make up, so that some of the old noise always remains.
MAX_FRESH_SHARE = 0.9999


def to_velocity(sample: torch.Tensor, sigma: Sigma, denoised: torch.Tensor) -> torch.Tensor:
    """The velocity that leads from `sample` to `denoised`, in the dtype of the sample.

    Args:
        sample: noisy sample at `sigma`.
        sigma: its noise level, not 0.
        denoised: prediction of the clean sample.
    """
    if not isinstance(sigma, torch.Tensor) and sigma == 0.0:
        raise ValueError("sigma is 0, where a sample has no velocity; its clean prediction is the sample itself.")
    return ((sample.float() - denoised.float()) / sigma).to(sample.dtype)


def to_denoised(sample: torch.Tensor, velocity: torch.Tensor, sigma: Sigma) -> torch.Tensor:
    """The clean sample to which `velocity` leads from `sample`, in the dtype of the sample; inverse of `to_velocity`."""
    return (sample.float() - velocity.float() * sigma).to(sample.dtype)


def post_process(denoised: torch.Tensor, denoise_mask: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Holds a prediction to the given clean tokens as far as the mask asks.

    Args:
        denoised: prediction.
        denoise_mask: 1 keeps the prediction, 0 takes the clean token, `[B, T, 1]`.
        clean: clean tokens.

    Returns:
        The blend in the dtype of `denoised`.
    """
    return (denoised * denoise_mask + clean.float() * (1.0 - denoise_mask)).to(denoised.dtype)


def euler_step(sample: torch.Tensor, denoised: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
    """One explicit Euler step from `sigma` to `sigma_next`, in the dtype of the sample."""
    velocity = to_velocity(sample, sigma, denoised)
    return (sample.float() + velocity.float() * (sigma_next - sigma)).to(sample.dtype)


def gradient_estimating_step(
    sample: torch.Tensor,
    denoised: torch.Tensor,
    sigma: float,
    sigma_next: float,
    previous_velocity: torch.Tensor | None = None,
    gamma: float = 2.0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An Euler step whose velocity is extrapolated from that of the step before.

    Permenter and Yuan 2024, "Interpreting and Improving Diffusion Models from an Optimization Perspective".

    Args:
        sample: noisy sample at `sigma`.
        denoised: prediction of the clean sample.
        sigma: noise level of the sample.
        sigma_next: noise level of the result; at 0 the result is `denoised`.
        previous_velocity: second result of the step before, None in the first step.
        gamma: 1 is a plain Euler step, larger values extrapolate. Default 2.0.

    Returns:
        The sample at `sigma_next`, and the velocity of this step for the next one (None at the end).
    """
    if sigma_next == 0.0:
        return denoised.to(sample.dtype), None
    velocity = to_velocity(sample, sigma, denoised)
    if previous_velocity is not None:
        extrapolated = gamma * (velocity - previous_velocity) + previous_velocity
        denoised = to_denoised(sample, extrapolated, sigma)
    return euler_step(sample, denoised, sigma, sigma_next), velocity


def euler_ancestral_step(
    sample: torch.Tensor,
    denoised: torch.Tensor,
    sigma: float,
    sigma_next: float,
    noise: torch.Tensor | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> torch.Tensor:
    """An Euler step below `sigma_next` and fresh noise back up to it, for rectified flow.

    Args:
        sample: noisy sample at `sigma`.
        denoised: prediction of the clean sample.
        sigma: noise level of the sample.
        sigma_next: noise level of the result; at 0 the result is `denoised`.
        noise: standard normal noise, needed if `eta` is above 0.
        eta: how far below to step: 0 is a plain Euler step. Default 1.0.
        s_noise: factor on the fresh noise. Default 1.0.

    Returns:
        The sample at `sigma_next`, computed in float32 and in the dtype of the sample.
    """
    if sigma_next == 0.0:
        return denoised.to(sample.dtype)
    down = sigma_next * (1.0 + (sigma_next / sigma - 1.0) * eta)
    ratio = down / sigma
    stepped = ratio * sample.float() + (1.0 - ratio) * denoised.float()
    if eta > 0.0:
        noise = _required(noise, eta)
        rescale = (1.0 - sigma_next) / (1.0 - down)
        up = math.sqrt(max(0.0, sigma_next**2 - (down * rescale) ** 2))
        stepped = rescale * stepped + up * s_noise * noise.float()
    return stepped.to(sample.dtype)


def euler_cfg_pp_step(
    sample: torch.Tensor,
    denoised: torch.Tensor,
    negative_denoised: torch.Tensor,
    sigma: float,
    sigma_next: float,
    noise: torch.Tensor | None = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
) -> torch.Tensor:
    """An ancestral Euler step along the direction of the negative prediction (CFG++).

    Chung et al. 2024, "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models".

    Args:
        sample: noisy sample at `sigma`.
        denoised: guided prediction of the clean sample.
        negative_denoised: prediction for the negative prompt.
        sigma: noise level of the sample.
        sigma_next: noise level of the result; at 0 the result is `denoised`.
        noise: standard normal noise, needed if `eta` and `s_noise` are above 0.
        eta: share of fresh noise in [0, 1]; 0 is deterministic. Default 1.0.
        s_noise: factor on the fresh noise. Default 1.0.

    Returns:
        The sample at `sigma_next`, computed in float32 and in the dtype of the sample.
    """
    if sigma_next == 0.0:
        return denoised.to(sample.dtype)
    signal, signal_next = 1.0 - sigma, 1.0 - sigma_next
    ratio_next = sigma_next / signal_next
    direction = (sample.float() - signal * negative_denoised.float()) / sigma
    # The noise-to-signal ratio after the step over that before it, which is infinite at sigma 1.
    shrinkage = ratio_next * signal / sigma
    up = eta * ratio_next * math.sqrt(max(0.0, 1.0 - shrinkage**2))
    down = math.sqrt(max(0.0, ratio_next**2 - up**2))
    stepped = signal_next * denoised.float() + signal_next * down * direction
    if eta > 0.0 and s_noise > 0.0:
        stepped = stepped + signal_next * s_noise * up * _required(noise, eta).float()
    return stepped.to(sample.dtype)


def _required(noise: torch.Tensor | None, eta: float) -> torch.Tensor:
    if noise is None:
        raise ValueError(f"eta is {eta}, which needs noise, got None; give noise or use eta=0.")
    return noise


class SDECoefficients(NamedTuple):
    """How a step ends on its noise level: scale `alpha`, deterministic level `down`, fresh noise `up`."""

    alpha: torch.Tensor
    down: torch.Tensor
    up: torch.Tensor


def sde_coefficients(sigma_next: Sigma, eta: float) -> SDECoefficients:
    """Coefficients with which fresh noise of `eta * sigma_next` keeps the total variance of `sigma_next`."""
    level = torch.as_tensor(sigma_next, dtype=None if isinstance(sigma_next, torch.Tensor) else torch.float64)
    up = min(eta, MAX_FRESH_SHARE) * level
    kept = (level.square() - up.square()).sqrt()
    alpha = (1.0 - level) + kept
    return SDECoefficients(alpha, kept / alpha, up)


def sde_step(
    anchor: torch.Tensor, target: torch.Tensor, sigma: Sigma, sigma_next: Sigma, eta: float, noise: torch.Tensor
) -> torch.Tensor:
    """Replaces part of the noise of a deterministic step's result by fresh noise.

    Args:
        anchor: sample at `sigma` from which the step started.
        target: result of the deterministic step, at `sigma_next`.
        sigma: noise level of `anchor`.
        sigma_next: noise level of `target`.
        eta: share of `sigma_next` that becomes fresh noise, in [0, 1].
        noise: standard normal noise.

    Returns:
        The sample at `sigma_next`; `target` itself if any of its tokens has no noise to replace.
    """
    alpha, down, up = sde_coefficients(sigma_next, eta)
    if not bool((up > 0.0).all()):
        return target
    direction = (anchor - target) / (sigma - sigma_next)
    denoised = anchor - sigma * direction
    return alpha * (denoised + down * direction) + up * noise


def phi1(z: float) -> float:
    """(e^z - 1) / z, continued at 0."""
    return 1.0 if abs(z) < 1e-10 else math.expm1(z) / z


def phi2(z: float) -> float:
    """(e^z - 1 - z) / z^2, continued at 0."""
    return 0.5 if abs(z) < 1e-10 else (math.expm1(z) - z) / z**2


def res2s_coefficients(h: float) -> tuple[float, float, float]:
    """Weights a21, b1, b2 of the two-stage exponential Runge-Kutta method for a step of `h` in -log(sigma).

    Zhang et al. 2023, "Improved Order Analysis and Design of Exponential Integrator for Diffusion Models Sampling",
    with the second stage in the middle of the step.
    """
    a21 = 0.5 * phi1(-0.5 * h)
    b2 = 2.0 * phi2(-h)
    return a21, phi1(-h) - b2, b2


def normalize_noise(noise: torch.Tensor) -> torch.Tensor:
    """Gives noise `[..., T, D]` exactly mean 0 and standard deviation 1, first overall, then per leading index."""
    noise = (noise - noise.mean()) / noise.std()
    std, mean = torch.std_mean(noise, dim=(-2, -1), keepdim=True)
    return (noise - mean) / std
