"""Sizes that clips are brought to: how they are written, which one a clip gets, and how it is scaled and cropped.

Shapes: F frames, H and W rows and columns of a clip, h and w those of its bucket.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from ..checks import check_choice, check_num_frames, check_size, neighbours
from ..media.preprocess import subsampled_frames

RESHAPE_MODES = ("center", "random")
"""Where a clip is cropped."""
_BUCKET = re.compile(r"\s*(\d+)\s*x\s*(\d+)\s*x\s*(\d+)\s*")
# Values of frames that are floats at a time, 64 MiB: a whole clip at the size of its file is never held as floats.
_SCRATCH_VALUES = 2**24


class Bucket(NamedTuple):
    """Size of a clip in pixels and frames."""

    width: int
    height: int
    frames: int

    def __str__(self) -> str:
        """As it is typed."""
        return f"{self.width}x{self.height}x{self.frames}"


class Crop(NamedTuple):
    """How a clip is brought to a bucket: scaled to `width` x `height`, then cut out from `left` and `top` on."""

    width: int
    height: int
    left: int
    top: int


def parse_buckets(text: str, spatial: int = 32, temporal: int = 8) -> list[Bucket]:
    """Read sizes like `"960x544x49;544x960x49"`.

    Args:
        text: `WIDTHxHEIGHTxFRAMES`, several divided by semicolons.
        spatial: Pixels per latent of the video VAE, default 32: widths and heights are multiples of it.
        temporal: Frames per latent, default 8: frames are a multiple of it plus 1.

    Raises:
        ValueError: If the text is of another form, or a size is not possible; the message names the nearest ones.
    """
    buckets = []
    for part in text.split(";"):
        found = _BUCKET.fullmatch(part)
        if found is None:
            raise ValueError(f"resolution buckets must look like 960x544x49;768x768x25, got {part!r} in {text!r}")
        bucket = Bucket(*map(int, found.groups()))
        try:
            check_size(bucket.height, bucket.width, spatial)
            check_num_frames(bucket.frames, temporal, "frames")
        except ValueError as error:
            raise ValueError(f"resolution bucket {str(bucket)!r}: {error}") from None
        buckets.append(bucket)
    return buckets


def choose_bucket(buckets: Sequence[Bucket], width: int, height: int, frames: int) -> Bucket | None:
    """The bucket of a clip: nearest in shape, then most frames, then most pixels, then first; `None` if it is too short.

    Args:
        buckets: Sizes to choose from.
        width, height: Size of the clip in pixels.
        frames: Frames that it has; buckets of more are not considered.
    """

    def rank(bucket: Bucket) -> tuple[float, int, int]:
        shape = abs(math.log(width / height) - math.log(bucket.width / bucket.height))
        return shape, -bucket.frames, -bucket.width * bucket.height

    return min((bucket for bucket in buckets if bucket.frames <= frames), key=rank, default=None)


def scaled_buckets(buckets: Sequence[Bucket], factor: int, spatial: int = 32) -> list[Bucket]:
    """Sizes of references that are `factor` times smaller than their clips.

    Raises:
        ValueError: If the factor is below 1, or does not divide a size into multiples of `spatial`.
    """
    if factor < 1:
        raise ValueError(f"reference_downscale_factor must be at least 1, got {factor}; use 1")
    for bucket in buckets:
        for name, side in (("width", bucket.width), ("height", bucket.height)):
            if side % (factor * spatial):
                raise ValueError(
                    f"resolution bucket {str(bucket)!r}: its {name} must be a multiple of {factor * spatial} with "
                    f"reference_downscale_factor {factor}; use {neighbours(side, factor * spatial)}"
                )
    return [Bucket(bucket.width // factor, bucket.height // factor, bucket.frames) for bucket in buckets]


def reference_frames(frames: int, factor: int, temporal: int = 8) -> list[int]:
    """Numbers of the frames that stay of a reference with a coarser time: frame 0, then each `factor`-th from frame 1.

    Raises:
        ValueError: If the factor is below 1, does not divide the frames after the first, or leaves a number of frames
            that is no multiple of `temporal` plus 1.
    """
    if factor < 1:
        raise ValueError(f"reference_temporal_scale_factor must be at least 1, got {factor}; use 1")
    if (frames - 1) % (factor * temporal):
        raise ValueError(
            f"buckets of {frames} frames do not go with reference_temporal_scale_factor {factor}, which needs a multiple of "
            f"{factor * temporal} plus 1; use {neighbours(frames, factor * temporal, 1)} frames"
        )
    return subsampled_frames(frames, factor)


def crop_to(
    width: int, height: int, bucket: Bucket, mode: str = "center", generator: torch.Generator | None = None
) -> Crop:
    """How a picture of a size covers a bucket.

    Args:
        width, height: Size of the picture in pixels.
        bucket: Size to bring it to.
        mode: `"center"` (default) or `"random"`.
        generator: Source of a random place.
    """
    check_choice("reshape_mode", mode, RESHAPE_MODES)
    if width / height > bucket.width / bucket.height:
        size = (int(width * bucket.height / height), bucket.height)
    else:
        size = (bucket.width, int(height * bucket.width / width))
    spare = (size[0] - bucket.width, size[1] - bucket.height)
    if mode == "center":
        return Crop(*size, spare[0] // 2, spare[1] // 2)
    left, top = (int(torch.randint(side + 1, (), generator=generator)) for side in spare)
    return Crop(*size, left, top)


def fitted(pixels: torch.Tensor, bucket: Bucket, crop: Crop) -> torch.Tensor:
    """The first frames of a clip at the size of its bucket, by bicubic interpolation with antialiasing.

    Args:
        pixels: Bytes `[F, H, W, 3]`, at least as many frames as the bucket has.
        bucket: Size to bring it to.
        crop: From `crop_to`.

    Returns:
        float32 `[1, 3, F, h, w]` in [-1, 1].
    """
    result = torch.empty(1, 3, bucket.frames, bucket.height, bucket.width)
    count = max(1, _SCRATCH_VALUES // max(pixels[0].numel(), crop.width * crop.height * 3))
    rows, columns = slice(crop.top, crop.top + bucket.height), slice(crop.left, crop.left + bucket.width)
    for start in range(0, bucket.frames, count):
        part = slice(start, min(start + count, bucket.frames))
        scaled = scaled_frames(pixels[part], crop.height, crop.width)[..., rows, columns]
        result[0, :, part] = (scaled.clamp(0, 1) * 2 - 1).transpose(0, 1)
    return result


def scaled_frames(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bytes `[F, H, W, 3]` as floats `[F, 3, height, width]`; 255 becomes 1, and edges may overshoot."""
    frames = pixels.movedim(-1, 1).to(torch.float32) / 255
    if frames.shape[-2:] == (height, width):
        return frames
    return functional.interpolate(frames, (height, width), mode="bicubic", align_corners=False, antialias=True)
