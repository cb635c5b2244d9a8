"""Reference sounds: a voice or a noise that the generated sound follows without being held to it in time."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from ..conditioning.items.appended import AudioConditionByReferenceLatent
from ..sampling.denoiser import Streams
from .checks import check_from_zero, check_unit
from .conditions import AudioCondition
from .plan import GenerationPlan


@dataclass(frozen=True)
class LTX2AudioReferenceCondition:
    """A sound that is shown to the model beside the one it makes, for LoRAs trained with such references.

    Args:
        audio: Waveform `[C, N]` or `[B, C, N]` in [-1, 1], or the name of a media file. It is cut to the length of the
            clip and may be shorter.
        sampling_rate: Samples per second of a waveform.
        strength: 1 shows it exactly (default), 0 ignores it.
        start_s: Where in the sound the reference begins, in seconds. Default 0.0.
    """

    audio: torch.Tensor | str | os.PathLike
    sampling_rate: int | None = None
    strength: float = 1.0
    start_s: float = 0.0

    is_reference = True
    stream = "audio"

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if the sound cannot be read or the strength is not valid."""
        pipeline._require("audio_vae")
        check_unit(strength=self.strength)
        check_from_zero(start_s=self.start_s)
        # Whatever length it has, it is read like the sound of a clip.
        self._sound().check(pipeline, plan)

    def places(self, plan: GenerationPlan) -> list[str]:  # noqa: ARG002 (a condition is asked with its plan)
        """References stand beside the sound and may be many."""
        return []

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the reference."""
        latent = pipeline.encode_audio(*self._sound().waveform(plan.duration_s))
        latent = latent[:, :, : plan.audio.frames]
        return Streams([], [AudioConditionByReferenceLatent(latent, strength=self.strength)])

    def _sound(self) -> AudioCondition:
        return AudioCondition(self.audio, self.sampling_rate, fit="pad", start_s=self.start_s)
