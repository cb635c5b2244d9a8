"""Reading images, video and sound of any kind that FFmpeg and Pillow know.

Shapes: F frames, H and W rows and columns of pixels, C channels, N samples.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import inf
from typing import TypeVar

import av
import numpy as np
import torch
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from .colours import Look, decoded_frames, displayed_pixels, displayed_size
from .files import file_of, open_media
from .images import read_image

__all__ = ["MediaInfo", "iterate_video", "probe", "read_audio", "read_image", "read_video"]

_Frame = TypeVar("_Frame", av.VideoFrame, av.AudioFrame)


@dataclass(frozen=True)
class MediaInfo:
    """What a media file holds.

    Args:
        frame_rate: Average frames per second, exact; `None` without video.
        num_frames: Video frames; 0 without video.
        height: Rows of the video as displayed; 0 without video.
        width: Columns of the video as displayed; 0 without video.
        duration_s: Duration in seconds of the longest stream.
        sampling_rate: Samples per second of the first audio stream; `None` without audio.
    """

    frame_rate: Fraction | None
    num_frames: int
    height: int
    width: int
    duration_s: float
    sampling_rate: int | None


def probe(path: str | os.PathLike) -> MediaInfo:
    """Describe a video or audio file without decoding it whole.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds neither video nor audio that can be read.
    """
    with open_media(path) as container:
        video = next(iter(container.streams.video), None)
        audio = next(iter(container.streams.audio), None)
        longest = video or audio
        if longest is None:
            raise ValueError(f"{str(path)!r} holds neither video nor audio")
        height, width = (0, 0) if video is None else _displayed_size(container, video)
        return MediaInfo(
            frame_rate=None if video is None else video.average_rate,
            # Not every header tells the number of frames; one packet holds one.
            num_frames=0 if video is None else video.frames or sum(p.size > 0 for p in container.demux(video)),
            height=height,
            width=width,
            duration_s=_duration_s(container, longest),
            sampling_rate=None if audio is None else audio.rate,
        )


def iterate_video(
    path: str | os.PathLike, max_frames: int | None = None, start_s: float = 0.0, end_s: float | None = None
) -> Iterator[np.ndarray]:
    """Yield the frames of a video as bytes `[H, W, 3]`, one at a time, turned as they are to be displayed.

    Args:
        path: Video file.
        max_frames: Most frames to yield; `None` for all.
        start_s: Time of the first frame, in seconds from the start of the video; default 0.
        end_s: Time before which frames must lie; `None` for the end of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no video, is damaged, or has no frame in the window.
    """
    _check_window(start_s, end_s)
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}; pass None to read all frames")
    with open_media(path) as container:
        stream = next(iter(container.streams.video), None)
        if stream is None:
            raise ValueError(f"{str(path)!r} has no video stream")
        stream.thread_type = "AUTO"
        count = 0
        # Timestamps are rounded to the time base of the file, which must not move a frame over an edge.
        slack_s = float(stream.time_base or 0) / 2
        for frame, time_s in _timed_frames(container, stream, decoded_frames(container, stream), start_s):
            if time_s < start_s - slack_s:
                continue
            if count == max_frames or time_s >= (inf if end_s is None else end_s) - slack_s:
                break
            yield displayed_pixels(frame, Look.of(stream))
            count += 1
        if count == 0:
            raise ValueError(f"{str(path)!r} has no video frames {_window(start_s, end_s)}")


def read_video(
    path: str | os.PathLike, max_frames: int | None = None, start_s: float = 0.0, end_s: float | None = None
) -> torch.Tensor:
    """Read the frames of a video as bytes `[F, H, W, 3]`; arguments and errors as `iterate_video`."""
    return torch.from_numpy(np.stack(list(iterate_video(path, max_frames, start_s, end_s))))


def read_audio(
    path: str | os.PathLike, start_s: float = 0.0, end_s: float | None = None
) -> tuple[torch.Tensor, int] | None:
    """Read the first audio stream of a file as float32 `[1, C, N]` in [-1, 1], with its sampling rate.

    Integer samples are divided by the size of their negative range. Sound that starts after `start_s` is preceded by
    silence, so that it stays in step with the video.

    Args:
        path: Audio or video file.
        start_s: Start of the window in seconds; default 0.
        end_s: End of the window; `None` for the end of the stream.

    Returns:
        The waveform and its sampling rate, or `None` if the file has no audio stream.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or has no sound in the window.
    """
    _check_window(start_s, end_s)
    with open_media(path) as container:
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            return None
        rate = stream.rate
        # Only the sample format changes, so nothing is delayed or filtered.
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
        pieces: list[np.ndarray] = []
        first_s: float | None = None
        for frame, time_s in _timed_frames(container, stream, container.decode(stream), start_s):
            if time_s + frame.samples / rate <= start_s:
                continue
            if end_s is not None and time_s >= end_s:
                break
            first_s = time_s if first_s is None else first_s
            frame.pts = None
            pieces += [out.to_ndarray() for out in resampler.resample(frame)]
    if first_s is None or not pieces:
        raise ValueError(f"{str(path)!r} has no sound {_window(start_s, end_s)}")
    samples = torch.from_numpy(np.concatenate(pieces, axis=1))
    samples = torch.nn.functional.pad(samples, (round((first_s - start_s) * rate), 0))
    if end_s is not None:
        samples = samples[:, : round((end_s - start_s) * rate)]
    return samples[None], rate


def _timed_frames(
    container: InputContainer, stream: VideoStream | AudioStream, frames: Iterator[_Frame], start_s: float
) -> Iterator[tuple[_Frame, float]]:
    """Seek to the last key frame before `start_s`; yield each frame with its time since the start of the file."""
    origin_s = 0.0 if container.start_time is None else container.start_time / av.time_base
    if start_s > 0 and stream.time_base is not None:
        container.seek(int((start_s + origin_s) / stream.time_base), stream=stream)
    for index, frame in enumerate(frames):
        if frame.pts is not None and frame.time_base is not None:
            yield frame, float(frame.pts * frame.time_base) - origin_s
        elif isinstance(frame, av.AudioFrame):
            yield frame, index * frame.samples / frame.sample_rate
        elif stream.average_rate is not None:
            yield frame, float(index / stream.average_rate)
        else:
            raise ValueError(
                f"{file_of(container)!r} tells neither the times of its frames nor a frame rate; convert it to another format"
            )


def _displayed_size(container: InputContainer, stream: VideoStream) -> tuple[int, int]:
    """Rows and columns of the video as it is to be seen, which only a decoded frame tells."""
    frame = next(container.decode(stream), None)
    if frame is None:
        raise ValueError(f"{file_of(container)!r} has a video stream without frames; it is empty or damaged")
    container.seek(0)
    return displayed_size(frame, Look.of(stream))


def _duration_s(container: InputContainer, stream: Stream) -> float:
    if container.duration is not None:
        return container.duration / av.time_base
    return 0.0 if stream.duration is None or stream.time_base is None else float(stream.duration * stream.time_base)


def _window(start_s: float, end_s: float | None) -> str:
    return f"between {start_s} s and {'its end' if end_s is None else f'{end_s} s'}"


def _check_window(start_s: float, end_s: float | None) -> None:
    if start_s < 0:
        raise ValueError(f"start_s must not be negative, got {start_s}; use 0.0")
    if end_s is not None and end_s <= start_s:
        raise ValueError(f"end_s must be larger than start_s, got {end_s} after {start_s}")
