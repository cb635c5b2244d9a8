"""Clips, sounds, texts and networks that tests train, and what they ask of a training."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ltx2_diffusers.models.audio_vae import AutoencoderKLLTX2Audio
from ltx2_diffusers.models.video_vae import AutoencoderKLLTX2Video
from ltx2_diffusers.training.components import FitOptions, TrainingStep, fit, trained_parameters
from tests.models.video_vae_tools import TINY

QUIET = FitOptions(progress=False)
AUDIO_VAE = {"base_channels": 16, "ch_mult": (1, 1, 1), "num_res_blocks": 1, "latent_channels": 1}


def video(count: int = 2, frames: int = 9, side: int = 64, seed: int = 0) -> torch.Tensor:
    """Videos `[B, 3, F, side, side]` in [-1, 1]: a coloured square that moves to the right."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.full((count, 3, frames, side, side), -0.5)
    for clip in pixels:
        colour = torch.rand(3, generator=generator) * 2 - 1
        top, left = torch.randint(side // 2, (2,), generator=generator).tolist()
        for frame in range(frames):
            start = min(left + frame, side - side // 4)
            clip[:, frame, top : top + side // 4, start : start + side // 4] = colour[:, None, None]
    return pixels


def sound(count: int = 2, samples: int = 4000, rate: int = 16000, seed: int = 0) -> torch.Tensor:
    """Waveforms `[B, 2, N]` in [-1, 1]: a tone on the left, its octave on the right, both with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    pitch = 200 + 400 * torch.rand(count, 1, 1, generator=generator)
    time = torch.arange(samples) / rate
    tones = torch.sin(2 * torch.pi * pitch * torch.tensor([[1.0], [2.0]]) * time)
    return 0.3 * tones + 0.01 * torch.randn(count, 2, samples, generator=generator)


def video_vae(seed: int = 0, **changes: Any) -> AutoencoderKLLTX2Video:
    """A tiny video VAE with fresh weights."""
    torch.manual_seed(seed)
    return AutoencoderKLLTX2Video(**TINY | changes)


def audio_vae(seed: int = 0) -> AutoencoderKLLTX2Audio:
    """A tiny audio VAE with fresh weights."""
    torch.manual_seed(seed)
    return AutoencoderKLLTX2Audio(**AUDIO_VAE)


def ratio(step: TrainingStep, batch: Mapping[str, Any], steps: int, learning_rate: float = 3e-3) -> float:
    """Train on one batch again and again; the mean loss of the last five steps over the first step's."""
    records = fit(step, trained_parameters(*step.networks.values()), [batch], steps, learning_rate, QUIET)
    return sum(record["loss"] for record in records[-5:]) / 5 / records[0]["loss"]


def without_gradient(step: TrainingStep, batch: Mapping[str, Any]) -> set[str]:
    """Names of parameters that the loss of a batch gives no gradient, or one that is not finite."""
    step.zero_grad()
    step(batch)["loss"].backward()
    return {name for name, parameter in step.named_parameters() if not _has_gradient(parameter)}


def _has_gradient(parameter: nn.Parameter) -> bool:
    gradient = parameter.grad
    return gradient is not None and bool(gradient.isfinite().all()) and bool(gradient.any())
