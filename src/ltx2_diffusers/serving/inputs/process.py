"""What happens to the media of a request, in a process of its own: they are read within limits, and written anew.

Only what is written here is read by the rest of the server: pictures as PNG, sound as WAV of floats, clips as FFV1 in
Matroska, all without loss.

Shapes: F frames, H and W rows and columns of pixels, C channels, N samples.
"""

import json
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from math import ceil
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import torch

from ...media import images, reading
from ...media.files import open_media
from ..settings import MIB, Limits

Facts = dict[str, Any]

# Speakers by number of channels, as files of this many name them.
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
# Samples that one packet of sound holds.
_PIECE = 2**16
_MAX_RATE = 384_000
# How far a guess at the length of a file may be from it.
_GUESS = 2
# Largest side of a file that is written, bytes per pixel.
_BYTES_PER_PIXEL = 4


def be_there() -> None:
    """Nothing: a process that does this has shown that the template is there."""


def read_media(connection: Connection, kind: str, source: str, target: str, limits: Limits) -> None:
    """Read a file, write what it holds to `target`, and report facts or an error as JSON.

    Args:
        connection: Where the report goes.
        kind: `"picture"`, `"sound"`, `"clip"`, or `"pictures"` for a picture or a clip.
        source: The file as it came.
        target: File to write.
        limits: See there.
    """
    limit_process(limits)
    # Decoders that run in parallel take memory for each processor.
    torch.set_num_threads(1)
    # The header is checked against limits of this server instead.
    PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        report: Facts = {"facts": _READERS[kind](Path(source), Path(target), limits)}
    # Whatever a decoder stumbles over is the file's fault.
    except Exception as error:
        report = {"error": _reason(error, limits)}
    connection.send_bytes(json.dumps(report).encode())
    connection.close()


def _reason(error: BaseException, limits: Limits) -> str:
    """What is wrong with a file; a decoder may take the lack of memory for damage."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return f"reading it needs more than {limits.media_memory_mb:g} MiB of memory; give a smaller file"
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


def limit_process(limits: Limits) -> None:
    """Bound memory, time and files of this process, where the system can."""
    if sys.platform == "win32":
        return
    import resource

    bounds = {
        resource.RLIMIT_AS: _mapped_bytes() + int(limits.media_memory_mb * MIB),
        resource.RLIMIT_CPU: ceil(limits.media_time) + 1,
        resource.RLIMIT_FSIZE: int(limits.max_clip_megapixels * 1e6 * _BYTES_PER_PIXEL),
        resource.RLIMIT_CORE: 0,
    }
    for what, most in bounds.items():
        hard = resource.getrlimit(what)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (bound, bound))


def _mapped_bytes() -> int:
    """Addresses that the libraries of this process take already."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    except OSError:
        return 16 * 1024 * MIB


def _check(what: str, value: float, most: float, unit: str) -> None:
    if value > most:
        raise ValueError(f"{what} has {value:.4g} {unit}, more than the {most:.4g} that this server takes; give less")


def _check_header(source: Path, limits: Limits) -> None:
    """Refuse a picture by what it says of itself, before any of it is decoded; others pass."""
    try:
        image = PIL.Image.open(source)
    except (OSError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError):
        # Videos and sound, or what will be found damaged.
        return
    with image:
        _check("the picture", image.width * image.height / 1e6, limits.max_picture_megapixels, "megapixels")
        frames = getattr(image, "n_frames", 1)
        _check_clip(frames, image.width, image.height, limits)


def _check_length(source: Path, limits: Limits) -> None:
    """Refuse what says that it is far too long; some kinds only guess their length before it is counted."""
    with open_media(source) as container:
        if container.duration is not None:
            _check("the file", container.duration / av.time_base / _GUESS, limits.max_sound_s, "seconds")


def _check_clip(frames: int, width: int, height: int, limits: Limits) -> None:
    _check("the clip", frames, limits.max_clip_frames, "frames")
    _check("a frame of the clip", width * height / 1e6, limits.max_picture_megapixels, "megapixels")
    _check("the clip", frames * width * height / 1e6, limits.max_clip_megapixels, "megapixels")


