"""Sound from text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...checks import MAX_SECONDS, check_most
from . import LTX2StagedPipeline, Result, Size, SoundArguments, Streams, Texts, run, stage_list, takes


@dataclass(frozen=True)
class _Duration(Texts):
    """What comes first.

    Args:
        duration_s: Length in seconds, at least one audio latent (0.04 s). The sound has the nearest number of latents.
    """

    duration_s: float = 5.0


@dataclass(frozen=True)
class TextToAudioArguments(SoundArguments, _Duration):
    """What the call takes.

    Args:
        two_stage: Whether to refine the sound in a second stage; default `False`, as in the reference.
    """

    height: None = field(init=False, default=None)
    width: None = field(init=False, default=None)
    num_frames: None = field(init=False, default=None)
    frame_rate: None = field(init=False, default=None)
    motion_speed: float = field(init=False, default=1.0)
    modality_scale: None = field(init=False, default=None)
    callback_on_step_end_tensor_inputs: Sequence[str] | None = ("audio_latents",)

    def check(self) -> None:
        """The same, and the length of the sound."""
        super().check()
        check_most(MAX_SECONDS, duration_s=self.duration_s)
        if self.duration_s < 0.04:
            raise ValueError(
                f"`duration_s` has to be at least 0.04, the length of an audio latent, but is {self.duration_s}; use 0.04"
            )


class LTX2TextToAudioPipeline(LTX2StagedPipeline):
    """Generates sound alone; `output.save("sound.wav")` writes it."""

    @takes(TextToAudioArguments)
    def __call__(self, call: TextToAudioArguments) -> Result:
        """Generate sounds from text.

        Without a video there is nothing for modality guidance to isolate the sound from.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        call.check()
        # The length of the sound follows from a clip of one frame that lasts as long; no video is made.
        size = Size(num_frames=1, frame_rate=1 / call.duration_s)
        streams = Streams(False, True)
        stages = stage_list(self, call.sampling, streams=streams)
        return run(self, *call.request(stages, size=size, streams=streams))
