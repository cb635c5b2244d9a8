"""Small synthetic clips and sounds."""

import os
from collections.abc import Sequence
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
