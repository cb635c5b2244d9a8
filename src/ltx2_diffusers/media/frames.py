"""Pictures and clips as callers give them, turned into pixels.

Shapes: F frames, H and W rows and columns of pixels.
"""

import os
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import PIL.Image
import torch

from .. import checks
from .files import exact_frame_rate
from .images import is_clip, read_image, still_picture
from .preprocess import h264_round_trip
from .reading import MediaInfo, probe, read_video

FilePath = str | os.PathLike
Frames = PIL.Image.Image | Sequence[Any] | np.ndarray | torch.Tensor | str | os.PathLike
# Rates that differ by no more play at the same speed, such as 23.976 and 24.
_SAME_RATE = 1e-3


def read_frames(
    frames: Frames,
    max_frames: int | None = None,
    float_range: float = 255.0,
    name: str = "frames",
    frame_rate: float | None = None,
) -> torch.Tensor:
    """Pixels `[F, H, W, 3]` in [0, 255] of a picture or clip, bytes unless they were given as floats.

    Args:
        frames: An image, an array `[H, W, 3]` or `[F, H, W, 3]`, a tensor `[3, H, W]` or `[F, 3, H, W]`, the name of
            an image or video file, or a list of these in one size.
        max_frames: Most frames to read, default all.
        float_range: What white is in an array or tensor of floats, default 255.
        name: Argument to name in messages.
        frame_rate: Frames per second to read of video files, as in [`~ltx2_diffusers.media.reading.iterate_video`];
            default theirs one by one. Other frames have no rate.
    """
    if isinstance(frames, (str, os.PathLike)):
        picture = still_picture(frames)
        if picture is None:
            return read_video(frames, max_frames, frame_rate=frame_rate)
        return torch.from_numpy(np.array(picture))[None]
    if isinstance(frames, PIL.Image.Image):
        return torch.from_numpy(np.array(read_image(frames)))[None]
    if isinstance(frames, (list, tuple)) and frames:
        parts = [read_frames(part, max_frames, float_range, name, frame_rate) for part in frames[:max_frames]]
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


def is_video_file(frames: Any) -> TypeGuard[str | os.PathLike]:
    """Whether frames are given as the name of a video file, which has a frame rate."""
    return isinstance(frames, (str, os.PathLike)) and is_clip(frames)


class SourceRate(NamedTuple):
    """The frame rate of a clip that is worked on.

    Args:
        rate: Frames per second of the clip.
        read_at: Frames per second to read of its file; `None` for one by one.
        info: What the file holds; `None` for frames from elsewhere.
    """

    rate: float
    read_at: float | None = None
    info: MediaInfo | None = None


def source_rate(video: Frames, frame_rate: float | None) -> SourceRate:
    """The rate of a clip: the wished one, or else that of its file, or 24.0."""
    checks.check_positive(frame_rate=frame_rate)
    checks.check_most(checks.MAX_FRAME_RATE, frame_rate=frame_rate)
    if not is_video_file(video):
        return SourceRate(24.0 if frame_rate is None else frame_rate)
    info = probe(video)
    own = float(info.frame_rate or 24)
    if frame_rate is None and not info.constant_rate:
        warnings.warn(
            f"the frame rate of {os.fspath(video)!r} varies; its frames are taken by their times at {own:g} per second, the "
            "average, which leaves some out and repeats others; give `frame_rate` for another rate",
            stacklevel=3,
        )
    rate = own if frame_rate is None else frame_rate
    comes_so = info.constant_rate and exact_frame_rate(rate) == exact_frame_rate(own)
    return SourceRate(rate, None if comes_so else rate, info)


def rate_to_read(frame_rate: float | str | None, frames: Frames, clip_rate: float) -> float | None:
    """The rate at which to read frames for a clip, `None` for one by one.

    Args:
        frame_rate: What a caller asks for: frames per second, `"source"` for one by one, or `None` for the clip's rate.
        frames: The frames.
        clip_rate: Frames per second of the clip.
    """
    if frame_rate is None:
        return clip_rate
    parts = frames if isinstance(frames, (list, tuple)) else [frames]
    if frame_rate == "source":
        for part in parts:
            if is_video_file(part):
                _tell_speed(part, clip_rate)
        return None
    if isinstance(frame_rate, (str, bool)):
        raise ValueError(
            f'`frame_rate` has to be a number of frames per second, "source" or None but is {frame_rate!r}; use "source" for '
            "the frames of a file one by one"
        )
    checks.check_positive(frame_rate=frame_rate)
    checks.check_most(checks.MAX_FRAME_RATE, frame_rate=frame_rate)
    if not any(map(is_video_file, parts)):
        raise ValueError(
            f"`frame_rate` is {frame_rate}, but only video files have a rate, and `frames` names none; leave it out"
        )
    return frame_rate


def _tell_speed(file: str | os.PathLike, clip_rate: float) -> None:
    """Warn if a file's frames, taken one by one, do not keep their speed."""
    own = float(probe(file).frame_rate or clip_rate)
    if abs(own - clip_rate) > _SAME_RATE * clip_rate:
        warnings.warn(
            f'{os.fspath(file)!r} has {own:g} frames per second and the clip {clip_rate:g}, so that frame_rate="source" '
            f"plays it at {clip_rate / own:.3g} times its speed; leave `frame_rate` out to keep the speed",
            stacklevel=3,
        )


def one_picture(image: Frames) -> Frames:
    """What is given where a picture is wanted: of a file the picture, of a clip's the first frame, with a warning."""
    if not isinstance(image, (str, os.PathLike)):
        return image
    if (picture := still_picture(image)) is not None:
        return picture
    clip = read_video(image, 2)
    if len(clip) > 1:
        name = os.fspath(image)
        warnings.warn(f"{name!r} is a clip where a picture is wanted; its first frame is taken", stacklevel=2)
    return as_image(clip[0])


def check_crf(name: str, crf: int, pixels: torch.Tensor | None = None) -> None:
    """Check the H.264 quality of a condition, whose frames are given it only if there is a single one."""
    if not isinstance(crf, int) or not 0 <= crf <= 51:
        near = min(max(crf, 0), 51) if isinstance(crf, int) else 33
        raise ValueError(f"`{name}` has to be between 0 (no compression) and 51 but is {crf}; use {near}")
    if crf and pixels is not None and len(pixels) == 1 and pixels.dtype != torch.uint8:
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
