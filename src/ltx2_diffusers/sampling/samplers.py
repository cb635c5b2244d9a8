"""Samplers: how the denoising loop moves the states of both streams from one noise level to the next.

Shapes: B batch, T tokens of a stream, D features of a token; N steps have N + 1 sigmas.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..checks import check_share
from ..conditioning.state import LatentState
from ..conditioning.streams import States, Streams, Tensors, on_streams
from . import steppers
from .contract import NoiseSampler, Predict, Sampler

Generators = torch.Generator | list[torch.Generator] | None

# Where res_2s ends a schedule before its last prediction; its steps are logarithmic and cannot reach 0.
RES_2S_LAST_SIGMA = 0.0011
# res_2s refines the anchor of a step only for short steps at levels that still hold noise.
REFINE_BELOW_STEP, REFINE_ABOVE_SIGMA = 0.5, 0.03
# Share of fresh noise at the middle of a res_2s step, whatever the eta of the whole step.
RES_2S_SUBSTEP_ETA = 0.5


def with_latent(state: LatentState, latent: torch.Tensor) -> LatentState:
    """The state with another latent, in the dtype it had before."""
    return replace(state, latent=latent.to(state.latent.dtype))


def blended(state: LatentState, latent: torch.Tensor) -> LatentState:
    """The state with another latent that is held to the clean tokens."""
    return with_latent(state, steppers.post_process(latent, state.denoise_mask, state.clean_latent))


def gaussian_noise(generator: Generators = None) -> NoiseSampler:
    """Noise drawn from `generator`, or from one generator per batch item, or from torch's global state."""
    return lambda like: randn_tensor(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def normalized_noise(generator: Generators = None) -> NoiseSampler:
    """Like `gaussian_noise`, with mean 0 and standard deviation 1 exactly in every batch item."""
    draw = gaussian_noise(generator)
    return lambda like: steppers.normalize_noise(draw(like))


class EulerSampler:
    """Explicit Euler steps; one prediction per step."""

    predictions_per_step = 1

    def step(self, predict: Predict, states: States, sigmas: torch.Tensor, step: int) -> tuple[States, Tensors]:
        """See [`Sampler.step`]."""
        sigma, sigma_next = sigmas[step : step + 2].tolist()
        prediction = predict(states, sigmas[step])

        def move(state: LatentState, denoised: torch.Tensor) -> LatentState:
            return with_latent(state, steppers.euler_step(state.latent, denoised, sigma, sigma_next))

        return on_streams(move, states, prediction), prediction


class GradientEstimatingSampler:
    """Euler steps with extrapolated velocities; 20 to 30 of them do the work of 40.

    Args:
        gamma: strength of the extrapolation; 1 is plain Euler. Default 2.0.
    """

    predictions_per_step = 1

    def __init__(self, gamma: float = 2.0) -> None:
        self.gamma = gamma
        self._velocities: Tensors = Streams(None, None)

    def step(self, predict: Predict, states: States, sigmas: torch.Tensor, step: int) -> tuple[States, Tensors]:
        """See [`Sampler.step`]."""
        sigma, sigma_next = sigmas[step : step + 2].tolist()
        prediction = predict(states, sigmas[step])
        before = self._velocities if step > 0 else Streams(None, None)

        def move(state: LatentState, denoised: torch.Tensor, velocity: torch.Tensor | None) -> tuple:
            return steppers.gradient_estimating_step(state.latent, denoised, sigma, sigma_next, velocity, self.gamma)

        moved = on_streams(move, states, prediction, before)
        self._velocities = on_streams(lambda result: result[1], moved)
        return on_streams(lambda state, result: with_latent(state, result[0]), states, moved), prediction


class EulerAncestralSampler:
    """Euler steps that replace part of the noise by fresh noise; one prediction per step.

    Args:
        noise_sampler: source of the fresh noise.
        eta: 0 is plain Euler, 1 (default) renews most.
        s_noise: factor on the fresh noise. Default 1.0.
        hold_given: whether the last step, too, ends with a blend with the clean tokens, and frozen streams draw no noise, as
            in the temporal rounds of DFR. Default False.
    """

    predictions_per_step = 1

    def __init__(
        self, noise_sampler: NoiseSampler, eta: float = 1.0, s_noise: float = 1.0, hold_given: bool = False
    ) -> None:
        check_share(eta=eta)
        self.hold_given = hold_given
        self.noise_sampler = noise_sampler
        self.eta = eta
        self.s_noise = s_noise

    def step(self, predict: Predict, states: States, sigmas: torch.Tensor, step: int) -> tuple[States, Tensors]:
        """See [`Sampler.step`]."""
        sigma, sigma_next = sigmas[step : step + 2].tolist()
        prediction = predict(states, sigmas[step])
        is_noisy = self.eta > 0.0 and sigma_next > 0.0

        def move(state: LatentState, denoised: torch.Tensor) -> LatentState:
            if self.hold_given and state.frozen:
                return state
            noise = self.noise_sampler(state.latent) if is_noisy else None
            options = (sigma, sigma_next, noise, self.eta, self.s_noise)
            latent = steppers.euler_ancestral_step(state.latent, denoised, *options)
            return blended(state, latent) if is_noisy or self.hold_given else with_latent(state, latent)

        return on_streams(move, states, prediction), prediction


class EulerCFGPPSampler(EulerAncestralSampler):
    """Euler steps along the direction of the negative prediction (CFG++), with fresh noise.

    Args:
        noise_sampler: source of the fresh noise.
        negative: returns the predictions of both streams for the negative prompt in the pass just made, unblended.
            Default: the step's predictor is asked.
        eta: share of fresh noise, 0 is deterministic. Default 1.0.
        s_noise: factor on the fresh noise. Default 1.0.
    """

    def __init__(
        self,
        noise_sampler: NoiseSampler,
        negative: Callable[[], Tensors] | None = None,
        eta: float = 1.0,
        s_noise: float = 1.0,
    ) -> None:
        super().__init__(noise_sampler, eta, s_noise)
        self.negative = negative

    def step(self, predict: Predict, states: States, sigmas: torch.Tensor, step: int) -> tuple[States, Tensors]:
        """See [`Sampler.step`]."""
        sigma, sigma_next = sigmas[step : step + 2].tolist()
        prediction = predict(states, sigmas[step])
        is_noisy = self.eta > 0.0 and self.s_noise > 0.0 and sigma_next > 0.0

        def move(state: LatentState, denoised: torch.Tensor, negative: torch.Tensor) -> LatentState:
            noise = self.noise_sampler(state.latent) if is_noisy else None
            given, levels = (state.latent, denoised, negative), (sigma, sigma_next)
            latent = steppers.euler_cfg_pp_step(*given, *levels, noise, eta=self.eta, s_noise=self.s_noise)
            return blended(state, latent) if is_noisy else with_latent(state, latent)

        negative = predict.negative() if self.negative is None else self.negative()
        return on_streams(move, states, prediction, negative), prediction


class Res2sSampler:
    """Second-order exponential Runge-Kutta steps with fresh noise; two predictions per step, one more at the end.

    Args:
        noise_sampler: source of the fresh noise; `normalized_noise` in the reference.
        substep_noise_sampler: source of the noise in the middle of a step. Default `noise_sampler`.
        eta: share of a noise level that is renewed at the end of a step. Default 0.5.
        refine_anchor: whether short steps solve for a starting point consistent with their noisy middle. Default True.
        per_token: whether the noise follows each token's own level; then nothing is renewed in a stream that holds
            any fully given token. Default False: the stream's level, and given tokens are restored.
    """

    predictions_per_step = 2

    def __init__(
        self,
        noise_sampler: NoiseSampler,
        substep_noise_sampler: NoiseSampler | None = None,
        eta: float = 0.5,
        refine_anchor: bool = True,
        per_token: bool = False,
    ) -> None:
        check_share(eta=eta)
        self.noise_sampler = noise_sampler
        self.substep_noise_sampler = substep_noise_sampler or noise_sampler
        self.eta = eta
        self.refine_anchor = refine_anchor
        self.per_token = per_token

    def step(self, predict: Predict, states: States, sigmas: torch.Tensor, step: int) -> tuple[States, Tensors]:
        """See [`Sampler.step`]."""
        sigma, sigma_next = sigmas[step : step + 2].tolist()
        if sigma_next > 0.0:
            return self._step(predict, states, sigma, sigma_next)
        if sigma > RES_2S_LAST_SIGMA:
            sigma_last = RES_2S_LAST_SIGMA
            states, _ = self._step(predict, states, sigma, sigma_last)
            sigma = sigma_last
        prediction = predict(states, torch.tensor(sigma))
        return on_streams(with_latent, states, prediction), prediction

    def _step(self, predict: Predict, states: States, sigma: float, sigma_next: float) -> tuple[States, Tensors]:
        h, middle = -math.log(sigma_next / sigma), math.sqrt(sigma * sigma_next)
        a21, b1, b2 = steppers.res2s_coefficients(h)
        anchors = on_streams(lambda state: _wide(state.latent), states)
        first = on_streams(_wide, predict(states, torch.tensor(sigma)))

        def to_middle(state: LatentState, anchor: torch.Tensor, denoised: torch.Tensor) -> torch.Tensor:
            target = anchor + h * a21 * (denoised - anchor)
            noise = self.substep_noise_sampler(anchor)
            return self._renew(state, anchor, target, (sigma, middle, RES_2S_SUBSTEP_ETA), noise)

        middles = on_streams(to_middle, states, anchors, first)
        if self.refine_anchor and h < REFINE_BELOW_STEP and sigma > REFINE_ABOVE_SIGMA:
            # The fixed point of "anchor <- middle - k * (denoised - anchor)", which the reference iterates towards.
            k = h * a21
            anchors = on_streams(lambda x, denoised: (x - k * denoised) / (1.0 - k), middles, first)
        halfway = on_streams(with_latent, states, middles)
        prediction = predict(halfway, torch.tensor(middle))

        def to_end(
            state: LatentState, anchor: torch.Tensor, denoised: torch.Tensor, denoised_middle: torch.Tensor
        ) -> LatentState:
            ends = b1 * (denoised - anchor) + b2 * (_wide(denoised_middle) - anchor)
            noise = self.noise_sampler(anchor)
            levels = (sigma, sigma_next, self.eta)
            return with_latent(state, self._renew(state, anchor, anchor + h * ends, levels, noise))

        return on_streams(to_end, states, anchors, first, prediction), prediction

    def _renew(
        self,
        state: LatentState,
        anchor: torch.Tensor,
        target: torch.Tensor,
        levels: tuple[float, float, float],
        noise: torch.Tensor,
    ) -> torch.Tensor:
        sigma, sigma_next, eta = levels
        mask = _wide(state.denoise_mask)
        if self.per_token:
            return steppers.sde_step(anchor, target, mask * sigma, mask * sigma_next, eta, noise)
        renewed = steppers.sde_step(anchor, target, sigma, sigma_next, eta, noise)
        return renewed * mask + _wide(state.clean_latent) * (1.0 - mask)


class BesideNoise:
    """Moves the video alone; the sound that runs along keeps the noise it starts with.

    Args:
        sampler: Moves the video.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.predictions_per_step = sampler.predictions_per_step

    def step(self, predict: Predict, states: States, sigmas: torch.Tensor, step: int) -> tuple[States, Tensors]:
        """See [`Sampler.step`]."""
        asked = _VideoPredictor(predict, states.audio)
        moved, prediction = self.sampler.step(asked, states._replace(audio=None), sigmas, step)
        return moved._replace(audio=states.audio), prediction


class _VideoPredictor:
    """Predicts the video, to which the network hears `audio`."""

    def __init__(self, predict: Predict, audio: LatentState | None) -> None:
        self.predict, self.audio = predict, audio

    def __call__(self, states: States, sigma: torch.Tensor) -> Tensors:
        return self.predict(states._replace(audio=self.audio), sigma)._replace(audio=None)

    def negative(self) -> Tensors:
        return self.predict.negative()


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64, or in float32 on devices that have nothing wider."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


# Name -> how to build the sampler from the generator of the run and further options.
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "euler": lambda _generator: EulerSampler(),
    "gradient_estimating": lambda _generator, **options: GradientEstimatingSampler(**options),
    "euler_ancestral": lambda generator, **options: EulerAncestralSampler(gaussian_noise(generator), **options),
    "euler_cfg_pp": lambda generator, **options: EulerCFGPPSampler(gaussian_noise(generator), **options),
    "res_2s": lambda generator, **options: Res2sSampler(normalized_noise(generator), **options),
}


def get_sampler(name: str, generator: Generators = None, **options: Any) -> Sampler:
    """Build a sampler by name.

    Args:
        name: a key of `SAMPLERS`.
        generator: source of the noise that the sampler adds. Default: torch's global state.
        options: further arguments of the sampler's class.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {name!r}.")
    return SAMPLERS[name](generator, **options)
