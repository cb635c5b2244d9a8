"""Packets on their way from one file to another."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction

from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from .schedule import opened_stream, read_schedule

# Names of the kinds of a codec in these files, where there are several; Apple's players know only the first of HEVC.
_TAGS = {
    "h264": ("avc1", "avc3"),
    "hevc": ("hvc1", "hev1"),
    "prores": ("apch", "apcn", "apcs", "apco", "ap4h", "ap4x"),
}


class CopiedPackets:
    """The main stream of a kind, copied from one file to another; a context manager that holds the source open.

    The codec's tag, the rotation, aspect of pixels, colours and metadata of the stream are kept.

    Args:
        container: File being written.
        source: Media file whose packets can be copied, as `copy_obstacle` tells.
        kind: `"video"` or `"audio"`.
        after: Packets of the same file being written, of a stream that was encoded in the same way, behind which these go;
            default a stream of their own.

    Raises:
        ValueError: If the stream does not go on with what stands before it.
    """

    def __init__(
        self, container: OutputContainer, source: str | os.PathLike, kind: str, after: "CopiedPackets | None" = None
    ):
        schedule = read_schedule(source, kind)
        self._resources = ExitStack()
        self.source, self._from = self._resources.enter_context(opened_stream(source, kind))
        self._times, self._time_base = schedule.times(), schedule.time_base
        self._last_duration = schedule.last_duration()
        self._encoding = (schedule.codec, schedule.time_base, self._from.codec_context.extradata)
        self.zero_s = schedule.zero * schedule.time_base
        # How far packets are decoded ahead of their turn; short clips need less than their encoder takes.
        self._ahead = max((-dts for _, dts in self._times), default=0)
        if after is not None and (after._encoding != self._encoding or after._ahead < self._ahead):
            self._resources.close()
            raise ValueError(
                f"{os.fspath(source)!r} cannot be put behind another clip without encoding it anew: it was made with other "
                "settings"
            )
        self._start = 0 if after is None else after.end
        if after is not None:
            # Times of decoding must rise from one clip to the next.
            self._times = [(pts, dts - after._ahead + self._ahead) for pts, dts in self._times]
            self._ahead = after._ahead
        self.stream: VideoStream | AudioStream = (
            self._new_stream(container, schedule.codec) if after is None else after.stream
        )

    def _new_stream(self, container: OutputContainer, codec: str) -> VideoStream | AudioStream:
        # The decoder stands for the codec, so that no encoder is needed.
        stream = container.add_stream_from_template(self._from, opaque=True)
        stream.metadata.update(self._from.metadata)
        context = stream.codec_context
        if (tag := _tag(self._from, codec)) is not None:
            context.codec_tag = tag
        # Of the container and the bitstream, the aspect that players go by.
        for name, own in (("sample_aspect_ratio", "sample_aspect_ratio"), ("framerate", "average_rate")):
            if (value := getattr(self._from, own, None)) is not None:
                setattr(context, name, value)
        return stream

    @property
    def num_packets(self) -> int:
        """How many there are."""
        return len(self._times)

    @property
    def end(self) -> int:
        """When the last picture or sample ends, in units of the source's stream, from the start of the new file."""
        return self._start + max(pts for pts, _ in self._times) + self._last_duration

    @property
    def end_s(self) -> float:
        """The same in seconds."""
        return float(self.end * self._time_base)

    def __enter__(self) -> "CopiedPackets":
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    def __iter__(self) -> Iterator[tuple[Packet, float]]:
        """Each packet, ready to be written, with the time in seconds at which it is decoded."""
        # Only the packet that marks the end of the source holds nothing; one without time may be a key frame.
        packets = (packet for packet in self.source.demux(self._from) if packet.size)
        for packet, (own_pts, own_dts) in zip(packets, self._times):
            pts, dts = self._start + own_pts, self._start + own_dts
            packet.pts, packet.dts, packet.stream = pts, dts, self.stream
            # Of all but the last one the times of its neighbours tell.
            packet.duration = packet.duration or self._last_duration
            yield packet, float(dts * self._time_base)


def copy_description(source: InputContainer, target: OutputContainer, zero: Fraction) -> None:
    """Copy what a file says about itself: title, time of creation and other metadata, and its chapters."""
    target.metadata.update(source.metadata)
    chapters = source.chapters()
    for chapter in chapters:
        shift = round(zero / (chapter["time_base"] or 1))
        chapter["start"], chapter["end"] = max(chapter["start"] - shift, 0), chapter["end"] - shift
    target.set_chapters([chapter for chapter in chapters if chapter["end"] > 0])


def _tag(stream: VideoStream | AudioStream, codec: str) -> str | None:
    """The tag of the codec where there is a choice."""
    tags = _TAGS.get(codec, ())
    own = stream.codec_context.codec_tag
    if own in tags:
        return own
    return tags[0] if codec == "hevc" else None
