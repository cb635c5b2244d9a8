"""What all condition items are made of: checks, and writing tokens into a state or after its end.

Shapes: B batch, C channels, F latent frames, h latent height, w latent width, L audio latents, M mel bins of a latent,
T tokens, K new tokens, D features of a token.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch

from ..attention_strength import extend_attention_mask, token_strength
from ..state import LatentState
from ..tools import LatentTools

Tools = TypeVar("Tools", bound=LatentTools[Any], contravariant=True)


class ConditionItem(ABC, Generic[Tools]):
    """Something that holds a generation to given latents: a function from a packed state to a packed state."""

    @abstractmethod
    def apply_to(self, state: LatentState, tools: Tools) -> LatentState:
        """The state with this condition.

        Args:
            state: Packed state made by `tools`, other conditions may be applied already.
            tools: Tools of the stream.
        """


def check_index(name: str, index: int, last: int, reason: str = "") -> None:
    """Raises `ValueError` unless `index` lies in [0, last]; `reason` says why there."""
    if not 0 <= index <= last:
        raise ValueError(f"{name} must lie in [0, {last}]{reason}, got {index}; use {min(max(index, 0), last)}.")


def check_latent(name: str, latent: torch.Tensor, tools: LatentTools, free_axes: tuple[str, ...] = ()) -> None:
    """Raises `ValueError` unless a latent has the target's shape; batch 1 stands for every sample.

    Args:
        name: Argument to name in the message.
        latent: `[B, C, F, h, w]` or `[B, C, L, M]`.
        tools: Tools of the stream.
        free_axes: Axes of the target's shape, by name, that may differ.
    """
    target = tools.target_shape
    shape = type(target).from_torch_shape(latent.shape)
    for axis, wanted in target._asdict().items():
        got = getattr(shape, axis)
        if got != wanted and axis not in free_axes and not (axis == "batch" and got == 1):
            raise ValueError(f"{name} must have {axis} {wanted} as the target has, got {got} in {tuple(shape)}.")


def pack_like(latent: torch.Tensor, state: LatentState, tools: LatentTools) -> torch.Tensor:
    """Tokens `[B, K, D]` of a latent in the state's batch size, dtype and device."""
    tokens = tools.patchifier.patchify(latent.to(state.latent))
    return tokens.expand(state.latent.shape[0], -1, -1)


def place_latent(
    state: LatentState, tools: LatentTools, latent: torch.Tensor, start: int, strength: float
) -> LatentState:
    """The state with a latent's clean tokens in the place of tokens `start` to `start + K - 1`."""
    tokens = pack_like(latent, state, tools)

    def splice(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.cat([old[:, :start], new, old[:, start + new.shape[1] :]], dim=1)

    mask = torch.full_like(state.denoise_mask[:, : tokens.shape[1]], 1.0 - strength)
    return replace(
        state,
        latent=splice(state.latent, tokens) if tools.fill_latent else state.latent,
        clean_latent=splice(state.clean_latent, tokens),
        denoise_mask=splice(state.denoise_mask, mask),
    )


def append_latent(
    state: LatentState,
    tools: LatentTools,
    latent: torch.Tensor,
    positions: torch.Tensor,
    strength: float,
    attention_strength: float | torch.Tensor | None = None,
) -> LatentState:
    """The state with a latent's clean tokens after its end.

    Args:
        state: Packed state.
        tools: Tools of the stream.
        latent: `[B or 1, C, F, h, w]` or `[B or 1, C, L, M]`.
        positions: Positions of its tokens `[B or 1, axes, K, 2]`.
        strength: 1 keeps them exactly, 0 lets them be denoised fully.
        attention_strength: See `token_strength`.
    """
    return append_tokens(state, tools, pack_like(latent, state, tools), positions, strength, attention_strength)


def append_tokens(
    state: LatentState,
    tools: LatentTools,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    strength: float,
    attention_strength: float | torch.Tensor | None = None,
) -> LatentState:
    """The same for clean tokens `[B, K, D]`."""
    batch, count = tokens.shape[:2]
    seen = token_strength(attention_strength, batch, count, tokens.device)
    positions = positions.to(state.positions).expand(batch, -1, -1, -1)
    mask = state.denoise_mask.new_full((batch, count, 1), 1.0 - strength)
    keyframes = state.keyframes_mask
    return replace(
        state,
        latent=torch.cat([state.latent, tokens if tools.fill_latent else torch.zeros_like(tokens)], dim=1),
        clean_latent=torch.cat([state.clean_latent, tokens], dim=1),
        denoise_mask=torch.cat([state.denoise_mask, mask], dim=1),
        positions=torch.cat([state.positions, positions], dim=2),
        attention_mask=extend_attention_mask(state.attention_mask, tools.num_tokens, state.num_tokens, count, seen),
        keyframes_mask=None if keyframes is None else torch.cat([keyframes, torch.zeros_like(mask)], dim=1),
        num_appended=state.num_appended + count,
    )
