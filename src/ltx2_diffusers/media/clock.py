"""The one clock of a media file: seconds since its first displayed picture, on its own presentation times."""

import os
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import repeat
from math import floor
from typing import Generic, NamedTuple, TypeVar

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from .files import file_of, open_media

Content = TypeVar("Content")
Part = av.VideoFrame | av.AudioFrame | Packet

# Rates that cameras, films and screens have, with those of NTSC, to which a measured one is rounded if it is that near.
_USUAL_RATES = [
    Fraction(whole * 1000, part) for whole in (12, 15, 24, 25, 30, 48, 50, 60, 100, 120) for part in (1000, 1001)
]
_USUAL_TOLERANCE = 1e-3
_MAX_DENOMINATOR = 1001
# Time stamps are rounded, at most to milliseconds.
_ROUNDED_S = 1e-3
_FEWEST_SHOWN = 0.9
# A picture that stays longer than this comes from damaged time stamps, and would be repeated without end.
_LONGEST_PICTURE_S = 3600


class Timed(NamedTuple, Generic[Content]):
    """Something that is shown or heard from a time on, for a while; both in seconds."""

    content: Content
    time_s: Fraction
    duration_s: Fraction


def main_video(container: InputContainer) -> VideoStream | None:
    """The first video stream that is no cover picture, if there is one."""
    streams = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    return next(streams, None)


def main_audio(container: InputContainer) -> AudioStream | None:
    """The first audio stream, if there is one.

    Raises:
        ValueError: If FFmpeg knows no decoder for it.
    """
    stream = next(iter(container.streams.audio), None)
    if stream is not None and stream.codec_context is None:
        raise ValueError(
            f"{file_of(container)!r} has sound of a kind that cannot be decoded; convert it to AAC, or take it out"
        )
    return stream


def main_stream(container: InputContainer) -> VideoStream | AudioStream:
    """The stream whose start is the zero of the clock.

    Raises:
        ValueError: If the file holds neither video nor audio.
    """
    stream = main_video(container) or main_audio(container)
    if stream is None:
        raise ValueError(f"{file_of(container)!r} holds neither video nor audio")
    return stream


def zero_s(path: str | os.PathLike) -> Fraction:
    """The time on a file's own clock, in seconds, from which everything in it is counted.

    It is the presentation time of the first picture that is displayed, or, in a file without video, of the first sample
    that is heard. What an edit list hides, and what a decoder drops to get going, is neither.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or neither picture nor sound can be decoded.
    """
    with open_media(path) as container:
        return first_of(container, main_stream(container)).time_s


def first_of(container: InputContainer, stream: VideoStream | AudioStream) -> Timed:
    """The first frame of a stream of a file that was just opened."""
    for frame in timed(container, stream, decoded(container, stream)):
        return frame
    raise ValueError(f"{file_of(container)!r} has a {stream.type} stream without frames; it is empty or damaged")


def decoded(container: InputContainer, stream: VideoStream | AudioStream) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """The frames of a stream."""
    for packet in container.demux(stream):
        # An empty packet with a time says that the picture before it stays, which the times of its neighbours say, too.
        # One without a time marks the end of the file.
        if packet.size or packet.dts is None:
            yield from stream.decode(packet)


def timed(
    container: InputContainer, stream: VideoStream | AudioStream, frames: Iterable[av.VideoFrame | av.AudioFrame]
) -> Iterator[Timed]:
    """The decoded frames of a stream with times, which are those of the file itself and never fall.

    A frame without a time, or with one before that of the frame before it, follows that frame at once.
    """
    before: Fraction | None = None
    follows, usual = Fraction(0), _usual_duration_s(stream)
    for frame in frames:
        time = _told_s(frame, container)
        if time is None or (before is not None and time < before):
            time = follows
        usual = usual if before is None else time - before or usual
        duration = _own_duration_s(frame, container) or usual
        yield Timed(frame, time, duration)
        before, follows = time, time + duration


def since(zero_s: Fraction | None, frames: Iterable[Timed[Content]]) -> Iterator[Timed[Content]]:
    """Frames with times counted from a zero; `None` for that of the first one."""
    for frame in frames:
        zero_s = frame.time_s if zero_s is None else zero_s
        yield frame._replace(time_s=frame.time_s - zero_s)


def at_rate(
    frames: Iterable[Timed[Content]], rate: Fraction, start_s: Fraction = Fraction(0), name: str = "the video"
) -> Iterator[Content]:
    """Show frames at a constant rate, by leaving some out and repeating others.

    Each frame is moved to the nearest multiple of `1 / rate`, and shown from there on until another one takes its place;
    of several at one place the last is shown. This is what FFmpeg's filter `fps` does.

    Args:
        frames: Frames in the order of time.
        rate: Frames per second.
        start_s: Time of the first frame that is yielded. Of the frames before it the last one may still be shown.
        name: What messages call the video.

    Raises:
        ValueError: If a frame would be repeated for more than an hour.
    """
    shown: Timed[Content] | None = None
    count = 0
    for frame in frames:
        place = _nearest((frame.time_s - start_s) * rate)
        if shown is not None:
            if frame.time_s - shown.time_s > _LONGEST_PICTURE_S:
                raise ValueError(
                    f"the times of the pictures of {name} leap from {float(shown.time_s):g} s to {float(frame.time_s):g} s; "
                    "cut it there, or write it anew"
                )
            yield from repeat(shown.content, place - count)
            count = max(count, place)
        shown = frame
    if shown is not None and (end_s := shown.time_s + shown.duration_s) > start_s:
        # A video shorter than half a frame is one all the same.
        yield from repeat(shown.content, max(_nearest((end_s - start_s) * rate), 1) - count)


