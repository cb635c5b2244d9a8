"""The sizes of one generation, worked out once and read by every later stage.

Shapes: B videos of the batch, F latent frames, h latent rows, w latent columns, L audio latents, M latent mel bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..conditioning.shapes import AudioLatentShape, VideoLatentShape

DEFAULT_SIZE = (512, 768, 121)
"""Height, width and frames of the reference recipes."""


@dataclass(frozen=True)
class GenerationPlan:
    """Sizes of a generation, or of one of its stages.

    Args:
        num_frames: Pixel frames of the stage.
        height, width: Size of a frame in pixels.
        frame_rate: Playback rate of the stage in frames per second.
        motion_speed: Speed of the motion relative to real time; positions are laid out at
            `frame_rate / motion_speed`.
        video: Latent shape `[B, C, F, h, w]`.
        audio: Latent shape `[B, C, L, M]`.
        stage: Index of the stage that runs at these sizes.
        temporal_scale: Frame rate of the stage over that of the finished clip.
    """

    num_frames: int
    height: int
    width: int
    frame_rate: float
    motion_speed: float
    video: VideoLatentShape
    audio: AudioLatentShape
    stage: int = 0
    temporal_scale: float = 1.0

    @property
    def batch_size(self) -> int:
        """Videos of the batch."""
        return self.video.batch

    @property
    def num_video_tokens(self) -> int:
        """Tokens of the clip at the patch size 1 of every released model."""
        return self.video.frames * self.video.height * self.video.width

    @property
    def shown_frames(self) -> list[int]:
        """The frame of the finished clip that each frame of the stage shows; first and last are always among them."""
        return [round(frame / self.temporal_scale) for frame in range(self.num_frames)]

    @property
    def clip_frames(self) -> int:
        """Pixel frames of the finished clip."""
        return self.shown_frames[-1] + 1

    @property
    def duration_s(self) -> float:
        """Length of the finished clip in seconds; that of the audio follows it."""
        return self.clip_frames * self.temporal_scale / self.frame_rate

    @property
    def position_frame_rate(self) -> float:
        """Frame rate at which the positions of the video tokens are laid out."""
        return self.frame_rate / self.motion_speed


def inferred_size(
    latents: torch.Tensor | None,
    given: Sequence[int | None],
    defaults: Sequence[int],
    spatial_ratio: int,
    temporal_ratio: int,
) -> tuple[int, int, int]:
    """Height, width and frames of a clip: what is given, else what unpacked latents imply, else the defaults."""
    implied: Sequence[int | None] = (None, None, None)
    if latents is not None and latents.ndim == 5:
        frames, rows, columns = latents.shape[2:]
        implied = (rows * spatial_ratio, columns * spatial_ratio, (frames - 1) * temporal_ratio + 1)
    height, width, num_frames = (
        next(value for value in options if value is not None) for options in zip(given, implied, defaults)
    )
    return height, width, num_frames


def check_decodable_size(height: int, width: int, minimum: int) -> None:
    """A decoder that pads by reflection needs more than one latent a side."""
    for name, value in (("height", height), ("width", width)):
        if value < minimum:
            raise ValueError(
                f"`{name}` is {value}, but this checkpoint's video VAE decodes no less than {minimum} pixels a side; use "
                f"{minimum}"
            )


def check_latents(name: str, latents: torch.Tensor | None, shape: Sequence[int], packed_shape: Sequence[int]) -> None:
    """Given latents must have `shape` unpacked or `packed_shape` packed."""
    if latents is None:
        return
    if tuple(latents.shape) not in (tuple(shape), tuple(packed_shape)):
        raise ValueError(
            f"`{name}` has shape {tuple(latents.shape)}; this call needs {tuple(shape)} (un-normalised) or "
            f"{tuple(packed_shape)} (packed)"
        )


@dataclass(frozen=True)
class Size:
    """Wished size of the clip; `None` follows given latents or the default."""

    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    frame_rate: float = 24.0
    motion_speed: float = 1.0
