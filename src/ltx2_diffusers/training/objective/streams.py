"""One stream of a training step: clean latents become noisy tokens, and what the model has to say of them.

The state is made and changed by the condition items of generation: what a model is held to there, it is shown here.

Shapes: B samples, C channels, F latent frames, h latent height, w latent width, S tokens of the target, T tokens with
appended ones, D features of a token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ...conditioning import ConditionByWholeLatent, ConditionItem, GaussianNoiser, LatentState, LatentTools, Modality
from .noise_levels import Draws, NoiseLevels


@dataclass(frozen=True)
class TrainedStream:
    """What a stream of a step reads, and what it is compared with.

    Args:
        state: Noisy tokens, the target's first and references after them, with their positions and masks.
        sigma: Noise level of every sample `[B]`; 0 for a stream that is given.
        velocity: Noise minus clean tokens of the target, float32 `[B, S, D]`; `None` for a stream that is given.
        loss_mask: True for tokens of the target that the model has to say, `[B, S]`; `None` for a stream that is given.
    """

    state: LatentState
    sigma: torch.Tensor
    velocity: torch.Tensor | None = None
    loss_mask: torch.Tensor | None = None

    @property
    def timesteps(self) -> torch.Tensor:
        """Noise level of every token `[B, T]`: 0 for those that are held."""
        return self.sigma[:, None] * self.state.denoise_mask[..., 0]

    def modality(self, context: torch.Tensor, dtype: torch.dtype) -> Modality:
        """What the transformer reads, with the text `[B, P, W]` of the stream and tokens in a data type."""
        return Modality(
            enabled=True,
            latent=self.state.latent.to(dtype),
            timesteps=self.timesteps,
            positions=self.state.positions,
            context=context,
            sigma=self.sigma,
            keyframes_mask=self.state.keyframes_mask,
        )


@dataclass(frozen=True)
class Shown:
    """A condition of a step.

    Args:
        item: The condition.
        rows: Which samples are held to it, `[B]`; `None` for all.
    """

    item: ConditionItem
    rows: torch.Tensor | None = None


def given_stream(clean: torch.Tensor, tools: LatentTools, references: Sequence[ConditionItem] = ()) -> TrainedStream:
    """A stream that the model sees without noise and does not learn.

    Args:
        clean: Latents `[B, C, F, h, w]` or `[B, C, L, M]`.
        tools: Tools of the stream.
        references: Conditions that append tokens.
    """
    state = ConditionByWholeLatent(clean).apply_to(tools.create_initial_state(clean.device), tools)
    for item in references:
        state = item.apply_to(state, tools)
    return TrainedStream(state, torch.zeros(len(clean), device=clean.device))


def trained_stream(
    clean: torch.Tensor,
    tools: LatentTools,
    levels: NoiseLevels,
    draws: Draws,
    conditions: Callable[[], Sequence[Shown]] = tuple,
    sigma: torch.Tensor | None = None,
) -> TrainedStream:
    """A stream that the model learns to denoise.

    Args:
        clean: Latents `[B, C, F, h, w]` or `[B, C, L, M]`.
        tools: Tools of the stream.
        levels: Distribution of the noise levels.
        draws: Random numbers; the level is drawn first, then the noise, then what conditions draw.
        conditions: Makes what the samples are held to: first what replaces tokens, then what appends some.
        sigma: Noise levels `[B]` that another stream has drawn, default `None` (drawn here).
    """
    state = tools.create_initial_state(clean.device, initial_latent=clean)
    target, count = state.latent, tools.num_tokens
    if sigma is None:
        sigma = levels.sample(len(clean), count, draws).to(clean.device)
    noise = draws.normal(target.shape).to(clean.device)
    for shown in conditions():
        state = _held(state, shown, tools)
    loss_mask = state.denoise_mask[:, :count, 0] > 0
    # Appended tokens are held, so the noise on them does not matter.
    rest = noise.new_zeros(len(clean), state.num_tokens - count, noise.shape[2])
    noised = GaussianNoiser()(state, sigma, torch.cat([noise, rest], dim=1))
    return TrainedStream(noised, sigma, noise - target, loss_mask)


def _held(state: LatentState, shown: Shown, tools: LatentTools) -> LatentState:
    """The state with a condition in the samples that are held to it."""
    held = shown.item.apply_to(state, tools)
    if shown.rows is None:
        return held
    # The latents are those of the clip itself, so only the mask tells held tokens from others.
    return replace(state, denoise_mask=torch.where(shown.rows[:, None, None], held.denoise_mask, state.denoise_mask))
