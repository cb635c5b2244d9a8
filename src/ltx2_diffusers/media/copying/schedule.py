"""When the packets of a stream are shown and decoded, and when they are in a file to which they are copied.

Times are counted from the zero of the file that they are copied from (`clock.zero_s`), which is the start of the new one:
packets that are not to be seen or heard come before it, where an edit list of the new file hides them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from ..clock import main_audio, main_video, zero_s
from ..files import open_media

# Packets of these codecs do not say by themselves in which order they are shown.
_ORDERED_BY_CONTAINER = ("h264", "hevc")
_GENERATE_TIMES = 1  # AVFMT_FLAG_GENPTS
# Matroska rounds times to milliseconds.
_ROUNDING_S = Fraction(1, 1000)
_LONE_PICTURE_S = Fraction(1, 24)
_TIMELESS = "the file does not say when they are shown"

Opened = tuple[InputContainer, VideoStream | AudioStream]


class Stamp(NamedTuple):
    """When a packet is shown and decoded, in units of its stream, and whether an edit list hides it."""

    pts: int | None
    dts: int | None
    hidden: bool


@dataclass(frozen=True)
class Schedule:
    """The packets of a stream by their times.

    Args:
        codec: Name of the codec.
        time_base: Unit of the stamps in seconds.
        stamps: One for each packet, in the order in which they lie in the file.
        zero: Time from which the file is counted, in the unit of the stamps.
        first_s: Time in seconds, from zero, of the first picture that is shown or sample that is heard.
        problem: Why the packets cannot keep their times in another file; `None` if they can.
    """

    codec: str
    time_base: Fraction
    stamps: list[Stamp]
    zero: int
    first_s: Fraction
    problem: str | None = None

    def times(self) -> list[tuple[int, int]]:
        """Times of display and decoding of the packets to copy, from zero.

        A missing time of decoding, as in Matroska, is the next one in the order of display, put back as far as the packets
        that are decoded ahead of their turn ask for. Packets behind the last one that is shown are left out.
        """
        kept = self.stamps[: _behind_last_shown(self.stamps)]
        shown = [(stamp.pts or 0) - self.zero for stamp in kept]
        given = [stamp.dts - self.zero for stamp in kept if stamp.dts is not None]
        rising = all(earlier < later for earlier, later in pairwise(given))
        if len(given) == len(shown) and rising and all(dts <= pts for dts, pts in zip(given, shown)):
            return list(zip(shown, given))
        ordered = sorted(shown)
        delay = max((turn - pts for turn, pts in zip(ordered, shown)), default=0)
        return [(pts, turn - delay) for pts, turn in zip(shown, ordered)]

    def last_duration(self) -> int:
        """How long the last packet lasts if the file does not say: as long as the one before it."""
        shown = sorted(stamp.pts for stamp in self.stamps if stamp.pts is not None and not stamp.hidden)
        return shown[-1] - shown[-2] if len(shown) > 1 else round(_LONE_PICTURE_S / self.time_base)


@contextmanager
def opened_stream(path: str | os.PathLike, kind: str) -> Iterator[Opened]:
    """Open a file and find its main stream of a kind, `"video"` or `"audio"`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or has no such stream.
    """
    with open_media(path) as container:
        stream = main_video(container) if kind == "video" else main_audio(container)
        if stream is None or stream.codec_context is None:
            raise ValueError(f"{os.fspath(path)!r} has no {kind} stream that can be decoded")
        yield container, stream


def read_schedule(path: str | os.PathLike, kind: str) -> Schedule:
    """Read the times of all packets of a file's main stream of a kind, `"video"` or `"audio"`."""
    with opened_stream(path, kind) as (container, stream):
        context, time_base = stream.codec_context, stream.time_base or Fraction(1)
        stamps = [Stamp(p.pts, p.dts, p.is_discard) for p in container.demux(stream) if p.size]
        codec, reorders = context.codec.canonical_name, bool(getattr(context, "has_b_frames", False))
        # The times that AVI tells of frames are those of later packets; it hides none.
        zero = min((s.pts or 0 for s in stamps), default=0) * time_base if _is_avi(container, kind) else zero_s(path)
    first_s = Fraction(0) if kind == "video" else _first_heard_s(path) - zero
    schedule = Schedule(codec, time_base, stamps, round(zero / time_base), first_s)
    problem = _problem(schedule, kind)
    if problem is None and reorders and codec in _ORDERED_BY_CONTAINER and not _tells_times(path):
        problem = _TIMELESS
    return replace(schedule, problem=problem)


def _problem(schedule: Schedule, kind: str) -> str | None:
    """Why packets cannot keep their times, which an edit list with one cut at the start has to express."""
    stamps, zero = schedule.stamps, schedule.zero
    shown = [stamp.pts for stamp in stamps[: _behind_last_shown(stamps)] if stamp.pts is not None]
    if not stamps:
        return "there are none"
    if len(shown) < _behind_last_shown(stamps) or len(set(shown)) < len(shown):
        return _TIMELESS
    if any(stamp.hidden and (stamp.pts or 0) >= zero for stamp in stamps[: len(shown)]):
        return "the file's edit list hides some of them later than at the start"
    starts_s = (shown[0] - zero) * schedule.time_base
    if kind == "video" and starts_s > _ROUNDING_S:
        return "the first of them is shown after others"
    # Sound that a decoder drops to get going, or that an edit list cuts, is hidden only in front of the first picture.
    if kind == "audio" and schedule.first_s - max(starts_s, Fraction(0)) > _ROUNDING_S:
        return "they begin with sound that is not to be heard, after the first picture"
    return None


def _behind_last_shown(stamps: list[Stamp]) -> int:
    """How many packets there are up to the last one that is not hidden."""
    return next((index for index in range(len(stamps), 0, -1) if not stamps[index - 1].hidden), 0)


def _first_heard_s(path: str | os.PathLike) -> Fraction:
    """The time of the first sample that is heard, on the file's own clock."""
    with opened_stream(path, "audio") as (container, _):
        frame = next(container.decode(audio=0), None)
        if frame is None or frame.pts is None or frame.time_base is None:
            raise ValueError(f"{os.fspath(path)!r} has sound that cannot be decoded; it is empty or damaged")
        return frame.pts * frame.time_base


def _tells_times(path: str | os.PathLike) -> bool:
    """Whether all packets of the main video stream have a time of display without one being made up for them."""
    with opened_stream(path, "video") as (container, stream):
        container.flags &= ~_GENERATE_TIMES
        return all(packet.pts is not None for packet in container.demux(stream) if packet.size)


def _is_avi(container: InputContainer, kind: str) -> bool:
    return kind == "video" and container.format.name == "avi"
