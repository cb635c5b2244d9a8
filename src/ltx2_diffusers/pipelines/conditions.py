"""What a generation can be held to, as callers give it: pictures, clips, sounds, latents.

A condition is checked before any computation, and turned into condition items once per stage, at that stage's size.
Shapes: F frames, H and W rows and columns of pixels, N samples.
"""

import os
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Protocol

import torch

from ..conditioning.carry import fit_audio_latent
from ..conditioning.items.appended import VideoConditionByKeyframeIndex
from ..conditioning.items.base import ConditionItem
from ..conditioning.items.latent_index import VideoConditionByLatentIndex
from ..conditioning.items.regions import ConditionByWholeLatent
from ..media.preprocess import fit_cover, normalize_pixels
from ..media.reading import read_audio
from ..models.audio_vae import conform_latent_length
from ..sampling.denoiser import Streams
from .checks import check_choice, check_float_tensors, check_from_zero, check_positive, check_unit
from .frames import Frames, as_video_frames, check_crf, check_frames, read_frames
from .output import fit_audio
from .plan import GenerationPlan


class Condition(Protocol):
    """What the engine asks of a condition; one that only the sound knows says so by `stream = "audio"`."""

    is_reference: bool

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if the condition does not fit a stage of these sizes."""

    def places(self, plan: GenerationPlan) -> Iterable[str]:
        """Places of the finished clip that no other condition may claim."""

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Condition items for each stream at the sizes of a stage."""


def listed_conditions(name: str, given: Any) -> list[Condition]:
    """The conditions of an argument that takes one, a list, or `None`."""
    conditions = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    for condition in conditions:
        if not all(hasattr(condition, method) for method in ("check", "places", "items")):
            raise ValueError(
                f"`{name}` has to hold conditions of this package but holds {type(condition)}; for a picture or clip "
                "use LTX2VideoCondition(frames=...)"
            )
    return conditions


