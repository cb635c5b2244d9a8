"""Clips and sounds that tests train on, made from a few numbers each."""

import torch


def video(count: int = 2, frames: int = 9, side: int = 32, seed: int = 0) -> torch.Tensor:
    """Videos `[B, 3, F, side, side]` in [-1, 1]: a coloured square that moves to the right."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.full((count, 3, frames, side, side), -0.5)
    for clip in pixels:
        colour = torch.rand(3, generator=generator) * 2 - 1
        top, left = torch.randint(side // 2, (2,), generator=generator).tolist()
        for frame in range(frames):
            shift = min(left + frame, side - side // 4)
            clip[:, frame, top : top + side // 4, shift : shift + side // 4] = colour[:, None, None]
    return pixels


def sound(count: int = 2, samples: int = 4000, rate: int = 16000, seed: int = 0) -> torch.Tensor:
    """Waveforms `[B, 2, N]` in [-1, 1]: a tone on the left, its octave on the right, both with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    pitch = 200 + 400 * torch.rand(count, 1, 1, generator=generator)
    time = torch.arange(samples) / rate
    tones = torch.sin(2 * torch.pi * pitch * torch.tensor([[1.0], [2.0]]) * time)
    return 0.3 * tones + 0.01 * torch.randn(count, 2, samples, generator=generator)
