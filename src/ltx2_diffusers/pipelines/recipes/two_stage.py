"""Text, pictures and sound to video in two stages."""

from dataclasses import dataclass, field

from ..conditions import AudioCondition, Condition, ImageCondition, as_conditions, held_streams
from . import GivenArguments, LTX2StagedPipeline, Result, StagedArguments, Streams, check_said, run, stage_list, takes


@dataclass(frozen=True)
class TwoStageArguments(StagedArguments, GivenArguments):
    """What the call takes.

    Args:
        two_stage: Whether to start at half the size and refine at full size (default), or to run the guided stage alone, at
            full size.
        num_frames: As in [`LTX2Pipeline`]; 121 where `audio` is given.
    """

    min_seconds: float = field(default=1.0, kw_only=True)
    max_seconds: float = field(default=20.0, kw_only=True)


class LTX2TwoStagePipeline(LTX2StagedPipeline):
    """Generates at half the size with guidance, enlarges the latents, and refines both streams at full size.

    Everything that other pipelines condition on may be given, and combined: it is encoded anew at each stage's size.
    Components are those of [`LTX2Pipeline`], `latent_upsampler` and optionally `temporal_upsampler` and
    `stage_2_transformer`.
    """

    @takes(TwoStageArguments)
    def __call__(self, call: TwoStageArguments) -> Result:
        """Generate videos with sound in two stages.

        Steps and guidance belong to the first stage; a checkpoint of the distilled kind runs both stages without guidance.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        return run_given(self, call)


def run_given(pipeline: LTX2StagedPipeline, call: TwoStageArguments) -> Result:
    """Generate from text and whatever pictures, references and sound a call gives."""
    conditions: list[Condition] = [] if call.image is None else [ImageCondition(call.image)]
    conditions += as_conditions("conditions", call.conditions)
    # References stand after the keyframes in the sequence, as IC-LoRAs were trained.
    conditions += as_conditions("reference_conditions", call.reference_conditions)
    if call.audio is None:
        names = ("sampling_rate", "audio_cond_noise_scale", "audio_fit", "audio_start_s")
        check_said("there is no `audio`", call, *names)
    else:
        if not call.generate_audio:
            raise ValueError("`audio` is given but `generate_audio` is False; leave one of them out")
        how = (call.audio_cond_noise_scale, call.audio_fit, call.audio_start_s)
        conditions.append(AudioCondition(call.audio, call.sampling_rate, *how))
    streams = Streams(True, call.generate_audio)
    stages = stage_list(pipeline, call.sampling, held_streams(conditions), streams)
    return run(pipeline, *call.request(stages, conditions, streams=streams))
