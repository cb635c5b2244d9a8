"""Filters on un-normalised video latents, used between an upsampler and a second stage.

Shapes: B batch, C channels, F latent frames, h, w latent height and width.
"""

import torch


def adain_filter_latent(latents: torch.Tensor, reference_latents: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """Gives every channel of a latent the mean and standard deviation it has in a reference (AdaIN).

    Args:
        latents: latents `[B, C, F, h, w]` to change; channels of one value take the mean alone.
        reference_latents: latents `[B, C, ...]` with the wanted statistics; frames and sizes may differ.
        factor: how far to go: 0 leaves `latents` unchanged, 1 takes on the statistics entirely; values outside [0, 1]
            extrapolate. Default 1.0.

    Returns:
        Latents of the shape of `latents`.
    """
    if latents.shape[:2] != reference_latents.shape[:2]:
        raise ValueError(
            f"reference_latents must have batch and channels {tuple(latents.shape[:2])} like latents, got "
            f"{tuple(reference_latents.shape[:2])}."
        )
    axes, reference_axes = tuple(range(2, latents.ndim)), tuple(range(2, reference_latents.ndim))
    std, mean = torch.std_mean(latents, dim=axes, keepdim=True)
    reference_std, reference_mean = torch.std_mean(reference_latents, dim=reference_axes)
    # Of a single value there is no deviation.
    std, reference_std = std.nan_to_num().clamp_min(torch.finfo(std.dtype).tiny), reference_std.nan_to_num()
    matched = (latents - mean) / std * reference_std.view_as(std) + reference_mean.view_as(mean)
    return torch.lerp(latents, matched, factor)


def tone_map_latents(latents: torch.Tensor, compression: float) -> torch.Tensor:
    """Scales latent values of large magnitude down smoothly and leaves small ones almost as they are.

    Args:
        latents: latents of any shape.
        compression: strength in [0, 1]; 0 is the identity.

    Returns:
        Latents of the same shape.
    """
    if not 0.0 <= compression <= 1.0:
        nearest = min(max(compression, 0.0), 1.0)
        raise ValueError(f"compression must lie in [0, 1], got {compression}; use {nearest}.")
    # LTX-Video's curve: full strength is 0.75, the knee is at magnitude 1, the largest values lose 0.8 of it.
    strength = 0.75 * compression
    return latents * (1.0 - 0.8 * strength * torch.sigmoid(4.0 * strength * (latents.abs() - 1.0)))
