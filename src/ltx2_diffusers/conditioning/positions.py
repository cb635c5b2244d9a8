"""Where tokens lie in a clip: pixel bounds of latent patches and their seconds, always float32.

Shapes: B batch, F latent frames, h latent height, w latent width, L audio latents, T tokens. The last axis of a result
holds start and end.
"""

import torch

from .shapes import (
    AUDIO_DOWNSAMPLE_FACTOR,
    AUDIO_HOP_LENGTH,
    AUDIO_SAMPLE_RATE,
    VIDEO_SCALE_FACTORS,
    AudioLatentShape,
    SpatioTemporalScaleFactors,
    VideoLatentShape,
)


def latent_bounds(
    shape: VideoLatentShape, patch_size: int = 1, device: torch.device | str | None = None
) -> torch.Tensor:
    """Bounds of each patch in latents, `[B, 3, T, 2]` for time, rows and columns."""
    starts = torch.meshgrid(
        torch.arange(shape.frames, dtype=torch.float32, device=device),
        torch.arange(0, shape.height, patch_size, dtype=torch.float32, device=device),
        torch.arange(0, shape.width, patch_size, dtype=torch.float32, device=device),
        indexing="ij",
    )
    starts = torch.stack(starts).flatten(1)
    sizes = starts.new_tensor([1.0, patch_size, patch_size]).unsqueeze(1)
    return torch.stack([starts, starts + sizes], dim=-1).repeat(shape.batch, 1, 1, 1)


def pixel_bounds(
    bounds: torch.Tensor,
    scale_factors: SpatioTemporalScaleFactors = VIDEO_SCALE_FACTORS,
    causal_fix: bool = True,
) -> torch.Tensor:
    """Latent bounds `[B, 3, T, 2]` in pixel frames, rows and columns.

    Args:
        bounds: Bounds in latents.
        scale_factors: Pixels per latent.
        causal_fix: Whether the first latent frame stands for one pixel frame only, default True.
    """
    pixels = bounds * bounds.new_tensor(scale_factors).view(3, 1, 1)
    if causal_fix:
        pixels[:, 0] = (pixels[:, 0] + 1 - scale_factors.time).clamp(min=0)
    return pixels


def in_seconds(pixels: torch.Tensor, fps: float) -> torch.Tensor:
    """Pixel bounds `[B, 3, T, 2]` with the time axis in seconds."""
    return torch.cat([pixels[:, :1] / fps, pixels[:, 1:]], dim=1)


def video_positions(
    shape: VideoLatentShape,
    fps: float,
    patch_size: int = 1,
    scale_factors: SpatioTemporalScaleFactors = VIDEO_SCALE_FACTORS,
    causal_fix: bool = True,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Positions `[B, 3, T, 2]` of a video latent: seconds, pixel rows, pixel columns."""
    return in_seconds(pixel_bounds(latent_bounds(shape, patch_size, device), scale_factors, causal_fix), fps)


def audio_positions(
    shape: AudioLatentShape,
    shift: int = 0,
    causal_fix: bool = True,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Positions `[B, 1, L, 2]` of an audio latent in seconds.

    Args:
        shape: Size of the audio latent.
        shift: Latents between the start of the clip and the first token, default 0.
        causal_fix: Whether the first latent stands for one mel frame only, default True.
        device: Where the result is made.
    """
    edges = torch.arange(shift, shift + shape.frames + 1, dtype=torch.float32, device=device) * AUDIO_DOWNSAMPLE_FACTOR
    if causal_fix:
        edges = (edges + 1 - AUDIO_DOWNSAMPLE_FACTOR).clamp(min=0)
    # Multiply, then divide: the order of the trained positions' rounding.
    edges = edges * AUDIO_HOP_LENGTH / AUDIO_SAMPLE_RATE
    return torch.stack([edges[:-1], edges[1:]], dim=-1).repeat(shape.batch, 1, 1, 1)
