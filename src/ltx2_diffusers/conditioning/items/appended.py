"""Conditions that append tokens with positions of their own: keyframes, reference videos, reference audio.

Shapes: B batch, C channels, F latent frames, h latent height, w latent width, L audio latents, M mel bins of a latent,
K appended tokens.
"""

from dataclasses import dataclass

import torch

from ..positions import in_seconds
from ..shapes import VideoLatentShape
from ..state import LatentState
from ..tools import AudioLatentTools, VideoLatentTools
from .base import ConditionItem, append_latent, check_latent, check_unit


@dataclass(frozen=True)
class VideoConditionByKeyframeIndex(ConditionItem[VideoLatentTools]):
    """Shows the model an image or a clip at a pixel frame, as tokens after the target's.

    Args:
        keyframes: Encoded frames `[B or 1, C, F, h, w]` in the target's size.
        frame_idx: Pixel frame where they begin.
        strength: 1 keeps them exactly (default), 0 lets them be denoised fully.
        wide_span: A single frame at `frame_idx` k > 0 spans k to k+8 pixel frames, as in the 2.0 reference; default
            False: k to k+1, what an image is.
        attention_strength: How far target and keyframe see each other, in [0, 1]; a number or one value per token `[K]`
            or `[B, K]`, default None (fully).
    """

    keyframes: torch.Tensor
    frame_idx: int
    strength: float = 1.0
    wide_span: bool = False
    attention_strength: float | torch.Tensor | None = None

    def apply_to(self, state: LatentState, tools: VideoLatentTools) -> LatentState:
        """The state with the keyframes' tokens appended."""
        check_unit("strength", self.strength)
        check_latent("keyframes", self.keyframes, tools, free_axes=("frames",))
        _check_frame_index(self.frame_idx, tools)
        positions = self._positions(tools, state.positions.device)
        return append_latent(state, tools, self.keyframes, positions, self.strength, self.attention_strength)

    def _positions(self, tools: VideoLatentTools, device: torch.device) -> torch.Tensor:
        shape = VideoLatentShape.from_torch_shape(self.keyframes.shape)
        # A clip that begins inside the target has no causal first frame of its own.
        pixels = tools.pixel_bounds(shape, tools.causal_fix and self.frame_idx == 0, device)
        pixels[:, 0] += self.frame_idx
        if shape.frames == 1 and not self.wide_span:
            pixels[:, 0, :, 1] = pixels[:, 0, :, 0] + 1
        return in_seconds(pixels, tools.fps)


@dataclass(frozen=True)
class VideoConditionByReferenceLatent(ConditionItem[VideoLatentTools]):
    """Shows the model a reference video (IC-LoRA), as tokens after the target's with the target's coordinates.

    Args:
        latent: Encoded reference `[B or 1, C, F, h, w]`; its size may differ from the target's.
        downscale_factor: Target size over reference size, default 1.
        strength: 1 keeps it exactly (default), 0 lets it be denoised fully.
        temporal_scale_factor: Target frames per reference frame, default 1.
        attention_strength: As in `VideoConditionByKeyframeIndex`.
    """

    latent: torch.Tensor
    downscale_factor: int = 1
    strength: float = 1.0
    temporal_scale_factor: int = 1
    attention_strength: float | torch.Tensor | None = None

    def apply_to(self, state: LatentState, tools: VideoLatentTools) -> LatentState:
        """The state with the reference's tokens appended."""
        check_unit("strength", self.strength)
        check_latent("latent", self.latent, tools, free_axes=("frames", "height", "width"))
        for name in ("downscale_factor", "temporal_scale_factor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}; use 1.")
        positions = self._positions(tools, state.positions.device)
        return append_latent(state, tools, self.latent, positions, self.strength, self.attention_strength)

    def _positions(self, tools: VideoLatentTools, device: torch.device) -> torch.Tensor:
        shape = VideoLatentShape.from_torch_shape(self.latent.shape)
        pixels = tools.pixel_bounds(shape, tools.causal_fix, device)
        positions = in_seconds(pixels, tools.fps / self.temporal_scale_factor)
        positions[:, 1:] *= self.downscale_factor
        if self.temporal_scale_factor != 1:
            # The first frame stands for one target frame too, so all later ones begin that much earlier.
            excess = (self.temporal_scale_factor - 1) * tools.positions(device)[:1, 0, 0, 1]
            positions[:, 0] = (positions[:, 0] - excess).clamp(min=0)
        return positions


@dataclass(frozen=True)
class AudioConditionByReferenceLatent(ConditionItem[AudioLatentTools]):
    """Shows the model reference audio, as tokens after the target's.

    Args:
        latent: Encoded audio `[B or 1, C, L, M]`.
        positions: Start and end of each latent in seconds `[B or 1, 1, L, 2]`, default None: as the target counts.
        strength: 1 keeps it exactly (default), 0 lets it be denoised fully.
    """

    latent: torch.Tensor
    positions: torch.Tensor | None = None
    strength: float = 1.0

    def apply_to(self, state: LatentState, tools: AudioLatentTools) -> LatentState:
        """The state with the reference's tokens appended."""
        check_unit("strength", self.strength)
        check_latent("latent", self.latent, tools, free_axes=("frames",))
        length = self.latent.shape[2]
        if self.positions is None:
            positions = tools.positions_of(length, state.positions.device)
        elif self.positions.shape[1:] == (1, length, 2):
            positions = self.positions
        else:
            raise ValueError(f"positions must have shape [B, 1, {length}, 2], got {list(self.positions.shape)}.")
        return append_latent(state, tools, self.latent, positions, self.strength)


def _check_frame_index(frame_idx: int, tools: VideoLatentTools) -> None:
    last = tools.num_frames - 1
    if not 0 <= frame_idx <= last:
        raise ValueError(f"frame_idx must lie in [0, {last}], got {frame_idx}; use {min(max(frame_idx, 0), last)}.")
