"""Mel front-end of the audio VAE: waveform of any rate and channel layout to the log-mel spectrogram it encodes.

Shape legend: B batch, C channels, N samples, T mel frames, M mel bins, Q linear frequency bins.
Samples are floats in [-1, 1]. All arithmetic is float32: half precision is too coarse for a logarithmic spectrogram.
"""

import math
from numbers import Integral

import torch
from diffusers.utils import logging
from torch import Tensor
from torch.nn import functional as F

from .antialias import ROLLOFF, ZERO_CROSSINGS, hann_sinc

logger = logging.get_logger(__name__)

# Weight of the centre and surround channels in a stereo downmix (-3 dB, as the LTX-2 trainer rounds it).
_SURROUND = 0.707
# Window of the spectrogram in samples (`preprocessing.stft.filter_length` of the original metadata).
N_FFT = 1024
# Smallest mel energy before the logarithm; silence therefore reads ln(1e-5) = -11.5129.
LOG_MEL_FLOOR = 1e-5
# Slaney's mel scale: linear up to 1 kHz (mel 15), then 27 mels for each factor of 6.4.
_MEL_BREAK_HZ = 1000.0
_MEL_BREAK = 15.0
_MEL_LOG_STEP = math.log(6.4) / 27.0


def conform_to_stereo(waveform: Tensor) -> Tensor:
    """Map any channel layout to the two channels that the audio VAE encodes.

    Mono is duplicated, stereo returned as it is. 5.1 (L, R, C, LFE, Ls, Rs) and 7.1 (the same, then Lb, Rb) are
    downmixed with the centre and surround channels at 0.707, without the LFE, and scaled so that full-scale input
    cannot clip. Any other layout becomes its mean in both channels, with a warning.

    Args:
        waveform: `[B, C, N]`, samples in [-1, 1].

    Returns:
        `[B, 2, N]` in the dtype of `waveform`.
    """
    _check_waveform(waveform)
    channels = waveform.shape[1]
    if channels == 2:
        return waveform
    if channels == 1:
        return waveform.expand(-1, 2, -1)
    if channels in (6, 8):
        left, right, centre, _, *surrounds = waveform.unbind(1)
        gain = 1.0 / (1.0 + _SURROUND * (1 + len(surrounds) // 2))
        sides = zip((left, right), (surrounds[0::2], surrounds[1::2]))
        return torch.stack([gain * (side + _SURROUND * sum(extra, start=centre)) for side, extra in sides], dim=1)
    logger.warning(
        f"waveform has {channels} channels, a layout without a known stereo downmix; the mean of all channels is "
        "used on both sides. Pass mono, stereo, 5.1 or 7.1 to control the mix."
    )
    return waveform.mean(dim=1, keepdim=True).expand(-1, 2, -1)


def resample(waveform: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Change the sampling rate with a Hann-windowed sinc of six zero crossings and roll-off 0.99.

    The filter is the default one of torchaudio's `resample`; equal rates return the input itself.

    Args:
        waveform: `[B, C, N]`, samples in [-1, 1].
        source_rate: sampling rate of `waveform` in Hz.
        target_rate: wanted sampling rate in Hz.

    Returns:
        `[B, C, ceil(N * target_rate / source_rate)]` in the dtype of `waveform`.
    """
    _check_waveform(waveform)
    _check_positive(source_rate=source_rate, target_rate=target_rate)
    if source_rate == target_rate:
        return waveform
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    width = math.ceil(ZERO_CROSSINGS * source / (min(source, target) * ROLLOFF))
    kernel = _resampling_kernel(source, target, width, waveform.device)

    position = torch.arange(math.ceil(target * waveform.shape[-1] / source), device=waveform.device)
    phase, nearest = position % target, position * source // target
    padded = F.pad(waveform.float(), (width, width + source))
    # One pass per tap instead of one convolution per phase: coprime rates have thousands of phases.
    taps = (padded[..., nearest + tap] * kernel[phase, tap] for tap in range(2 * width + 1))
    out = sum(taps, start=torch.zeros((), device=waveform.device))
    return out.to(waveform.dtype)


def _resampling_kernel(source: int, target: int, width: int, device: torch.device) -> Tensor:
    """Taps of every output phase, counted from `width` samples before the nearest earlier input: `[target, taps]`."""
    cutoff = min(source, target) * ROLLOFF
    phase = torch.arange(target, device=device)
    index = (phase * source // target)[:, None] + torch.arange(-width, width + 1, device=device)
    # Rounding in float32 at each step is part of the reference's filter: float64 taps differ by 1e-5.
    time = (index.float() / source - phase[:, None].float() / target) * cutoff
    return hann_sinc(time) * (cutoff / source)


def mel_filterbank(
    mel_bins: int = 64, sample_rate: int = 16000, n_fft: int = N_FFT, device: torch.device | str | None = None
) -> Tensor:
    """Triangular filters on Slaney's mel scale with Slaney's area normalisation, from 0 Hz to half the rate.

    Args:
        mel_bins: number of filters M.
        sample_rate: sampling rate in Hz.
        n_fft: length of the Fourier transform in samples; it has Q = n_fft / 2 + 1 frequency bins.
        device: where to create the filters, default the CPU.

    Returns:
        `[Q, M]`, float32.
    """
    _check_positive(mel_bins=mel_bins, sample_rate=sample_rate, n_fft=n_fft)
    nyquist = sample_rate / 2
    # Float32 throughout: the reference's filters carry its rounding, which shows near the feet of the triangles.
    frequencies = torch.linspace(0, nyquist, n_fft // 2 + 1, device=device)
    edges = _mel_to_hz(torch.linspace(0, _hz_to_mel(nyquist), mel_bins + 2, device=device))
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies[:, None] - lower) / (centre - lower)
    falling = (upper - frequencies[:, None]) / (upper - centre)
    return torch.minimum(rising, falling).clamp(min=0) * (2 / (upper - lower))


def _hz_to_mel(frequency_hz: float) -> float:
    """Slaney's mel value of a frequency."""
    if frequency_hz < _MEL_BREAK_HZ:
        return 3 * frequency_hz / 200
    return _MEL_BREAK + math.log(frequency_hz / _MEL_BREAK_HZ) / _MEL_LOG_STEP


def _mel_to_hz(mel: Tensor) -> Tensor:
    """Frequencies of Slaney's mel values."""
    return torch.where(mel < _MEL_BREAK, 200 / 3 * mel, _MEL_BREAK_HZ * torch.exp(_MEL_LOG_STEP * (mel - _MEL_BREAK)))


def log_mel_spectrogram(
    waveform: Tensor, sample_rate: int = 16000, mel_bins: int = 64, mel_hop_length: int = 160, n_fft: int = N_FFT
) -> Tensor:
    """Natural logarithm of the mel magnitude spectrogram, each channel by itself.

    Frames are centred, with reflected ends, under a periodic Hann window of `n_fft` samples. Defaults are those of
    the published audio VAE (its config, and `preprocessing.stft.filter_length` of the original metadata).

    Args:
        waveform: `[B, C, N]`, samples in [-1, 1], N > n_fft / 2.
        sample_rate: sampling rate of `waveform` in Hz.
        mel_bins: number of mel bins M.
        mel_hop_length: samples between frames.
        n_fft: window and transform length in samples.

    Returns:
        `[B, C, T, M]` with T = 1 + N // mel_hop_length, float32, not below ln(1e-5).
    """
    _check_waveform(waveform)
    _check_positive(sample_rate=sample_rate, mel_bins=mel_bins, mel_hop_length=mel_hop_length, n_fft=n_fft)
    batch, channels, samples = waveform.shape
    if samples <= n_fft // 2:
        raise ValueError(
            f"waveform must have more than n_fft / 2 = {n_fft // 2} samples at {sample_rate} Hz, got {samples}; "
            f"pad it with silence to at least {n_fft // 2 + 1}."
        )
    window = torch.hann_window(n_fft, device=waveform.device)
    spectrum = torch.stft(
        waveform.float().flatten(0, 1), n_fft, mel_hop_length, window=window, pad_mode="reflect", return_complex=True
    )
    filters = mel_filterbank(mel_bins, sample_rate, n_fft, device=waveform.device)
    mel = spectrum.abs().transpose(1, 2) @ filters
    return mel.clamp(min=LOG_MEL_FLOOR).log().unflatten(0, (batch, channels))


def waveform_to_mel(
    waveform: Tensor,
    sample_rate: int,
    target_sample_rate: int = 16000,
    mel_bins: int = 64,
    mel_hop_length: int = 160,
    n_fft: int = N_FFT,
) -> Tensor:
    """Turn a waveform of any rate and channel layout into the stereo log-mel that the audio VAE encodes.

    Args:
        waveform: `[B, C, N]`, samples in [-1, 1].
        sample_rate: sampling rate of `waveform` in Hz.
        target_sample_rate: rate at which the spectrogram is taken, in Hz (`sample_rate` of the VAE's config).
        mel_bins: number of mel bins M (config).
        mel_hop_length: samples between frames at the target rate (config).
        n_fft: window and transform length in samples (`preprocessing.stft.filter_length` of the original metadata).

    Returns:
        `[B, 2, T, M]`, float32.
    """
    _check_waveform(waveform)
    # Downmixing first leaves two channels to resample instead of eight.
    stereo = conform_to_stereo(waveform.float())
    stereo = resample(stereo, sample_rate, target_sample_rate)
    return log_mel_spectrogram(stereo, target_sample_rate, mel_bins, mel_hop_length, n_fft)


def _check_waveform(waveform: Tensor) -> None:
    """Refuse anything but `[B, C, N]` floating-point samples."""
    if waveform.ndim != 3 or waveform.shape[1] == 0:
        raise ValueError(
            f"waveform must have shape [batch, channels, samples], got {list(waveform.shape)}; "
            "add the missing axes with `unsqueeze(0)`."
        )
    if not waveform.is_floating_point():
        raise ValueError(
            f"waveform must hold floats in [-1, 1], got {waveform.dtype}; divide integer PCM by its full scale, "
            "for example `waveform.float() / 32768` for int16."
        )


def _check_positive(**values: int) -> None:
    """Refuse sizes and rates that are no positive whole numbers."""
    for name, value in values.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, got {value}; use {max(1, round(value))}.")
