"""The sound of a file being written: encoded from samples, copied from another file, or none.

Shapes: N samples.
"""

import os
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet

from .clock import main_audio
from .copying import MP4_SOUND, CopiedPackets, copy_obstacle
from .files import open_media

# Samples of one AAC frame (ISO/IEC 14496-3).
_AAC_FRAME_SAMPLES = 1024
# Others, such as the PCM of WAV files, are encoded anew.
_MP4_CODECS = MP4_SOUND


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
        self.sampling_rate = sampling_rate
        self.waiting = samples
        self.num_written = 0
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
        return self.num_written + self.waiting.shape[1]

    def append(self, samples: np.ndarray) -> None:
        """Add samples `[2, N]` at the end."""
        self.waiting = np.concatenate([self.waiting, samples], axis=1)

    def cut(self, length: int) -> None:
        """Drop samples at the end, or add silence, so that there are `length` in all."""
        kept = self.waiting[:, : max(length - self.num_written, 0)]
        self.waiting = np.pad(kept, ((0, 0), (0, max(length - self.num_written - kept.shape[1], 0))))

    def write_until(self, seconds: float) -> None:
        end = min(self.length, int(seconds * self.sampling_rate))
        while self.num_written + _AAC_FRAME_SAMPLES <= end:
            self._encode(_AAC_FRAME_SAMPLES)

    def finish(self) -> None:
        self.write_until(self.length / self.sampling_rate)
        if self.waiting.size:
            self._encode(self.waiting.shape[1])
        self.container.mux(self.stream.encode())

    def _encode(self, count: int) -> None:
        piece, self.waiting = np.ascontiguousarray(self.waiting[:, :count]), self.waiting[:, count:]
        # Planar floats are what the encoder works on: nothing is rounded to 16 bits on the way.
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
        frame.sample_rate = self.sampling_rate
        frame.pts = self.num_written
        self.container.mux(self.stream.encode(frame))
        self.num_written += count


class CopiedAudio(NoAudio):
    """The audio packets of another file, unchanged; its zero, from which they are counted, becomes the video's start.

    Args:
        container: File being written.
        source: Media file whose sound can be copied.
    """

    def __init__(self, container: OutputContainer, source: str | os.PathLike):
        self.container = container
        self.copied = CopiedPackets(container, source, "audio")
        self.packets = iter(self.copied)
        self.held: tuple[Packet, float] | None = None

    def __exit__(self, *error: Any) -> None:
        self.copied.__exit__(*error)

    def write_until(self, seconds: float) -> None:
        while (timed := self.held or next(self.packets, None)) is not None:
            self.held = timed
            packet, decoded_s = timed
            if decoded_s >= seconds:
                return
            self.held = None
            self.container.mux_one(packet)


def check_audio_source(source: str | os.PathLike, suffix: str) -> None:
    """Raise `ValueError` if a file has no sound that could be copied into one of a suffix."""
    with open_media(source) as container:
        if main_audio(container) is None:
            raise ValueError(
                f"audio_source {str(source)!r} has no audio stream; pass audio=None to write a silent video"
            )
    if (obstacle := copy_obstacle(source, "audio", suffix)) is not None:
        raise ValueError(f"audio_source cannot be used: {obstacle}, or pass its samples as audio")


def can_copy_audio(source: str | os.PathLike, suffix: str = ".mp4") -> bool:
    """Whether the sound of a file is of a kind that files of a suffix hold, so that its packets can be copied.

    Args:
        source: Media file.
        suffix: `".mp4"` (default) or `".mov"`.
    """
    with open_media(source) as container:
        if main_audio(container) is None:
            return False
    return copy_obstacle(source, "audio", suffix) is None


def encodable_rate(sampling_rate: int) -> int:
    """The lowest sampling rate of AAC that is not below the given one, or its highest."""
    rates = _aac_rates()
    return next((rate for rate in rates if rate >= sampling_rate), rates[-1])


def _aac_rates() -> list[int]:
    return sorted(av.Codec("aac", "w").audio_rates or ())
