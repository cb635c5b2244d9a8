"""A run's way through the denoising loop: progress, the caller's function after each step, and interruption."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..conditioning.streams import Streams
from ..sampling.contract import Sampler
from ..sampling.denoiser import GuidedDenoiser
from ..sampling.loop import denoise, with_latents
from .arguments import Callback
from .generation import LTX2GenerationPipeline

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

    function: Callback | None
    names: Sequence[str]
    constants: dict[str, torch.Tensor | None]
    target: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __call__(
        self,
        pipeline: LTX2GenerationPipeline,
        step: int,
        timestep: torch.Tensor,
        states: Streams,
        prediction: Streams,
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


def denoised(
    pipeline: LTX2GenerationPipeline,
    denoiser: GuidedDenoiser,
    states: Streams,
    sigmas: torch.Tensor,
    sampler: Sampler,
    callback: StepCallback,
) -> Streams:
    """Run the denoising loop while the pipeline shows how far it is."""
    timesteps = sigmas[:-1] * 1000
    pipeline._num_timesteps = len(timesteps)
    pipeline._forwards_per_step = denoiser.forwards_per_prediction * sampler.predictions_per_step
    with pipeline.progress_bar(total=len(timesteps)) as progress:

        def on_step(step: int, new_states: Streams, prediction: Streams) -> Streams:
            new_states = callback(pipeline, step, timesteps[step], new_states, prediction)
            progress.update()
            pipeline._current_timestep = timesteps[min(step + 1, len(timesteps) - 1)]
            return new_states

        pipeline._current_timestep = timesteps[0]
        try:
            return denoise(denoiser, states, sigmas, sampler, on_step, lambda: pipeline._interrupt)
        finally:
            pipeline._current_timestep = None
