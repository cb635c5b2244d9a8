"""Opening media files with errors that name them, and creating files that appear only when complete."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from functools import cache
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
from av.container import Container, InputContainer

from ..atomic import check_writable
from .images import animation_as_video, read_image
from .kinds import check_complete, check_kind, is_heif, may_be_animated

# Rates of NTSC video are N * 1000 / 1001; people write them with two or three decimals.
_NTSC_TOLERANCE = 5e-3
_MAX_RATE_DENOMINATOR = 1001
# Demuxers of playlists, of patterns of file names, of sessions and of devices; and that of text, which draws its letters.
_OTHER_FORMATS = {
    "tty",
    *("hls", "dash", "concat", "imf", "image2", "vobsub", "webm_dash_manifest", "lavfi", "avs", "vapoursynth"),
    *(
        "sdp",
        "rtsp",
        "rtp",
        "sap",
        "alsa",
        "fbdev",
        "kmsgrab",
        "video4linux2,v4l2",
        "x11grab",
        "avfoundation",
        "dshow",
    ),
    *(
        "gdigrab",
        "vfwcap",
        "oss",
        "sndio",
        "pulse",
        "jack",
        "openal",
        "libcdio",
        "iec61883",
        "decklink",
        "android_camera",
    ),
}


def exact_frame_rate(frame_rate: float | Fraction) -> Fraction:
    """Return the rational frame rate that a decimal one stands for, such as 24000/1001 for 23.976.

    Args:
        frame_rate: Frames per second, positive. Integers and fractions are kept as they are.

    Raises:
        ValueError: If the rate is not a positive finite number.
    """
    if not isfinite(frame_rate) or frame_rate <= 0:
        raise ValueError(f"frame_rate must be a positive number of frames per second, got {frame_rate}; use 24.0")
    exact = Fraction(frame_rate)
    if isinstance(frame_rate, Fraction) or exact.denominator == 1:
        return exact
    ntsc = Fraction(round(frame_rate) * 1000, 1001)
    if abs(exact - ntsc) < _NTSC_TOLERANCE:
        return ntsc
    return exact.limit_denominator(_MAX_RATE_DENOMINATOR)


def check_suffix(path: str | os.PathLike, suffixes: Sequence[str], content: str) -> Path:
    """Return `path` as a `Path` if it ends in one of `suffixes`, and raise `ValueError` otherwise."""
    path = Path(path)
    if path.name in ("", ".."):
        raise ValueError(
            f"{content} has to be a file, got path {str(path)!r}; use {str(path / f'clip{suffixes[0]}')!r}"
        )
    if path.suffix.lower() not in suffixes:
        raise ValueError(
            f"{content} is written as {' or '.join(suffixes)}, got path {str(path)!r}; "
            f"use {str(path.with_suffix(suffixes[0]))!r}"
        )
    return path


def item_paths(path: str | os.PathLike, batch_size: int) -> list[str]:
    """Names of the files that a batch is saved to."""
    stem, suffix = os.path.splitext(os.fspath(path))
    return [os.fspath(path)] if batch_size == 1 else [f"{stem}-{index}{suffix}" for index in range(batch_size)]


def writable_paths(path: str | os.PathLike, batch_size: int) -> list[str]:
    """Names of the files that a batch is saved to, after trying each of them out.

    Raises:
        OSError: If one cannot be written; the message names it.
    """
    paths = item_paths(path, batch_size)
    for item_path in paths:
        check_writable(item_path)
    return paths


@contextmanager
def open_media(path: str | os.PathLike) -> Iterator[InputContainer]:
    """Open a media file of this machine for reading, whatever its name looks like.

    Animated pictures are read as the videos that they are.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file, or a part of it that the block reads, is empty, damaged or cut off, or if it is a
            playlist or a picture of a kind that cannot be shown.
    """
    head = check_kind(path)
    check_complete(path, head)
    if is_heif(head):
        # Says what HEIC needs; what FFmpeg would make of it is one tile of the picture.
        read_image(path)
    try:
        with ExitStack() as resources:
            yield resources.enter_context(_opened(path, head, resources))
    except (av.FFmpegError, IndexError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{str(path)!r} cannot be read as video, audio or an image ({reason}); it is empty, damaged or of another kind"
        ) from error


def local_name(path: str | os.PathLike) -> str:
    """The name by which FFmpeg takes any file name for that of a file, even one like `take:1.mp4` or `-`."""
    return "file:" + os.path.abspath(os.fsdecode(path))


def file_of(container: Container) -> str:
    """Name of the file that a container was opened from, for messages."""
    return str(container.name).removeprefix("file:")


@cache
def _formats() -> str:
    """The formats that are read: all of FFmpeg's but those that open other files, addresses or devices, and text."""
    return ",".join(sorted(av.formats_available - _OTHER_FORMATS))


def _opened(path: str | os.PathLike, head: bytes, resources: ExitStack) -> InputContainer:
    """Open a file that begins with `head`."""
    animation = animation_as_video(path) if may_be_animated(head) else None
    if animation is not None:
        return _read(animation)
    try:
        return _read(local_name(path))
    except av.ArgumentError:
        # Names like those of pictures, or of a series of pictures, mislead FFmpeg about what is in a file.
        file = resources.enter_context(io.FileIO(os.fsdecode(path)))
        name = f"{os.fsdecode(path)} (its content)".replace("%", "_")
        return _read(SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell, name=name))


def _read(file: Any) -> InputContainer:
    return av.open(file, options={"format_whitelist": _formats()}, metadata_errors="replace")
