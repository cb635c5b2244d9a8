"""Reading images, video and sound of any kind that FFmpeg and Pillow know.

Shapes: F frames, H and W rows and columns of pixels, C channels, N samples.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, dropwhile, islice
from math import ceil
from typing import NamedTuple, cast

import av
import numpy as np
import torch
from av.audio.stream import AudioStream
from av.container import InputContainer

from . import clock
from .colours import Look, decoded_frames, displayed_pixels, displayed_size
from .files import exact_frame_rate, file_of, open_media
from .images import read_image

__all__ = ["MediaInfo", "iterate_video", "probe", "read_audio", "read_image", "read_video"]

# Sound that lies so near to the end of what precedes it follows it without a gap: less than its frames are long.
_LOOSE_S = 0.04
# Frames by which memory for a video grows.
_GROWTH_FRAMES = 32
# Containers whose index tells where the frames of a time are; others are decoded from their start. The index may count in
# the order of decoding, which runs ahead of the order of display, hence the lead. It is worth it for windows far off.
_INDEXED = ("mov", "matroska")
_LEAD_S = 1
_FAR_S = 5


@dataclass(frozen=True)
class MediaInfo:
    """What a media file holds.

    Times are counted from the first displayed picture, or from the first sample of a file without video. A cover picture
    is no video.

    Args:
        frame_rate: Frames per second, exact: the average of a video whose rate varies; `None` without video.
        num_frames: Video frames that are displayed; 0 without video.
        height: Rows of the video as displayed; 0 without video.
        width: Columns of the video as displayed; 0 without video.
        duration_s: Duration in seconds of the video, or of the sound of a file without.
        sampling_rate: Samples per second of the first audio stream; `None` without audio.
        constant_rate: Whether the video's frames come at `frame_rate`, one by one.
    """

    frame_rate: Fraction | None
    num_frames: int
    height: int
    width: int
    duration_s: float
    sampling_rate: int | None
    constant_rate: bool = True


def probe(path: str | os.PathLike) -> MediaInfo:
    """Describe a video or audio file without decoding it whole.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds neither video nor audio that can be read.
    """
    with open_media(path) as container:
        video, audio = clock.main_video(container), clock.main_audio(container)
        declared = None if video is None else [video.average_rate, video.guessed_rate]
        sampling_rate = None if audio is None else audio.rate
        first = clock.first_of(container, clock.main_stream(container))
        size = (0, 0) if video is None else displayed_size(first.content, Look.of(video))
    with open_media(path) as container:
        spans = clock.packet_spans(container, clock.main_stream(container), first.time_s)
    duration = max((end for _, end in spans), default=first.duration_s)
    if declared is None:
        return MediaInfo(None, 0, 0, 0, float(duration), sampling_rate)
    rate, constant = clock.pace([start for start, _ in spans], duration, declared)
    return MediaInfo(rate, len(spans), *size, float(duration), sampling_rate, constant)


def iterate_video(
    path: str | os.PathLike,
    max_frames: int | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    frame_rate: float | Fraction | None = None,
) -> Iterator[np.ndarray]:
    """Yield the frames of a video as bytes `[H, W, 3]`, one at a time, turned as they are to be displayed.

    Args:
        path: Video file.
        max_frames: Most frames to yield; `None` for all.
        start_s: Time of the first frame, in seconds from the first displayed picture of the file; default 0.
        end_s: Time before which frames must lie; `None` for the end of the file.
        frame_rate: Frames to yield per second, `None` (default) for those of the file one by one. Frame `k` is shown
            `k / frame_rate` seconds after `start_s`; it is the last one whose own time, rounded to the nearest multiple of
            `1 / frame_rate`, is not later, as with FFmpeg's filter `fps`. So frames are left out and repeated, and never
            mixed, and each is shown within half a frame of its time.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds no video, is damaged, or has no frame in the window.
    """
    _check_window(start_s, end_s)
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}; pass None to read all frames")
    rate = None if frame_rate is None else exact_frame_rate(frame_rate)
    window = (Fraction(start_s), None if end_s is None else Fraction(end_s))
    count, before, pixels = 0, None, np.empty(0)
    for picture in islice(_window_pictures(path, *window, rate), max_frames):
        # A repeated picture is converted once.
        if picture is not before:
            before, pixels = picture, displayed_pixels(picture.frame, picture.look)
        yield pixels
        count += 1
    if count == 0:
        raise ValueError(f"{str(path)!r} has no video frames {_window(start_s, end_s)}")


def read_video(
    path: str | os.PathLike,
    max_frames: int | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    frame_rate: float | Fraction | None = None,
) -> torch.Tensor:
    """Read the frames of a video as bytes `[F, H, W, 3]`; arguments and errors as `iterate_video`."""
    frames = iterate_video(path, max_frames, start_s, end_s, frame_rate)
    first = next(frames)
    pixels = np.empty((0, *first.shape), np.uint8)
    for count, frame in enumerate(chain([first], frames), start=1):
        if count > len(pixels):
            # Memory that grows in place: frames are never held twice.
            pixels.resize((len(pixels) + _GROWTH_FRAMES, *first.shape), refcheck=False)
        pixels[count - 1] = frame
    pixels.resize((count, *first.shape), refcheck=False)
    return torch.from_numpy(pixels)


def read_audio(
    path: str | os.PathLike, start_s: float = 0.0, end_s: float | None = None
) -> tuple[torch.Tensor, int] | None:
    """Read the first audio stream of a file as float32 `[1, C, N]` in [-1, 1], with its sampling rate.

    Integer samples are divided by the size of their negative range. Times are counted from the first displayed picture, or
    from the first sample of a file without video: sound before it is left out, and before sound that starts later, and in
    its gaps, there is silence, so that it stays in step with the video. The file is decoded from its start, so that a
    window holds the same samples as the whole.

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
        stream = clock.main_audio(container)
        if stream is None:
            return None
        rate = stream.rate
        zero = None if clock.main_video(container) is None else clock.zero_s(path)
        start = round(start_s * rate)
        end = None if end_s is None else start + round((end_s - start_s) * rate)
        frames = clock.timed(container, stream, _one_format(container, stream))
        pieces = list(_sound_pieces(frames, stream, zero, start, end))
    if not pieces:
        raise ValueError(f"{str(path)!r} has no sound {_window(start_s, end_s)}")
    last = max(place + piece.shape[1] for place, piece in pieces)
    samples = torch.zeros(1, len(pieces[0][1]), (last if end is None else min(last, end)) - start)
    for place, piece in pieces:
        kept = torch.from_numpy(piece)[:, max(start - place, 0) :]
        target = samples[0, :, max(place - start, 0) :][:, : kept.shape[1]]
        target.copy_(kept[:, : target.shape[1]])
    return samples, rate


