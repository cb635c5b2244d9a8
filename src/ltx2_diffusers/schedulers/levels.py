"""The noise levels of a call, from any scheduler."""

import copy
from collections.abc import Sequence

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils import logging

from .scheduling_ltx2 import LTX2Scheduler
from .sigmas import MAX_SHIFT, check_sigmas, linear_grid, shift_for_tokens

logger = logging.get_logger(__name__)


def noise_levels(
    scheduler: LTX2Scheduler | FlowMatchEulerDiscreteScheduler,
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
        sigmas, num_inference_steps = default_sigmas, default_steps
    scheduler = copy.deepcopy(scheduler)
    if timesteps is not None or isinstance(scheduler, LTX2Scheduler):
        own = scheduler if isinstance(scheduler, LTX2Scheduler) else LTX2Scheduler()
        steps = num_inference_steps if sigmas is None and timesteps is None else None
        own.set_timesteps(steps, sigmas=sigmas, timesteps=timesteps, num_tokens=num_tokens)
        return own.sigmas.float().cpu()
    return _flow_match_levels(scheduler, num_tokens, linear_grid(num_inference_steps) if sigmas is None else sigmas)


def _flow_match_levels(
    scheduler: FlowMatchEulerDiscreteScheduler, num_tokens: int, sigmas: Sequence[float]
) -> torch.Tensor:
    """The levels that diffusers' LTX-2 pipelines take from their scheduler."""
    config = scheduler.config
    if config.get("stochastic_sampling") or config.get("invert_sigmas"):
        raise ValueError(
            "the scheduler's `stochastic_sampling` and `invert_sigmas` are not supported; build it with both off"
        )
    mu = shift_for_tokens(
        num_tokens, config.base_shift, config.max_shift, config.base_image_seq_len, config.max_image_seq_len
    )
    if config.get("use_dynamic_shifting") and mu > MAX_SHIFT:
        logger.warning(
            f"{num_tokens} video tokens shift the noise schedule by {mu:.2f}, beyond the {MAX_SHIFT} that the model "
            "was trained with; LTX2Scheduler.from_config(pipe.scheduler.config) keeps the trained shift at any size"
        )
    levels = check_sigmas(sigmas).tolist()
    if config.get("shift_terminal") and levels[-1] == 1.0:
        raise ValueError(
            f"the scheduler stretches its noise levels to end at `shift_terminal` {config.shift_terminal}, which one "
            "level of 1.0 cannot do; use `num_inference_steps=2` or more, or `timesteps=[1000.0]`"
        )
    scheduler.set_timesteps(sigmas=levels, mu=mu)
    return scheduler.sigmas.float().cpu()
