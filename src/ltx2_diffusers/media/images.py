"""Still pictures and animated ones as they are meant to be seen: upright, in 8-bit sRGB, on black.

Shapes: H and W rows and columns of pixels.
"""

import importlib
import importlib.util
import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from typing import cast

import av
import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps

from .kinds import check_kind, is_heif

# Formats of Pillow whose files hold one picture after the other in time.
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
# Files that Pillow recognises but FFmpeg reads.
_VIDEOS_TO_PILLOW = ("MPEG", "FLI")
# What the readers of Pillow raise on damaged files.
_DAMAGED = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, RuntimeError, AttributeError),
    *(OverflowError, ZeroDivisionError, MemoryError, struct.error, zlib.error),
)
# Delays that no browser keeps, and what they take instead.
_SHORTEST_DELAY_MS, _USUAL_DELAY_MS = 20, 100


def read_image(source: str | os.PathLike | bytes | PIL.Image.Image) -> PIL.Image.Image:
    """Read an image as it is meant to be seen: turned by its EXIF orientation, in 8-bit sRGB, transparency on black.

    16 bits per sample are scaled to 8. Of pictures that move one is taken, the first of a file, with a warning.

    Args:
        source: File name, the bytes of a file, or an open image. An embedded ICC profile is converted to sRGB; one
            that cannot be is ignored with a warning. Floats have to lie in [0, 1], or in [0, 255]. 32-bit integers of
            a file have 16 bits that count; those of an image made in memory have to lie in [0, 255].

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not an image, or is damaged, larger than Pillow's limit, or of a kind that cannot be
            shown.
    """
    name = "the image" if isinstance(source, bytes | PIL.Image.Image) else repr(os.fspath(source))
    with nullcontext(source) if isinstance(source, PIL.Image.Image) else _identified(source, name) as image:
        if count := _count_in_time(image, name):
            warnings.warn(f"{name} holds {count} pictures that follow each other; one is taken", stacklevel=2)
        return _as_seen(image, name)


def is_clip(path: str | os.PathLike) -> bool:
    """Whether a file holds moving pictures, or is of no kind that `read_image` knows.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is a damaged image, too large, or of a kind that cannot be shown.
    """
    name = repr(os.fspath(path))
    image = _opened(path, name)
    if image is None:
        return True
    with image:
        return _moves(image, name)


def still_picture(path: str | os.PathLike) -> PIL.Image.Image | None:
    """The picture of a file as `read_image` reads it; `None` for what `is_clip` calls a clip. Errors as of `is_clip`."""
    name = repr(os.fspath(path))
    image = _opened(path, name)
    if image is None:
        return None
    with image:
        return None if _moves(image, name) else _as_seen(image, name)


class VideoInMemory(io.BytesIO):
    """The bytes of a video file.

    Args:
        name: The file that they were made from, for messages.
    """

    def __init__(self, name: str):
        super().__init__()
        self.name = name


def animation_as_video(path: str | os.PathLike) -> VideoInMemory | None:
    """An animated picture as a lossless video file in memory, or `None` if a file is none.

    FFmpeg shows only the first frame of some kinds, and knows the times of the others badly. Delays are kept but for
    those below 20 ms, which take 100 ms as in browsers.
    """
    name = repr(os.fspath(path))
    image = _opened(path, name)
    if image is None or not (count := _count_in_time(image, name)):
        return None
    with image:
        delays_ms = [_delay_ms(image, index, name) for index in range(count)]
        file = VideoInMemory(os.fsdecode(path))
        with av.open(file, "w", format="matroska") as container:
            stream = container.add_stream("ffv1", rate=Fraction(1000 * count, sum(delays_ms)))
            stream.width, stream.height, stream.pix_fmt = *image.size, "bgr0"
            stream.codec_context.time_base = Fraction(1, 1000)
            for index, delay_ms in enumerate(delays_ms):
                with _naming(name):
                    image.seek(index)
                frame = av.VideoFrame.from_image(_as_seen(image, name)).reformat(format="bgr0")
                frame.pts, frame.time_base = sum(delays_ms[:index]), Fraction(1, 1000)
                # Each frame becomes a packet at once.
                for packet in stream.encode(frame):
                    packet.duration = delay_ms
                    container.mux(packet)
            container.mux(stream.encode())
    file.seek(0)
    return file


def _delay_ms(image: PIL.Image.Image, index: int, name: str) -> int:
    with _naming(name):
        image.seek(index)
        image.load()
    delay_ms = round(image.info.get("duration") or 0)
    return delay_ms if delay_ms >= _SHORTEST_DELAY_MS else _USUAL_DELAY_MS


