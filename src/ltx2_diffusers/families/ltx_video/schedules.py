"""Noise levels of a pass: how a number of steps is spread, and which part of them a pass takes.

Lists of N noise levels in (0, 1], falling, without a final zero.
"""

import math
from typing import Any

import numpy as np
import torch

from ...checks import check_from_zero
from ...declared import settled
from ...schedulers import sigmas
from .presets import PassSettings, ScheduleSettings


def spread_levels(schedule: ScheduleSettings, num_inference_steps: int, num_tokens: int) -> np.ndarray:
    """Noise levels `[N]` of a number of steps.

    Args:
        schedule: How they are spread.
        num_inference_steps: Steps N.
        num_tokens: Tokens of the pass, latent frames times rows times columns, by which some schedules shift.
    """
    if schedule.sampler == "LinearQuadratic":
        levels = sigmas.linear_quadratic_sigmas(num_inference_steps)[:-1].double().numpy()
    else:
        levels = sigmas.linear_grid(num_inference_steps)
    if schedule.sampler == "Constant":
        return sigmas.time_shift(levels, schedule.shift or 0.0)
    if schedule.shifting == "SD3":
        # With PyTorch's float32 division, as the original: the stretch magnifies what is rounded off just below 1.
        tensor: Any = torch.from_numpy(levels).float()
        shifted: Any = sigmas.time_shift(tensor, sigmas.shift_for_tokens(num_tokens))
        terminal = schedule.target_shift_terminal
        stretched: Any = shifted if terminal is None else sigmas.stretch_to_terminal(shifted, terminal)
        return stretched.double().numpy()
    if schedule.shifting == "SimpleDiffusion":
        return sigmas.time_shift(levels, math.log(num_tokens / (schedule.base_resolution or sigmas.BASE_TOKENS)))
    return levels


def pass_levels(settings: PassSettings, schedule: ScheduleSettings, num_tokens: int) -> np.ndarray:
    """Noise levels of a pass: its own list as it is, or what it takes of a number of steps.

    Raises:
        ValueError: If it has both or neither, or no step would be left.
    """
    settings = settled(settings)
    steps, listed = settings.num_inference_steps, settings.timesteps
    if (steps is None) == (listed is None):
        raise ValueError(
            f"a pass takes `num_inference_steps` ({steps}) or `timesteps` ({listed}), one of them; leave one out"
        )
    first, last = settings.skip_initial_inference_steps, settings.skip_final_inference_steps
    check_from_zero(skip_initial_inference_steps=first, skip_final_inference_steps=last)
    if listed is not None:
        if first or last:
            raise ValueError("steps are skipped of a number of them, but `timesteps` are given; shorten the list")
        return sigmas.check_sigmas(listed, "timesteps")
    levels = spread_levels(schedule, steps or 0, num_tokens)
    if first + last >= len(levels):
        raise ValueError(
            f"skipping {first} and {last} of {len(levels)} steps leaves none; skip at most {len(levels) - 1}"
        )
    return levels[first : len(levels) - last]
