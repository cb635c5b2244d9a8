"""Low-pass filters for changes of the sampling rate, and the anti-aliased activations of the LTX-2.3 vocoder.

Shape legend: B batch, C channels, N samples, K filter taps.
"""

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Both resamplers' low-pass: zero crossings on each side, and cutoff relative to the lower Nyquist frequency
# (torchaudio's defaults).
ZERO_CROSSINGS = 6
ROLLOFF = 0.99


def kaiser_sinc_filter(ratio: int, kernel_size: int) -> Tensor:
    """Taps of a unit-gain Kaiser-windowed sinc that cuts at the Nyquist frequency of a signal `ratio` times coarser.

    The transition band is 0.6 / ratio wide on each side; the window's beta follows from it by Kaiser's formula.

    Args:
        ratio: factor between the rates.
        kernel_size: number of taps K.

    Returns:
        `[K]`, float32, with sum 1.
    """
    cutoff, half_width = 0.5 / ratio, 0.6 / ratio
    attenuation = 2.285 * (kernel_size // 2 - 1) * math.pi * 4 * half_width + 7.95
    window = torch.kaiser_window(kernel_size, periodic=False, beta=_kaiser_beta(attenuation), dtype=torch.float32)
    offset = 0.5 if kernel_size % 2 == 0 else 0.0
    time = torch.arange(kernel_size, dtype=torch.float32) - kernel_size // 2 + offset
    taps = window * torch.sinc(2 * cutoff * time)
    return taps / taps.sum()


@cache
def _kaiser_sinc_taps(ratio: int, kernel_size: int) -> list[float]:
    with torch.device("cpu"):
        return kaiser_sinc_filter(ratio, kernel_size).tolist()


def _kaiser_beta(attenuation: float) -> float:
    """Shape of a Kaiser window for a stop-band attenuation in dB (Kaiser's empirical formula)."""
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation >= 21:
        return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return 0.0


def hann_sinc(time: Tensor) -> Tensor:
    """Sinc under a Hann window that ends at the sixth zero crossing.

    Args:
        time: any shape, in units of zero crossings.

    Returns:
        The values, in the shape of `time`.
    """
    time = time.clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    return torch.sinc(time) * torch.cos(time * math.pi / ZERO_CROSSINGS / 2) ** 2


def hann_sinc_filter(ratio: int) -> Tensor:
    """Taps of the Hann-windowed sinc with roll-off 0.99 that raises a sampling rate `ratio` times.

    Args:
        ratio: factor between the rates.

    Returns:
        `[K]`, float32, with K = 14 * ratio + 1.
    """
    width = math.ceil(ZERO_CROSSINGS / ROLLOFF)
    time = (torch.arange(2 * width * ratio + 1) / ratio - width) * ROLLOFF
    return hann_sinc(time) * ROLLOFF / ratio


def upsample(x: Tensor, taps: Tensor, ratio: int, padding: int, crop_left: int) -> Tensor:
    """Raise the sampling rate by an integer factor with an interpolation filter, repeating the edge samples.

    Args:
        x: `[B, C, N]`.
        taps: filter `[K]`.
        ratio: factor between the rates.
        padding: samples repeated at each end before filtering.
        crop_left: filtered samples dropped at the start.

    Returns:
        `[B, C, N * ratio]`.
    """
    channels, length = x.shape[1], x.shape[2] * ratio
    weight = taps.to(x).view(1, 1, -1).expand(channels, -1, -1)
    x = F.conv_transpose1d(F.pad(x, (padding, padding), mode="replicate"), weight, stride=ratio, groups=channels)
    return ratio * x[..., crop_left : crop_left + length]


def resample_up(x: Tensor, ratio: int) -> Tensor:
    """Raise the sampling rate by an integer factor with the Hann-windowed sinc.

    Args:
        x: `[B, C, N]`.
        ratio: factor between the rates.

    Returns:
        `[B, C, N * ratio]`.
    """
    taps = hann_sinc_filter(ratio)
    width = taps.shape[0] // (2 * ratio)
    return upsample(x, taps, ratio, padding=width, crop_left=2 * width * ratio)


class LowPass(nn.Module):
    """Holds one low-pass filter, a buffer `[1, 1, K]` that checkpoints carry."""

    filter: Tensor

    def __init__(self, ratio: int, kernel_size: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.kernel_size = kernel_size
        # A vocoder holds a hundred of the same filter.
        taps = torch.tensor(_kaiser_sinc_taps(ratio, kernel_size), dtype=torch.float32)
        self.register_buffer("filter", taps.view(1, 1, -1))


class Upsample1d(LowPass):
    """Raises the sampling rate through the low-pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, N]` to `[B, C, N * ratio]`."""
        padding = self.kernel_size // self.ratio - 1
        crop_left = padding * self.ratio + (self.kernel_size - self.ratio) // 2
        return upsample(x, self.filter, self.ratio, padding, crop_left)


class Downsample1d(LowPass):
    """Lowers the sampling rate through the low-pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, N]` to `[B, C, ceil(N / ratio)]`."""
        left, right = (self.kernel_size - 1) // 2, self.kernel_size // 2
        weight = self.filter.to(x).expand(x.shape[1], -1, -1)
        return F.conv1d(F.pad(x, (left, right), mode="replicate"), weight, stride=self.ratio, groups=x.shape[1])


class SnakeBeta(nn.Module):
    """x + sin^2(a x) / b with a and b learned per channel, stored as logarithms.

    Args:
        channels: C.
        separate_beta: learn b; otherwise b = a, which is the plain Snake.
    """

    def __init__(self, channels: int, separate_beta: bool = True) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        if separate_beta:
            self.beta = nn.Parameter(torch.zeros(channels))
        self.separate_beta = separate_beta

    def forward(self, x: Tensor) -> Tensor:
        """Activate `[B, C, N]`."""
        frequency = self.alpha.to(x.dtype).exp()[:, None]
        amplitude = self.beta.to(x.dtype).exp()[:, None] if self.separate_beta else frequency
        return x + (1 / (amplitude + 1e-9)) * (frequency * x).sin().square()


class AntiAliasedActivation(nn.Module):
    """Applies an activation at a higher rate, so that the harmonics it creates are filtered instead of folded.

    Args:
        act: the activation.
        ratio: factor of the higher rate.
        kernel_size: taps of both low-pass filters.
    """

    def __init__(self, act: nn.Module, ratio: int, kernel_size: int) -> None:
        super().__init__()
        self.upsample = Upsample1d(ratio, kernel_size)
        self.act = act
        self.downsample = Downsample1d(ratio, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Activate `[B, C, N]`."""
        return self.downsample(self.act(self.upsample(x)))