def on_background(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Bytes `[H, W, 3]` seen through their transparency, bytes `[H, W]`, on black."""
    return ((pixels.astype(np.uint16) * alpha[..., None] + 127) // 255).astype(np.uint8)


def _identified(source: str | os.PathLike | bytes, name: str) -> PIL.Image.Image:
    """Open an image file, or raise `ValueError` if it is none."""
    image = _opened(source, name)
    if image is None or image.format in _VIDEOS_TO_PILLOW:
        raise ValueError(f"{name} cannot be read as an image; it is empty, damaged or of another kind")
    return image


def _opened(source: str | os.PathLike | bytes, name: str) -> PIL.Image.Image | None:
    """Open an image file; `None` if Pillow does not know its kind."""
    head = source[:64] if isinstance(source, bytes) else check_kind(source)
    if is_heif(head):
        if importlib.util.find_spec("pillow_heif") is None:
            raise ValueError(f"{name} is HEIC; install pillow-heif, or convert it to JPEG or PNG")
        importlib.import_module("pillow_heif").register_heif_opener()
    with _naming(name), warnings.catch_warnings():
        warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
        try:
            return PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        except PIL.UnidentifiedImageError:
            return None


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises on a file into a `ValueError` that names it."""
    try:
        yield
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        sizes = str(error).split(", could")[0]
        raise ValueError(
            f"{name} is too large: {sizes}; shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except _DAMAGED as error:
        raise ValueError(
            f"{name} cannot be read as an image ({error}); it is empty, damaged or of another kind"
        ) from error


def _moves(image: PIL.Image.Image, name: str) -> bool:
    return image.format in _VIDEOS_TO_PILLOW or _count_in_time(image, name) > 0


def _count_in_time(image: PIL.Image.Image, name: str) -> int:
    """How many pictures of a file follow each other in time; 0 for a single one, and for the pages of a TIFF."""
    with _naming(name):
        count = getattr(image, "n_frames", 1) if image.format in _ANIMATED else 1
    return count if count > 1 else 0


def _as_seen(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Turn an image upright, convert it to 8-bit sRGB and show it on black."""
    of_file = image.format is not None
    with _naming(name):
        image.load()
        image = PIL.ImageOps.exif_transpose(image)
    image = _in_bytes(image, of_file, name)
    with _naming(name):
        return _to_srgb(image, name)


def _in_bytes(image: PIL.Image.Image, of_file: bool, name: str) -> PIL.Image.Image:
    """An image of 16 or 32 bits per sample as one of 8; others as they are."""
    if image.mode not in ("F", "I") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        white, limits = 1.0 if high <= 1 else 255.0, "[0, 1] or [0, 255]"
    elif image.mode == "I" and not of_file:
        white, limits = 255.0, '[0, 255]; convert it to 8 bits, or to mode "I;16"'
    else:
        white, limits = 65535.0, "[0, 65535]"
    # Not a number compares as false.
    if not 0 <= low <= high <= white:
        raise ValueError(f"{name} has values from {low:g} to {high:g}, which have to lie in {limits}")
    scaled = PIL.Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))
    if "icc_profile" in image.info:
        scaled.info["icc_profile"] = image.info["icc_profile"]
    if (hidden := image.info.get("transparency")) is not None:
        scaled.putalpha(PIL.Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    return scaled


def _to_srgb(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    """Convert 8-bit colours to sRGB and show them on black."""
    profile = image.info.get("icc_profile")
    alpha = None
    if image.has_transparency_data:
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())
        shown = image.convert("RGBA")
        alpha = np.asarray(shown.getchannel("A"))
        # A profile of grey values takes grey values.
        image = image.convert("L") if image.mode in ("L", "LA") else shown.convert("RGB")
    picture = None if profile is None else _by_profile(image, profile, name)
    picture = image.convert("RGB") if picture is None else picture
    if alpha is None or alpha.min() == 255:
        return picture
    return PIL.Image.fromarray(on_background(np.asarray(picture), alpha))


def _by_profile(image: PIL.Image.Image, profile: bytes, name: str) -> PIL.Image.Image | None:
    """The image converted by its ICC profile, or `None`, with a warning, if that cannot be."""
    try:
        source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = PIL.ImageCms.createProfile("sRGB")
        given = image.convert("RGB") if image.mode in ("RGBX", "P") else image
        return cast(PIL.Image.Image, PIL.ImageCms.profileToProfile(given, source, target, outputMode="RGB"))
    except (PIL.ImageCms.PyCMSError, OSError, ValueError) as error:
        warnings.warn(f"the colour profile of {name} cannot be used and is ignored ({error})", stacklevel=3)
        return None
