"""Image to video with sound."""

from dataclasses import dataclass

from ..conditions import FirstFrameCondition
from . import Arguments, Frames, LTX2GenerationPipeline, Result, run, stage_list, takes


@dataclass(frozen=True)
class _Image:
    """What comes first.

    Args:
        image: One picture for all videos, or a list with one per prompt or per video; each an image, a file name,
            an array `[H, W, 3]` or a tensor `[3, H, W]` of bytes or floats in [0, 1]. `None` is allowed with
            `latents`, whose first frame is kept then.
    """

    image: Frames | None = None


@dataclass(frozen=True)
class ImageToVideoArguments(Arguments, _Image):
    """What the call takes beside the arguments of [`LTX2Pipeline`].

    Args:
        noise_scale: Noise mixed into given `latents` (after the first frame) and `audio_latents`, 0 to 1. Default
            0.0.
        latents: Video latents to start from, as in [`LTX2Pipeline`]. Their first frame is replaced by that of `image`.
    """

    image_crf: int | None = None


class LTX2ImageToVideoPipeline(LTX2GenerationPipeline):
    """Generates a video with sound that begins with a given picture.

    Takes the components and call arguments of diffusers' pipeline of the same name.
    """

    @takes(ImageToVideoArguments)
    def __call__(self, call: ImageToVideoArguments) -> Result:
        """Generate videos with sound whose first frame is a picture.

        The picture is scaled to cover the frame and cropped to its centre, so that it keeps its aspect ratio.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        first = FirstFrameCondition(call.image, call.image_crf, call.latents, call.num_videos_per_prompt)
        return run(self, *call.request(stage_list(self, call.sampling), [first], own_shape_renoise=True))
