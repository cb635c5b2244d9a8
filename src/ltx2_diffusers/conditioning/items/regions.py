"""Conditions on a whole stream or on a region of it: given audio or video, retakes, masks.

Shapes: B batch, C channels, F latent frames, h latent height, w latent width, L audio latents, M mel bins of a latent,
T tokens of the target.
"""

from dataclasses import dataclass, replace

import torch

from ...checks import check_share
from ..state import LatentState
from ..tools import LatentTools
from .base import ConditionItem, check_latent, pack_like, place_latent


@dataclass(frozen=True)
class ConditionByWholeLatent(ConditionItem):
    """Gives a whole stream: audio for audio-to-video, video for video-to-audio.

    Args:
        latent: Encoded stream of the target's shape, `[B or 1, C, F, h, w]` or `[B or 1, C, L, M]`.
        noise_scale: 0 keeps the stream exactly and freezes it (default), 1 ignores it. Between, the stream begins
            with this much noise and is held to the latent by the rest (`audio_cond_noise_scale`).
    """

    latent: torch.Tensor
    noise_scale: float = 0.0

    def apply_to(self, state: LatentState, tools: LatentTools) -> LatentState:
        """The state with the latent's tokens in place of all of the target's."""
        check_share(noise_scale=self.noise_scale)
        check_latent("latent", self.latent, tools)
        state = place_latent(state, tools, self.latent, 0, 1.0 - self.noise_scale)
        if self.noise_scale > 0:
            return state
        # A frozen stream is never noised, so its latent is the given one whatever the noiser mixes.
        return replace(state, latent=state.clean_latent, frozen=True)


@dataclass(frozen=True)
class ConditionByInitialLatent(ConditionItem):
    """Gives a whole stream: what the state starts from, which is kept exactly."""

    def apply_to(self, state: LatentState, tools: LatentTools) -> LatentState:  # noqa: ARG002 (the state has it all)
        """The state, frozen."""
        mask = torch.zeros_like(state.denoise_mask)
        return replace(state, denoise_mask=mask, clean_latent=state.latent, frozen=True)


def tokens_in_time(start_s: float, end_s: float, tools: LatentTools, device: torch.device) -> torch.Tensor:
    """1 for the target's tokens that overlap a stretch of time and 0 for its others, float32 `[B, T, 1]`."""
    seconds = tools.positions(device)[:, 0]  # [B, T, 2]
    if not 0 <= start_s < end_s:
        raise ValueError(f"start_s and end_s must be 0 <= start < end, got {start_s} and {end_s}.")
    # Every clip reaches beyond its start, so a look at the tokens is not needed there.
    if start_s > 0 and start_s >= (duration_s := seconds.amax().item()):
        raise ValueError(f"start_s must lie before the clip's end at {duration_s:g} s, got {start_s}.")
    inside = (seconds[..., 1] > start_s) & (seconds[..., 0] < end_s)
    return inside.float().unsqueeze(-1)


@dataclass(frozen=True)
class ConditionOutsideRegion(ConditionItem):
    """Holds a stream to given latents everywhere but in a stretch of time and, in it, a region (retake).

    It leaves alone what the state starts from inside, such as the result of an earlier stage.

    Args:
        latent: Encoded stream of the target's shape, `[B or 1, C, F, h, w]` or `[B or 1, C, L, M]`.
        start_s: Begin of the stretch in seconds.
        end_s: End of the stretch in seconds.
        region: 1 where the stream is free during the stretch, 0 where it is held, `[B or 1, F, h, w]` or
            `[B or 1, L, M]`; default None (free everywhere).
    """

    latent: torch.Tensor
    start_s: float
    end_s: float
    region: torch.Tensor | None = None

    def apply_to(self, state: LatentState, tools: LatentTools) -> LatentState:
        """The state with the latent's tokens outside the region."""
        check_latent("latent", self.latent, tools)
        free = tokens_in_time(self.start_s, self.end_s, tools, state.denoise_mask.device)
        if self.region is not None:
            free = free * mask_tokens("region", self.region, state, tools)
        return hold_tokens(state, tools, self.latent, 1.0 - free)


def mask_tokens(name: str, mask: torch.Tensor, state: LatentState, tools: LatentTools) -> torch.Tensor:
    """A mask `[B or 1, F, h, w]` or `[B or 1, L, M]` as one value per token, `[B or 1, T, 1]`."""
    check_latent(name, mask.unsqueeze(1), tools, free_axes=("channels",))
    return tools.patchifier.patchify(mask.unsqueeze(1).to(state.denoise_mask)).mean(dim=-1, keepdim=True)


def hold_tokens(state: LatentState, tools: LatentTools, latent: torch.Tensor, weight: torch.Tensor) -> LatentState:
    """The state held to a latent's clean tokens by `weight` `[B or 1, T, 1]`: 1 keeps a token, 0 leaves it free."""
    count = tools.num_tokens
    tokens = pack_like(latent, state, tools)

    def blend(old: torch.Tensor, new: torch.Tensor | float) -> torch.Tensor:
        mixed = old[:, :count] * (1 - weight) + new * weight
        return torch.cat([mixed.to(old.dtype), old[:, count:]], dim=1)

    return replace(
        state,
        latent=blend(state.latent, tokens) if tools.fill_latent else state.latent,
        clean_latent=blend(state.clean_latent, tokens),
        denoise_mask=blend(state.denoise_mask, 0.0),
    )
