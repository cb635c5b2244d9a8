"""The noise levels of a call, from any scheduler."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging

from .from_config import shift_at
from .scheduling_ltx2 import LTX2Scheduler
from .sigmas import MAX_SHIFT, check_sigmas, linear_grid

Scheduler = LTX2Scheduler | FlowMatchEulerDiscreteScheduler
logger = logging.get_logger(__name__)


def noise_levels(
    scheduler: Scheduler,
    num_tokens: int,
    num_inference_steps: int | None = None,
    sigmas: Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
    *,
    default_steps: int,
    default_sigmas: Sequence[float] | None = None,
) -> torch.Tensor:
    """Noise levels `[N + 1]` of a run, float32 on the CPU, ending in 0.

    Args:
        scheduler: Scheduler of the pipeline. It stays untouched, so that one pipeline can serve several calls.
        num_tokens: Video tokens, conditions included; some schedules shift by it.
        num_inference_steps: Number of steps.
        sigmas: Explicit levels. `LTX2Scheduler` takes them as they are; a FlowMatchEuler scheduler shifts them.
        timesteps: Explicit levels times 1000, taken as they are.
        default_steps, default_sigmas: Steps, or levels in their place, where all of these are `None`.
    """
    if sigmas is not None and timesteps is not None:
        raise ValueError("give either `sigmas` or `timesteps`, not both")
    if sigmas is None and timesteps is None and num_inference_steps is None:
        sigmas = default_sigmas
    steps = default_steps if num_inference_steps is None else num_inference_steps
    if timesteps is None and isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        return _flow_match_levels(scheduler, num_tokens, linear_grid(steps) if sigmas is None else sigmas)
    own = copy.deepcopy(scheduler) if isinstance(scheduler, LTX2Scheduler) else LTX2Scheduler()
    is_listed = sigmas is not None or timesteps is not None
    own.set_timesteps(None if is_listed else steps, sigmas=sigmas, timesteps=timesteps, num_tokens=num_tokens)
    return own.sigmas.float().cpu()


def _flow_match_levels(scheduler: Scheduler, num_tokens: int, sigmas: Sequence[float] | np.ndarray) -> torch.Tensor:
    """The levels that diffusers' LTX-2 pipelines take from their FlowMatchEuler scheduler."""
    config: Any = scheduler.config  # A dict whose keys are attributes too, which its type does not say.
    if config.get("stochastic_sampling") or config.get("invert_sigmas"):
        raise ValueError(
            "the scheduler's `stochastic_sampling` and `invert_sigmas` are not supported; build it with both off"
        )
    mu = shift_at(config, num_tokens)
    most = config.get("max_shift", MAX_SHIFT)
    if config.get("use_dynamic_shifting") and mu > most:
        logger.warning(
            f"{num_tokens} video tokens shift the noise schedule by {mu:.2f}, beyond the {most} that the model "
            "was trained with; LTX2Scheduler.from_config(pipe.scheduler.config) keeps the trained shift at any size"
        )
    levels = check_sigmas(sigmas).tolist()
    if config.get("shift_terminal") and levels[-1] == 1.0:
        raise ValueError(
            f"the scheduler stretches its noise levels to end at `shift_terminal` {config.shift_terminal}, which one "
            "level of 1.0 cannot do; use `num_inference_steps=2` or more, or `timesteps=[1000.0]`"
        )
    own = copy.deepcopy(scheduler)
    own.set_timesteps(sigmas=levels, mu=mu)
    return own.sigmas.float().cpu()


def unshifted(scheduler: Any) -> Any:
    """A FlowMatchEuler scheduler as the `LTX2Scheduler` of its config, which takes listed levels as they are; others stay."""
    is_shifting = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    return LTX2Scheduler.from_config(dict(scheduler.config)) if is_shifting else scheduler


def follow_levels(scheduler: Scheduler, levels: torch.Tensor, device: torch.device | str | None = None) -> None:
    """Have the `step` of a scheduler walk down the noise levels of a run.

    Args:
        scheduler: The scheduler, which is changed.
        levels: Noise levels `[N + 1]` as [`noise_levels`] returns them.
        device: Where its tensors go, default the CPU.
    """
    state: Any = scheduler
    state.sigmas = levels.to(device or "cpu")
    state.timesteps = state.sigmas[:-1] * state.config.num_train_timesteps
    state.num_inference_steps = len(levels) - 1
    state._step_index = None
    state.set_begin_index(0)
