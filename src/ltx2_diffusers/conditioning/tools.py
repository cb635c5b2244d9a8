"""Makes the latent state of a stream, packs and unpacks it, and removes what conditions appended.

Shapes: B batch, C channels, F latent frames, h latent height, w latent width, L audio latents, M mel bins of a latent,
T tokens of the target, D features of a token.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

from ..models.rope import prepare_audio_coords, prepare_video_coords
from .patchifiers import AudioPatchifier, Patchifier, VideoLatentPatchifier
from .shapes import (
    AUDIO_DOWNSAMPLE_FACTOR,
    VIDEO_SCALE_FACTORS,
    AudioLatentShape,
    SpatioTemporalScaleFactors,
    VideoLatentShape,
)
from .state import LatentState

Shape = TypeVar("Shape", VideoLatentShape, AudioLatentShape)


@dataclass(frozen=True)
class LatentTools(ABC, Generic[Shape]):
    """What both streams share; see `VideoLatentTools` and `AudioLatentTools`."""

    patchifier: Patchifier[Shape]
    target_shape: Shape

    @property
    @abstractmethod
    def fill_latent(self) -> bool:
        """Whether conditions write into the latent what they write into the clean latent."""

    @property
    def tokens_wait(self) -> bool:
        """See `LatentState.waits`."""
        return False

    @property
    @abstractmethod
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""

    @abstractmethod
    def positions(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Positions of the target's tokens, float32 `[B, axes, T, 2]`."""

    def keyframes_mask(self, device: torch.device | str | None = None) -> torch.Tensor | None:  # noqa: ARG002
        """Mask `[B, T, 1]` of the target's tokens that stand for a single pixel frame, or None if no one asks."""
        return None

    @property
    def num_tokens(self) -> int:
        """Tokens T of the target."""
        return self.patchifier.get_token_count(self.target_shape)

    def create_initial_state(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        initial_latent: torch.Tensor | None = None,
    ) -> LatentState:
        """A packed state that is denoised everywhere and has no noise yet.

        Args:
            device: Where the tensors are made.
            dtype: Of the latent; mask and positions are float32 always.
            initial_latent: Unpacked latent to start from, of the target's shape, default None (zeros).
        """
        shape = self.target_shape.to_torch_shape()
        if initial_latent is None:
            latent = torch.zeros(shape, device=device, dtype=dtype)
        elif initial_latent.shape == shape:
            latent = initial_latent.to(device=device, dtype=dtype)
        else:
            raise ValueError(f"initial_latent must have shape {list(shape)}, got {list(initial_latent.shape)}.")
        tokens = self.patchifier.patchify(latent)
        return LatentState(
            latent=tokens,
            denoise_mask=torch.ones(*tokens.shape[:2], 1, device=tokens.device),
            positions=self.positions(device),
            clean_latent=tokens.clone(),
            keyframes_mask=self.keyframes_mask(device),
            waits=self.tokens_wait,
        )

    def patchify(self, state: LatentState) -> LatentState:
        """Packs latent, clean latent and mask (`[B, 1, F, h, w]` or `[B, 1, L, 1]`) of an unpacked state."""
        return replace(
            state,
            latent=self.patchifier.patchify(state.latent),
            clean_latent=self.patchifier.patchify(state.clean_latent),
            denoise_mask=self.patchifier.patchify(state.denoise_mask).mean(dim=-1, keepdim=True),
        )

    def unpatchify(self, state: LatentState) -> LatentState:
        """Unpacks latent, clean latent and mask; appended tokens must be gone (`clear_conditioning`)."""
        mask = state.denoise_mask.expand(-1, -1, self.patchifier.patch_size**2)
        return replace(
            state,
            latent=self.patchifier.unpatchify(state.latent, self.target_shape),
            clean_latent=self.patchifier.unpatchify(state.clean_latent, self.target_shape),
            denoise_mask=self.patchifier.unpatchify(mask, self.target_shape.mask_shape()),
        )

    def clear_conditioning(self, state: LatentState) -> LatentState:
        """Cuts a packed state to the target's tokens and resets its mask to ones."""
        count = self.num_tokens
        return LatentState(
            latent=state.latent[:, :count],
            denoise_mask=torch.ones_like(state.denoise_mask[:, :count]),
            positions=state.positions[:, :, :count],
            clean_latent=state.clean_latent[:, :count],
            keyframes_mask=None if state.keyframes_mask is None else state.keyframes_mask[:, :count],
            waits=state.waits,
        )


