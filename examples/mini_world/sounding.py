"""Sound of scenes: a tone whose pitch is the shape's, as loud as the shape is big, from where it is, and clicks.

Shapes: B scenes, F frames, N samples.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .drawing import FRAME_RATE, path, radii
from .scenes import PITCHES_HZ, SIZES, Scene

HARMONICS = (0.7, 0.2, 0.1)
"""Amplitudes of a tone and its harmonics, as parts of the whole."""
LOUDNESS = {"small": 0.15, "big": 0.45}
"""Amplitude of the tone of a size; other radii lie on the exponential curve through both."""
CLICK = 0.6
"""Amplitude at which a click begins."""
CLICK_S, CLICK_DECAY_S, FADE_S = 0.03, 0.008, 0.004


def sound(scenes: Sequence[Scene], num_frames: int, rate: int, aspect: float = 1.0) -> Tensor:
    """Sound `[B, 2, N]` in [-1, 1] of scenes, as long as the clip: N = F / 24 s x rate.

    Args:
        scenes: What is heard.
        num_frames: F.
        rate: Samples per second, above 7 kHz so that all harmonics are in.
        aspect: Width of the picture by its height; its left end is the left loudspeaker.
    """
    return torch.stack([_waveform(scene, num_frames, rate, aspect) for scene in scenes])


def _waveform(scene: Scene, num_frames: int, rate: int, aspect: float) -> Tensor:
    time = torch.arange(round(num_frames / FRAME_RATE * rate), dtype=torch.float64) / rate
    # The last frame is the end of what happens; its sound goes on for as long as it is shown.
    seen_s = (num_frames - 1) / FRAME_RATE
    part = (time / seen_s).clamp(max=1) if seen_s else torch.full_like(time, 0.5)
    tone = harmonics(PITCHES_HZ[scene.shape], time) * loudness(radii(scene, part))
    mono = tone + clicks(scene.bounces_s(seen_s), len(time), rate)
    sides = panned(path(scene, part, seen_s)[:, 0] / aspect)
    return (mono * sides * _fades(len(time), rate)).clamp(-1, 1).float()


def harmonics(pitch_hz: float, time: Tensor) -> Tensor:
    """A tone of amplitude about 1 at times in seconds, beginning at a phase of 0."""
    waves = [part * torch.sin(2 * math.pi * number * pitch_hz * time) for number, part in enumerate(HARMONICS, 1)]
    return torch.stack(waves).sum(0)


def loudness(radius: Tensor) -> Tensor:
    """Amplitude of the tone of a circle of that radius."""
    steps = (radius - SIZES["small"]) / (SIZES["big"] - SIZES["small"])
    return LOUDNESS["small"] * (LOUDNESS["big"] / LOUDNESS["small"]) ** steps


def panned(x: Tensor) -> Tensor:
    """Gains `[2, N]` of left and right of what is at x `[N]`, 0 left to 1 right; their powers add up to 1."""
    angle = x.clamp(0, 1) * (math.pi / 2)
    return torch.stack([angle.cos(), angle.sin()])


def clicks(times_s: Sequence[float], samples: int, rate: int) -> Tensor:
    """Short bursts of noise `[N]` that begin at those times; all of them are the same."""
    generator = torch.Generator().manual_seed(0)
    since = torch.arange(round(CLICK_S * rate), dtype=torch.float64) / rate
    signs = torch.randint(0, 2, since.shape, generator=generator) * 2 - 1
    burst = CLICK * signs * torch.exp(-since / CLICK_DECAY_S) * (1 - since / CLICK_S)
    wave = torch.zeros(samples + len(burst), dtype=torch.float64)
    for start in (round(time_s * rate) for time_s in times_s):
        wave[start : start + len(burst)] += burst
    return wave[:samples]


def _fades(samples: int, rate: int) -> Tensor:
    """Gains `[N]` that rise from and fall to nothing at both ends."""
    place = torch.arange(samples, dtype=torch.float64)
    return ((torch.minimum(place, samples - 1 - place) + 0.5) / (FADE_S * rate)).clamp(max=1)
