"""Video to a given sound."""

from dataclasses import dataclass, field

from ..conditions import Sound
from . import LTX2StagedPipeline, Result, Texts, takes
from .two_stage import TwoStageArguments, run_given


@dataclass(frozen=True)
class _Audio:
    """What comes first."""

    audio: Sound | None


@dataclass(frozen=True)
class _Sound(Texts):
    """What comes after the texts."""

    sampling_rate: int | None = None
    audio_start_s: float = 0.0
    audio_cond_noise_scale: float = 0.0
    audio_fit: str = "crop"


@dataclass(frozen=True)
class AudioToVideoArguments(TwoStageArguments, _Sound, _Audio):
    """What the call takes.

    Args:
        audio: The sound: a waveform `[C, N]` or `[B, C, N]` in [-1, 1] of any rate, or the name of a media file. The clip
            takes the window from `audio_start_s` on that is as long as the video.
        audio_cond_noise_scale: 0 keeps the sound exactly and returns the given samples (default). Above it, up to 1, the
            sound is a hint, and a new one is generated and returned; the audio's guidance arguments belong to that and
            are refused otherwise.
    """

    audio: Sound | None = field()
    min_seconds: float = field(init=False, default=1.0)
    max_seconds: float = field(init=False, default=20.0)
    generate_audio: bool = field(init=False, default=True)
    audio_stage: int = field(init=False, default=-1)


class LTX2AudioToVideoPipeline(LTX2StagedPipeline):
    """Generates a video to a sound, which is returned untouched and copied into the saved file where its codec allows."""

    @takes(AudioToVideoArguments)
    def __call__(self, call: AudioToVideoArguments) -> Result:
        """Generate videos to a sound, which is held in every stage and takes no guidance.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        if call.audio is None:
            raise ValueError(
                "`audio` is None; give the sound, or use LTX2TwoStagePipeline for a video without a given one"
            )
        return run_given(self, call)