def in_seconds(pixels: torch.Tensor, fps: float) -> torch.Tensor:
    """Pixel bounds `[B, 3, T, 2]` with the time axis in seconds."""
    return torch.cat([pixels[:, :1] / fps, pixels[:, 1:]], dim=1)


@dataclass(frozen=True)
class VideoLatentTools(LatentTools[VideoLatentShape]):
    """Tools of the video stream.

    Args:
        patchifier: Packs the latent.
        target_shape: Size of the latent that is to be generated.
        fps: Frames per second that positions are counted in.
        scale_factors: Pixels per latent, default (8, 32, 32).
        causal_fix: Whether the first latent frame stands for one pixel frame only, default True.
        position_rounding: Round positions to this dtype, default None (not at all). `torch.bfloat16` gives the
            positions of the 2.0 reference, which kept them in the dtype of its latents.
        fill_latent: Whether conditions write into the latent what they write into the clean latent, default True (2.0
            reference). False leaves the latent alone, for `GaussianNoiser(blend="clean")`.
        mark_keyframes: Whether the state has a keyframes mask, for transformers with a keyframe embedding (2.5).
        tokens_wait: See `LatentState.waits`, default False.
    """

    patchifier: VideoLatentPatchifier
    target_shape: VideoLatentShape
    fps: float
    scale_factors: SpatioTemporalScaleFactors = VIDEO_SCALE_FACTORS
    causal_fix: bool = True
    position_rounding: torch.dtype | None = None
    fill_latent: bool = True
    mark_keyframes: bool = False
    tokens_wait: bool = False

    @property
    def num_frames(self) -> int:
        """Pixel frames of the clip."""
        return self.target_shape.pixel_frames(self.scale_factors)

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.patchifier.get_token_count(self.target_shape._replace(frames=1))

    def positions(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Positions `[B, 3, T, 2]`: seconds, pixel rows, pixel columns."""
        positions = in_seconds(self.pixel_bounds(self.target_shape, self.causal_fix, device), self.fps)
        return positions if self.position_rounding is None else positions.to(self.position_rounding).float()

    def pixel_bounds(
        self, shape: VideoLatentShape, causal_fix: bool, device: torch.device | str | None = None
    ) -> torch.Tensor:
        """Bounds `[B, 3, T, 2]` of the tokens of a latent of any shape, in pixel frames, rows and columns."""
        return prepare_video_coords(
            shape.batch,
            shape.frames,
            shape.height,
            shape.width,
            device=device,
            fps=1.0,
            patch_size=self.patchifier.patch_size,
            scale_factors=self.scale_factors,
            causal_offset=1 if causal_fix else self.scale_factors.time,
        )

    def keyframes_mask(self, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Mask `[B, T, 1]` that marks the first latent frame, or None without `mark_keyframes`."""
        if not self.mark_keyframes:
            return None
        first = torch.arange(self.num_tokens, device=device) < self.tokens_per_frame
        return first.float()[None, :, None].repeat(self.target_shape.batch, 1, 1)


@dataclass(frozen=True)
class AudioLatentTools(LatentTools[AudioLatentShape]):
    """Tools of the audio stream.

    Args:
        patchifier: Packs the latent.
        target_shape: Size of the latent that is to be generated.
        shift: Latents between the start of the clip and the first token, default 0.
        causal_fix: Whether the first latent stands for one mel frame only, default True.
        fill_latent: As in `VideoLatentTools`.
    """

    patchifier: AudioPatchifier
    target_shape: AudioLatentShape
    shift: int = 0
    causal_fix: bool = True
    fill_latent: bool = True

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent."""
        return 1

    def positions(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Positions `[B, 1, L, 2]` in seconds."""
        return self.positions_of(self.target_shape.frames, device)

    def positions_of(self, num_latents: int, device: torch.device | str | None = None) -> torch.Tensor:
        """Positions `[B, 1, L, 2]` in seconds of another number of latents, counted from the same start."""
        offset = 1 if self.causal_fix else AUDIO_DOWNSAMPLE_FACTOR
        return prepare_audio_coords(self.target_shape.batch, num_latents, device, self.shift, causal_offset=offset)
