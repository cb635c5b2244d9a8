"""What is made of a clip: the samples of its picture, its sound, its references and its masks.

Shapes: F frames, H and W rows and columns of pixels, C channels, F', h, w those of latents, L audio latents, M mel bins.
"""

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..checks import check_at_least_one, check_choice, check_finite
from ..media.files import exact_frame_rate
from ..pipelines.generation import LTX2GenerationPipeline
from .buckets import (
    RESHAPE_MODES,
    Bucket,
    Crop,
    choose_bucket,
    crop_to,
    fitted,
    parse_buckets,
    reference_frames,
    scaled_buckets,
    scaled_frames,
)
from .captions import with_trigger, without_llm_prefix
from .dataset import (
    AUDIO_LATENTS,
    AUDIO_MASKS,
    LATENTS,
    PRECOMPUTED,
    REFERENCE_AUDIO_LATENTS,
    REFERENCE_LATENTS,
    VIDEO_MASKS,
)
from .encoding import Pixels, Sound, Source, encode_pixels, encode_sound, read_pixels, read_sound
from .masks import audio_mask, video_mask
from .metadata import Clip, dataset_folder
from .samples import LEGACY_SUFFIX, read_pickle

STORED, OFF, IMPOSSIBLE = "stored", "off", "no audio VAE"
"""What may have become of the sound of a clip, beside reasons why it has none."""
# Shapes, as logarithms of width over height, that count as one; sizes in pixels are rounded.
_SAME_SHAPE = 0.05
# Rates that differ by less are one, such as 23.976 and 24000/1001.
_SAME_RATE = 1e-4
# Silence at the end of a sound that is worth telling.
_MISSING_S = 0.1
# A sound may be that much shorter than its bucket: coders cut and pad by less than a frame of theirs.
_SHORT_S = 0.05


@dataclass(frozen=True)
class ProcessOptions:
    """What to make of which dataset, and how.

    Args:
        dataset: A metadata file or a folder; see `read_clips`.
        source: The networks, and where they run.
        resolution_buckets: Sizes of clips like `"960x544x49;544x960x49"`; needed with videos.
        output_dir: Folder of the samples, default `.precomputed` beside the media.
        columns: Columns of a metadata file by what they hold; default the usual names.
        batch_size: Captions encoded at a time, default 8.
        frame_rate: Frames per second to bring clips to by the times of their frames. Default `None`: the frames of a file
            one by one, with its own rate, as in the Lightricks trainer.
        reshape_mode: `"center"` (default) or `"random"`: where clips are cropped; a clip's random place stays the same.
        vae_tiling: Whether to encode clips in tiles of 512 pixels, to save memory. Default False.
        with_audio: Whether to encode sound; `None` (default) where the checkpoint has an audio VAE.
        audio_durations: Durations like `"2.0;4.0"` in seconds to which sounds without video are cut; default their own.
        remove_llm_prefixes: Whether to remove phrases with which language models begin captions. Default False.
        lora_trigger: A word that is put in front of every caption.
        reference_downscale_factor: How many times smaller than its clip a reference is, default 1.
        reference_temporal_scale_factor: How many times coarser its time is, default 1.
        max_sequence_length: Most tokens of a caption, default 1024.
        overwrite: Whether to make samples anew that are there. Default False.
        num_processes: Processes on this machine, default 1, each with a part of the clips and a GPU of its own.
        progress_bar: Whether to show the progress. Default True.

    Raises:
        ValueError: If a value is not possible.
    """

    dataset: Path
    source: Source
    resolution_buckets: str | None = None
    output_dir: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    batch_size: int = 8
    frame_rate: float | None = None
    reshape_mode: str = "center"
    vae_tiling: bool = False
    with_audio: bool | None = None
    audio_durations: str | None = None
    remove_llm_prefixes: bool = False
    lora_trigger: str | None = None
    reference_downscale_factor: int = 1
    reference_temporal_scale_factor: int = 1
    max_sequence_length: int = 1024
    overwrite: bool = False
    num_processes: int = 1
    progress_bar: bool = True

    def __post_init__(self) -> None:
        if self.frame_rate is not None:
            exact_frame_rate(self.frame_rate)
        check_choice("reshape_mode", self.reshape_mode, RESHAPE_MODES)
        check_at_least_one(
            batch_size=self.batch_size,
            num_processes=self.num_processes,
            max_sequence_length=self.max_sequence_length,
            reference_downscale_factor=self.reference_downscale_factor,
            reference_temporal_scale_factor=self.reference_temporal_scale_factor,
        )
        parse_durations(self.audio_durations)

    @property
    def folder(self) -> Path:
        """Where the samples go."""
        given = self.output_dir
        return dataset_folder(self.dataset) / PRECOMPUTED if given is None else Path(given).expanduser()

    @property
    def settings(self) -> dict[str, Any]:
        """All that changes samples, in a form that files hold."""
        source = self.source
        return {
            "checkpoint": _identity(source.checkpoint),
            "text_encoder": None if source.text_encoder is None else _identity(source.text_encoder),
            "text_encoder_in_8bit": source.text_encoder_in_8bit,
            "max_sequence_length": self.max_sequence_length,
            "resolution_buckets": self.resolution_buckets,
            "frame_rate": self.frame_rate,
            "reshape_mode": self.reshape_mode,
            "vae_tiling": self.vae_tiling,
            "audio_durations": self.audio_durations,
            "remove_llm_prefixes": self.remove_llm_prefixes,
            "lora_trigger": self.lora_trigger,
            "reference_downscale_factor": self.reference_downscale_factor,
            "reference_temporal_scale_factor": self.reference_temporal_scale_factor,
        }

    def caption(self, clip: Clip) -> str:
        """The text of a clip as it is encoded."""
        text = without_llm_prefix(clip.caption) if self.remove_llm_prefixes else clip.caption
        return with_trigger(text, self.lora_trigger)

    @property
    def wants_sound(self) -> bool:
        """Whether sound is encoded if it can be."""
        return self.with_audio is not False


