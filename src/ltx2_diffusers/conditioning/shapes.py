"""Sizes of a clip in pixels, seconds and latents, and the rules that lead from one to the other.

Shapes: B batch, C channels, F latent frames, h latent height, w latent width, L audio latents, M mel bins of a latent.
"""

from typing import NamedTuple

import torch


class SpatioTemporalScaleFactors(NamedTuple):
    """Pixels per latent along each axis; the first latent frame alone stands for a single pixel frame."""

    time: int = 8
    height: int = 32
    width: int = 32


# Strides of the LTX-2 video VAE, the same in every release.
VIDEO_SCALE_FACTORS = SpatioTemporalScaleFactors()
VIDEO_LATENT_CHANNELS = 128
AUDIO_LATENT_CHANNELS = 8
AUDIO_LATENT_MEL_BINS = 16
# Mel front-end of the LTX-2 audio VAE: 16000 Hz, hop 160, four mel frames per latent, hence 25 latents a second.
AUDIO_SAMPLE_RATE = 16000
AUDIO_HOP_LENGTH = 160
AUDIO_DOWNSAMPLE_FACTOR = 4
AUDIO_LATENTS_PER_SECOND = AUDIO_SAMPLE_RATE / AUDIO_HOP_LENGTH / AUDIO_DOWNSAMPLE_FACTOR


class VideoPixelShape(NamedTuple):
    """Size of a clip: `frames` and `height` x `width` in pixels, `fps` in frames per second."""

    batch: int
    frames: int
    height: int
    width: int
    fps: float

    @property
    def duration_s(self) -> float:
        """Length of the clip in seconds."""
        return self.frames / self.fps

    def check(self, spatial_multiple: int = 32) -> None:
        """Raises `ValueError` unless the VAE can hold this size without cutting anything off.

        Args:
            spatial_multiple: What height and width must be multiples of; 64 where a first stage runs at half size.
        """
        if self.fps <= 0:
            raise ValueError(f"fps must be positive, got {self.fps}; use for example 24.")
        for name, value in (("height", self.height), ("width", self.width)):
            low = value // spatial_multiple * spatial_multiple
            if value < 1 or value != low:
                choices = f"{low} or {low + spatial_multiple}" if low > 0 else f"{spatial_multiple}"
                raise ValueError(f"{name} must be a multiple of {spatial_multiple}, got {value}; use {choices}.")
        low = snap_frames(max(self.frames, 1))
        if self.frames != low:
            choices = f"{low} or {low + 8}" if self.frames > 1 else "1"
            raise ValueError(f"num_frames must be a multiple of 8 plus 1, got {self.frames}; use {choices}.")


class VideoLatentShape(NamedTuple):
    """Size of a video latent `[B, C, F, h, w]`."""

    batch: int
    channels: int
    frames: int
    height: int
    width: int

    @classmethod
    def from_torch_shape(cls, shape: torch.Size | tuple[int, ...]) -> "VideoLatentShape":
        """Reads the size of a latent tensor `[B, C, F, h, w]`."""
        if len(shape) != 5:
            raise ValueError(f"A video latent has 5 axes [B, C, F, h, w], got shape {tuple(shape)}.")
        return cls(*shape)

    @classmethod
    def from_pixel_shape(
        cls,
        shape: VideoPixelShape,
        latent_channels: int = VIDEO_LATENT_CHANNELS,
        scale_factors: SpatioTemporalScaleFactors = VIDEO_SCALE_FACTORS,
    ) -> "VideoLatentShape":
        """Size of the latent of a clip; what does not fill a latent is dropped, as the VAE drops it.

        Args:
            shape: Size of the clip in pixels. `VideoPixelShape.check` tells whether something would be dropped.
            latent_channels: Channels of the latent.
            scale_factors: Pixels per latent along time, height and width.
        """
        return cls(
            batch=shape.batch,
            channels=latent_channels,
            frames=(shape.frames - 1) // scale_factors.time + 1,
            height=shape.height // scale_factors.height,
            width=shape.width // scale_factors.width,
        )

    def to_torch_shape(self) -> torch.Size:
        """The shape `[B, C, F, h, w]` of the tensor."""
        return torch.Size(self)

    def mask_shape(self) -> "VideoLatentShape":
        """The shape `[B, 1, F, h, w]` of a mask over the latent."""
        return self._replace(channels=1)

    def pixel_frames(self, scale_factors: SpatioTemporalScaleFactors = VIDEO_SCALE_FACTORS) -> int:
        """Pixel frames that this many latent frames decode to."""
        return (self.frames - 1) * scale_factors.time + 1


class AudioLatentShape(NamedTuple):
    """Size of an audio latent `[B, C, L, M]`; `frames` is L."""

    batch: int
    channels: int
    frames: int
    mel_bins: int

    @classmethod
    def from_torch_shape(cls, shape: torch.Size | tuple[int, ...]) -> "AudioLatentShape":
        """Reads the size of a latent tensor `[B, C, L, M]`."""
        if len(shape) != 4:
            raise ValueError(f"An audio latent has 4 axes [B, C, L, M], got shape {tuple(shape)}.")
        return cls(*shape)

    @classmethod
    def from_duration(
        cls,
        batch: int,
        duration: float,
        channels: int = AUDIO_LATENT_CHANNELS,
        mel_bins: int = AUDIO_LATENT_MEL_BINS,
        sample_rate: int = AUDIO_SAMPLE_RATE,
        hop_length: int = AUDIO_HOP_LENGTH,
        audio_latent_downsample_factor: int = AUDIO_DOWNSAMPLE_FACTOR,
    ) -> "AudioLatentShape":
        """Size of the latent of `duration` seconds; the count of latents is rounded half to even.

        Args:
            batch: Batch size.
            duration: Length in seconds.
            channels: Channels of the latent.
            mel_bins: Mel bins of the latent.
            sample_rate: Samples per second of the mel front-end.
            hop_length: Samples between two mel frames.
            audio_latent_downsample_factor: Mel frames per latent.
        """
        latents_per_second = sample_rate / hop_length / audio_latent_downsample_factor
        return cls(batch, channels, round(duration * latents_per_second), mel_bins)

    @classmethod
    def from_video_pixel_shape(
        cls, shape: VideoPixelShape, channels: int = AUDIO_LATENT_CHANNELS, mel_bins: int = AUDIO_LATENT_MEL_BINS
    ) -> "AudioLatentShape":
        """Size of the audio latent that is as long as the clip."""
        return cls.from_duration(shape.batch, shape.duration_s, channels, mel_bins)

    def to_torch_shape(self) -> torch.Size:
        """The shape `[B, C, L, M]` of the tensor."""
        return torch.Size(self)

    def mask_shape(self) -> "AudioLatentShape":
        """The shape `[B, 1, L, 1]` of a mask over the latent."""
        return self._replace(channels=1, mel_bins=1)


def snap_frames(num_frames: int) -> int:
    """The largest count 8k+1 of pixel frames that is not above `num_frames`."""
    return (num_frames - 1) // VIDEO_SCALE_FACTORS.time * VIDEO_SCALE_FACTORS.time + 1
