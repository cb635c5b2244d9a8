"""The one clock of a media file: seconds since its first displayed picture, on its own presentation times."""

import os
from fractions import Fraction

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from .files import open_media


def main_video(container: InputContainer) -> VideoStream | None:
    """The first video stream that is no cover picture, if there is one."""
    streams = (s for s in container.streams.video if not s.disposition & Disposition.attached_pic)
    return next(streams, None)


def main_audio(container: InputContainer) -> AudioStream | None:
    """The first audio stream, if there is one."""
    return next(iter(container.streams.audio), None)


def zero_s(path: str | os.PathLike) -> Fraction:
    """The time on a file's own clock, in seconds, from which everything in it is counted.

    It is the presentation time of the first picture that is displayed, or, in a file without video, of the first sample
    that is heard. What an edit list hides, and what a decoder drops to get going, is neither.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or neither picture nor sound can be decoded.
    """
    with open_media(path) as container:
        stream = main_video(container) or main_audio(container)
        if stream is None:
            raise ValueError(f"{str(path)!r} holds neither video nor audio")
        frame = next(container.decode(stream), None)
        if frame is None:
            raise ValueError(f"{str(path)!r} has a {stream.type} stream without frames; it is empty or damaged")
        # Some containers, such as AVI, tell only when a packet is to be decoded.
        time = frame.dts if frame.pts is None else frame.pts
        return Fraction(0) if time is None or frame.time_base is None else time * frame.time_base