def _one_format(container: InputContainer, stream: AudioStream) -> Iterator[av.AudioFrame]:
    """The decoded sound of a stream.

    Raises:
        ValueError: If its rate or its channels change, as in files put one behind the other.
    """
    first: str | None = None
    for frame in cast(Iterator[av.AudioFrame], clock.decoded(container, stream)):
        # What the stream says follows the decoder.
        own = f"{frame.sample_rate} Hz {frame.layout.name}"
        first = own if first is None else first
        if own != first:
            raise ValueError(
                f"{file_of(container)!r} changes its sound from {first} to {own} on the way; convert it to one kind"
            )
        yield frame


def _sound_pieces(
    frames: Iterator[clock.Timed], stream: AudioStream, zero: Fraction | None, start: int, end: int | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Samples `[C, n]` of the frames that reach into a window, each with its place in samples since the zero of the file."""
    # Only the sample format changes, so nothing is delayed or filtered.
    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    follows: int | None = None
    for frame, time_s, _ in frames:
        zero = time_s if zero is None else zero
        place = round((time_s - zero) * stream.rate)
        # Rounded time stamps must not tear apart what belongs together.
        if follows is not None and abs(place - follows) <= _LOOSE_S * stream.rate:
            place = follows
        if end is not None and place >= end:
            return
        follows = place + frame.samples
        frame.pts = None
        for out in resampler.resample(frame):
            if place + out.samples > start:
                yield place, out.to_ndarray()
            place += out.samples


class _Picture(NamedTuple):
    """A decoded frame, how it is to be seen, and how finely its file tells times."""

    frame: av.VideoFrame
    look: Look
    tick_s: Fraction


def _window_pictures(
    path: str | os.PathLike, start_s: Fraction, end_s: Fraction | None, rate: Fraction | None
) -> Iterator[_Picture]:
    """The pictures of a window one by one, or at a rate."""
    if rate is not None:
        shown = clock.at_rate(_pictures(path, start_s), rate, start_s, repr(os.fspath(path)))
        # Less than a thousandth of a frame at the end comes from rounding.
        yield from shown if end_s is None else islice(shown, ceil((end_s - start_s) * rate - Fraction(1, 1000)))
        return
    for picture, time_s, duration_s in _pictures(path, start_s):
        # Timestamps are rounded to the time base of the file, which must not move a frame over an edge.
        slack_s = min(picture.tick_s, duration_s / 10)
        if end_s is not None and time_s >= end_s - slack_s:
            return
        if time_s >= start_s - slack_s:
            yield picture


def _pictures(path: str | os.PathLike, start_s: Fraction) -> Iterator[clock.Timed[_Picture]]:
    """Pictures of a video with their times since its first one, among them all that are shown from `start_s` on."""
    if start_s > _FAR_S:
        zero_s = clock.zero_s(path)
        with open_media(path) as container:
            if (sought := _sought(container, zero_s + start_s)) is not None:
                yield from clock.since(zero_s, sought)
                return
    with open_media(path) as container:
        yield from clock.since(None, _all_pictures(container))


def _sought(container: InputContainer, time_s: Fraction) -> Iterator[clock.Timed[_Picture]] | None:
    """Pictures from a key frame on that is shown before a time; `None` in a file whose index does not lead there."""
    stream = clock.main_video(container)
    if container.format.name.split(",")[0] not in _INDEXED or stream is None or stream.time_base is None:
        return None
    container.seek(int((time_s - _LEAD_S) / stream.time_base), stream=stream)
    # Pictures that are shown before the key frame may refer to what was not read.
    pictures = dropwhile(lambda picture: not picture.content.frame.key_frame, _all_pictures(container))
    first = next(pictures, None)
    return None if first is None or first.time_s > time_s else chain([first], pictures)


def _all_pictures(container: InputContainer) -> Iterator[clock.Timed[_Picture]]:
    """Pictures from where the file is read, with their times on its own clock."""
    stream = clock.main_video(container)
    if stream is None:
        raise ValueError(f"{file_of(container)!r} has no video stream")
    stream.thread_type = "AUTO"
    for timed in clock.timed(container, stream, decoded_frames(container, stream)):
        yield timed._replace(content=_Picture(timed.content, Look.of(stream), stream.time_base or Fraction(0)))


def _window(start_s: float, end_s: float | None) -> str:
    return f"between {start_s} s and {'its end' if end_s is None else f'{end_s} s'}"


def _check_window(start_s: float, end_s: float | None) -> None:
    if start_s < 0:
        raise ValueError(f"start_s must not be negative, got {start_s}; use 0.0")
    if end_s is not None and end_s <= start_s:
        raise ValueError(f"end_s must be larger than start_s, got {end_s} after {start_s}")
