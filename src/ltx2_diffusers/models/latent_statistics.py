"""From the raw latents of the video autoencoder to those that the transformer sees, and back.

Shapes: B batch, C channels, F latent frames, h latent rows, w latent columns.
"""

from typing import Any

import torch


def normalized(latents: torch.Tensor, owner: Any, scale: float) -> torch.Tensor:
    """Latents `[B, C, F, h, w]` less the mean of each channel, over its deviation.

    Args:
        latents: Raw latents; the arithmetic is in their data type, as in diffusers' pipelines.
        owner: Has the statistics, `latents_mean` and `latents_std` `[C]`.
        scale: Factor of the result.
    """
    mean, std = _statistics(latents, owner)
    return (latents - mean) * scale / std


def denormalized(latents: torch.Tensor, owner: Any, scale: float) -> torch.Tensor:
    """Inverse of [`normalized`]."""
    mean, std = _statistics(latents, owner)
    return latents * std / scale + mean


def _statistics(latents: torch.Tensor, owner: Any) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (x.view(1, -1, 1, 1, 1).to(latents) for x in (owner.latents_mean, owner.latents_std))
    return mean, std
