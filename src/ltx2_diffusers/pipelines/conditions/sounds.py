"""Sounds that a clip has, and sounds that it follows.

Shapes: B sounds of the batch, C channels, N samples.
"""

import os
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ... import checks, conditioning
from ...media import reading, waveforms
from ...models.audio_vae import conform_latent_length
from ..plan import ClipPlan
from .condition import Condition, Items, Opened, Studio, Waveform, audio_item

Sound = torch.Tensor | str | os.PathLike


MAX_PEAK = 16.0
"""Loud sounds exceed 1 by some decibels; whole numbers that stand for samples exceed this."""


def read_waveform(
    audio: Sound, sampling_rate: int | None = None, start_s: float = 0.0, length_s: float | None = None
) -> Waveform:
    """Read a sound.

    Args:
        audio: Samples `[C, N]` or `[B, C, N]` in [-1, 1], or the name of a media file.
        sampling_rate: Samples per second of samples.
        start_s: Where in it the sound begins, in seconds.
        length_s: Most seconds to read; default all.
    """
    checks.check_from_zero(audio_start_s=start_s)
    if not isinstance(audio, torch.Tensor):
        if sampling_rate is not None:
            raise ValueError(
                f"`sampling_rate` is {sampling_rate}, but `audio` {str(audio)!r} is a file and says its own; leave it out"
            )
        path = os.fspath(audio)
        read = reading.read_audio(audio, start_s, None if length_s is None else start_s + length_s)
        if read is None:
            raise ValueError(f"{path!r} has no sound")
        return Waveform(*read, None if start_s else path)
    checks.check_float_tensors(audio=audio)
    if sampling_rate is None:
        raise ValueError("an audio waveform needs its `sampling_rate`")
    checks.check_positive(sampling_rate=sampling_rate)
    if (peak := audio.detach().abs().max().item()) > MAX_PEAK:
        raise ValueError(f"`audio` has to lie in [-1, 1] but reaches {peak:g}; divide 16-bit samples by 32768")
    samples = audio if audio.ndim == 3 else audio[None]
    if samples.ndim != 3:
        raise ValueError(f"`audio` has to be [C, N] or [B, C, N] but has shape {tuple(audio.shape)}")
    samples = samples[..., round(start_s * sampling_rate) :]
    if not samples.numel():
        raise ValueError(
            f"`audio` has shape {tuple(audio.shape)}, which leaves nothing after `audio_start_s` {start_s}"
        )
    return Waveform(samples if length_s is None else samples[..., : round(length_s * sampling_rate)], sampling_rate)


@dataclass(frozen=True)
class AudioCondition(Condition):
    """A sound that the clip has.

    Args:
        audio: Waveform `[C, N]` or `[B, C, N]` in [-1, 1], the name of a media file, or a sound that is read already.
        sampling_rate: Samples per second of a waveform.
        noise_scale: 0 keeps the sound exactly (default), 1 ignores it.
        fit: `"crop"` (default) refuses a sound shorter than the clip, `"pad"` fills it up with silence, `"stretch"`
            changes its tempo. A longer sound is cropped.
        start_s: Where in the file the sound begins, in seconds.
    """

    audio: Sound | Waveform
    sampling_rate: int | None = None
    noise_scale: float = 0.0
    fit: str = "crop"
    start_s: float = 0.0
    stream = "audio"
    sets_length = True

    @property
    def holds(self) -> bool:
        """Without noise the sound is kept."""
        return self.noise_scale == 0.0

    def opened(self, studio: Studio, plan: ClipPlan) -> "OpenedSound":
        """Read as much of the sound as the clip is long, or all of it to be stretched."""
        checks.check_unit(audio_cond_noise_scale=self.noise_scale)
        checks.check_choice("audio_fit", self.fit, ("crop", "pad", "stretch"))
        sound = self.audio
        if not isinstance(sound, Waveform):
            length_s = None if self.fit == "stretch" else plan.duration_s
            sound = read_waveform(sound, self.sampling_rate, self.start_s, length_s)
        check_batch(sound, plan)
        # One latent (40 ms) may be missing: the encoder rounds a clip of equal length up or down.
        if self.fit == "crop" and sound.duration_s < plan.duration_s - 0.04:
            raise ValueError(
                f"the audio lasts {sound.duration_s:.2f} s and the video {plan.duration_s:.2f} s; use longer `audio`, "
                'fewer frames (`num_frames`), a higher `frame_rate`, or audio_fit="pad" (silence at the end) or "stretch" (another tempo)'
            )
        # A sound that is only a hint, or played at another tempo, is not handed over.
        stretched = self.fit == "stretch"
        original = sound if self.holds and not stretched else None
        return OpenedSound(studio, plan, sound, self.noise_scale, stretched, original)