@dataclass(frozen=True)
class Target:
    """What a clip was brought to: what belongs to it has to fit.

    Args:
        bucket: Size in pixels and frames.
        rate: Frames per second.
        size: Width and height of the file.
        crop: How it was scaled and cropped.
    """

    bucket: Bucket
    rate: float
    size: tuple[int, int]
    crop: Crop

    @property
    def duration_s(self) -> float:
        """Length of the clip."""
        return self.bucket.frames / self.rate


class Content(NamedTuple):
    """Content of a file."""

    tensors: dict[str, torch.Tensor]
    numbers: dict[str, int | float]


def _identity(name: str) -> str:
    """What a checkpoint is called, wherever it lies."""
    path = Path(name).expanduser()
    return path.absolute().name if path.exists() else name


def parse_durations(text: str | None) -> list[float]:
    """Durations in seconds like `"2.0;4.0"`, rising.

    Raises:
        ValueError: If the text is of another form.
    """
    try:
        durations = sorted(float(part) for part in text.split(";")) if text is not None else []
    except ValueError:
        durations = [0.0]
    if not all(math.isfinite(duration) and duration > 0 for duration in durations):
        raise ValueError(f"audio_durations must look like 2.0;4.0, positive seconds, got {text!r}")
    return durations


class ClipEncoder:
    """Turns the files of a clip into samples.

    Args:
        options: What to make.
        pipeline: With both autoencoders.
        clips: All clips of the dataset, which the sizes have to suit.

    Attributes:
        remarks: What somebody may want to know of the last clip.
    """

    def __init__(self, options: ProcessOptions, pipeline: LTX2GenerationPipeline, clips: Iterable[Clip]) -> None:
        self.options, self.pipeline = options, pipeline
        self.space, self.time = pipeline.vae_spatial_compression_ratio, pipeline.vae_temporal_compression_ratio
        self.remarks: list[str] = []
        self.has_audio_vae = pipeline.has("audio_vae")
        self.buckets: list[Bucket] = []
        if options.with_audio:
            pipeline.require("audio_vae")
        if options.resolution_buckets is not None:
            self.buckets = parse_buckets(options.resolution_buckets, self.space, self.time)
        if any(clip.reference_video for clip in clips):
            scaled_buckets(self.buckets, options.reference_downscale_factor, self.space)
            for bucket in self.buckets:
                reference_frames(bucket.frames, options.reference_temporal_scale_factor, self.time)

    def encode(self, clip: Clip) -> tuple[dict[str, Content], str]:
        """The samples of a clip by their folders, and what became of its sound.

        Raises:
            ValueError, OSError: If the clip cannot be used.
        """
        self.remarks = []
        samples: dict[str, Content] = {}
        target = None
        if clip.video is not None:
            samples[LATENTS], target = self._video(clip.video, clip.name)
        sound = self._sound(clip, target, samples)
        if target is None and AUDIO_LATENTS not in samples:
            raise ValueError("it is a sound, and sound is left out" if sound == OFF else sound)
        if clip.reference_video is not None:
            samples[REFERENCE_LATENTS] = self._reference(clip.reference_video, _needed(target, "a reference"))
        if clip.reference_audio is not None:
            samples[REFERENCE_AUDIO_LATENTS] = self._reference_sound(clip.reference_audio)
        if clip.video_mask is not None:
            samples[VIDEO_MASKS] = self._video_mask(clip.video_mask, _needed(target, "a mask of the video"))
        if clip.audio_mask is not None and self.options.wants_sound:
            samples[AUDIO_MASKS] = self._audio_mask(clip.audio_mask, samples)
        return samples, sound

    def _video(self, path: Path, name: str) -> tuple[Content, Target]:
        longest = max(bucket.frames for bucket in self.buckets)
        pixels = read_pixels(path, longest, self.options.frame_rate)
        count, (width, height) = len(pixels.frames), pixels.size
        bucket = choose_bucket(self.buckets, width, height, count)
        if bucket is None:
            least = min(bucket.frames for bucket in self.buckets)
            raise ValueError(f"it has {count} frames, fewer than the {least} of the shortest resolution bucket")
        if pixels.varies:
            self.remarks.append(
                f"its frame rate varies; its frames are taken one by one at {pixels.rate:g} per second, the average: give "
                "frame_rate to take them by their times"
            )
        # A place that follows from the name, so that no run makes another sample.
        noise = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        target = Target(
            bucket, pixels.rate, pixels.size, crop_to(width, height, bucket, self.options.reshape_mode, noise)
        )
        return self._latents(fitted(pixels.frames, bucket, target.crop), pixels.rate), target

    def _latents(self, pixels: torch.Tensor, rate: float) -> Content:
        latents = encode_pixels(self.pipeline, pixels, self.options.vae_tiling)
        check_finite("its latents", latents, "use dtype float32")
        frames, height, width = latents.shape[1:]
        return Content({"latents": latents}, {"num_frames": frames, "height": height, "width": width, "fps": rate})

    def _reference(self, path: Path, target: Target) -> Content:
        """A reference brought to the size of its clip, smaller and coarser in time by the factors."""
        name, pixels = path.name, self._in_step(path, target)
        space, time = self.options.reference_downscale_factor, self.options.reference_temporal_scale_factor
        if len(pixels.frames) < target.bucket.frames:
            raise ValueError(
                f"its reference {name!r} has {len(pixels.frames)} frames, fewer than {target.bucket.frames}"
            )
        if abs(math.log(pixels.size[0] / pixels.size[1]) - math.log(target.size[0] / target.size[1])) > _SAME_SHAPE:
            sizes = [f"{width}x{height}" for width, height in (pixels.size, target.size)]
            raise ValueError(f"its reference {name!r} is {sizes[0]}, of another shape than the clip, {sizes[1]}")
        (bucket,) = scaled_buckets([target.bucket], space, self.space)
        places = reference_frames(bucket.frames, time, self.time)
        crop = target.crop if space == 1 and pixels.size == target.size else self._like(target, pixels, bucket)
        frames = fitted(pixels.frames[places], bucket._replace(frames=len(places)), crop)
        return self._latents(frames, target.rate / time)

    def _like(self, target: Target, pixels: Pixels, bucket: Bucket) -> Crop:
        """The crop of a smaller reference that shows what the clip's crop shows."""
        crop = crop_to(*pixels.size, bucket)
        spare = (target.crop.width - target.bucket.width, target.crop.height - target.bucket.height)
        own = (crop.width - bucket.width, crop.height - bucket.height)
        left, top = (
            round(place * mine / theirs) if theirs else mine // 2
            for place, mine, theirs in zip((target.crop.left, target.crop.top), own, spare)
        )
        return crop._replace(left=left, top=top)

    def _in_step(self, path: Path, target: Target) -> Pixels:
        """Frames of a file that accompanies a clip, at the rate of the clip."""
        frames = target.bucket.frames
        if self.options.frame_rate is not None:
            return read_pixels(path, frames, target.rate)
        pixels = read_pixels(path, frames)
        alike = len(pixels.frames) == 1 or math.isclose(pixels.rate, target.rate, rel_tol=_SAME_RATE)
        return pixels if alike else read_pixels(path, frames, target.rate)

    def _sound(self, clip: Clip, target: Target | None, samples: dict[str, Content]) -> str:
        """Encode the sound of a clip; what became of it."""
        path = clip.audio or clip.video
        if not self.options.wants_sound or path is None:
            return OFF
        if not self.has_audio_vae:
            return IMPOSSIBLE
        try:
            duration_s = self._bucket_s(path) if target is None else target.duration_s
            sound = read_sound(path, duration_s)
            if sound is None:
                return "it has no sound"
            samples[AUDIO_LATENTS] = self._audio_latents(sound)
        except (ValueError, OSError) as error:
            return f"its sound cannot be used: {error}"
        if sound.missing_s > _MISSING_S:
            self.remarks.append(f"its sound ends {sound.missing_s:.2f} s early; silence stands there")
        return STORED

    def _audio_latents(self, sound: Sound) -> Content:
        latents = encode_sound(self.pipeline, sound)
        check_finite("its audio latents", latents, "use dtype float32")
        duration_s = sound.waveform.shape[-1] / sound.sampling_rate
        sizes = {"num_time_steps": latents.shape[1], "frequency_bins": latents.shape[2]}
        return Content({"latents": latents}, {**sizes, "duration": duration_s})

    def _bucket_s(self, path: Path) -> float | None:
        """The longest of the wished durations that a sound has; `None` for its own."""
        durations = parse_durations(self.options.audio_durations)
        sound = read_sound(path) if durations else None
        if sound is None:
            return None
        length_s = sound.waveform.shape[-1] / sound.sampling_rate
        fitting = [duration for duration in durations if duration <= length_s + _SHORT_S]
        if not fitting:
            raise ValueError(
                f"it lasts {length_s:.2f} s, less than the shortest of audio_durations, {durations[0]:g} s"
            )
        return fitting[-1]

    def _reference_sound(self, path: Path) -> Content:
        if not self.has_audio_vae:
            raise ValueError(f"its reference {path.name!r} is a sound, but the checkpoint has no audio VAE")
        sound = read_sound(path)
        if sound is None:
            raise ValueError(f"its reference {path.name!r} has no sound")
        return self._audio_latents(sound)

    def _video_mask(self, path: Path, target: Target) -> Content:
        pixels, bucket = self._in_step(path, target), target.bucket
        if 1 < len(pixels.frames) < bucket.frames:
            self.remarks.append(f"its mask {path.name!r} has {len(pixels.frames)} frames; it is black behind them")
        if pixels.size == target.size:
            # It is cut like the clip that it covers.
            frames = fitted(pixels.frames, bucket._replace(frames=len(pixels.frames)), target.crop)[0].transpose(0, 1)
            frames = (frames + 1) / 2
        else:
            frames = scaled_frames(pixels.frames, bucket.height, bucket.width).clamp(0, 1)
        latent_frames = (bucket.frames - 1) // self.time + 1
        return Content({"mask": video_mask(frames, latent_frames, self.space, self.time)}, {})

    def _audio_mask(self, path: Path, samples: Mapping[str, Content]) -> Content:
        if AUDIO_LATENTS not in samples:
            raise ValueError(f"it has no sound, but {path.name!r} is a mask of it")
        steps, duration_s = (samples[AUDIO_LATENTS].numbers[name] for name in ("num_time_steps", "duration"))
        if path.suffix == LEGACY_SUFFIX:
            values = read_pickle(path)
            if not isinstance(values, torch.Tensor) or values.numel() == 0:
                raise ValueError(f"its mask {path.name!r} holds no tensor with values")
            return Content({"mask": audio_mask(values.flatten(), int(steps))}, {})
        sound = read_sound(path, float(duration_s))
        if sound is None:
            raise ValueError(f"its mask {path.name!r} has no sound")
        if sound.missing_s > _MISSING_S:
            self.remarks.append(f"its mask {path.name!r} ends {sound.missing_s:.2f} s early; it is silent behind that")
        return Content({"mask": audio_mask(sound.waveform[0].abs().mean(0), int(steps))}, {})


def _needed(target: Target | None, what: str) -> Target:
    if target is None:
        raise ValueError(f"{what} needs a video, and it has none")
    return target
