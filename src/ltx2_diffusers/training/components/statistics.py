"""Statistics of latents over the data, by which the transformer's latents are normalised.

Shapes: B batch, C channels, D features.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ...conditioning.patchifiers import AudioPatchifier
from ...models.audio_vae import AutoencoderKLLTX2Audio
from ...models.video_vae import AutoencoderKLLTX2Video

# Below it a feature says nothing, and dividing by it would fill it with noise.
_SMALLEST_STD = 1e-6


def feature_statistics(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each feature over all rows of all batches.

    Args:
        batches: Tensors `[..., D]`.

    Returns:
        Both float32 `[D]`; the deviation is that of the whole population.

    Raises:
        ValueError: If there is no batch, or a feature is constant.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        rows = batch.double().flatten(0, -2)
        count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)
    if not count:
        raise ValueError("there are no latents to measure; give at least one batch.")
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    if not std.min() >= _SMALLEST_STD:
        raise ValueError(
            f"feature {int(std.argmin())} of the latents is the same everywhere ({float(mean[std.argmin()]):.4g}), so it "
            "cannot be normalised; train the autoencoder longer, or with a lower weight of the KL loss."
        )
    return mean.float(), std.float()


@torch.no_grad()
def calibrate_video_latents(vae: AutoencoderKLLTX2Video, videos: Iterable[Tensor]) -> None:
    """Measure the latents of videos and write their statistics into a video VAE.

    Normalised latents of the same videos have mean 0 and deviation 1 in every channel afterwards.

    Args:
        vae: The autoencoder; its buffers `latents_mean` and `latents_std` are replaced.
        videos: Batches `[B, 3, F, H, W]` in [-1, 1].
    """
    means = (vae.encode(video.to(vae.device, vae.dtype)).latent_dist.mode() for video in videos)
    mean, std = feature_statistics(latents.movedim(1, -1) for latents in means)
    vae.latents_mean.copy_(mean)
    # Normalised latents are multiplied by the factor, so the deviation takes it in.
    vae.latents_std.copy_(std * vae.config.scaling_factor)


@torch.no_grad()
def calibrate_audio_latents(vae: AutoencoderKLLTX2Audio, spectrograms: Iterable[Tensor]) -> None:
    """Measure the latents of spectrograms and write their statistics into an audio VAE, feature by feature of a token.

    Args:
        vae: The autoencoder; its buffers `latents_mean` and `latents_std` are replaced.
        spectrograms: Batches of log-mel `[B, 2, T, M]`.
    """
    means = (vae.encode(mel.to(vae.device, torch.float32)).latent_dist.mode() for mel in spectrograms)
    mean, std = feature_statistics(AudioPatchifier().patchify(latents) for latents in means)
    if mean.shape != vae.latents_mean.shape:
        raise ValueError(
            f"a token of this audio VAE has {len(mean)} features, but its statistics have base_channels="
            f"{len(vae.latents_mean)}; build it with base_channels={len(mean)}."
        )
    vae.latents_mean.copy_(mean)
    vae.latents_std.copy_(std)
