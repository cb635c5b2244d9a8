"""A clip of light as a video of standard range, to look at."""

import os
from collections.abc import Callable

import numpy as np
import torch

from ...declared import takes_declared
from ..writing import write_video
from .curves import srgb


@takes_declared
def encode_hdr_tensor_to_mp4(
    frames: torch.Tensor | np.ndarray,
    output_mp4: str | os.PathLike,
    frame_rate: float,
    tone_mapping_fn: Callable[[np.ndarray], np.ndarray] | None = None,
    tone_map_in_rgb: bool = True,
    crf: int = 18,
) -> None:
    """Write linear light as an H.264 video of standard range (sRGB curve, BT.709); [`write_hdr`] keeps the range.

    Args:
        frames: Linear light `[F, H, W, 3]`, in which 1.0 is white.
        output_mp4: File name ending in `.mp4` or `.mov`.
        frame_rate: Frames per second.
        tone_mapping_fn: From the light of a frame, float32 `[H, W, 3]`, to light in [0, 1]; what lies outside is clipped. Default:
            all is clipped that is brighter than white.
        tone_map_in_rgb: Whether it is given red first, and blue first otherwise, as OpenCV's tone mappers expect. Default `True`.
        crf: Constant rate factor of x264, 0 to 51; default 18.
    """
    light = frames.detach().float().cpu().numpy() if isinstance(frames, torch.Tensor) else np.asarray(frames)
    pieces = (tone_mapped(frame, tone_mapping_fn, tone_map_in_rgb)[None] for frame in light)
    write_video(output_mp4, pieces, frame_rate, crf=crf)


def tone_mapped(
    light: np.ndarray, function: Callable[[np.ndarray], np.ndarray] | None = None, in_rgb: bool = True
) -> np.ndarray:
    """Bytes `[H, W, 3]` of a frame of light, red first."""
    order = slice(None) if in_rgb else slice(None, None, -1)
    mapped = light[..., order] if function is None else function(light[..., order])
    codes = srgb(np.clip(mapped, 0.0, 1.0)) * 255.0 + 0.5
    return np.ascontiguousarray(codes.astype(np.uint8)[..., order])
