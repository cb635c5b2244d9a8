"""Conditions that append tokens with positions of their own: keyframes, reference videos, reference audio.

Shapes: B batch, C channels, F latent frames, h latent height, w latent width, L audio latents, M mel bins of a latent,
K appended tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...checks import check_share
from ..shapes import VideoLatentShape
from ..state import LatentState
from ..tools import AudioLatentTools, VideoLatentTools, in_seconds
from .base import ConditionItem, append_latent, check_index, check_latent, pack_like


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
        check_share(strength=self.strength)
        check_latent("keyframes", self.keyframes, tools, free_axes=("frames",))
        check_index("frame_idx", self.frame_idx, tools.num_frames - 1)
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
class VideoKeyframeSlots(ConditionItem[VideoLatentTools]):
    """Lets the model make single frames beside the video, as tokens after the target's that are marked as keyframes (2.5).

    Args:
        frame_indices: Pixel frame of each, S of them.
        latent: What they start from, `[B or 1, C, S, h, w]` in the target's size, default None (zeros).
    """

    frame_indices: Sequence[int]
    latent: torch.Tensor | None = None

    def apply_to(self, state: LatentState, tools: VideoLatentTools) -> LatentState:
        """The state with the slots' tokens appended."""
        marks = state.keyframes_mask
        if marks is None:
            raise ValueError(
                "slots need a state that marks keyframes; make it with VideoLatentTools(mark_keyframes=True)."
            )
        shape = tools.target_shape._replace(frames=len(self.frame_indices))
        latent = torch.zeros(shape, device=state.latent.device) if self.latent is None else self.latent
        check_latent("latent", latent, replace(tools, target_shape=shape))
        tokens, before = pack_like(latent, state, tools), state.latent
        for index in self.frame_indices:
            empty = torch.zeros_like(latent[:, :, :1])
            state = VideoConditionByKeyframeIndex(empty, index, strength=0.0).apply_to(state, tools)
        marks = torch.cat([marks, torch.ones_like(tokens[..., :1], dtype=marks.dtype)], dim=1)
        return replace(state, latent=torch.cat([before, tokens], dim=1), keyframes_mask=marks)


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
        check_share(strength=self.strength)
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
        check_share(strength=self.strength)
        check_latent("latent", self.latent, tools, free_axes=("frames",))
        length = self.latent.shape[2]
        if self.positions is None:
            positions = tools.positions_of(length, state.positions.device)
        elif self.positions.shape[1:] == (1, length, 2):
            positions = self.positions
        else:
            raise ValueError(f"positions must have shape [B, 1, {length}, 2], got {list(self.positions.shape)}.")
        return append_latent(state, tools, self.latent, positions, self.strength)
