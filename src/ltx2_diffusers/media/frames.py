"""Pictures and clips as callers give them, turned into pixels.

Shapes: F frames, H and W rows and columns of pixels.
"""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch

from .images import is_clip, read_image
from .preprocess import h264_round_trip
from .reading import read_video

Frames = PIL.Image.Image | Sequence[Any] | np.ndarray | torch.Tensor | str | os.PathLike


def read_frames(
    frames: Frames, max_frames: int | None = None, float_range: float = 255.0, name: str = "frames"
) -> torch.Tensor:
    """Pixels `[F, H, W, 3]` in [0, 255] of a picture or clip, bytes unless they were given as floats.

    Args:
        frames: An image, an array `[H, W, 3]` or `[F, H, W, 3]`, a tensor `[3, H, W]` or `[F, 3, H, W]`, the name of
            an image or video file, or a list of these in one size.
        max_frames: Most frames to read, default all.
        float_range: What white is in an array or tensor of floats, default 255.
        name: Argument to name in messages.
    """
    if isinstance(frames, (str, os.PathLike)) and is_clip(frames):
        return read_video(frames, max_frames)
    if isinstance(frames, (str, os.PathLike, PIL.Image.Image)):
        return torch.from_numpy(np.array(read_image(frames)))[None]
    if isinstance(frames, (list, tuple)) and frames:
        parts = [read_frames(part, max_frames, float_range, name) for part in frames[:max_frames]]
        sizes = sorted({tuple(part.shape[1:3]) for part in parts})
        if len(sizes) > 1:
            raise ValueError(f"`{name}` has to hold frames of one size but holds (rows, columns) {sizes}")
        return torch.cat(parts)[:max_frames]
    if isinstance(frames, np.ndarray):
        pixels = torch.from_numpy(np.ascontiguousarray(frames))
    elif isinstance(frames, torch.Tensor):
        pixels = frames.detach().cpu().movedim(-3, -1) if frames.ndim in (3, 4) else frames
    else:
        raise ValueError(
            f"`{name}` has to be an image, an array, a tensor, a file name or a list of them but is {type(frames)}"
        )
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise ValueError(f"`{name}` has to hold RGB frames but has shape {tuple(frames.shape)}")
    return _in_bytes(pixels[:max_frames], float_range, name)


def one_picture(image: Frames) -> Frames:
    """What is given where a picture is wanted: of a file the picture, of a clip's the first frame, with a warning."""
    if not isinstance(image, (str, os.PathLike)):
        return image
    if not is_clip(image):
        return read_image(image)
    clip = read_video(image, 2)
    if len(clip) > 1:
        name = os.fspath(image)
        warnings.warn(f"{name!r} is a clip where a picture is wanted; its first frame is taken", stacklevel=2)
    return as_image(clip[0])


def check_crf(name: str, crf: int, pixels: torch.Tensor) -> None:
    """Check the H.264 quality of a condition, whose frames are given it only if there is a single one."""
    if not isinstance(crf, int) or not 0 <= crf <= 51:
        raise ValueError(f"`{name}` has to be between 0 (no compression) and 51 but is {crf}; use 33")
    if crf and len(pixels) == 1 and pixels.dtype != torch.uint8:
        raise ValueError(
            f"the H.264 round trip of a picture needs bytes but got floats; give an image or a uint8 array, or set "
            f"`{name}=0`"
        )


def as_video_frames(pixels: torch.Tensor, crf: int) -> torch.Tensor:
    """Pixels `[F, H, W, 3]` of a clip as they are, a single picture with the compression of a video frame."""
    return h264_round_trip(pixels[0], crf)[None] if crf and len(pixels) == 1 else pixels


def as_image(pixels: torch.Tensor) -> PIL.Image.Image:
    """Pixels `[H, W, 3]` in [0, 255] as an image."""
    return PIL.Image.fromarray(pixels.round().to(torch.uint8).numpy())


def _in_bytes(pixels: torch.Tensor, float_range: float, name: str) -> torch.Tensor:
    """Bytes as they are; floats checked and scaled so that white is 255."""
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise ValueError(f"`{name}` has to hold bytes or floats but holds {pixels.dtype}")
    low, high = (bound.item() for bound in pixels.aminmax())
    if not 0 <= low <= high <= float_range:
        raise ValueError(f"`{name}` as floats has to lie between 0 and {float_range:g} but spans {low:g} to {high:g}")
    return pixels if float_range == 255 else pixels * (255 / float_range)
