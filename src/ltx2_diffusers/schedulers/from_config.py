"""Which sigmas a scheduler config stands for: pure functions of the config and of the request."""

from typing import Any

import numpy as np

from . import sigmas as schedules

SCHEDULES = ("ltx2", "linear_quadratic", "beta")

# The count at which the line through the anchors reaches `max_shift` in every LTX-2 config.
FIXED_TOKENS = schedules.MAX_TOKENS

RESPACINGS = {
    "use_karras_sigmas": schedules.respace_karras,
    "use_exponential_sigmas": schedules.respace_exponential,
    "use_beta_sigmas": schedules.respace_beta,
}


def check_config(config: Any) -> None:
    """`ValueError` for the first key whose value `LTX2Scheduler` does not implement."""
    if config.invert_sigmas:
        raise ValueError("invert_sigmas=True is not supported: LTX-2 samples from sigma 1 to 0; use False.")
    if config.stochastic_sampling:
        raise ValueError("stochastic_sampling=True is not supported; use False and the sampler 'euler_ancestral'.")
    if config.time_shift_type not in ("exponential", "linear"):
        raise ValueError(f"time_shift_type must be 'exponential' or 'linear', got {config.time_shift_type!r}.")
    chosen = [name for name in RESPACINGS if config[name]]
    if len(chosen) > 1:
        raise ValueError(f"At most one of {', '.join(RESPACINGS)} can be set, got {' and '.join(chosen)}.")
    if config.schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {config.schedule!r}.")
    _check_numbers(config)
    tokens = config.shift_tokens
    if tokens not in ("fixed", "actual") and (isinstance(tokens, (str, bool)) or not tokens >= 1):
        raise ValueError(f"shift_tokens must be 'fixed', 'actual' or a number of tokens, got {tokens!r}.")


def _check_numbers(config: Any) -> None:
    """`ValueError` for the first number that gives no schedule; that all are finite numbers is known."""
    for name in ("num_train_timesteps", "linear_steps"):
        if config[name] is not None and config[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {config[name]}; use 1 or more.")
    for name in ("shift", "beta_alpha", "beta_beta"):
        if not config[name] > 0:
            raise ValueError(f"{name} must be greater than 0, got {config[name]}.")
    for name in ("shift_terminal", "threshold_noise"):
        if config[name] is not None and not 0 <= config[name] < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {config[name]}.")
    if config.base_image_seq_len == config.max_image_seq_len:
        raise ValueError(
            f"base_image_seq_len and max_image_seq_len must differ, got {config.base_image_seq_len} twice."
        )


def shift_at(config: Any, num_tokens: int) -> float:
    """The shift (mu) of a latent of `num_tokens` tokens on the line between the config's anchors."""
    anchors = (config.base_shift, config.max_shift, config.base_image_seq_len, config.max_image_seq_len)
    return schedules.shift_for_tokens(num_tokens, *anchors)


def dynamic_shift(config: Any, num_tokens: int | None) -> float:
    """The shift (mu) for a video latent of `num_tokens` tokens, as `shift_tokens` counts them."""
    tokens = {"fixed": FIXED_TOKENS, "actual": num_tokens}.get(config.shift_tokens, config.shift_tokens)
    if tokens is None:
        raise ValueError("shift_tokens='actual' needs num_tokens (or mu) in set_timesteps, got neither.")
    return shift_at(config, tokens)


def shifted(config: Any, sigmas: np.ndarray, mu: float | None) -> np.ndarray:
    """A list `[N]` without zero after the shift, the stretch and the respacing of a FlowMatchEuler config.

    `mu` is the shift if `use_dynamic_shifting` is on and not read otherwise.
    """
    if config.use_dynamic_shifting and mu is not None:
        sigmas = schedules.time_shift(sigmas, mu, config.time_shift_type)
    else:
        sigmas = config.shift * sigmas / (1.0 + (config.shift - 1.0) * sigmas)
    if config.shift_terminal:
        sigmas = schedules.stretch_to_terminal(sigmas, config.shift_terminal)
    for name, respace in RESPACINGS.items():
        if config[name]:
            return respace(sigmas)
    return sigmas


def computed_sigmas(config: Any, num_inference_steps: int, mu: float | None, num_tokens: int | None) -> np.ndarray:
    """The configured schedule for a number of steps, as a list `[N]` without the trailing zero."""
    if config.schedule != "ltx2" and mu is not None:
        raise ValueError(f"mu is {mu}, but schedule={config.schedule!r} has no shift; leave mu out.")
    if config.schedule == "linear_quadratic":
        sigmas = schedules.linear_quadratic_sigmas(num_inference_steps, config.threshold_noise, config.linear_steps)
        return sigmas[:-1].double().numpy()
    if config.schedule == "beta":
        sigmas = schedules.beta_sigmas(num_inference_steps, config.beta_alpha, config.beta_beta)
        return sigmas[:-1].double().numpy()
    if mu is None and config.use_dynamic_shifting:
        mu = dynamic_shift(config, num_tokens)
    return shifted(config, schedules.linear_grid(num_inference_steps), mu)
