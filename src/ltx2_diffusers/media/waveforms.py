"""Waveforms to samples of an audio stream, and WAV files.

Shapes: C channels (1 or 2), N samples.
"""

import os
import wave
from pathlib import Path

import numpy as np
import torch

from ..atomic import complete_file
from ..declared import takes_declared
from .files import check_suffix


def stereo_samples(audio: torch.Tensor | np.ndarray, sampling_rate: int | None) -> np.ndarray:
    """Return a waveform as float32 `[2, N]` in [-1, 1]; one channel is duplicated.

    Args:
        audio: `[C, N]`, `[N, C]` or `[N]`, floating point; values are clipped to [-1, 1]. Two rows are taken for
            channels.
        sampling_rate: Samples per second; required.

    Raises:
        ValueError: If the rate is missing, or the waveform is empty, not finite or of another shape.
    """
    if sampling_rate is None or sampling_rate <= 0:
        raise ValueError(
            f"sampling_rate is required with audio and must be positive, got {sampling_rate}; use the vocoder's rate, "
            "24000 or 48000"
        )
    audio = torch.as_tensor(audio)
    shape = list(audio.shape)
    if not audio.is_floating_point():
        raise ValueError(f"audio must be floating point in [-1, 1], got {audio.dtype}; divide 16-bit samples by 32768")
    if audio.ndim == 1:
        audio = audio[None]
    elif audio.ndim == 2 and audio.shape[0] > 2 and audio.shape[1] in (1, 2):
        audio = audio.T
    if audio.ndim != 2 or audio.shape[0] not in (1, 2):
        raise ValueError(f"audio must have shape [channels, samples] with 1 or 2 channels, got {shape}")
    if audio.shape[1] == 0:
        raise ValueError("audio has no samples; pass audio=None to write a silent video")
    audio = audio.detach().to(torch.float32)
    if not torch.isfinite(audio).all():
        raise ValueError("audio holds values that are not finite; decode it in float32")
    return audio.clamp(-1, 1).expand(2, -1).contiguous().cpu().numpy()


@takes_declared
def write_audio(path: str | os.PathLike, audio: torch.Tensor | np.ndarray, sampling_rate: int) -> Path:
    """Write a waveform as a stereo 16-bit WAV file and return its path.

    Args:
        path: File name ending in `.wav`. Missing folders are created; the file appears only when complete.
        audio: `[C, N]`, `[N, C]` or `[N]` in [-1, 1]; one channel is duplicated.
        sampling_rate: Samples per second.

    Raises:
        ValueError: If the suffix is another or the waveform is not valid.
    """
    path = check_suffix(path, (".wav",), "audio without video")
    # 32767, so that both +1 and -1 have a code.
    samples = np.rint(stereo_samples(audio, sampling_rate) * 32767).astype("<i2")
    with complete_file(path) as partial, wave.open(str(partial), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(int(sampling_rate))
        file.writeframes(samples.T.tobytes())
    return path


def fit_audio(audio: torch.Tensor, duration_s: float, sampling_rate: int) -> torch.Tensor:
    """Cut a waveform `[channels, samples]` to `duration_s` seconds, or pad it with silence."""
    samples = round(duration_s * sampling_rate)
    if audio.shape[-1] >= samples:
        return audio[..., :samples]
    return torch.nn.functional.pad(audio, (0, samples - audio.shape[-1]))