def packet_spans(
    container: InputContainer, stream: VideoStream | AudioStream, zero_s: Fraction
) -> list[tuple[Fraction, Fraction]]:
    """When each packet that is displayed begins and ends, counted from the zero, in the order of time; none is decoded."""
    spans, follows = [], Fraction(0)
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        time = _told_s(packet, container)
        time = follows if time is None else time
        follows = time + (_own_duration_s(packet, container) or _usual_duration_s(stream))
        spans.append((time, follows))
    # The frames of an AVI file bear the times of later packets.
    zero_s = min(spans)[0] if spans and container.format.name == "avi" else zero_s
    # What precedes the first frame that can be decoded is not displayed.
    return sorted((start - zero_s, end - zero_s) for start, end in spans if start >= zero_s)


def pace(
    times: Sequence[Fraction], duration_s: Fraction, declared: Sequence[Fraction | None]
) -> tuple[Fraction, bool]:
    """The frame rate of a video, and whether its frames come at that rate.

    A constant rate is the one whose multiples the frames lie nearest to, one of the declared rates or, where these are
    wrong, a usual one. A declared rate also holds where no more than a tenth of the frames are left out. The rate of all
    other videos is their average one.

    Args:
        times: When each frame is shown, in rising order, from 0.
        duration_s: When the last one ends.
        declared: What the file says, the most trustworthy first; at least one rate, unless there are several frames.
    """
    rates = [rate for rate in declared if rate]
    if len(times) < 2 or not times[-1]:
        return (rates or [Fraction(24)])[0], True
    rates.append(usual_rate((len(times) - 1) / times[-1]))
    # Containers that count milliseconds must not decide between rates.
    strays = [max(_stray(times, rate) - _ROUNDED_S, 0) for rate in rates]
    nearest = min(range(len(rates)), key=strays.__getitem__)
    rate = rates[nearest]
    if [_nearest(time * rate) for time in times] == list(range(len(times))):
        return rate, True
    if _has_few_gaps(times, rates[0]):
        return rates[0], False
    return usual_rate(len(times) / duration_s), False


def usual_rate(rate: Fraction) -> Fraction:
    """The usual rate that differs from a measured one by no more than its error, or else the measured one."""
    nearest = min(_USUAL_RATES, key=lambda usual: abs(usual - rate))
    if abs(nearest - rate) <= _USUAL_TOLERANCE * nearest:
        return nearest
    return rate.limit_denominator(_MAX_DENOMINATOR)


def _stray(times: Sequence[Fraction], rate: Fraction) -> float:
    """How far frames lie from where a constant rate puts them, in seconds."""
    return max(abs(float(time) - index / float(rate)) for index, time in enumerate(times))


def _has_few_gaps(times: Sequence[Fraction], rate: Fraction) -> bool:
    """Whether frames lie at different multiples of a rate, of which they leave out no more than a tenth."""
    places = [_nearest(time * rate) for time in times]
    strays = [abs(float(time) - place / float(rate)) for time, place in zip(times, places)]
    return max(strays) <= _ROUNDED_S and len(set(places)) == len(places) >= _FEWEST_SHOWN * (places[-1] + 1)


def _nearest(place: Fraction) -> int:
    """The nearest whole number, the larger one of two."""
    return floor(place + Fraction(1, 2))


def _told_s(part: Part, container: InputContainer) -> Fraction | None:
    """The time that the file tells for a frame or packet, if it tells one."""
    # AVI knows no presentation times, and those that are made up for it are wrong where pictures are stored out of order.
    stamp = part.dts if part.pts is None or container.format.name == "avi" else part.pts
    return None if stamp is None or part.time_base is None else stamp * part.time_base


def _own_duration_s(part: Part, container: InputContainer) -> Fraction:
    """How long a frame or packet lasts; 0 if it does not say."""
    if isinstance(part, av.AudioFrame):
        return Fraction(part.samples, part.sample_rate)
    # The pictures of an AVI file may be told to last for half as long as they do.
    if not part.duration or part.time_base is None or container.format.name == "avi":
        return Fraction(0)
    return part.duration * part.time_base


def _usual_duration_s(stream: VideoStream | AudioStream) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate if isinstance(stream, VideoStream) else None
    return Fraction(1, 24) if rate is None else 1 / rate
