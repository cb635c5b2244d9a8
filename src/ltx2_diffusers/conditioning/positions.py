"""Where the tokens of a video latent lie, before and after the frame rate is known; always float32.

Shapes: B batch, T tokens. The last axis holds start and end.
"""

import torch

from ..models.rope import prepare_video_coords
from .shapes import VIDEO_SCALE_FACTORS, SpatioTemporalScaleFactors, VideoLatentShape


def pixel_bounds(
    shape: VideoLatentShape,
    patch_size: int = 1,
    scale_factors: SpatioTemporalScaleFactors = VIDEO_SCALE_FACTORS,
    causal_fix: bool = True,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Bounds `[B, 3, T, 2]` of every token in pixel frames, rows and columns.

    Args:
        shape: Size of the latent.
        patch_size: Rows and columns of a patch in latents, default 1.
        scale_factors: Pixels per latent.
        causal_fix: Whether the first latent frame stands for one pixel frame only, default True.
        device: Where the result is made.
    """
    return prepare_video_coords(
        shape.batch,
        shape.frames,
        shape.height,
        shape.width,
        device,
        fps=1.0,
        patch_size=patch_size,
        scale_factors=scale_factors,
        causal_offset=1 if causal_fix else scale_factors.time,
    )


def in_seconds(pixels: torch.Tensor, fps: float) -> torch.Tensor:
    """Pixel bounds `[B, 3, T, 2]` with the time axis in seconds."""
    return torch.cat([pixels[:, :1] / fps, pixels[:, 1:]], dim=1)
