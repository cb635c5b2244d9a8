"""Keyframes that the model generates along with the clip, for transformers with a keyframe embedding (2.5).

Shapes: B batch, C channels, N keyframes, h latent height, w latent width, T tokens, K appended tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ..positions import in_seconds
from ..state import LatentState, TokenSpan
from ..tools import VideoLatentTools
from .appended import check_frame_index
from .base import ConditionItem, append_latent, check_latent, pack_like


@dataclass(frozen=True)
class GeneratedKeyframes(ConditionItem[VideoLatentTools]):
    """Appends one latent frame of free tokens for each keyframe.

    Args:
        frame_indices: Pixel frames of the keyframes, strictly increasing, inside the clip.
        latent: Latents to start from `[B or 1, C, N, h, w]`, default None (zeros).
    """

    frame_indices: Sequence[int]
    latent: torch.Tensor | None = None

    def apply_to(self, state: LatentState, tools: VideoLatentTools) -> LatentState:
        """The state with the keyframes' tokens appended and marked."""
        self._check(state, tools)
        shape = tools.target_shape._replace(frames=len(self.frame_indices))
        start = state.num_tokens
        mask = state.keyframes_mask
        if mask is None:
            first = tools.first_frame_mask(state.denoise_mask.device)
            rest = first.new_zeros(shape.batch, start - tools.num_tokens, 1)
            mask = torch.cat([first, rest], dim=1)
        nothing = state.latent.new_zeros(shape.to_torch_shape())
        positions = self._positions(tools, state.positions.device)
        longer = append_latent(state, tools, nothing, positions, strength=0.0)
        given = pack_like(nothing if self.latent is None else self.latent, state, tools)
        marks = mask.new_ones(mask.shape[0], longer.num_tokens - start, 1)
        return replace(
            longer,
            latent=torch.cat([state.latent, given], dim=1),
            keyframes_mask=torch.cat([mask, marks], dim=1),
            generated_keyframes=TokenSpan(start, longer.num_tokens),
        )

    def _check(self, state: LatentState, tools: VideoLatentTools) -> None:
        if state.generated_keyframes is not None:
            raise ValueError("A state can hold one set of generated keyframes; join their frame_indices.")
        indices = list(self.frame_indices)
        if not indices or indices != sorted(set(indices)):
            raise ValueError(f"frame_indices must be strictly increasing and not empty, got {indices}.")
        for index in indices:
            check_frame_index("frame_indices", index, tools)
        if self.latent is None:
            return
        check_latent("latent", self.latent, tools, free_axes=("frames",))
        if self.latent.shape[2] != len(indices):
            raise ValueError(f"latent must have {len(indices)} frames, one per keyframe, got {self.latent.shape[2]}.")

    def _positions(self, tools: VideoLatentTools, device: torch.device) -> torch.Tensor:
        shape = tools.target_shape._replace(frames=len(self.frame_indices))
        pixels = tools.pixel_bounds(shape, causal_fix=False, device=device)
        starts = pixels.new_tensor(list(self.frame_indices)).repeat_interleave(tools.tokens_per_frame)
        pixels[:, 0] = torch.stack([starts, starts + 1], dim=-1)
        return in_seconds(pixels, tools.fps)


def extract_generated_keyframes(state: LatentState, tools: VideoLatentTools) -> torch.Tensor:
    """The generated keyframes' latents `[B, C, N, h, w]` of a packed state, to be taken before it is cleared."""
    span = state.generated_keyframes
    if span is None:
        raise ValueError("The state has no generated keyframes; apply GeneratedKeyframes to it first.")
    frames = (span.stop - span.start) // tools.tokens_per_frame
    tokens = state.latent[:, span.start : span.stop]
    return tools.patchifier.unpatchify(tokens, tools.target_shape._replace(frames=frames))


def evenly_spaced_keyframes(count: int, num_frames: int) -> list[int]:
    """Pixel frames of `count` keyframes that cut a clip of `num_frames` into equal parts; the ends are left out."""
    if not 0 <= count <= num_frames - 2:
        raise ValueError(
            f"count must lie in [0, {max(num_frames - 2, 0)}] for a clip of {num_frames} frames, got {count}."
        )
    return [round(index * (num_frames - 1) / (count + 1)) for index in range(1, count + 1)]