def _read_picture(source: Path, target: Path, limits: Limits) -> Facts:
    _check_header(source, limits)
    return _write_picture(images.read_image(source), target)


def _read_pictures(source: Path, target: Path, limits: Limits) -> Facts:
    _check_header(source, limits)
    picture = images.still_picture(source)
    return _read_clip(source, target, limits) if picture is None else _write_picture(picture, target)


def _write_picture(picture: PIL.Image.Image, target: Path) -> Facts:
    picture.save(target, format="PNG", compress_level=1)
    return {"width": picture.width, "height": picture.height}


def _read_sound(source: Path, target: Path, limits: Limits) -> Facts:
    _check_header(source, limits)
    _check_length(source, limits)
    info = reading.probe(source)
    waveform, rate = _sound_of(source, info, limits) or (None, 0)
    if waveform is None:
        raise ValueError(f"{str(source)!r} holds no sound")
    with av.open(str(target), "w", format="wav") as container:
        _write_sound(container, _sound_stream(container, waveform, rate), waveform, rate)
    return {"seconds": waveform.shape[1] / rate}


def _sound_of(source: Path, info: reading.MediaInfo, limits: Limits) -> tuple[np.ndarray, int] | None:
    """Samples `[C, N]` and their rate, if there is sound."""
    if info.sampling_rate is None:
        return None
    _check("the sound", info.duration_s, limits.max_sound_s, "seconds")
    _check("the sound", info.sampling_rate, _MAX_RATE, "samples per second")
    # A file whose sound lasts longer than its pictures is cut at the limit.
    sound = reading.read_audio(source, end_s=limits.max_sound_s)
    if sound is None:
        return None
    waveform, rate = sound
    channels = waveform.shape[1]
    if channels not in _LAYOUTS:
        raise ValueError(f"the sound has {channels} channels, more than the 8 that are read; give a stereo file")
    return waveform[0].numpy(), rate


def _sound_stream(container: Any, waveform: np.ndarray, rate: int) -> Any:
    return container.add_stream("pcm_f32le", rate=rate, layout=_LAYOUTS[len(waveform)])


def _write_sound(container: Any, stream: Any, waveform: np.ndarray, rate: int) -> None:
    """Write samples `[C, N]` as floats."""
    layout = _LAYOUTS[len(waveform)]
    for start in range(0, waveform.shape[1], _PIECE):
        piece = np.ascontiguousarray(waveform[:, start : start + _PIECE].T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(piece, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _read_clip(source: Path, target: Path, limits: Limits) -> Facts:
    _check_header(source, limits)
    _check_length(source, limits)
    info = reading.probe(source)
    if info.frame_rate is None:
        raise ValueError(f"{str(source)!r} holds no pictures")
    _check_clip(info.num_frames, info.width, info.height, limits)
    _check("the clip", info.duration_s, limits.max_sound_s, "seconds")
    sound = _sound_of(source, info, limits)
    rate = info.frame_rate
    frames = reading.iterate_video(source, frame_rate=None if info.constant_rate else rate)
    count = 0
    with av.open(str(target), "w", format="matroska") as container:
        video = container.add_stream("ffv1", rate=rate)
        video.width, video.height, video.pix_fmt = info.width, info.height, "bgr0"
        video.codec_context.time_base = 1 / rate
        # All streams have to be there before the first packet is written.
        audio = None if sound is None else _sound_stream(container, *sound)
        for count, pixels in enumerate(frames, start=1):
            # What a header does not say may still be too much.
            _check_clip(count, pixels.shape[1], pixels.shape[0], limits)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = count - 1, 1 / rate
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None:
            _write_sound(container, audio, *sound)
    return {"width": info.width, "height": info.height, "frames": count, "rate": float(rate)}


_READERS: Mapping[str, Callable[[Path, Path, Limits], Facts]] = {
    "picture": _read_picture,
    "pictures": _read_pictures,
    "sound": _read_sound,
    "clip": _read_clip,
}
