"""From pixels of any size to pixels as the video encoder was trained on.

Shapes: F frames, H and W rows and columns of the source, h and w those of the target.
"""

import io
import math
from collections.abc import Callable, Sequence

import av
import numpy as np
import torch
from torch.nn import functional

from .files import exact_frame_rate

Fit = Callable[[torch.Tensor, int, int], torch.Tensor]

# H.264 constant rate factor of the frames that the image-to-video models were trained to continue (Lightricks
# reference; 18 for version 2.5).
DEFAULT_IMAGE_CRF = 33
# The longest side that x264 encodes.
_MAX_H264_SIDE = 16384


# Values of frames that are floats at a time, 64 MiB: a whole clip at the size of its file is never held as floats.
_SCRATCH_VALUES = 2**24


def normalize_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Map pixels in [0, 255] to [-1, 1]."""
    return pixels / 127.5 - 1


def fit_cover(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Scale pixels until they cover the target and crop the centre.

    Bilinear without antialiasing, as in the reference that prepared the training data.

    Args:
        pixels: `[H, W, 3]` or `[F, H, W, 3]` in [0, 255].
        height: Target rows.
        width: Target columns.

    Returns:
        float32 `[1, 3, F, h, w]` in [0, 255].

    Raises:
        ValueError: If the pixels have another shape, or a side of the target is below 1.
    """
    if pixels.ndim not in (3, 4) or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise ValueError(f"pixels must have shape [H, W, 3] or [F, H, W, 3], got {list(pixels.shape)}")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be positive, got {height}x{width}")
    frames = pixels[None] if pixels.ndim == 3 else pixels
    images = frames.movedim(-1, 1).to(torch.float32)  # [F, 3, H, W]
    scale = max(height / images.shape[-2], width / images.shape[-1])
    size = [math.ceil(side * scale) for side in images.shape[-2:]]
    images = functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return images[..., top : top + height, left : left + width].transpose(0, 1)[None]


def fit_inside(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Scale pixels `[F, H, W, 3]` down until they fit into the target, and continue them by reflection.

    Returns:
        float32 `[1, 3, F, h, w]`, the pixels at the top left.
    """
    return padded_inside(pixels.movedim(-1, 1).to(torch.float32), height, width).transpose(0, 1)[None]


def padded_inside(images: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The same of images `[N, C, H, W]`: bilinear without antialiasing, as HDR models were trained.

    Where a side would be more than doubled, the last row and column are repeated instead.
    """
    rows, columns = images.shape[-2:]
    if rows > height or columns > width:
        scale = min(height / rows, width / columns)
        rows, columns = (max(round(side * scale), 1) for side in (rows, columns))
        images = functional.interpolate(images, size=(rows, columns), mode="bilinear", align_corners=False)
    bottom, right = height - rows, width - columns
    mode = "reflect" if bottom < rows and right < columns else "replicate"
    return functional.pad(images, (0, right, 0, bottom), mode=mode) if bottom or right else images


def fitted_frames(
    pixels: torch.Tensor, frames: Sequence[int], height: int, width: int, fit: Fit = fit_cover
) -> torch.Tensor:
    """Bring frames of a clip to the size and range of the video encoder, a few at a time.

    Args:
        pixels: `[F, H, W, 3]` in [0, 255].
        frames: Numbers of the frames to take.
        height: Target rows.
        width: Target columns.
        fit: Brings pixels to a size, default [`fit_cover`].

    Returns:
        float32 `[1, 3, f, h, w]` in [-1, 1].
    """
    count = max(1, _SCRATCH_VALUES // max(pixels[0].numel(), height * width * 3))
    fitted = torch.empty(1, 3, len(frames), height, width)
    for start in range(0, len(frames), count):
        piece = pixels[list(frames[start : start + count])]
        fitted[:, :, start : start + count] = normalize_pixels(fit(piece, height, width))
    return fitted


def subsampled_frames(num_frames: int, stride: int) -> list[int]:
    """Numbers of the frames that stay: frame 0, which has a latent of its own, then each `stride`-th from frame 1."""
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    return [0, *range(1, num_frames, stride)] if num_frames else []


def h264_round_trip(image: torch.Tensor, crf: int) -> torch.Tensor:
    """Compress one picture as an H.264 frame and decode it, so that it looks like a frame of a video.

    Args:
        image: Bytes `[H, W, 3]`. An odd last row or column is cut off; a picture with a side below 2 is kept as it is.
            One with a side above 16384, which x264 does not encode, is first scaled down to that.
        crf: Constant rate factor, 0 to 51; 0 means no compression.

    Returns:
        Bytes `[H, W, 3]`, the sides even.

    Raises:
        ValueError: If the picture has another shape or dtype, or the factor is out of range.
    """
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf must be between 0 (no compression) and 51, got {crf}; use {DEFAULT_IMAGE_CRF}")
    if crf and max(image.shape[:2]) > _MAX_H264_SIDE:
        image = _scaled_to_side(image, _MAX_H264_SIDE)
    height, width = (side // 2 * 2 for side in image.shape[:2])
    if crf == 0 or min(height, width) < 2:
        return image
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        options = {"crf": str(crf), "preset": "veryfast"}
        stream = container.add_stream("libx264", rate=exact_frame_rate(1), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        pixels = np.ascontiguousarray(image[:height, :width].cpu().numpy())
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer, mode="r") as written:
        decoded = next(written.decode(video=0)).to_ndarray(format="rgb24")
    return torch.from_numpy(decoded).to(image.device)


def _scaled_to_side(image: torch.Tensor, longest: int) -> torch.Tensor:
    """Bytes `[H, W, 3]` scaled down until the longer side is `longest`."""
    scale = longest / max(image.shape[:2])
    size = [max(1, round(side * scale)) for side in image.shape[:2]]
    pixels = image.movedim(-1, 0)[None].to(torch.float32)
    scaled = functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    return scaled[0].movedim(0, -1).round().clamp(0, 255).to(torch.uint8)
