"""Steps in which every token waits at its own noise level until the run comes down to it.

Shapes: B batch, T tokens, D features of a token, N steps.
"""

from dataclasses import dataclass, replace

import torch

from ...conditioning import LatentState
from ...conditioning.streams import States, Tensors, on_streams
from ...sampling.contract import NoiseSampler, Predict
from ...sampling.samplers import EulerAncestralSampler, blended
from ...sampling.steppers import euler_ancestral_step

# Noise levels that differ by no more are the same.
LEVEL_EPS = 1e-6


def token_step(
    sample: torch.Tensor,
    denoised: torch.Tensor,
    levels: torch.Tensor,
    sigmas: torch.Tensor,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Move each token from its own noise level to the next one of a schedule.

    Args:
        sample: Noisy tokens `[B, T, D]`.
        denoised: Predictions of the clean ones.
        levels: Noise level of each token `[B, T, 1]`, on the schedule or between its levels; a token at 0 stays.
        sigmas: The schedule `[N + 1]`.
        noise: Standard normal noise `[B, T, D]` in place of what is left of the old one. Default `None`, an Euler step.
    """
    below = torch.where(sigmas < levels - LEVEL_EPS, sigmas, 0.0).amax(dim=-1, keepdim=True)
    if noise is None:
        return denoised + torch.where(levels > 0, below / levels, 1.0) * (sample - denoised)
    return (1 - below) * denoised + below * noise


@dataclass
class TokenSampler:
    """Euler steps, or steps that renew all noise, for tokens that wait; one prediction per step.

    Args:
        noise_sampler: Source of noise.
        is_stochastic: Whether a step replaces what is left of the noise by fresh noise. Default `False`.
        held_noise_scale: Noise that tokens which conditions hold exactly show at noise level 1; it falls with the square of
            the level. Default 0.0.
    """

    noise_sampler: NoiseSampler
    is_stochastic: bool = False
    held_noise_scale: float = 0.0

    predictions_per_step = 1

    def step(self, predict: Predict, states: States, sigmas: torch.Tensor, step: int) -> tuple[States, Tensors]:
        """See [`~ltx2_diffusers.sampling.contract.Sampler`]."""
        if self.held_noise_scale:
            states = on_streams(lambda state: self._with_noise_on_held(state, sigmas[step].item()), states)
        prediction = predict(states, sigmas[step])

        def move(state: LatentState, denoised: torch.Tensor) -> LatentState:
            levels = sigmas.to(state.latent.device)
            noise = self._noise(state) if self.is_stochastic else None
            moved = token_step(state.latent, denoised, state.levels(levels[step]), levels, noise)
            # A token moves only once the run has come down to its level.
            due = levels[step] - LEVEL_EPS < state.denoise_mask
            return replace(state, latent=torch.where(due, moved, state.latent))

        return on_streams(move, states, prediction), prediction

    def _with_noise_on_held(self, state: LatentState, sigma: float) -> LatentState:
        noised = state.clean_latent + self.held_noise_scale * sigma**2 * self._noise(state)
        return replace(state, latent=torch.where(state.denoise_mask < LEVEL_EPS, noised, state.latent))

    def _noise(self, state: LatentState) -> torch.Tensor:
        """Noise for all tokens, those that conditions appended first, in the order of the original's sequence."""
        noise = self.noise_sampler(state.latent)
        return noise.roll(-state.num_appended, dims=1) if state.num_appended else noise


class WindowSampler(EulerAncestralSampler):
    """Ancestral Euler steps of windows, whose tokens are held to given ones before and after every step.

    Args:
        noise_sampler: See [`EulerAncestralSampler`].
    """

    def step(self, predict: Predict, states: States, sigmas: torch.Tensor, step: int) -> tuple[States, Tensors]:
        """See [`~ltx2_diffusers.sampling.contract.Sampler`]."""
        sigma, sigma_next = sigmas[step : step + 2].tolist()
        prediction = predict(states, sigmas[step])

        def move(state: LatentState, denoised: torch.Tensor) -> LatentState:
            mask, clean = state.denoise_mask, state.clean_latent
            # The network saw each token at its own level, the step is the same for all; one that is held exactly stays.
            share = torch.where(mask > 0, mask, 1.0)
            velocity = (state.latent - clean - (denoised - clean) / share) / (sigma * share)
            held = blended(state, state.latent)
            noise = self.noise_sampler(state.latent) if sigma_next > 0 else None
            moved = euler_ancestral_step(held.latent, held.latent - sigma * velocity, sigma, sigma_next, noise)
            return blended(state, moved)

        return on_streams(move, states, prediction), prediction
