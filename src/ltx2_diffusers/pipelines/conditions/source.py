"""Given clips and sounds, read once: what a call works on, and what it hands over untouched.

Shapes: B clips, C channels, F frames, H and W rows and columns of pixels, N samples.
"""

import os
from dataclasses import dataclass

import torch

from ...checks import check_float_tensors, check_from_zero, check_positive
from ...media.files import exact_frame_rate
from ...media.frames import Frames, read_frames
from ...media.reading import probe, read_audio

Sound = torch.Tensor | str | os.PathLike


@dataclass(frozen=True)
class Waveform:
    """A sound.

    Args:
        samples: Samples `[B, C, N]` in [-1, 1].
        rate: Samples per second.
        path: File whose sound, from its start, this is; `None` for one from elsewhere.
    """

    samples: torch.Tensor
    rate: int
    path: str | None = None

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.samples.shape[-1] / self.rate


def read_waveform(
    audio: Sound, sampling_rate: int | None = None, start_s: float = 0.0, length_s: float | None = None
) -> Waveform:
    """Read a sound.

    Args:
        audio: Samples `[C, N]` or `[B, C, N]` in [-1, 1], or the name of a media file.
        sampling_rate: Samples per second of samples.
        start_s: Where in it the sound begins, in seconds.
        length_s: Most seconds to read; default all.
    """
    check_from_zero(audio_start_s=start_s)
    if not isinstance(audio, torch.Tensor):
        path = os.fspath(audio)
        read = read_audio(audio, start_s, None if length_s is None else start_s + length_s)
        if read is None:
            raise ValueError(f"{path!r} has no sound")
        return Waveform(*read, None if start_s else path)
    check_float_tensors(audio=audio)
    if sampling_rate is None:
        raise ValueError("an audio waveform needs its `sampling_rate`")
    check_positive(sampling_rate=sampling_rate)
    samples = audio if audio.ndim == 3 else audio[None]
    if samples.ndim != 3:
        raise ValueError(f"`audio` has to be [C, N] or [B, C, N] but has shape {tuple(audio.shape)}")
    samples = samples[..., round(start_s * sampling_rate) :]
    if not samples.numel():
        raise ValueError(
            f"`audio` has shape {tuple(audio.shape)}, which leaves nothing after `audio_start_s` {start_s}"
        )
    return Waveform(samples if length_s is None else samples[..., : round(length_s * sampling_rate)], sampling_rate)


@dataclass(frozen=True)
class SourceClip:
    """A clip to work on.

    Args:
        pixels: Frames `[F, H, W, 3]` in [0, 255].
        frame_rate: Frames per second.
        audio: Its sound, or `None` for a silent clip.
        path: File that holds exactly these frames; `None` for frames from elsewhere.
    """

    pixels: torch.Tensor
    frame_rate: float
    audio: Waveform | None
    path: str | None

    @property
    def num_frames(self) -> int:
        """Pixel frames."""
        return len(self.pixels)


def read_source(
    video: Frames,
    frame_rate: float | None = None,
    audio: Sound | None = None,
    sampling_rate: int | None = None,
    num_frames: int | None = None,
) -> SourceClip:
    """Read a clip with its sound.

    Args:
        video: Frames as in [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`], or the name of a video file.
        frame_rate: Frames per second; that of the file, or 24.0 for frames.
        audio: Waveform or file name; default the sound of the video file.
        sampling_rate: Samples per second of a waveform.
        num_frames: Frames to use from the start; default all.
    """
    path = os.fspath(video) if isinstance(video, (str, os.PathLike)) else None
    info = None if path is None else probe(path)
    if info is not None and info.frame_rate is not None:
        own = float(info.frame_rate)
        if frame_rate is not None and exact_frame_rate(frame_rate) != exact_frame_rate(own):
            raise ValueError(
                f"`frame_rate` is {frame_rate}, but {path!r} has {own:g} frames per second; leave it out, or convert the file"
            )
        frame_rate = own
    pixels = read_frames(video, num_frames, name="video")
    if num_frames is not None and len(pixels) < num_frames:
        raise ValueError(f"`num_frames` is {num_frames}, but the video has {len(pixels)} frames; use {len(pixels)}")
    whole = info is not None and len(pixels) == info.num_frames
    if audio is None and info is not None and info.sampling_rate is not None:
        audio = path
    sound = None if audio is None else read_waveform(audio, sampling_rate)
    return SourceClip(pixels, 24.0 if frame_rate is None else frame_rate, sound, path if whole else None)
