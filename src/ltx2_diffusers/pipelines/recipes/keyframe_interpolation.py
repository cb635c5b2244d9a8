"""Video between given pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..conditions import keyframes
from . import Frames, LTX2StagedPipeline, Result, StagedArguments, Streams, Texts, run, stage_list, takes


@dataclass(frozen=True)
class _Images:
    """What comes first.

    Args:
        images: Pictures in any form that [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`] takes.
    """

    images: Sequence[Frames]


@dataclass(frozen=True)
class _Shown(Texts):
    """What comes after the texts."""

    frame_indices: Sequence[int] | None = None
    strengths: float | Sequence[float] = 1.0
    image_crf: int | None = None
    generate_audio: bool = True
    two_stage: bool = True


@dataclass(frozen=True)
class KeyframeArguments(StagedArguments, _Shown, _Images):
    """What the call takes.

    Args:
        frame_indices: Pixel frame of each picture; negative ones count from the end. Default evenly from the first
            frame to the last; a single picture is the first frame.
        strengths: How strongly the pictures are shown, 0 to 1, one number or one each. Default 1.
        image_crf: H.264 quality of the round trip that pictures take, default the checkpoint's; 0 skips it.
        two_stage: Whether to start at half the size and refine at full size (default).
        generate_audio: Whether the clip has sound.
    """

    image_crf: int | None = None
    min_seconds: float = field(default=1.0, kw_only=True)
    max_seconds: float = field(default=20.0, kw_only=True)


class LTX2KeyframeInterpolationPipeline(LTX2StagedPipeline):
    """Generates a video with sound that shows given pictures at given frames and moves between them.

    Every picture, the first frame's too, is shown beside the video as a keyframe, so that it guides without pinning.
    """

    @takes(KeyframeArguments)
    def __call__(self, call: KeyframeArguments) -> Result:
        """Generate videos between pictures.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        pictures = keyframes(call.images, call.frame_indices, call.strengths, call.image_crf)
        streams = Streams(True, call.generate_audio)
        stages = stage_list(self, call.sampling, streams=streams)
        return run(self, *call.request(stages, pictures, streams=streams))
