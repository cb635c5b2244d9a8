"""Small synthetic clips and sounds."""

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch


def gradient_clip(num_frames: int = 9, height: int = 48, width: int = 64) -> torch.Tensor:
    """A smooth moving clip `[F, 3, H, W]` in [0, 1]."""
    time = torch.arange(num_frames)[:, None, None] / 12
    row = torch.arange(height)[None, :, None] / height
    column = torch.arange(width)[None, None, :] / width
    waves = [torch.sin(3 * column + time + shift) * torch.cos(2 * row + shift) for shift in (0.0, 1.0, 2.0)]
    return torch.stack(waves, dim=1) * 0.4 + 0.5


def tone(duration_s: float = 0.5, sampling_rate: int = 24000, frequency: float = 440.0) -> torch.Tensor:
    """A stereo sine `[2, N]` of amplitude 0.5; the right channel is half as loud."""
    phase = torch.arange(round(duration_s * sampling_rate)) / sampling_rate * frequency * 2 * torch.pi
    return torch.stack([torch.sin(phase) * 0.5, torch.sin(phase) * 0.25])


def write_timed(
    path: str | os.PathLike,
    times: Sequence[float],
    sound: torch.Tensor | None = None,
    sound_at_s: float = 0.0,
    codecs: tuple[str, str] = ("libx264", "pcm_s16le"),
    **options: str,
) -> str:
    """Write grey frames whose brightness tells their number, each at its own time, and a sound `[C, N]` of 24 kHz.

    Args:
        path: File; its suffix says the container.
        times: When each frame is shown, in seconds on the clock of the file.
        sound: Its sound, if it has one.
        sound_at_s: When the sound begins.
        codecs: Encoders of video and audio.
        options: Options of the video encoder.
    """
    with av.open(os.fspath(path), "w") as container:
        # The last frame lasts as long as the one before it.
        rate = Fraction(1 / (times[-1] - times[-2])).limit_denominator(1001)
        video = container.add_stream(codecs[0], rate=rate, options={"qp": "0", "threads": "1", **options})
        video.width = video.height = 32
        video.pix_fmt, video.time_base = "yuv420p", Fraction(1, 90000)
        video.codec_context.time_base = Fraction(1, 90000)
        audio = (
            None
            if sound is None
            else container.add_stream(codecs[1], rate=24000, layout=("mono", "stereo")[len(sound) - 1])
        )
        for number, time in enumerate(times):
            planes = np.repeat(np.uint8([16 + 2 * number, 128]), [32 * 32, 16 * 32]).reshape(48, 32)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = round(time * 90000), Fraction(1, 90000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            for start in range(0, sound.shape[1], 1024):
                piece = np.ascontiguousarray(sound[:, start : start + 1024].numpy().astype(np.float32))
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=audio.layout.name)
                frame.sample_rate, frame.pts = 24000, round(sound_at_s * 24000) + start
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return os.fspath(path)


def write_sound(path: str | os.PathLike, codec: str, sound: torch.Tensor, layout: str = "mono") -> Path:
    """Write a waveform `[C, N]` at 48 kHz by an encoder."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48000, layout=layout, options={"strict": "experimental"})
        stream.bit_rate = 128000
        stream.codec_context.format = sample_format = stream.codec_context.codec.audio_formats[0]
        resampler = av.AudioResampler(format=sample_format, layout=layout, rate=48000)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.numpy()), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = 48000, 0
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return Path(path)


def numbers(frames: Iterable[np.ndarray] | torch.Tensor) -> list[int]:
    """Which frames of `write_timed` these are."""
    return [round((float(np.asarray(frame).mean()) / 255 * 219) / 2) for frame in frames]


def write_frames(
    path: str | os.PathLike,
    frames: Sequence[np.ndarray | av.VideoFrame],
    codec: str = "ffv1",
    pix_fmt: str = "bgr0",
    options: dict[str, str] | None = None,
    container: str | None = None,
    given: str = "rgb24",
    **tags: int,
) -> Path:
    """Write frames with any codec and colour tags (fields of the codec context), without this package's writer.

    Arrays are of the pixel format `given` and are brought to `pix_fmt` by FFmpeg's defaults; frames are taken as they are.
    """
    first = frames[0]
    height, width = (first.height, first.width) if isinstance(first, av.VideoFrame) else first.shape[:2]
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=24, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for number, frame in enumerate(frames):
            if not isinstance(frame, av.VideoFrame):
                frame = av.VideoFrame.from_ndarray(frame, format=given)
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return Path(path)


# Saturated colours, white and a grey, as a player is to show them.
PATCHES = np.array(
    [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [255, 255, 0],
        [0, 255, 255],
        [255, 0, 255],
        [255, 255, 255],
        [128, 128, 128],
    ],
    dtype=np.uint8,
)


def patches(height: int = 32, width: int = 64) -> np.ndarray:
    """Bytes `[H, W, 3]` of eight patches side by side."""
    return np.repeat(np.repeat(PATCHES[None], height, 0), width // 8, 1)


def patch_error(frame: np.ndarray | torch.Tensor) -> float:
    """Mean error of the middles of the patches of a frame `[H, W, 3]`."""
    pixels = np.asarray(frame).astype(float)
    width = pixels.shape[1] // 8
    middles = [pixels[8:-8, i * width + width // 4 : (i + 1) * width - width // 4].mean((0, 1)) for i in range(8)]
    return float(np.abs(np.array(middles) - PATCHES).mean())
