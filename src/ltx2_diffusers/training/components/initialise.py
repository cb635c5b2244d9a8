"""Where a fresh autoencoder begins, measured on the data, so that it learns to hand something through at all.

Shapes: B batch, C latent channels, F frames, H height, W width, T mel frames, M mel bins.
"""

import torch
from torch import Tensor

from ...models.audio_vae import AutoencoderKLLTX2Audio
from ...models.video_vae import AutoencoderKLLTX2Video


@torch.no_grad()
def spread_latents(
    vae: AutoencoderKLLTX2Video | AutoencoderKLLTX2Audio, data: Tensor, log_variance: float = -6.0
) -> None:
    """Let an encoder begin with latents that tell clips apart: of mean 0 and deviation 1, under little noise.

    As constructed it gives much the same latents for all clips, a fifth as large as their noise. The decoder learns to
    ignore them at first, and it takes several times as many steps until both find out what latents are for.

    Args:
        vae: An autoencoder with fresh weights; the last layer of its encoder is changed.
        data: Videos `[B, 3, F, H, W]` or log-mel spectrograms `[B, 2, T, M]`, as different as the data are.
        log_variance: Of the noise on every latent to begin with. Default -6.0, a deviation of 0.05.
    """
    means = vae.encode(data).latent_dist.mode().transpose(0, 1).flatten(1)
    mean, std = means.mean(1), means.std(1)
    last, channels = vae.encoder.conv_out.conv, len(means)
    assert last.bias is not None
    last.weight[:channels] /= std.view(-1, *[1] * (last.weight.ndim - 1))
    last.bias[:channels] = (last.bias[:channels] - mean) / std
    last.weight[channels:] = 0.0
    last.bias[channels:] = log_variance


@torch.no_grad()
def centre_output(vae: AutoencoderKLLTX2Audio, mel: Tensor) -> None:
    """Let the decoder begin at the mean of the data, which is far from zero: silence is -11.5 in a log-mel spectrogram.

    Without it, the first thousands of steps move one number, the bias of the last layer.

    Args:
        vae: A VAE with fresh weights.
        mel: Log-mel spectrograms `[B, 2, T, M]` of the data.
    """
    last = vae.decoder.conv_out.conv
    assert last.bias is not None
    last.bias.copy_(mel.mean((0, 2, 3)))
