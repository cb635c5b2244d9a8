"""A stretch of a clip made anew."""

from dataclasses import dataclass

from ..conditions import Conditions, Mask, Sound, as_conditions, held_streams, read_source, retake_conditions
from . import Frames, LTX2StagedPipeline, Result, StagedArguments, Streams, Texts, run, stage_list, takes


@dataclass(frozen=True)
class _Stretch:
    """What comes first.

    Args:
        video: The clip: the name of a file, or frames as in
            [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`].
        start_s, end_s: The stretch, in seconds from the first picture.
    """

    video: Frames
    start_s: float
    end_s: float


@dataclass(frozen=True)
class _Made(Texts):
    """What comes after the texts."""

    region: Mask | None = None
    regenerate_video: bool = True
    regenerate_audio: bool | None = None
    audio: Sound | None = None
    sampling_rate: int | None = None
    conditions: Conditions = None
    frame_rate: float | None = None


@dataclass(frozen=True)
class RetakeArguments(StagedArguments, _Made, _Stretch):
    """What the call takes.

    Args:
        region: Where the pictures are made anew during the stretch: a mask in [0, 1] `[H, W]` or `[F, H, W]`, or an
            image; white is new. Default everywhere.
        regenerate_video: Whether the pictures are made anew. Default `True`.
        regenerate_audio: Whether the sound is made anew. Default `None`: if the clip has sound.
        audio: Sound of the clip, a waveform `[C, N]` or `[B, C, N]` in [-1, 1] or a file name; default that of the file.
        sampling_rate: Samples per second of a waveform.
        conditions: Pictures and clips to show within the stretch, appended keyframes for example.
        frame_rate: Frames per second; default the file's, the average one if it varies, or 24.0 for frames. Frames of a file
            of another rate are left out or repeated by their times.
        height, width, num_frames: Size of the result; default the clip's own, which has to be valid: multiples of 32 (64
            with two stages) and 8 k + 1 frames.
        two_stage: Whether to start at half the size and refine at full size; default `False`.
    """

    frame_rate: float | None = None
    two_stage: bool = False


class LTX2RetakePipeline(LTX2StagedPipeline):
    """Makes a stretch of time of a clip anew, in its pictures, its sound or both; all other latents are kept exactly."""

    @takes(RetakeArguments)
    def __call__(self, call: RetakeArguments) -> Result:
        """Make a stretch of a clip anew.

        A latent frame holds 8 pixel frames (the first one 1) and an audio latent 40 ms; those that overlap the stretch are
        made anew. A stream that is left alone is returned as it was given, and copied when a file is saved; of the others,
        kept latents pass through the decoder once.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        source = read_source(call.video, call.frame_rate, call.audio, call.sampling_rate, call.num_frames)
        if call.num_frames is None and (fitting := self.sizes.whole_frames(source.num_frames)) != source.num_frames:
            raise ValueError(
                f"`video` has {source.num_frames} frames at a `frame_rate` of {source.frame_rate:g}, but only 8 k + 1 frames can "
                f"be made anew; use the first ones with `num_frames`={fitting}"
            )
        made = (call.regenerate_video, call.regenerate_audio)
        conditions = retake_conditions(source, call.start_s, call.end_s, call.region, *made)
        conditions += as_conditions("conditions", call.conditions)
        streams = Streams(True, source.audio is not None)
        stages = stage_list(self, call.sampling, held_streams(conditions), streams)
        height, width = (
            own if given is None else given for given, own in zip((call.height, call.width), source.pixels.shape[1:3])
        )
        size = source.size(height, width, source.num_frames, call.motion_speed)
        return run(self, *call.request(stages, conditions, size, streams))
