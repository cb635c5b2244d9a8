"""Opening media files with errors that name them, and creating files that appear only when complete."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from math import isfinite
from pathlib import Path

import av
from av.container import InputContainer

from ..atomic import check_writable

# Rates of NTSC video are N * 1000 / 1001; people write them with two or three decimals.
_NTSC_TOLERANCE = 5e-3
_MAX_RATE_DENOMINATOR = 1001


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
    """Open a media file for reading.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file, or a part of it that the block reads, is empty or damaged.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no media file at {str(path)!r}")
    try:
        with av.open(os.fspath(path)) as container:
            yield container
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(
            f"{str(path)!r} cannot be read as video, audio or an image ({error}); it is empty, damaged or of another kind"
        ) from error
