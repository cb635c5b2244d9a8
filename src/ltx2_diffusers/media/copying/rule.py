"""What is copied into which file, and what is encoded anew instead."""

import os
import warnings

from .schedule import read_schedule

# Codecs whose packets are copied, by the suffix of the file: those that its standard names and FFmpeg writes and reads.
MP4_SOUND = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")
_PCM = tuple(f"pcm_{kind}{order}" for kind in ("s16", "s24", "s32", "f32", "f64") for order in ("le", "be"))
_HELD = {
    ("video", ".mp4"): ("h264", "hevc", "av1", "vp9", "mpeg4", "mpeg2video"),
    ("video", ".mov"): ("h264", "hevc", "mpeg4", "mpeg2video", "prores", "dnxhd", "mjpeg", "png", "qtrle"),
    ("audio", ".mp4"): MP4_SOUND,
    ("audio", ".mov"): ("aac", "mp3", "ac3", "eac3", "alac", *_PCM),
}
_CONTENTS = {"video": ("pictures", "H.264"), "audio": ("sound", "AAC")}


class EncodedAnewWarning(UserWarning):
    """Given pictures or sound are encoded anew, because the file that is written cannot hold their packets."""


def copy_obstacle(path: str | os.PathLike, kind: str, suffix: str) -> str | None:
    """Say why the packets of a file cannot be copied, and what to do; `None` if they can.

    The main stream is meant: the first video stream that is no cover picture, or the first audio stream.

    Args:
        path: Media file.
        kind: `"video"` or `"audio"`.
        suffix: That of the file to be written, `".mp4"` or `".mov"`.
    """
    schedule = read_schedule(path, kind)
    codec, what = schedule.codec, f"the packets of the {_CONTENTS[kind][0]} of {os.fspath(path)!r}"
    if codec not in _HELD[kind, suffix]:
        other = next((end for (held, end), codecs in _HELD.items() if held == kind and codec in codecs), None)
        remedy = "convert the file to copy them" if other is None else f"use {other}, which holds {codec}"
        return f"{what} ({codec}) cannot be copied into a {suffix} file; {remedy}"
    if schedule.problem is not None:
        return f"{what} ({codec}) cannot be copied, because {schedule.problem}; convert the file to copy them"
    return None


def encoding_notice(path: str | os.PathLike, kind: str, suffix: str) -> str | None:
    """Say that given pictures or sound will be encoded anew, and why; `None` if not. Arguments as of `copy_obstacle`."""
    content, codec = _CONTENTS[kind]
    obstacle = copy_obstacle(path, kind, suffix)
    return None if obstacle is None else f"the {content} will be encoded anew as {codec}: {obstacle}"


def warn_of_encoding(path: str | os.PathLike, kind: str, suffix: str) -> None:
    """Warn of what `encoding_notice` says, if anything."""
    if (notice := encoding_notice(path, kind, suffix)) is not None:
        warnings.warn(notice, EncodedAnewWarning, stacklevel=2)
