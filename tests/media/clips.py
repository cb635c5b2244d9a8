"""Small synthetic clips and sounds."""

import torch


def gradient_clip(num_frames: int = 9, height: int = 48, width: int = 64) -> torch.Tensor:
    """A smooth moving clip `[F, 3, H, W]` in [0, 1]."""
    time = torch.arange(num_frames)[:, None, None] / 12
    row = torch.arange(height)[None, :, None] / height
    column = torch.arange(width)[None, None, :] / width
    waves = [torch.sin(3 * column + time + shift) * torch.cos(2 * row + shift) for shift in (0.0, 1.0, 2.0)]
    return torch.stack(waves, dim=1) * 0.4 + 0.5


def tone(duration_s: float = 0.5, sampling_rate: int = 24000, frequency: float = 440.0) -> torch.Tensor:
    """A stereo sine `[2, N]` of amplitude 0.5; the right channel is half as loud."""
    phase = torch.arange(round(duration_s * sampling_rate)) / sampling_rate * frequency * 2 * torch.pi
    return torch.stack([torch.sin(phase) * 0.5, torch.sin(phase) * 0.25])
