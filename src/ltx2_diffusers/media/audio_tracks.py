"""The sound of a file being written: encoded from samples, copied from another file, or none.

Shapes: N samples.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet

from .files import open_media

# Samples of one AAC frame (ISO/IEC 14496-3).
_AAC_FRAME_SAMPLES = 1024
# Codecs that every MP4 player can be expected to know; others, such as the PCM of WAV files, are encoded anew.
_MP4_CODECS = ("aac", "mp3", "ac3", "eac3", "alac")


class NoAudio:
    """Silence; also the interface of the other tracks, which are context managers that hold their source open."""

    def __enter__(self) -> "NoAudio":
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def write_until(self, seconds: float) -> None:
        """Write the packets that belong before a time, so that they lie next to the video packets of that time."""

    def finish(self) -> None:
        """Write what remains of sound that was given as samples."""


class EncodedAudio(NoAudio):
    """An AAC stream encoded from samples.

    Args:
        container: File being written.
        samples: float32 `[2, N]` in [-1, 1].
        sampling_rate: Samples per second.
    """

    def __init__(self, container: OutputContainer, samples: np.ndarray, sampling_rate: int):
        self.container = container
        self.samples = samples
        self.sampling_rate = sampling_rate
        self.position = 0
        # Index of the first of `samples`; earlier ones are written.
        self.start = 0
        self.stream = container.add_stream("aac", rate=sampling_rate, layout="stereo")

    @staticmethod
    def check_rate(sampling_rate: int | None) -> None:
        """Raise `ValueError` if AAC has no such sampling rate."""
        rates = _aac_rates()
        if sampling_rate not in rates:
            nearest = min(rates, key=lambda rate: abs(rate - (sampling_rate or 48000)))
            raise ValueError(
                f"sampling_rate is required with audio and must be one of {rates} for AAC, got {sampling_rate}; "
                f"use the vocoder's rate, or resample to {nearest}"
            )

    @property
    def length(self) -> int:
        """Samples given so far."""
        return self.start + self.samples.shape[1]

    def append(self, samples: np.ndarray) -> None:
        """Add samples `[2, N]` at the end and forget those that are written."""
        self.samples = np.concatenate([self.samples[:, self.position - self.start :], samples], axis=1)
        self.start = self.position

    def cut(self, length: int) -> None:
        """Drop samples at the end, or add silence, so that there are `length` in all."""
        kept = self.samples[:, : max(length - self.start, 0)]
        self.samples = np.pad(kept, ((0, 0), (0, max(length - self.start - kept.shape[1], 0))))

    def write_until(self, seconds: float) -> None:
        end = min(self.length, int(seconds * self.sampling_rate))
        while self.position + _AAC_FRAME_SAMPLES <= end:
            self._encode(self.position + _AAC_FRAME_SAMPLES)

    def finish(self) -> None:
        self.write_until(self.length / self.sampling_rate)
        if self.position < self.length:
            self._encode(self.length)
        self.container.mux(self.stream.encode())

    def _encode(self, end: int) -> None:
        piece = np.ascontiguousarray(self.samples[:, self.position - self.start : end - self.start])
        # Planar floats are what the encoder works on: nothing is rounded to 16 bits on the way.
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
        frame.sample_rate = self.sampling_rate
        frame.pts = self.position
        self.container.mux(self.stream.encode(frame))
        self.position = end


class CopiedAudio(NoAudio):
    """The audio packets of another file, unchanged.

    Args:
        container: File being written.
        source: Media file with an audio stream.
    """

    def __init__(self, container: OutputContainer, source: str | os.PathLike):
        self.container = container
        self._resources = ExitStack()
        source_container = self._resources.enter_context(open_media(source))
        source_stream = source_container.streams.audio[0]
        self.stream = container.add_stream_from_template(source_stream)
        self.packets: Iterator[Packet] = source_container.demux(source_stream)
        self.held: Packet | None = None

    def __exit__(self, *error: Any) -> None:
        self._resources.close()

    def write_until(self, seconds: float) -> None:
        while (packet := self.held or next(self.packets, None)) is not None:
            self.held = packet
            if packet.dts is not None and packet.dts * packet.time_base >= seconds:
                return
            self.held = None
            # A packet without time only marks the end of the source.
            if packet.dts is not None:
                packet.stream = self.stream
                self.container.mux_one(packet)


def check_audio_source(source: str | os.PathLike) -> None:
    """Raise `ValueError` if a file has no sound that could be copied."""
    with open_media(source) as container:
        if not container.streams.audio:
            raise ValueError(
                f"audio_source {str(source)!r} has no audio stream; pass audio=None to write a silent video"
            )


def can_copy_audio(source: str | os.PathLike) -> bool:
    """Whether the sound of a file is of a kind that MP4 files hold, so that its packets can be copied."""
    with open_media(source) as container:
        return bool(container.streams.audio) and container.streams.audio[0].codec_context.name in _MP4_CODECS


def encodable_rate(sampling_rate: int) -> int:
    """The lowest sampling rate of AAC that is not below the given one, or its highest."""
    rates = _aac_rates()
    return next((rate for rate in rates if rate >= sampling_rate), rates[-1])


def _aac_rates() -> list[int]:
    return sorted(av.Codec("aac", "w").audio_rates or ())
