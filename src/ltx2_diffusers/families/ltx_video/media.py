"""From pictures and clips to pixels as LTX-Video's models saw them in training.

Shapes: n frames, H and W rows and columns of the source, h and w those of the target.
"""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from torch.nn import functional

from ...conditioning import VIDEO_SCALE_FACTORS
from ...media.preprocess import h264_round_trip, normalize_pixels

# A Gaussian of deviation 1 over three pixels.
_BLUR = torch.tensor([-1.0, 0.0, 1.0]).square().mul(-0.5).exp()
_BLUR /= _BLUR.sum()


Extent = tuple[int, int, int]
"""Height and width in pixels, and frames."""


def canvas_of(height: int, width: int, num_frames: int) -> Extent:
    """The least height, width and number of frames from these on that are whole latents."""
    time, rows, columns = VIDEO_SCALE_FACTORS
    return -(-height // rows) * rows, -(-width // columns) * columns, -((1 - num_frames) // time) * time + 1


def margins(sides: Sequence[int], canvas: Sequence[int]) -> list[int]:
    """Columns left and right, rows above and below of a frame in the middle of a larger one; an odd one is right or below.

    Args:
        sides, canvas: Height and width of both.
    """
    height, width = (whole - side for side, whole in zip(sides[:2], canvas))
    return [width // 2, width - width // 2, height // 2, height - height // 2]


def cropped(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The centre of frames `[n, H, W, 3]` that has the target's aspect ratio, in the source's own pixels."""
    rows, columns = pixels.shape[1:3]
    taken_rows = max(1, min(rows, columns * height // width))
    taken_columns = max(1, min(columns, rows * width // height))
    top, left = (rows - taken_rows) // 2, (columns - taken_columns) // 2
    return pixels[:, top : top + taken_rows, left : left + taken_columns]


def fitted(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Frames `[n, H, W, 3]` in [0, 255] as bytes `[n, h, w, 3]`: cropped to the target's shape, scaled by bicubic filtering."""
    frames = cropped(pixels, height, width).round().clamp(0, 255).to(torch.uint8)
    pictures = (PIL.Image.fromarray(frame.numpy()) for frame in frames)
    scaled = (one.resize((width, height), PIL.Image.Resampling.BICUBIC) for one in pictures)
    return torch.from_numpy(np.stack([np.asarray(one) for one in scaled]))


def degraded(pixels: torch.Tensor, crf: int, blur: bool) -> torch.Tensor:
    """Frames as those of a compressed video, which the models continue rather than leave as they are.

    Args:
        pixels: `[n, H, W, 3]` in [0, 255].
        crf: H.264 quality of a round trip of every frame, 0 to 51; 0 is none. One cuts off an odd last row and column.
        blur: Whether frames are blurred before, by a Gaussian of one pixel.

    Returns:
        float32 `[1, 3, n, h, w]` in [-1, 1].
    """
    frames = [_blurred(frame) if blur else frame for frame in pixels.float()]
    if crf:
        frames = [h264_round_trip(frame.round().clamp(0, 255).to(torch.uint8), crf).float() for frame in frames]
    return normalize_pixels(torch.stack(frames)).permute(3, 0, 1, 2)[None]


def _blurred(frame: torch.Tensor) -> torch.Tensor:
    """A frame `[H, W, 3]` blurred, its border mirrored; one with a side of one pixel stays."""
    if min(frame.shape[:2]) < 2:
        return frame
    channels = functional.pad(frame.permute(2, 0, 1)[:, None], (1, 1, 1, 1), mode="reflect")
    kernel = torch.outer(_BLUR, _BLUR).to(frame)[None, None]
    return functional.conv2d(channels, kernel)[:, 0].permute(1, 2, 0)
