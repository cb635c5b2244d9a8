"""The sound of a given video."""

from dataclasses import dataclass
from typing import ClassVar

from ..conditions import WholeVideoCondition, held_streams, read_source
from . import Frames, LTX2StagedPipeline, Result, SoundArguments, Texts, run, stage_list, takes


@dataclass(frozen=True)
class _Video:
    """What comes first.

    Args:
        video: The video: the name of a file, or frames as in
            [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`].
    """

    video: Frames


@dataclass(frozen=True)
class _Rate(Texts):
    """What comes after the texts."""

    frame_rate: float | None = None


@dataclass(frozen=True)
class VideoToAudioArguments(SoundArguments, _Rate, _Video):
    """What the call takes.

    Args:
        frame_rate: Frames per second that the network sees; default the file's, the average one if it varies, or 24.0 for
            frames. Frames of a file of another rate are left out or repeated by their times; saving copies the file as it is.
        height, width: Size in pixels at which the network sees the video, multiples of 32 (64 with two stages); default
            the video's own, reduced to the next multiples. The returned pictures keep their size.
        num_frames: Frames to use from the start; default all. The network sees 8 k + 1 of them, the last one repeated
            as needed; the sound ends with the video.
        two_stage: Whether to start with the video at half the size and refine the sound; default `False`.
    """

    frame_rate: float | None = None
    # The network sees a clip of the next valid length.
    frame_stride: ClassVar[int] = 1


class LTX2VideoToAudioPipeline(LTX2StagedPipeline):
    """Generates the sound of a video, whose pictures are returned untouched; saving copies the packets of a video file."""

    @takes(VideoToAudioArguments)
    def __call__(self, call: VideoToAudioArguments) -> Result:
        """Generate sounds for a video.

        Steps and guidance arguments belong to the sound, the only stream that is generated, and take its presets.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        source = read_source(call.video, call.frame_rate, num_frames=call.num_frames, with_audio=False)
        multiple = self.vae_spatial_compression_ratio * (2 if call.two_stage else 1)
        height, width = (max(side // multiple, 1) * multiple for side in source.pixels.shape[1:3])
        num_frames = source.num_frames + -(source.num_frames - 1) % self.vae_temporal_compression_ratio
        height, width = height if call.height is None else call.height, width if call.width is None else call.width
        size = source.size(height, width, num_frames, call.motion_speed)
        conditions = [WholeVideoCondition(source)]
        stages = stage_list(self, call.sampling, held_streams(conditions))
        return run(self, *call.request(stages, conditions, size))
