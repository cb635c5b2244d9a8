"""Noise levels of a call, and the call's way through the denoising loop."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import logging

from ..checkpoints.versions import model_kind, model_version
from ..conditioning.streams import Streams, TextContext
from ..guidance.presets import Preset, preset
from ..models.negative_text import NagWeights
from ..sampling.contract import Sampler
from ..sampling.denoiser import GuidedDenoiser
from ..sampling.loop import denoise, with_latents
from ..schedulers.scheduling_ltx2 import LTX2Scheduler
from ..schedulers.sigmas import MAX_SHIFT, check_sigmas, linear_grid, shift_for_tokens

logger = logging.get_logger(__name__)


_REPLACEABLE = ("latents", "audio_latents")


@dataclass(frozen=True)
class StepCallback:
    """A caller's function to run after each step, as in all diffusers pipelines.

    Args:
        function: Called as `function(pipeline, step, timestep, tensors)`; may return replacements in a dict.
        names: Tensors it wants to see.
        constants: Tensors that do not change during the call, by name.
        target: From the video tokens of the running stage to its latents `[B, C, F, h, w]`.
    """

    function: Callable[..., dict[str, Any] | None] | None
    names: Sequence[str]
    constants: dict[str, torch.Tensor | None]
    target: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __call__(
        self, pipeline: Any, step: int, timestep: torch.Tensor, states: Streams, prediction: Streams
    ) -> Streams:
        """Show the new states and the prediction they come from to the function; return the states to go on with."""
        if self.function is None:
            return states
        latents = Streams(*(None if state is None else state.latent for state in states))
        known = {**self.constants, "latents": latents.video, "audio_latents": latents.audio}
        if "denoised" in self.names:
            known["denoised"] = None if prediction.video is None else self.target(prediction.video)
        returned = self.function(pipeline, step, timestep, {name: known[name] for name in self.names}) or {}
        ignored = [name for name in returned if name not in _REPLACEABLE and returned[name] is not known.get(name)]
        if ignored:
            raise ValueError(f"the step callback returned {ignored}; only {list(_REPLACEABLE)} can be replaced")
        return with_latents(states, Streams(*(returned.get(name, known[name]) for name in _REPLACEABLE)))


class DenoiseStage:
    """The sampling part of a pipeline; needs the components `scheduler` and `transformer`."""

    @property
    def preset(self) -> Preset:
        """Reference settings of the loaded checkpoint, by its version and kind."""
        self._require("transformer", "scheduler")
        return preset(model_version(self.transformer.config), model_kind(self.scheduler.config))

    def _sigmas(
        self,
        num_tokens: int,
        num_inference_steps: int | None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> torch.Tensor:
        """Noise levels `[N + 1]` of a call, float32 on the CPU, ending in 0.

        Args:
            num_tokens: Video tokens, conditions included; some schedules shift by it.
            num_inference_steps: Number of steps, default the preset's.
            sigmas: Explicit levels. `LTX2Scheduler` takes them as they are; a FlowMatchEuler scheduler shifts them.
            timesteps: Explicit levels times 1000, taken as they are.
        """
        if sigmas is not None and timesteps is not None:
            raise ValueError("give either `sigmas` or `timesteps`, not both")
        # The pipeline's own scheduler stays untouched, so that one pipeline can serve several calls.
        scheduler = copy.deepcopy(self.scheduler)
        if timesteps is not None or isinstance(scheduler, LTX2Scheduler):
            if sigmas is None and timesteps is None and num_inference_steps is None:
                sigmas = self.preset.sigmas
            steps = None if sigmas is not None or timesteps is not None else num_inference_steps
            own = scheduler if isinstance(scheduler, LTX2Scheduler) else LTX2Scheduler()
            if sigmas is None and timesteps is None and steps is None:
                steps = self.preset.num_inference_steps
            own.set_timesteps(steps, sigmas=sigmas, timesteps=timesteps, num_tokens=num_tokens)
            return own.sigmas.float().cpu()
        return self._flow_match_sigmas(scheduler, num_tokens, num_inference_steps, sigmas)

    def _flow_match_sigmas(
        self, scheduler: Any, num_tokens: int, num_inference_steps: int | None, sigmas: Sequence[float] | None
    ) -> torch.Tensor:
        """The levels that diffusers' LTX-2 pipelines take from their scheduler."""
        config = scheduler.config
        if config.get("stochastic_sampling") or config.get("invert_sigmas"):
            raise ValueError(
                "the scheduler's `stochastic_sampling` and `invert_sigmas` are not supported; build it with both off"
            )
        if sigmas is None and num_inference_steps is None and self.preset.sigmas is not None:
            sigmas = self.preset.sigmas
        if sigmas is None:
            sigmas = linear_grid(
                self.preset.num_inference_steps if num_inference_steps is None else num_inference_steps
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

    def _denoise(
        self,
        states: Streams,
        sigmas: torch.Tensor,
        contexts: tuple[TextContext, TextContext | None],
        guiders: Streams,
        *,
        transformer: torch.nn.Module,
        cross_timestep: str,
        sampler: Sampler,
        callback: StepCallback,
        nag: NagWeights | None = None,
    ) -> Streams:
        """Run the denoising loop with progress bar, callback and interruption."""
        denoiser = GuidedDenoiser(transformer, *contexts, guiders, cross_timestep, self._attention_kwargs, nag=nag)
        timesteps = sigmas[:-1] * 1000
        self._num_timesteps = len(timesteps)
        self._forwards_per_step = denoiser.forwards_per_prediction * sampler.predictions_per_step
        with self.progress_bar(total=len(timesteps)) as progress:

            def on_step(step: int, new_states: Streams, prediction: Streams) -> Streams:
                new_states = callback(self, step, timesteps[step], new_states, prediction)
                progress.update()
                self._current_timestep = timesteps[min(step + 1, len(timesteps) - 1)]
                return new_states

            self._current_timestep = timesteps[0]
            try:
                return denoise(denoiser, states, sigmas, sampler, on_step, lambda: self._interrupt)
            finally:
                self._current_timestep = None
