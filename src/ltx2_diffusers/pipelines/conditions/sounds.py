"""Reference sounds: a voice or a noise that the generated sound follows without being held to it in time."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from ...checks import check_choice, check_float_tensors, check_from_zero, check_positive, check_unit
from ...conditioning.carry import fit_audio_latent
from ...conditioning.items.appended import AudioConditionByReferenceLatent
from ...conditioning.items.regions import ConditionByWholeLatent
from ...conditioning.streams import Streams
from ...media.reading import read_audio
from ...media.waveforms import fit_audio
from ...models.audio_vae import conform_latent_length
from ..plan import GenerationPlan


@dataclass(frozen=True)
class AudioCondition:
    """A sound that the clip has.

    Args:
        audio: Waveform `[C, N]` or `[B, C, N]` in [-1, 1], or the name of a media file.
        sampling_rate: Samples per second of a waveform.
        noise_scale: 0 keeps the sound exactly (default), 1 ignores it.
        fit: `"crop"` (default) refuses a sound shorter than the clip, `"pad"` fills it up with silence, `"stretch"`
            changes its tempo. A longer sound is cropped.
        start_s: Where in the file the sound begins, in seconds.
    """

    audio: torch.Tensor | str | os.PathLike
    sampling_rate: int | None = None
    noise_scale: float = 0.0
    fit: str = "crop"
    start_s: float = 0.0

    is_reference = False
    stream = "audio"

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if the sound is too short or cannot be read."""
        pipeline._require("audio_vae")
        check_unit(audio_cond_noise_scale=self.noise_scale)
        check_choice("audio_fit", self.fit, ("crop", "pad", "stretch"))
        waveform, rate = self.waveform(plan.duration_s)
        if len(waveform) not in (1, plan.batch_size):
            raise ValueError(
                f"got {len(waveform)} sounds for a batch of {plan.batch_size}; give one, or one per video"
            )
        available = waveform.shape[-1] / rate
        # One latent (40 ms) may be missing: the encoder rounds a clip of equal length up or down.
        if self.fit == "crop" and available < plan.duration_s - 0.04:
            raise ValueError(
                f"the audio lasts {available:.2f} s and the video {plan.duration_s:.2f} s; use longer audio, fewer frames, "
                'or audio_fit="pad" (silence at the end) or "stretch" (another tempo)'
            )

    def waveform(self, duration_s: float | None = None) -> tuple[torch.Tensor, int]:
        """The sound as `[B, C, N]` with its rate, cropped to a duration unless it is to be stretched."""
        check_from_zero(audio_start_s=self.start_s)
        length_s = None if self.fit == "stretch" else duration_s
        if not isinstance(self.audio, torch.Tensor):
            read = read_audio(self.audio, self.start_s, None if length_s is None else self.start_s + length_s)
            if read is None:
                raise ValueError(f"{os.fspath(self.audio)!r} has no sound")
            return read
        check_float_tensors(audio=self.audio)
        rate = self.sampling_rate
        if rate is None:
            raise ValueError("an audio waveform needs its `sampling_rate`")
        check_positive(sampling_rate=rate)
        waveform = self.audio if self.audio.ndim == 3 else self.audio[None]
        if waveform.ndim != 3:
            raise ValueError(f"`audio` has to be [C, N] or [B, C, N] but has shape {tuple(self.audio.shape)}")
        waveform = waveform[..., round(self.start_s * rate) :]
        if not waveform.numel():
            raise ValueError(
                f"`audio` has shape {tuple(self.audio.shape)}, which leaves nothing after `audio_start_s` {self.start_s}"
            )
        return (waveform if length_s is None else waveform[..., : round(length_s * rate)]), rate

    def places(self, plan: GenerationPlan) -> list[str]:
        """The whole sound."""
        return ["the audio stream"]

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the sound."""
        waveform, rate = self.waveform(plan.duration_s)
        if self.fit == "stretch":
            latent = fit_audio_latent(pipeline.encode_audio(waveform, rate), plan.audio.frames, "stretch")
        else:
            latent = pipeline.encode_audio(fit_audio(waveform, plan.duration_s, rate), rate)
        latent = conform_latent_length(latent, plan.audio.frames)
        return Streams([], [ConditionByWholeLatent(latent, self.noise_scale)])


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

    def places(self, plan: GenerationPlan) -> list[str]:
        """References stand beside the sound and may be many."""
        return []

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the reference."""
        latent = pipeline.encode_audio(*self._sound().waveform(plan.duration_s))
        latent = latent[:, :, : plan.audio.frames]
        return Streams([], [AudioConditionByReferenceLatent(latent, strength=self.strength)])

    def _sound(self) -> AudioCondition:
        return AudioCondition(self.audio, self.sampling_rate, fit="pad", start_s=self.start_s)
