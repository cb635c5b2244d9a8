"""Given clips whose pictures or sound a call keeps: read once, checked, and handed over untouched.

Shapes: B clips, C channels, F frames, H and W rows and columns of pixels, N samples.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...conditioning.streams import Streams
from ...media.files import exact_frame_rate
from ...media.frames import Frames, read_frames
from ...media.reading import probe
from ..arguments import Delivery
from ..call_arguments import filled
from ..plan import Size
from .sounds import AudioCondition

Sound = torch.Tensor | str | os.PathLike


@dataclass(frozen=True)
class SourceClip:
    """A clip to work on.

    Args:
        pixels: Frames `[F, H, W, 3]` in [0, 255].
        frame_rate: Frames per second.
        audio: Waveform `[B, C, N]` in [-1, 1] and its sampling rate, or `None` for a silent clip.
        path: File that holds exactly these frames; `None` for frames from elsewhere.
        audio_path: File whose sound, from its start, is `audio`; `None` for a waveform.
    """

    pixels: torch.Tensor
    frame_rate: float
    audio: tuple[torch.Tensor, int] | None
    path: str | None
    audio_path: str | None

    @property
    def num_frames(self) -> int:
        """Pixel frames."""
        return len(self.pixels)

    @property
    def frames(self) -> torch.Tensor:
        """The frames `[F, 3, H, W]` in the layout that conditions take."""
        return self.pixels.movedim(-1, 1)

    def sound(self) -> AudioCondition:
        """The whole sound as a condition that keeps it."""
        return AudioCondition(*self.audio, fit="pad")


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
    sound = None if audio is None else AudioCondition(audio, sampling_rate).waveform()
    audio_path = os.fspath(audio) if isinstance(audio, (str, os.PathLike)) else None
    rate = 24.0 if frame_rate is None else frame_rate
    return SourceClip(pixels, rate, sound, path if whole else None, audio_path)


def delivery(
    call: Mapping[str, Any], video: SourceClip | None = None, audio: AudioCondition | SourceClip | None = None
) -> Delivery:
    """How a call hands over its result when pictures or sound are given and kept.

    Args:
        call: Arguments of the call.
        video: Clip whose pictures are kept.
        audio: Clip or condition whose sound is kept. A sound that is only a hint, or played at another tempo, is not.
    """
    sound = source = None
    if isinstance(audio, SourceClip):
        sound, source = audio.audio, audio.audio_path
    elif audio is not None and audio.noise_scale == 0.0 and audio.fit != "stretch":
        sound = audio.waveform()
        is_file = isinstance(audio.audio, (str, os.PathLike)) and audio.start_s == 0.0
        source = os.fspath(audio.audio) if is_file else None
    pixels, path = (None, None) if video is None else (video.pixels, video.path)
    return filled(Delivery, call, originals=Streams(pixels, sound), sources=Streams(path, source))


def seen_video(source: SourceClip, pipeline: Any, call: Mapping[str, Any]) -> tuple[torch.Tensor, Size]:
    """The pictures of a clip as the network sees them while it makes their sound, and their size.

    Args:
        source: The clip.
        pipeline: The pipeline, for the strides of its VAE.
        call: Arguments of the call; `height` and `width` default to the clip's, reduced to what the stages can hold.

    Returns:
        Frames `[F, 3, H, W]` with the last one repeated up to 8 k + 1, and the size to generate at.
    """
    multiple = pipeline.vae_spatial_compression_ratio * (2 if call["two_stage"] else 1)
    height, width = (max(side // multiple, 1) * multiple for side in source.pixels.shape[1:3])
    missing = -(source.num_frames - 1) % pipeline.vae_temporal_compression_ratio
    pixels = torch.cat([source.pixels, source.pixels[-1:].expand(missing, -1, -1, -1)])
    return pixels.movedim(-1, 1), sized(source, call, (height, width), len(pixels))


def sized(source: SourceClip, call: Mapping[str, Any], sides: tuple[int, int], num_frames: int) -> Size:
    """Size of a call that works on a clip: `sides` unless the call says `height` and `width`, and the clip's timing."""
    height, width = (call[name] or side for name, side in zip(("height", "width"), sides))
    return Size(height, width, num_frames, source.frame_rate, call["motion_speed"])
