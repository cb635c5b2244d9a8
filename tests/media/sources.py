"""Media files as other programs write them: any codec, container, start and cut, made packet by packet."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import av
import numpy as np
import pytest

from ltx2_diffusers.media.clock import main_audio, main_video, zero_s

RATE = 48000
# Options that keep encoders fast and quiet.
FAST = {
    "libx264": {"preset": "ultrafast", "bf": "2", "b-adapt": "0", "g": "12"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:bframes=2:b-adapt=0"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lookahead=0:pred-struct=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"},
    "mpeg4": {"bf": "2"},
    "mpeg2video": {"bf": "2"},
}
FORMATS = {"prores_ks": "yuv422p10le", "mjpeg": "yuvj420p", "png": "rgb24", "qtrle": "rgb24", "dnxhd": "yuv422p"}
BURST_S, BURST_AT_S = 0.02, 0.25


class Track(NamedTuple):
    """What is written of a stream: its codec, when its first frame is shown, and what else is set on it."""

    codec: str
    start_s: float = 0.0
    settings: Mapping[str, Any] = MappingProxyType({})
    options: Mapping[str, str] = MappingProxyType({})


def pictures(num_frames: int = 25, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Frames `[H, W, 3]` that differ from each other everywhere."""
    column = np.linspace(0, 200, width)[None, :, None]
    return [np.broadcast_to((column + 7 * i) % 256, (height, width, 3)).astype(np.uint8) for i in range(num_frames)]


def burst(duration_s: float = 1.2) -> np.ndarray:
    """Samples `[1, N]`: silence, and from `BURST_AT_S` on a short loud tone."""
    time = np.arange(round(duration_s * RATE)) / RATE
    loud = (time >= BURST_AT_S) & (time < BURST_AT_S + BURST_S)
    return (np.sin(2 * np.pi * 2000 * time) * 0.8 * loud).astype(np.float32)[None]


def write_source(
    path: Path,
    video: Track | None = None,
    audio: Track | None = None,
    stamps: Sequence[Fraction] | None = None,
    frames: Sequence[np.ndarray] | None = None,
    cover: str | None = None,
    description: dict[str, Any] | None = None,
) -> Path:
    """Write a file.

    Args:
        path: File; its suffix says which container.
        video, audio: Its streams.
        stamps: Times in seconds of the frames, default at 24 per second.
        frames: Default `pictures()`.
        cover: `"first"` or `"last"` for a cover picture beside the other streams.
        description: Title and the like.
    """
    for track in (video, audio):
        if track is not None and track.codec not in av.codecs_available:
            pytest.skip(f"this build of PyAV has no encoder {track.codec}")
    # Files of sound alone may hold a cover picture, too.
    with av.open(str(path), "w", format="mp4" if path.suffix == ".m4a" else None) as target:
        target.metadata.update(description or {})
        covers = [_cover(target)] if cover == "first" else []
        packets = _video_packets(target, video, frames or pictures(), stamps) if video else []
        sound = _audio_packets(target, audio) if audio else []
        covers += [_cover(target)] if cover == "last" else []
        target.start_encoding()
        for packet in sorted(covers + packets + sound, key=lambda p: p.dts * p.time_base):
            target.mux_one(packet)
    return path


def _video_packets(target, track: Track, frames, stamps) -> list[av.Packet]:
    stamps = [Fraction(i, 24) for i in range(len(frames))] if stamps is None else stamps
    options = {**FAST.get(track.codec, {}), **track.options}
    stream = target.add_stream(track.codec, rate=24, options=options)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = FORMATS.get(track.codec, "yuv420p")
    for name, value in track.settings.items():
        if name == "rotation":
            stream.set_display_rotation(value)
        else:
            setattr(stream if name == "disposition" else stream.codec_context, name, value)
    base = Fraction(1, 24000)
    stream.codec_context.time_base = (
        base if stamps[1:] and track.codec not in ("mpeg4", "mpeg2video") else Fraction(1, 24)
    )
    packets = []
    for pixels, stamp in zip(frames, stamps):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=stream.pix_fmt)
        frame.time_base = stream.codec_context.time_base
        frame.pts = round(stamp / frame.time_base)
        packets += stream.encode(frame)
    return _moved(packets + stream.encode(), track.start_s)


def _audio_packets(target, track: Track) -> list[av.Packet]:
    stream = target.add_stream(track.codec, rate=RATE, options=dict(track.options), layout="mono")
    resampler = av.AudioResampler(stream.format, "mono", RATE, frame_size=stream.codec_context.frame_size or 1024)
    frame = av.AudioFrame.from_ndarray(burst(), format="fltp", layout="mono")
    frame.sample_rate, frame.pts = RATE, 0
    packets = []
    for piece in (*resampler.resample(frame), *resampler.resample(None)):
        packets += stream.encode(piece)
    return _moved(packets + stream.encode(), track.start_s)


def _cover(target) -> av.Packet:
    stream = target.add_stream("png", options={})
    stream.height = stream.width = 32
    stream.pix_fmt = "rgb24"
    stream.codec_context.time_base = Fraction(1, 24)
    stream.disposition = av.stream.Disposition.attached_pic
    frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
    frame.pts, frame.time_base = 0, Fraction(1, 24)
    (packet,) = [*stream.encode(frame), *stream.encode()]
    return packet


def _moved(packets: list[av.Packet], seconds: float) -> list[av.Packet]:
    for packet in packets:
        shift = round(seconds / packet.time_base)
        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
    return packets


def packets_of(path: Path, kind: str) -> list[tuple[bytes, bool]]:
    """Contents of the packets of a main stream, with whether they are key frames."""
    with av.open(str(path)) as file:
        stream = main_video(file) if kind == "video" else main_audio(file)
        return [(bytes(packet), packet.is_keyframe) for packet in file.demux(stream) if packet.size]


def shown(path: Path) -> tuple[list[bytes], np.ndarray]:
    """The decoded pictures of a file, and their times from its zero."""
    zero = zero_s(path)
    with av.open(str(path)) as file:
        frames = list(file.decode(main_video(file)))
        return [f.to_ndarray().tobytes() for f in frames], np.array(
            [float(f.pts * f.time_base - zero) for f in frames]
        )


def onset_s(path: Path) -> float:
    """When the burst begins, in seconds from the file's zero."""
    zero = zero_s(path)
    with av.open(str(path)) as file:
        for frame in file.decode(main_audio(file)):
            samples = np.abs(frame.to_ndarray().astype(np.float64))
            samples = samples.reshape(-1, len(frame.layout.channels)) if not frame.format.is_planar else samples.T
            loud = np.flatnonzero(
                samples.max(1) > 0.2 * (2 ** (8 * frame.format.bytes - 1) if "s" in frame.format.name else 1)
            )
            if len(loud):
                return float(frame.pts * frame.time_base - zero) + loud[0] / frame.sample_rate
    raise AssertionError(f"no burst in {path}")


def starts(path: Path) -> tuple[float, float]:
    """When the first picture and the first sample of a file are shown and heard, on its own clock."""
    with av.open(str(path)) as file:
        picture = next(file.decode(main_video(file)))
    with av.open(str(path)) as file:
        sample = next(file.decode(main_audio(file)))
    return float(picture.pts * picture.time_base), float(sample.pts * sample.time_base)
