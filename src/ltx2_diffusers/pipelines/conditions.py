"""What a generation can be held to, as callers give it: pictures, clips, sounds, latents.

A condition is checked before any computation, and turned into condition items once per stage, at that stage's size.
Shapes: F frames, H and W rows and columns of pixels, N samples.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch

from ..conditioning.attention_strength import pixel_mask_to_tokens
from ..conditioning.carry import fit_audio_latent, resize_latent
from ..conditioning.items.appended import VideoConditionByKeyframeIndex, VideoConditionByReferenceLatent
from ..conditioning.items.base import ConditionItem
from ..conditioning.items.latent_index import AudioConditionByLatentIndex, VideoConditionByLatentIndex
from ..conditioning.items.regions import ConditionByWholeLatent
from ..conditioning.shapes import VideoLatentShape
from ..media.preprocess import fit_cover, h264_round_trip, normalize_pixels
from ..media.reading import read_audio, read_image, read_video
from ..models.audio_vae import conform_latent_length
from ..sampling.denoiser import Streams
from .checks import check_choice, check_unit
from .plan import GenerationPlan

Frames = PIL.Image.Image | Sequence[PIL.Image.Image] | np.ndarray | torch.Tensor | str | os.PathLike
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")


class Condition(Protocol):
    """What the engine asks of a condition."""

    is_reference: bool

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if the condition does not fit a stage of these sizes."""

    def places(self, plan: GenerationPlan) -> Iterable[str]:
        """Places of the finished clip that no other condition may claim."""

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Condition items for each stream at the sizes of a stage."""


def read_frames(frames: Frames, max_frames: int | None = None) -> torch.Tensor:
    """Pixels `[F, H, W, 3]` in [0, 255] of a picture or clip, bytes unless they were given as floats.

    Args:
        frames: An image, a list of images, an array `[H, W, 3]` or `[F, H, W, 3]`, a tensor `[3, H, W]` or
            `[F, 3, H, W]`, or the name of an image or video file.
        max_frames: Most frames to read from a file.
    """
    if isinstance(frames, (str, os.PathLike)):
        if os.fspath(frames).lower().endswith(VIDEO_SUFFIXES):
            return read_video(frames, max_frames)
        return torch.from_numpy(np.array(read_image(frames)))[None]
    if isinstance(frames, PIL.Image.Image):
        return torch.from_numpy(np.array(read_image(frames)))[None]
    if isinstance(frames, np.ndarray):
        pixels = torch.from_numpy(np.ascontiguousarray(frames))
        pixels = pixels[None] if pixels.ndim == 3 else pixels
    elif isinstance(frames, torch.Tensor):
        pixels = (frames[None] if frames.ndim == 3 else frames).movedim(1, -1).cpu()
    elif isinstance(frames, Sequence) and frames and all(isinstance(f, PIL.Image.Image) for f in frames):
        return torch.stack([torch.from_numpy(np.array(read_image(f))) for f in frames])
    else:
        raise ValueError(
            f"`frames` has to be an image, a list of images, an array, a tensor or a file name but is {type(frames)}"
        )
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or not len(pixels):
        raise ValueError(f"`frames` has to hold RGB frames but has shape {tuple(frames.shape)}")
    return pixels


@dataclass(frozen=True)
class LTX2VideoCondition:
    """A picture or clip that the video shows at some place.

    Args:
        frames: An image, a list of images, an array `[F, H, W, 3]` or a tensor `[F, 3, H, W]` in [0, 255], or a file
            name. A clip is cut to 8 k + 1 frames and to the end of the video.
        index: Latent frame where it goes; negative ones count from the end. Latent frame `i > 0` begins at pixel
            frame `8 * (i - 1) + 1`.
        strength: 1 keeps it exactly, 0 ignores it.
        crf: H.264 quality of the round trip that single images take, default the checkpoint's; 0 skips it.
        frame: Pixel frame where it goes, instead of `index`; negative ones count from the end.
        mode: `"replace"` writes it into the video's own latents, which needs a place that begins a latent frame;
            `"append"` shows it beside them. Default `"auto"`: replace at the start, append elsewhere.
    """

    frames: Frames
    index: int = 0
    strength: float = 1.0
    crf: int | None = None
    frame: int | None = None
    mode: str = "auto"

    is_reference = False

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if place, strength or frames are not valid."""
        check_unit(strength=self.strength)
        check_choice("mode", self.mode, ("auto", "replace", "append"))
        start = self._start(plan)
        if self._replaces(start) and start and (start - 1) % 8:
            nearest = (start - 1) // 8 * 8 + 1
            raise ValueError(
                f"frame {start} does not begin a latent frame, so nothing can be replaced there; use frame {nearest} or "
                f'{nearest + 8}, or mode="append"'
            )
        crf = pipeline.preset.image_crf if self.crf is None else self.crf
        if not 0 <= crf <= 51:
            raise ValueError(f"`crf` has to be between 0 (no compression) and 51 but is {crf}; use 33")
        if not isinstance(self.frames, (str, os.PathLike)):
            pixels = read_frames(self.frames)
            if crf and len(pixels) == 1 and pixels.dtype != torch.uint8:
                raise ValueError(
                    f"the H.264 round trip of an image needs bytes but got {pixels.dtype}; give an image or a uint8 "
                    "array, or set `crf=0`"
                )

    def places(self, plan: GenerationPlan) -> list[str]:
        """The latent frame it replaces, or the pixel frame it is shown beside."""
        return [f"video frame {self._start(plan)}"]

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the frames at the stage's size."""
        start = self._start(plan)
        room = plan.num_frames - start
        pixels = read_frames(self.frames, room)[:room]
        pixels = pixels[: (len(pixels) - 1) // 8 * 8 + 1]
        if len(pixels) == 1:
            crf = pipeline.preset.image_crf if self.crf is None else self.crf
            pixels = h264_round_trip(pixels[0], crf) if crf else pixels
        latent = pipeline.encode_video(normalize_pixels(fit_cover(pixels, plan.height, plan.width)))
        if self._replaces(start):
            return _video_item(VideoConditionByLatentIndex(latent, self.strength, (start + 7) // 8))
        return _video_item(VideoConditionByKeyframeIndex(latent, start, self.strength))

    def _replaces(self, start: int) -> bool:
        return self.mode == "replace" or (self.mode == "auto" and start == 0)

    def _start(self, plan: GenerationPlan) -> int:
        """Pixel frame where the condition begins."""
        if self.frame is not None:
            return _counted("frame", self.frame, plan.num_frames)
        index = _counted("index", self.index, plan.video.frames)
        return max(0, 8 * (index - 1) + 1)


@dataclass(frozen=True)
class LTX2ReferenceCondition:
    """A reference video that an IC-LoRA translates into the generated one.

    Args:
        frames: As in [`LTX2VideoCondition`].
        strength: 1 shows it exactly, 0 ignores it.
        downscale_factor: Size of the video over that of the reference, as the LoRA was trained.
        temporal_scale_factor: Frames of the video per frame of the reference.
        attention_strength: How far video and reference see each other, 0 to 1; or a mask in [0, 1] of pixels
            `[1, 1, F, H, W]` or one value per token.
    """

    frames: Frames
    strength: float = 1.0
    downscale_factor: int = 1
    temporal_scale_factor: int = 1
    attention_strength: float | torch.Tensor | None = None

    is_reference = True

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if strength or factors are not valid."""
        check_unit(strength=self.strength)
        factor = self.downscale_factor
        if not isinstance(factor, int) or factor < 1 or plan.height % factor or plan.width % factor:
            raise ValueError(
                f"the reference's downscale factor {factor} has to divide height and width ({plan.height} x "
                f"{plan.width}) of every stage; use a size that is a multiple of {32 * max(1, int(factor))}"
            )
        if (plan.height // factor) % 32 or (plan.width // factor) % 32:
            raise ValueError(
                f"a reference of {plan.height // factor} x {plan.width // factor} pixels cannot be encoded; use a size "
                f"that is a multiple of {32 * factor}"
            )
        if not isinstance(self.frames, (str, os.PathLike)):
            read_frames(self.frames)

    def places(self, plan: GenerationPlan) -> list[str]:
        """References stand beside the video and may be many."""
        return []

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the reference at its share of the stage's size."""
        scale = self.temporal_scale_factor
        pixels = read_frames(self.frames, plan.num_frames)[: plan.num_frames]
        pixels = torch.cat([pixels[:1], pixels[1::scale]])
        pixels = pixels[: (len(pixels) - 1) // 8 * 8 + 1]
        size = (plan.height // self.downscale_factor, plan.width // self.downscale_factor)
        latent = pipeline.encode_video(normalize_pixels(fit_cover(pixels, *size)))
        return _video_item(
            VideoConditionByReferenceLatent(
                latent, self.downscale_factor, self.strength, scale, self._token_strength(latent)
            )
        )

    def _token_strength(self, latent: torch.Tensor) -> float | torch.Tensor | None:
        strength = self.attention_strength
        if isinstance(strength, torch.Tensor) and strength.ndim == 5:
            return pixel_mask_to_tokens(strength, VideoLatentShape.from_torch_shape(latent.shape)).to(latent.device)
        return None if isinstance(strength, float) and strength == 1.0 else strength


@dataclass(frozen=True)
class AudioCondition:
    """A sound that the clip has.

    Args:
        audio: Waveform `[C, N]` or `[B, C, N]` in [-1, 1], or the name of a media file.
        sampling_rate: Samples per second of a waveform.
        noise_scale: 0 keeps the sound exactly (default), 1 ignores it.
        fit: `"crop"` (default) refuses a sound shorter than the clip, `"pad"` fills it up with silence, `"stretch"`
            changes its tempo. A longer sound is cropped.
        start_s: Where in the file the sound begins, in seconds.
    """

    audio: torch.Tensor | str | os.PathLike
    sampling_rate: int | None = None
    noise_scale: float = 0.0
    fit: str = "crop"
    start_s: float = 0.0

    is_reference = False

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if the sound is too short or cannot be read."""
        pipeline._require("audio_vae")
        check_unit(audio_cond_noise_scale=self.noise_scale)
        check_choice("audio_fit", self.fit, ("crop", "pad", "stretch"))
        waveform, rate = self.waveform(plan.duration_s)
        available = waveform.shape[-1] / rate
        # One latent (40 ms) may be missing: the encoder rounds a clip of equal length up or down.
        if self.fit == "crop" and available < plan.duration_s - 0.04:
            raise ValueError(
                f"the audio lasts {available:.2f} s and the video {plan.duration_s:.2f} s; use longer audio, fewer frames, "
                'or audio_fit="pad" (silence at the end) or "stretch" (another tempo)'
            )

    def waveform(self, duration_s: float | None = None) -> tuple[torch.Tensor, int]:
        """The sound as `[B, C, N]` with its rate, cropped to a duration unless it is to be stretched."""
        if isinstance(self.audio, torch.Tensor):
            if self.sampling_rate is None:
                raise ValueError("an audio waveform needs its `sampling_rate`")
            waveform = self.audio if self.audio.ndim == 3 else self.audio[None]
            if waveform.ndim != 3:
                raise ValueError(f"audio has to be [C, N] or [B, C, N] but has shape {tuple(self.audio.shape)}")
            rate = self.sampling_rate
            waveform = waveform[..., round(self.start_s * rate) :]
        else:
            read = read_audio(self.audio, self.start_s)
            if read is None:
                raise ValueError(f"{os.fspath(self.audio)!r} has no sound")
            waveform, rate = read
        if duration_s is not None and self.fit != "stretch":
            waveform = waveform[..., : round(duration_s * rate)]
        return waveform, rate

    def places(self, plan: GenerationPlan) -> list[str]:
        """The whole sound."""
        return ["the audio stream"]

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the sound."""
        latent = pipeline.encode_audio(*self.waveform(plan.duration_s))
        if self.fit == "stretch":
            latent = fit_audio_latent(latent, plan.audio.frames, "stretch")
        latent = conform_latent_length(latent, plan.audio.frames)
        return Streams([], [ConditionByWholeLatent(latent, self.noise_scale)])


@dataclass(frozen=True)
class WholeVideoCondition:
    """A video that is given as a whole, for which only sound is made.

    Args:
        frames: As in [`LTX2VideoCondition`].
        noise_scale: 0 keeps the video exactly (default), 1 ignores it.
    """

    frames: Frames
    noise_scale: float = 0.0

    is_reference = False

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if the video is shorter than the clip."""
        check_unit(noise_scale=self.noise_scale)
        if not isinstance(self.frames, (str, os.PathLike)):
            available = len(read_frames(self.frames))
            if available < plan.num_frames:
                raise ValueError(f"the video has {available} frames, fewer than `num_frames` {plan.num_frames}")

    def places(self, plan: GenerationPlan) -> list[str]:
        """The whole video."""
        return ["the video stream"]

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the video at the stage's size."""
        pixels = read_frames(self.frames, plan.num_frames)[: plan.num_frames]
        latent = pipeline.encode_video(normalize_pixels(fit_cover(pixels, plan.height, plan.width)))
        return _video_item(ConditionByWholeLatent(latent, self.noise_scale))


@dataclass(frozen=True)
class CarriedLatents:
    """Latents of an earlier clip at the start of this one, for extending it.

    Args:
        video: Normalised latents `[B, C, K, h, w]` of the finished size, or `None`.
        audio: Normalised latents `[B, C, K', M]`, or `None`.
    """

    video: torch.Tensor | None = None
    audio: torch.Tensor | None = None

    is_reference = False

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if more is carried than the clip is long."""
        for name, latents, frames in zip(
            ("video", "audio"), (self.video, self.audio), (plan.video.frames, plan.audio.frames)
        ):
            if latents is not None and latents.shape[2] >= frames:
                raise ValueError(
                    f"{latents.shape[2]} carried {name} latents leave nothing new in a clip of {frames}; carry fewer or "
                    "make the clip longer"
                )

    def places(self, plan: GenerationPlan) -> list[str]:
        """The start of the video."""
        return ["video frame 0"]

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """The latents, resized to the stage."""
        video = [] if self.video is None else [resize_latent(self.video, plan.video.height, plan.video.width)]
        audio = [] if self.audio is None else [self.audio]
        return Streams(
            [VideoConditionByLatentIndex(latent) for latent in video],
            [AudioConditionByLatentIndex(latent) for latent in audio],
        )


def _video_item(item: ConditionItem) -> Streams:
    return Streams([item], [])


def _counted(name: str, value: int, count: int) -> int:
    """A place from 0 to `count - 1`; negative values count from the end."""
    if not -count <= value < count:
        raise ValueError(f"`{name}` {value} lies outside the clip; use {-count} to {count - 1}")
    return value % count
