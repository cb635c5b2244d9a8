"""Masks of what is trained of a clip or its sound, on the grid of its latents.

Shapes: F frames, H and W rows and columns of pixels, F', h', w' those of latents, C channels, N samples, L audio latents.
"""

import torch
from torch.nn import functional

_THRESHOLD = 0.5


def video_mask(pixels: torch.Tensor, latent_frames: int, spatial: int = 32, temporal: int = 8) -> torch.Tensor:
    """A mask over video latents from the brightness of a clip.

    A latent is 1 where the mean brightness of its square of pixels is above 0.5 in any of its frames. As in the
    Lightricks trainer, latent frame k stands here for the frames from 8 k to 8 k + 7, while its picture is made of those
    from 8 k - 7 to 8 k.

    Args:
        pixels: `[F, 3, H, W]` in [0, 1], stretched or cropped to the size of the clip. A single frame stands for all.
        latent_frames: Latent frames of the clip.
        spatial: Pixels per latent, default 32.
        temporal: Frames per latent, default 8.

    Returns:
        float32 `[F', h', w']` of 0 and 1.
    """
    squares = functional.avg_pool2d(pixels.mean(1, keepdim=True), spatial)[:, 0]
    if len(squares) == 1:
        squares = squares.expand(latent_frames * temporal, -1, -1)
    missing = max(latent_frames * temporal - len(squares), 0)
    frames = functional.pad(squares, (0, 0, 0, 0, 0, missing))[: latent_frames * temporal]
    return (frames.unflatten(0, (latent_frames, temporal)).amax(1) > _THRESHOLD).float()


def audio_mask(values: torch.Tensor, steps: int) -> torch.Tensor:
    """A mask over audio latents: 1 where the nearest value is above 0.5.

    Args:
        values: `[N]` over the time of the sound, such as the mean amplitude of the channels of a waveform.
        steps: Latents L of the sound.

    Returns:
        float32 `[L]` of 0 and 1.
    """
    nearest = functional.interpolate(values.to(torch.float32)[None, None], size=steps, mode="nearest")[0, 0]
    return (nearest > _THRESHOLD).float()
