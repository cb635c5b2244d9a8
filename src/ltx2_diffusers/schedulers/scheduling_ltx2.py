# ruff: noqa: ARG002 (`register_to_config` reads the arguments of the constructor)
"""`LTX2Scheduler`: the noise schedules of LTX-2 and a plain Euler step behind diffusers' scheduler interface."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

from ..models.loading import CheckedConfigMixin
from ..models.saving import AtomicSaveMixin
from . import sigmas as schedules
from .from_config import FIXED_TOKENS, check_config, computed_sigmas, shifted

FLOW_MATCH_CLASS = "FlowMatchEulerDiscreteScheduler"

# What FlowMatchEulerDiscreteScheduler (diffusers 0.42.1) assumes for absent keys, where we assume something else.
FLOW_MATCH_DEFAULTS = {
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "shift_terminal": None,
}

# Config keys which only this class writes.
OWN_KEYS = ("schedule", "shift_tokens", "threshold_noise", "linear_steps", "beta_alpha", "beta_beta")


def is_ltx2_scheduler_config(config: dict[str, Any]) -> bool:
    """Whether a scheduler config, whatever class it names, was saved by an `LTX2Scheduler`."""
    return any(key in config for key in OWN_KEYS)


class LTX2Scheduler(CheckedConfigMixin, AtomicSaveMixin, SchedulerMixin, ConfigMixin):
    """Schedules of LTX-2 with explicit Euler steps over a velocity prediction.

    The configuration extends that of diffusers' `FlowMatchEulerDiscreteScheduler`, reads its files, and is saved under
    its name, so that diffusers loads what this class saves. Two things differ from it: the shift belongs to a fixed
    number of tokens unless `shift_tokens` says otherwise, and a list of sigmas given to `set_timesteps` without `mu`
    is used as it stands instead of being shifted once more.

    Args:
        num_train_timesteps: timestep at sigma 1. Default 1000.
        shift: static shift, used when `use_dynamic_shifting` is off. Default 1.0, no shift.
        use_dynamic_shifting: whether the shift depends on a token count. Default True; False in distilled checkpoints.
        base_shift: shift at `base_image_seq_len` tokens. Default 0.95.
        max_shift: shift at `max_image_seq_len` tokens. Default 2.05.
        base_image_seq_len: tokens of the lower anchor. Default 1024.
        max_image_seq_len: tokens of the upper anchor. Default 4096.
        invert_sigmas: kept for compatibility; True is refused.
        shift_terminal: last non-zero sigma after stretching. Default 0.1; None leaves the list unstretched.
        use_karras_sigmas: respace the shifted list as Karras et al. 2022.
        use_exponential_sigmas: respace the shifted list evenly in log(sigma).
        use_beta_sigmas: respace the shifted list at beta quantiles.
        time_shift_type: "exponential" (default) or "linear".
        stochastic_sampling: kept for compatibility; True is refused, the ancestral samplers do this.
        schedule: "ltx2" (default, all of the above), "linear_quadratic" or "beta".
        shift_tokens: "fixed" (default, 4096 tokens for every size, as the checkpoints were sampled in training),
            "actual" (the `num_tokens` given to `set_timesteps`, as diffusers' pipelines count) or a number of tokens.
        threshold_noise: for "linear_quadratic": noise removed by the linear part. Default 0.025.
        linear_steps: for "linear_quadratic": steps of the linear part. Default half of them.
        beta_alpha: for "beta": first shape parameter. Default 0.6.
        beta_beta: for "beta": second shape parameter. Default 0.6.
    """

    _compatibles = [FLOW_MATCH_CLASS]  # noqa: RUF012 (declared as an instance-typed list by SchedulerMixin)
    order = 1
    init_noise_sigma = 1.0
    _step_index: int | None
    _begin_index: int | None

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = True,
        base_shift: float = schedules.BASE_SHIFT,
        max_shift: float = schedules.MAX_SHIFT,
        base_image_seq_len: int = schedules.BASE_TOKENS,
        max_image_seq_len: int = schedules.MAX_TOKENS,
        invert_sigmas: bool = False,
        shift_terminal: float | None = schedules.TERMINAL_SIGMA,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
        schedule: str = "ltx2",
        shift_tokens: str | int = "fixed",
        threshold_noise: float = 0.025,
        linear_steps: int | None = None,
        beta_alpha: float = 0.6,
        beta_beta: float = 0.6,
    ) -> None:
        check_config(self.config)
        # diffusers drops keys left at their default when another class takes the config over, but our defaults differ.
        self.register_to_config(_use_default_values=[])
        # Before the first `set_timesteps` diffusers' schedulers show the training grid; training scripts index it.
        grid = schedules.linear_grid(num_train_timesteps)
        self._install(grid if use_dynamic_shifting else shift * grid / (1.0 + (shift - 1.0) * grid))
        self.num_inference_steps: int | None = None
        self.sigma_max, self.sigma_min = self.sigmas[0].item(), self.sigmas[-2].item()

    @classmethod
    def from_config(
        cls, config: dict[str, Any] | None = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Build a scheduler from a config of this class or of `FlowMatchEulerDiscreteScheduler`.

        A key which a FlowMatchEuler config lacks takes FlowMatchEuler's default, not ours.
        """
        if isinstance(config, dict) and not is_ltx2_scheduler_config(config):
            foreign = config.get("_class_name") == FLOW_MATCH_CLASS or "_use_default_values" in config
            if foreign:
                config = {**FLOW_MATCH_DEFAULTS, **config}
                config.pop("_use_default_values", None)
        # diffusers answers `None` with a message of its own.
        return super().from_config(config, return_unused_kwargs, **kwargs)  # type: ignore[arg-type]

    def to_json_string(self) -> str:
        """The config as JSON under the name of diffusers' class, which ignores the extra keys when it loads them."""
        config = json.loads(super().to_json_string())
        config["_class_name"] = FLOW_MATCH_CLASS
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @staticmethod
    def execute(
        steps: int,
        latent: torch.Tensor | None = None,
        max_shift: float = schedules.MAX_SHIFT,
        base_shift: float = schedules.BASE_SHIFT,
        stretch: bool = True,
        terminal: float = schedules.TERMINAL_SIGMA,
        default_number_of_tokens: int = FIXED_TOKENS,
    ) -> torch.Tensor:
        """Returns the LTX-2 sigmas `[steps + 1]` under the call signature of LTX-Core, independent of this config.

        Args:
            steps: number of steps, at least 1.
            latent: latent `[B, C, F, h, w]` whose F * h * w tokens determine the shift. Default: fixed number.
            max_shift: shift at 4096 tokens.
            base_shift: shift at 1024 tokens.
            stretch: whether the last non-zero sigma becomes `terminal`.
            terminal: last non-zero sigma of a stretched list, in (0, 1).
            default_number_of_tokens: tokens when there is no latent.
        """
        if latent is not None and latent.ndim != 5:
            raise ValueError(f"latent must have shape [B, C, F, h, w], got {tuple(latent.shape)}.")
        tokens = default_number_of_tokens if latent is None else int(np.prod(latent.shape[2:]))
        return schedules.ltx2_sigmas(steps, tokens, max_shift, base_shift, stretch, terminal)

    @property
    def shift(self) -> float:
        """The static shift of the config."""
        return self.config.shift

    @property
    def step_index(self) -> int | None:
        """Index of the coming step, None before the first one."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step if a pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at step `begin_index` instead of looking the first timestep up."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | np.ndarray | torch.Tensor | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | np.ndarray | torch.Tensor | None = None,
        num_tokens: int | None = None,
    ) -> None:
        """Prepare `sigmas` `[N + 1]` and `timesteps` `[N]` for a run.

        Args:
            num_inference_steps: number of steps N; not needed beside an explicit list.
            device: where both tensors go. Default CPU.
            sigmas: explicit falling list in (0, 1], with or without the trailing 0, used exactly as given. Only when
                `mu` is given too, it passes through the configured shift, stretch and respacing, which is what
                `FlowMatchEulerDiscreteScheduler` always does and how diffusers' pipelines call it.
            mu: shift to use in place of the one derived from a token count; ignored like in diffusers when
                `use_dynamic_shifting` is off.
            timesteps: explicit falling list in (0, 1000], likewise exact; beside `sigmas` it only sets the values
                that the model sees.
            num_tokens: video latent tokens; needed with `shift_tokens="actual"`, not used otherwise.
        """
        listed = self._listed_sigmas(sigmas, timesteps)
        if listed is None:
            if num_inference_steps is None:
                raise ValueError("set_timesteps needs num_inference_steps, sigmas or timesteps, got none of them.")
            values = computed_sigmas(self.config, num_inference_steps, mu, num_tokens)
        else:
            if num_inference_steps is not None and num_inference_steps != len(listed):
                raise ValueError(
                    f"num_inference_steps is {num_inference_steps}, but the explicit list has {len(listed)} steps; "
                    "give only the list."
                )
            values = listed if mu is None or sigmas is None else shifted(self.config, listed, mu)
        self._install(values, device)
        if sigmas is not None and timesteps is not None:
            self.timesteps = torch.as_tensor(timesteps, dtype=torch.float32, device=device)[: len(values)].clone()
        self.num_inference_steps = len(values)

    def _listed_sigmas(self, sigmas: Any, timesteps: Any) -> np.ndarray | None:
        listed = None if sigmas is None else schedules.check_sigmas(sigmas)
        if timesteps is None:
            return listed
        scaled = torch.as_tensor(timesteps, dtype=torch.float64) / self.config.num_train_timesteps
        from_timesteps = schedules.check_sigmas(scaled, f"timesteps / {self.config.num_train_timesteps}")
        if listed is None:
            return from_timesteps
        if len(listed) != len(from_timesteps):
            raise ValueError(
                f"sigmas and timesteps must have equal length, got {len(listed)} and {len(from_timesteps)} values "
                "(trailing zeros not counted)."
            )
        return listed

    def _install(self, sigmas: np.ndarray, device: str | torch.device | None = None) -> None:
        self.sigmas = schedules.with_trailing_zero(sigmas).to(device)
        self.timesteps = self.sigmas[:-1] * self.config.num_train_timesteps
        self._step_index = self._begin_index = None

    def index_for_timestep(
        self, timestep: float | torch.Tensor, schedule_timesteps: torch.Tensor | None = None
    ) -> int:
        """Position of a timestep in `timesteps` (or in `schedule_timesteps`); `ValueError` if it is not one of them."""
        candidates = self.timesteps if schedule_timesteps is None else schedule_timesteps
        value = torch.as_tensor(timestep, device=candidates.device, dtype=candidates.dtype)
        distance = (candidates - value).abs()
        nearest = int(distance.argmin())
        if distance[nearest] > 0:
            raise ValueError(
                f"timestep {value.item():g} is not one of scheduler.timesteps; the nearest is "
                f"{candidates[nearest].item():g}."
            )
        return nearest

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """One explicit Euler step: sample + (next sigma - sigma) * velocity, computed in float32.

        Args:
            model_output: velocity (noise - clean sample), any shape.
            timestep: one of `timesteps`; read only at the first step of a run, later steps follow in order.
            sample: noisy sample at this timestep, shape of `model_output`.
            return_dict: whether to return an object with `prev_sample` instead of a tuple.

        Returns:
            The sample at the next sigma in the dtype of `model_output`.
        """
        if isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()):
            raise ValueError(f"timestep must be one of scheduler.timesteps, got the integer {int(timestep)}.")
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        if self._step_index >= len(self.timesteps):
            raise ValueError(f"All {len(self.timesteps)} steps are done; call set_timesteps before the next run.")
        delta = self.sigmas[self._step_index + 1] - self.sigmas[self._step_index]
        prev_sample = (sample.float() + delta.to(sample.device) * model_output.float()).to(model_output.dtype)
        self._step_index += 1
        return SchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def scale_noise(self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Mixes clean samples `[B, ...]` with noise at the sigma of `timestep` (one value or `[B]`).

        As in diffusers, a begin index set by a pipeline, and later the running step, take precedence over `timestep`.
        """
        timesteps = torch.as_tensor(timestep, device=self.timesteps.device).reshape(-1)
        running = self._step_index if self._step_index is not None else self._begin_index
        if self._begin_index is not None:
            indices = [running] * len(timesteps)
        else:
            indices = [self.index_for_timestep(value) for value in timesteps]
        sigmas = self.sigmas[indices].to(device=sample.device, dtype=sample.dtype)
        sigmas = sigmas.reshape(-1, *[1] * (sample.ndim - 1))
        return sigmas * noise + (1.0 - sigmas) * sample

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """`scale_noise` in the argument order of diffusers' other schedulers."""
        return self.scale_noise(original_samples, timesteps, noise)

    def __len__(self) -> int:
        return self.config.num_train_timesteps
