"""Losses of the networks that make pixels, spectrograms and sound. All are computed in float32 whatever the autocast.

Shapes: B batch, C channels, F frames, H height, W width, N samples.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.mel import LOG_MEL_FLOOR, log_mel_spectrogram

Arguments = ParamSpec("Arguments")

# Windows and hops in samples of the resolutions of Parallel WaveGAN (arXiv 1910.11480), made powers of two.
STFT_RESOLUTIONS = ((2048, 512), (1024, 256), (512, 128))


def in_float32(
    loss: Callable[Concatenate[Tensor, Tensor, Arguments], Tensor],
) -> Callable[Concatenate[Tensor, Tensor, Arguments], Tensor]:
    """Make a loss of two tensors of one shape compute in float32: half precision is too coarse for sums and logarithms."""

    @wraps(loss)
    def widened(made: Tensor, real: Tensor, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        if made.shape != real.shape:
            raise ValueError(f"what is compared must have one shape, got {list(made.shape)} and {list(real.shape)}.")
        with torch.autocast(made.device.type, enabled=False):
            return loss(made.float(), real.float(), *args, **kwargs)

    return widened


@in_float32
def l1(made: Tensor, real: Tensor) -> Tensor:
    """Mean absolute difference of two tensors of one shape."""
    return F.l1_loss(made, real)


@in_float32
def squares(made: Tensor, real: Tensor) -> Tensor:
    """Mean squared difference of two tensors of one shape."""
    return F.mse_loss(made, real)


@in_float32
def relative_error(made: Tensor, real: Tensor, softest: float = 0.01) -> Tensor:
    """Mean absolute difference of two waveforms `[B, C, N]` by the loudness of the real one.

    Args:
        made, real: Waveforms.
        softest: Root mean square that is added to the real one's, so that silence has an error too. Default 0.01.
    """
    loudness = real.square().mean((1, 2), keepdim=True).sqrt() + softest
    return ((made - real).abs() / loudness).mean()


@in_float32
def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Mean over all latents of the divergence of N(mean, variance) from N(0, 1), in nats per latent.

    It is (mean² + variance - 1 - log variance) / 2. The video encoder gives one log variance for all channels of a
    position, repeated for each of them, so that the mean over channels is the divergence of the whole position.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()


def haar_bands(video: Tensor) -> tuple[Tensor, Tensor]:
    """One level of the orthonormal Haar transform of `[B, C, F, H, W]`; odd axes repeat their last entry.

    Returns:
        The low band `[B, C, F/2, H/2, W/2]` and the seven detail bands `[7, B, C, ...]`, axes rounded up.
    """
    odd = [side % 2 for side in video.shape[:1:-1]]
    video = F.pad(video, [value for side in odd for value in (0, side)], mode="replicate") if any(odd) else video
    bands = video[None]
    for axis in (3, 4, 5):
        first, second = bands.unflatten(axis, (-1, 2)).unbind(axis + 1)
        bands = torch.cat([first + second, first - second]) / 2**0.5
    return bands[0], bands[1:]


@in_float32
def wavelet_loss(made: Tensor, real: Tensor, levels: int = 3) -> Tensor:
    """Mean absolute difference of the details of two videos at several scales, in space and time.

    It stands in for a perceptual loss where no pretrained network is at hand: blur and flicker, which hardly show in
    a difference of pixels, are whole bands of the wavelet transform. LTX-Video's autoencoder was trained with a loss
    of this kind (arXiv 2501.00103).

    Args:
        made, real: Videos `[B, C, F, H, W]`.
        levels: Scales, each half as fine as the one before. Default 3.
    """
    low, losses = made - real, []
    for _ in range(levels):
        low, details = haar_bands(low)
        losses.append(details.abs().mean())
    return torch.stack(losses).mean()


@in_float32
def stft_loss(made: Tensor, real: Tensor, resolutions: Sequence[tuple[int, int]] = STFT_RESOLUTIONS) -> Tensor:
    """Spectral convergence plus the difference of log magnitudes, averaged over resolutions.

    Args:
        made, real: Waveforms `[B, C, N]`, N above half the longest window.
        resolutions: Window and hop in samples. Default ((2048, 512), (1024, 256), (512, 128)).
    """
    losses, shortest = [], max(size for size, _ in resolutions) // 2 + 1
    if made.shape[-1] < shortest:
        raise ValueError(
            f"waveforms must have at least {shortest} samples, half the longest window, got {made.shape[-1]}; use longer ones."
        )
    for size, hop in resolutions:
        magnitude, wanted = (_magnitudes(waveform, size, hop) for waveform in (made, real))
        convergence = (wanted - magnitude).norm() / wanted.norm().clamp(min=LOG_MEL_FLOOR)
        losses.append(convergence + F.l1_loss(magnitude.log(), wanted.log()))
    return torch.stack(losses).mean()


def _magnitudes(waveform: Tensor, size: int, hop: int) -> Tensor:
    """Magnitudes of a short-time Fourier transform, not below the floor of the mel spectrogram."""
    window = torch.hann_window(size, device=waveform.device)
    spectrum = torch.stft(waveform.flatten(0, 1), size, hop, window=window, return_complex=True)
    return spectrum.abs().clamp(min=LOG_MEL_FLOOR)


@in_float32
def mel_loss(made: Tensor, real: Tensor, sample_rate: int, mel_bins: int = 80) -> Tensor:
    """Mean absolute difference of the log-mel spectrograms of two waveforms `[B, C, N]`, as in HiFi-GAN.

    Args:
        made, real: Waveforms, N above 512.
        sample_rate: Their rate in Hz.
        mel_bins: Bands from 0 Hz to half the rate. Default 80.
    """
    mel, wanted = (
        log_mel_spectrogram(waveform, sample_rate, mel_bins, mel_hop_length=256) for waveform in (made, real)
    )
    return F.l1_loss(mel, wanted)
