"""Sizes for handing latents from one clip to another: extension, and audio from elsewhere.

Shapes: B batch, C channels, F latent frames, h latent height, w latent width, L audio latents, M mel bins of a latent.
"""

from typing import Literal

import torch
from torch.nn import functional

from .shapes import AUDIO_LATENTS_PER_SECOND, VIDEO_SCALE_FACTORS


def carried_pixel_frames(latent_frames: int) -> int:
    """Pixel frames that carried latent frames decode to at the start of a clip; these are trimmed from it."""
    return (latent_frames - 1) * VIDEO_SCALE_FACTORS.time + 1


def resize_latent(latent: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """A video latent `[B, C, F, h, w]` at another latent size, for carrying full-size latents into a half-size stage.

    Args:
        latent: Latent to resize.
        height: Latent height of the result.
        width: Latent width of the result.
    """
    size = (latent.shape[2], height, width)
    return functional.interpolate(latent.float(), size=size, mode="trilinear", align_corners=False).to(latent.dtype)


def fit_audio_latent(
    latent: torch.Tensor, num_latents: int, fit: Literal["crop", "pad", "stretch"] = "crop"
) -> torch.Tensor:
    """Encoded audio `[B, C, L, M]` at the length of a clip.

    Args:
        latent: Encoded audio.
        num_latents: Latents of the clip (25 a second).
        fit: `"crop"` (default) drops the end of longer audio and refuses shorter audio; `"pad"` crops too and fills
            shorter audio with zeros; `"stretch"` changes the tempo (linear interpolation along time).
    """
    if fit not in ("crop", "pad", "stretch"):
        raise ValueError(f"fit must be 'crop', 'pad' or 'stretch', got {fit!r}.")
    missing = num_latents - latent.shape[2]
    if fit == "stretch":
        lines = latent.transpose(2, 3).flatten(1, 2).float()  # [B, C*M, L]
        lines = functional.interpolate(lines, size=num_latents, mode="linear", align_corners=False)
        return lines.unflatten(1, (latent.shape[1], -1)).transpose(2, 3).to(latent.dtype)
    if missing <= 0:
        return latent[:, :, :num_latents]
    if fit == "crop":
        raise ValueError(
            f"The audio has {latent.shape[2]} latents and the clip {num_latents}, so {missing / AUDIO_LATENTS_PER_SECOND:g} s are missing; "
            "use longer audio, a shorter clip, or fit='pad' or 'stretch'."
        )
    return functional.pad(latent, (0, 0, 0, missing))