@dataclass(frozen=True)
class OpenedSound(Opened):
    """A sound to hold a clip to.

    Args:
        studio: Encodes it.
        clip: Sizes of the finished clip.
        sound: The sound.
        noise_scale: See [`AudioCondition`].
        stretched: Whether its tempo changes to fill the clip.
        original: The sound as it was given, if it is handed over.
    """

    studio: Studio
    clip: ClipPlan
    sound: Waveform
    noise_scale: float
    stretched: bool
    original: Waveform | None

    @property
    def places(self) -> list[str]:
        """The whole sound."""
        return ["the audio stream"]

    def items(self, plan: ClipPlan) -> Items:
        """The encoded sound; every stage's is as long as the clip's."""
        return audio_item(conditioning.ConditionByWholeLatent(self._latent, self.noise_scale))

    @cached_property
    def _latent(self) -> torch.Tensor:
        samples, rate, frames = self.sound.samples, self.sound.rate, self.clip.audio.frames
        if self.stretched:
            latent = conditioning.stretch_audio_latent(self.studio.encode_audio(samples, rate), frames)
        else:
            latent = self.studio.encode_audio(waveforms.fit_audio(samples, self.clip.duration_s, rate), rate)
        return conform_latent_length(latent, frames)


@dataclass(frozen=True)
class LTX2AudioReferenceCondition(Condition):
    """A sound that is shown to the model beside the one it makes, for LoRAs trained with such references.

    Args:
        audio: Waveform `[C, N]` or `[B, C, N]` in [-1, 1], or the name of a media file. It is cut to the length of the
            clip and may be shorter.
        sampling_rate: Samples per second of a waveform.
        strength: 1 shows it exactly (default), 0 ignores it.
        start_s: Where in the sound the reference begins, in seconds. Default 0.0.
    """

    audio: Sound
    sampling_rate: int | None = None
    strength: float = 1.0
    start_s: float = 0.0
    is_reference = True
    stream = "audio"

    def opened(self, studio: Studio, plan: ClipPlan) -> "OpenedReferenceSound":
        """Read at most as much of the sound as the clip is long."""
        checks.check_unit(strength=self.strength)
        checks.check_from_zero(start_s=self.start_s)
        sound = read_waveform(self.audio, self.sampling_rate, self.start_s, plan.duration_s)
        check_batch(sound, plan)
        return OpenedReferenceSound(studio, sound, self.strength)


@dataclass(frozen=True)
class OpenedReferenceSound(Opened):
    """A reference sound; places beside the clip's own sound may be many."""

    studio: Studio
    sound: Waveform
    strength: float

    def refitted(self, plan: ClipPlan) -> "OpenedReferenceSound":
        """Cut to the length of the clip."""
        samples = self.sound.samples[..., : round(plan.duration_s * self.sound.rate)]
        return OpenedReferenceSound(self.studio, replace(self.sound, samples=samples), self.strength)

    def items(self, plan: ClipPlan) -> Items:
        """The encoded reference."""
        latent = self._latent[:, :, : plan.audio.frames]
        return audio_item(conditioning.AudioConditionByReferenceLatent(latent, strength=self.strength))

    @cached_property
    def _latent(self) -> torch.Tensor:
        return self.studio.encode_audio(self.sound.samples, self.sound.rate)


def check_batch(sound: Waveform, plan: ClipPlan) -> None:
    """There has to be one sound for all videos, or one each."""
    if len(sound.samples) not in (1, plan.batch_size):
        raise ValueError(
            f"got {len(sound.samples)} sounds for a batch of {plan.batch_size}; give one, or one per video"
        )
