"""Video between given pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import torch

from ...conditioning.streams import Streams
from ...media.frames import Frames
from ..arguments import StagedArguments, takes
from ..conditions.condition import Condition
from ..conditions.pictures import LTX2VideoCondition
from ..engine import run
from ..output import LTX2PipelineOutput
from ..plan import DEFAULT_SIZE
from ..staged import LTX2StagedPipeline
from ..stages import stage_list


@dataclass(frozen=True)
class _Images:
    """What comes first.

    Args:
        images: Pictures in any form that [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`] takes.
    """

    images: Sequence[Frames]


@dataclass(frozen=True)
class KeyframeArguments(StagedArguments, _Images):
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
    frame_indices: Sequence[int] | None = None
    strengths: float | Sequence[float] = 1.0
    generate_audio: bool = True


class LTX2KeyframeInterpolationPipeline(LTX2StagedPipeline):
    """Generates a video with sound that shows given pictures at given frames and moves between them.

    Every picture, the first frame's too, is shown beside the video as a keyframe, so that it guides without pinning.
    """

    @takes(KeyframeArguments)
    def __call__(self, call: KeyframeArguments) -> LTX2PipelineOutput | tuple:
        """Generate videos between pictures.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        keyframes = _keyframes(call.images, call.frame_indices, call.strengths, call.image_crf, call.num_frames)
        streams = Streams(True, call.generate_audio)
        stages = stage_list(self, call.sampling, streams=streams)
        return run(self, *call.request(stages, keyframes, streams=streams))


def _keyframes(
    images: Sequence[Frames],
    indices: Sequence[int] | None,
    strengths: float | Sequence[float],
    crf: int | None,
    num_frames: int | None,
) -> list[Condition]:
    if not isinstance(images, (list, tuple, np.ndarray, torch.Tensor)) or not len(images):
        raise ValueError(f"`images` has to be a list of at least one picture but is {images!r}; use [image]")
    if indices is None:
        indices = np.linspace(0, (num_frames or DEFAULT_SIZE[2]) - 1, len(images)).round().astype(int).tolist()
    strengths = [strengths] * len(images) if isinstance(strengths, Real) else list(strengths)
    for name, values in (("frame_indices", indices), ("strengths", strengths)):
        if len(values) != len(images):
            raise ValueError(f"`{name}` has {len(values)} entries for {len(images)} `images`; give one each")
    return [
        LTX2VideoCondition(image, frame=index, strength=strength, crf=crf, mode="append")
        for image, index, strength in zip(images, indices, strengths)
    ]
