"""The optimiser and the learning-rate schedule of a training run.

Formulas of the schedule, for step k of N and the base rate lr, are those of the reference trainer; a warm-up may stand in
front of them. A schedule is stepped once per step of the optimiser, whatever the number of processes.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR

if TYPE_CHECKING:
    from .config import OptimizationConfig

# Defaults by type of schedule; `None` depends on the number of steps.
SCHEDULES: dict[str, dict[str, float | None]] = {
    "constant": {},
    "linear": {"start_factor": 1.0, "end_factor": 0.1},
    "cosine": {"eta_min": 0.0},
    "cosine_with_restarts": {"T_0": None, "T_mult": 1, "eta_min": 5e-5},
    "polynomial": {"power": 1.0},
    "step": {"step_size": None, "gamma": 0.1},
}
"""What `optimization.scheduler_params` may hold, and its defaults; rates among them are absolute."""

_OPTIMIZERS = ("adamw", "adamw8bit")
# These belong to the loop.
_NOT_FREE = ("params", "lr")


def make_optimizer(section: "OptimizationConfig", parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a run, with the defaults of its library where `optimizer_params` says nothing.

    Args:
        section: `optimization` of the configuration; `learning_rate`, `optimizer_type` (`adamw` of torch, or `adamw8bit`
            of bitsandbytes, whose moments are 8-bit) and `optimizer_params` are read.
        parameters: What is trained.

    Raises:
        ValueError: If the type or a parameter is unknown, or there is nothing to train.
        ImportError: If `adamw8bit` is asked for and bitsandbytes is not there.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise ValueError("nothing is trained: no parameter requires a gradient; check `lora.target_modules`")
    optimizer_class = _optimizer_class(section.optimizer_type)
    taken = [name for name in inspect.signature(optimizer_class).parameters if name not in _NOT_FREE]
    _check_names(section.optimizer_params, taken, "optimizer_params", section.optimizer_type)
    options = dict(section.optimizer_params)
    if isinstance(options.get("betas"), list):
        options["betas"] = tuple(options["betas"])
    return optimizer_class(trained, lr=section.learning_rate, **options)


def learning_rate(section: "OptimizationConfig", step: int) -> float:
    """What the base learning rate is multiplied by after a number of steps of the optimiser.

    The first `warmup_steps` rise evenly to the first value of the schedule, which runs over the remaining steps.

    Args:
        section: `optimization` of the configuration.
        step: Steps done, from 0.
    """
    warmup = section.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1) * _factor(section, 0, section.steps - warmup)
    return _factor(section, step - warmup, section.steps - warmup)


def make_schedule(optimizer: torch.optim.Optimizer, section: "OptimizationConfig") -> LambdaLR:
    """The schedule that sets the rate of the optimiser; step it once per step of the optimiser, in every process.

    Accelerate must not prepare it: it would step it once per process.

    Raises:
        ValueError: If a parameter of the schedule is unknown or impossible.
    """
    check_schedule(section)
    return LambdaLR(optimizer, lambda step: learning_rate(section, step))


def check_schedule(section: "OptimizationConfig") -> None:
    """Raise `ValueError` for a schedule that cannot be computed."""
    kind = section.scheduler_type
    if kind not in SCHEDULES:
        nearest = difflib.get_close_matches(str(kind), SCHEDULES, n=1, cutoff=0.0)[0]
        raise ValueError(f"`optimization.scheduler_type` is {kind!r}, which is none; use {nearest!r}")
    _check_names(section.scheduler_params, list(SCHEDULES[kind]), "scheduler_params", kind)
    if not 0 <= section.warmup_steps < section.steps:
        raise ValueError(
            f"`optimization.warmup_steps` has to be from 0 to below the {section.steps} steps but is "
            f"{section.warmup_steps}; use {max(section.steps // 10, 0)}"
        )
    for name, value in section.scheduler_params.items():
        least = 1 if name in ("T_0", "T_mult", "step_size") else 0
        if isinstance(value, bool) or not isinstance(value, int if least else (int, float)) or not value >= least:
            kind_of_number = "a whole number from 1 on" if least else "a number from 0 on"
            raise ValueError(f"`optimization.scheduler_params.{name}` has to be {kind_of_number} but is {value!r}")


def _factor(section: "OptimizationConfig", k: int, total: int) -> float:
    """The factor of step k of a schedule over `total` steps."""
    given: dict[str, Any] = {**SCHEDULES[section.scheduler_type], **section.scheduler_params}
    lowest = given.get("eta_min", 0.0) / section.learning_rate
    share = min(k, total) / total
    match section.scheduler_type:
        case "linear":
            return given["start_factor"] + (given["end_factor"] - given["start_factor"]) * share
        case "cosine":
            return _cosine(k / total, lowest)
        case "cosine_with_restarts":
            return _cosine(_place_in_cycle(k, given["T_0"] or max(total // 4, 1), given["T_mult"]), lowest)
        case "polynomial":
            return (1 - share) ** given["power"]
        case "step":
            return given["gamma"] ** (k // (given["step_size"] or max(total // 2, 1)))
    return 1.0


def _cosine(share: float, lowest: float) -> float:
    """From 1 to `lowest` over half a wave."""
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * share)) / 2


def _place_in_cycle(k: int, length: int, growth: int) -> float:
    """How far step k is within its cycle, in [0, 1), where every cycle is `growth` times as long as the one before."""
    while k >= length:
        if growth == 1:
            return k % length / length
        k, length = k - length, length * growth
    return k / length


def _optimizer_class(kind: str) -> Callable[..., torch.optim.Optimizer]:
    if kind not in _OPTIMIZERS:
        nearest = difflib.get_close_matches(str(kind), _OPTIMIZERS, n=1, cutoff=0.0)[0]
        raise ValueError(f"`optimization.optimizer_type` is {kind!r}, which is none; use {nearest!r}")
    if kind == "adamw":
        return torch.optim.AdamW
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ImportError(
            "`optimization.optimizer_type: adamw8bit` needs bitsandbytes; install it (pip install bitsandbytes), or use "
            "'adamw'"
        ) from error
    return AdamW8bit


def _check_names(given: Mapping[str, Any], taken: list[str], key: str, kind: str) -> None:
    """Raise `ValueError` for an option that this optimiser or schedule does not take."""
    for name in given:
        if name not in taken:
            nearest = difflib.get_close_matches(name, taken, n=1, cutoff=0.0)
            advice = f"it takes {', '.join(taken)}; did you mean {nearest[0]!r}?" if nearest else "it takes none"
            raise ValueError(f"`optimization.{key}` holds {name!r}, which {kind!r} does not take: {advice}")