@dataclass(frozen=True)
class LTX2VideoCondition:
    """A picture or clip that the video shows at some place.

    Args:
        frames: An image, an array `[H, W, 3]` or `[F, H, W, 3]`, a tensor `[3, H, W]` or `[F, 3, H, W]`, bytes or
            floats in [0, 255], the name of an image or video file, or a list of these. A clip is cut to 8 k + 1 frames
            and to the end of the video.
        index: Latent frame of the finished video where it goes; negative ones count from the end. Latent frame `i > 0`
            begins at pixel frame `8 * (i - 1) + 1`.
        strength: 1 keeps it exactly, 0 ignores it.
        crf: H.264 quality of the round trip that single images take, default the checkpoint's; 0 skips it.
        frame: Pixel frame of the finished video where it goes, instead of `index`; negative ones count from the end.
        mode: `"replace"` writes it into the video's own latents, which needs a place that begins a latent frame;
            `"append"` shows it beside them. Default `"auto"`: replace at the start, append elsewhere.

    A stage at a lower frame rate shows the frames of a clip that it has, cut to 8 k + 1 again, and a picture that falls
    between two of its frames at the later one; it appends what cannot be replaced there.
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
        pipeline._require("vae")
        check_unit(strength=self.strength)
        check_choice("mode", self.mode, ("auto", "replace", "append"))
        start = self._start(plan)
        if self._replaces(start) and start and (start - 1) % 8:
            nearest = (start - 1) // 8 * 8 + 1
            raise ValueError(
                f"frame {start} does not begin a latent frame, so nothing can be replaced there; use frame {nearest} or "
                f'{nearest + 8}, or mode="append"'
            )
        check_crf("crf", self._crf(pipeline), *check_frames(self.frames))

    def places(self, plan: GenerationPlan) -> list[str]:
        """The pixel frame where it begins, and the latent frames that it replaces after that."""
        start = self._start(plan)
        places = [f"video frame {start}"]
        if self._replaces(start):
            count = len(self._taken(check_frames(self.frames)[0], plan))
            first = (start + 7) // 8
            places += [f"latent frame {i} of the video" for i in range(first, first + (count + 7) // 8)]
        return places

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the frames at the stage's size."""
        start = self._start(plan)
        # Two frames tell a clip from a picture, even where only one of them fits.
        pixels = read_frames(self.frames, max(2, plan.clip_frames - start))
        pixels = as_video_frames(pixels, self._crf(pipeline))[self._taken(len(pixels), plan)]
        latent = pipeline.encode_video(normalize_pixels(fit_cover(pixels, plan.height, plan.width)))
        first = bisect_left(plan.shown_frames, start)
        if self._replaces(start) and (first == 0 or first % 8 == 1):
            return _video_item(VideoConditionByLatentIndex(latent, self.strength, (first + 7) // 8))
        return _video_item(VideoConditionByKeyframeIndex(latent, first, self.strength))

    def _taken(self, count: int, plan: GenerationPlan) -> list[int]:
        """Which of `count` frames a stage shows: those it has up to the end of the video, 8 k + 1 of them."""
        start = self._start(plan)
        shown = [frame - start for frame in plan.shown_frames if 0 <= frame - start < count]
        return shown[: (len(shown) - 1) // 8 * 8 + 1] or [0]

    def _crf(self, pipeline: Any) -> int:
        return pipeline.preset.image_crf if self.crf is None else self.crf

    def _replaces(self, start: int) -> bool:
        return self.mode == "replace" or (self.mode == "auto" and start == 0)

    def _start(self, plan: GenerationPlan) -> int:
        """Pixel frame where the condition begins."""
        if self.frame is not None:
            if self.index:
                raise ValueError(f"give either `index` ({self.index}) or `frame` ({self.frame}), not both")
            return _counted("frame", self.frame, plan.clip_frames)
        index = _counted("index", self.index, (plan.clip_frames - 1) // 8 + 1)
        return max(0, 8 * (index - 1) + 1)


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
    stream = "audio"

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if the sound is too short or cannot be read."""
        pipeline._require("audio_vae")
        check_unit(audio_cond_noise_scale=self.noise_scale)
        check_choice("audio_fit", self.fit, ("crop", "pad", "stretch"))
        waveform, rate = self.waveform(plan.duration_s)
        if len(waveform) not in (1, plan.batch_size):
            raise ValueError(
                f"got {len(waveform)} sounds for a batch of {plan.batch_size}; give one, or one per video"
            )
        available = waveform.shape[-1] / rate
        # One latent (40 ms) may be missing: the encoder rounds a clip of equal length up or down.
        if self.fit == "crop" and available < plan.duration_s - 0.04:
            raise ValueError(
                f"the audio lasts {available:.2f} s and the video {plan.duration_s:.2f} s; use longer audio, fewer frames, "
                'or audio_fit="pad" (silence at the end) or "stretch" (another tempo)'
            )

    def waveform(self, duration_s: float | None = None) -> tuple[torch.Tensor, int]:
        """The sound as `[B, C, N]` with its rate, cropped to a duration unless it is to be stretched."""
        check_from_zero(audio_start_s=self.start_s)
        length_s = None if self.fit == "stretch" else duration_s
        if not isinstance(self.audio, torch.Tensor):
            read = read_audio(self.audio, self.start_s, None if length_s is None else self.start_s + length_s)
            if read is None:
                raise ValueError(f"{os.fspath(self.audio)!r} has no sound")
            return read
        check_float_tensors(audio=self.audio)
        rate = self.sampling_rate
        if rate is None:
            raise ValueError("an audio waveform needs its `sampling_rate`")
        check_positive(sampling_rate=rate)
        waveform = self.audio if self.audio.ndim == 3 else self.audio[None]
        if waveform.ndim != 3:
            raise ValueError(f"`audio` has to be [C, N] or [B, C, N] but has shape {tuple(self.audio.shape)}")
        waveform = waveform[..., round(self.start_s * rate) :]
        if not waveform.numel():
            raise ValueError(
                f"`audio` has shape {tuple(self.audio.shape)}, which leaves nothing after `audio_start_s` {self.start_s}"
            )
        return (waveform if length_s is None else waveform[..., : round(length_s * rate)]), rate

    def places(self, plan: GenerationPlan) -> list[str]:
        """The whole sound."""
        return ["the audio stream"]

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the sound."""
        waveform, rate = self.waveform(plan.duration_s)
        if self.fit == "stretch":
            latent = fit_audio_latent(pipeline.encode_audio(waveform, rate), plan.audio.frames, "stretch")
        else:
            latent = pipeline.encode_audio(fit_audio(waveform, plan.duration_s, rate), rate)
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
        available, _ = check_frames(self.frames)
        if available < plan.clip_frames:
            raise ValueError(f"the video has {available} frames, fewer than `num_frames` {plan.clip_frames}")

    def places(self, plan: GenerationPlan) -> list[str]:
        """The whole video."""
        return ["the video stream"]

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the video at the stage's size."""
        pixels = read_frames(self.frames, plan.clip_frames)[plan.shown_frames]
        latent = pipeline.encode_video(normalize_pixels(fit_cover(pixels, plan.height, plan.width)))
        return _video_item(ConditionByWholeLatent(latent, self.noise_scale))


def _video_item(item: ConditionItem) -> Streams:
    return Streams([item], [])


def _counted(name: str, value: int, count: int) -> int:
    """A place from 0 to `count - 1`; negative values count from the end."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"`{name}` has to be a whole number but is {value!r}; use 0")
    if not -count <= value < count:
        raise ValueError(f"`{name}` {value} lies outside the clip; use {-count} to {count - 1}")
    return int(value) % count
