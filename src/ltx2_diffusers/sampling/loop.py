"""The one denoising loop: every pipeline, stage and sampler runs through it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from ..conditioning.state import LatentState
from ..conditioning.streams import States, Streams, Tensors, on_streams
from .contract import Sampler
from .denoiser import GuidedDenoiser
from .steppers import post_process

StepCallback = Callable[[int, States, Tensors], States]


def denoise(
    denoiser: GuidedDenoiser,
    states: States,
    sigmas: torch.Tensor,
    sampler: Sampler,
    on_step: StepCallback | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> States:
    """Walk the states of both streams down a list of noise levels.

    Args:
        denoiser: Predicts the clean tokens of both streams from noisy states.
        states: `LatentState` of each stream at the noise level `sigmas[0]`.
        sigmas: Falling noise levels `[N + 1]`, float32 on the CPU.
        sampler: Turns a prediction into the next state.
        on_step: Called with the step's index, the new states and the prediction; returns the states to go on with.
        interrupted: Asked before each step; the remaining steps are left out when it answers `True`.

    Returns:
        The states at the last noise level.

    Raises:
        ValueError: If the latents are no longer finite; see [`FiniteWatch`].
    """
    watch = FiniteWatch()
    for step in range(len(sigmas) - 1):
        if interrupted():
            break
        states, prediction = sampler.step(StepPredictor(denoiser, step), states, sigmas, step)
        watch.note(states)
        if on_step is not None:
            states = on_step(step, states, prediction)
    watch.check()
    return states


@dataclass
class FiniteWatch:
    """Notices when the latents of a run are no longer finite numbers.

    On an accelerator an answer costs waiting for all work, so that it is asked once, after the last step, of which steps
    were bad; on a CPU it is known at once and ends the run.

    Args:
        flags: Whether each stream was finite after each step, tensors on the device.
        streams: Names of the streams that are there.
    """

    flags: list[torch.Tensor] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)

    def note(self, states: States) -> None:
        """Remember the states after a step."""
        present = {name: state.latent for name, state in zip(states._fields, states) if state is not None}
        self.streams = list(present)
        self.flags.append(torch.stack([latent.isfinite().all() for latent in present.values()]))
        if self.flags[-1].device.type == "cpu" and not self.flags[-1].all():
            self.check()

    def check(self) -> None:
        """Raise `ValueError` if any step was bad; the message names the first one, and its streams."""
        if not self.flags:
            return
        finite = torch.stack(self.flags)
        if bool(finite.all()):
            return
        first = int((~finite).any(dim=1).nonzero()[0])
        streams = [name for name, good in zip(self.streams, finite[first].tolist()) if not good]
        raise ValueError(
            f"the {' and the '.join(streams)} stopped being finite (NaN or infinity) in step {first + 1} of the run; "
            "mostly float16 is too narrow for the model (use torch.bfloat16 or torch.float32), a weight of the checkpoint "
            "or of a LoRA is damaged, or guidance scales or adapter strengths are far too large"
        )


@dataclass(frozen=True)
class StepPredictor:
    """What a sampler may ask during one step: predictions, and what the negative prompt alone predicted.

    Args:
        denoiser: Makes the predictions.
        step: Index of the step.
    """

    denoiser: GuidedDenoiser
    step: int

    def __call__(self, states: States, sigma: torch.Tensor) -> Tensors:
        """Predictions of the clean tokens of both streams, blended with given tokens."""
        return blend(self.denoiser(states, sigma, self.step), states)

    def negative(self) -> Tensors:
        """The latest predictions for the negative prompt, unblended."""
        return self.denoiser.negative


def blend(predictions: Tensors, states: States) -> Tensors:
    """Hold predictions to the clean tokens as far as the denoise masks ask; tokens that wait are held by the sampler."""

    def blended(prediction: torch.Tensor, state: LatentState) -> torch.Tensor:
        if state.waits:
            return prediction
        return post_process(prediction, state.denoise_mask, state.clean_latent)

    return on_streams(blended, predictions, states)


def with_latents(states: States, latents: Tensors) -> States:
    """The states with other latents."""
    pairs = zip(states, latents)
    return Streams(*(None if s is None or latent is None else replace(s, latent=latent) for s, latent in pairs))
