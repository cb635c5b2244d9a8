"""The pictures that videos begin with.

Shapes: B videos of the batch, C channels, F latent frames, h and w latent rows and columns, H and W rows and columns of
pixels.
"""

from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch

from ..conditioning.items.latent_index import VideoConditionByLatentIndex
from ..media.preprocess import fit_cover, normalize_pixels
from ..sampling.denoiser import Streams
from .frames import Frames, as_video_frames, check_crf, first_picture, read_frames
from .plan import GenerationPlan


@dataclass(frozen=True)
class FirstFrameCondition:
    """Pictures that the videos of a batch begin with, or the first frame of given latents.

    Args:
        image: One picture for all videos, or a list with one per prompt or per video; each an image, a file name, an
            array `[H, W, 3]` or a tensor `[3, H, W]` of bytes or floats in [0, 1]. `None` keeps the first frame of
            `latents`.
        crf: H.264 quality of the round trip that pictures take, default the checkpoint's; 0 skips it.
        latents: The caller's video latents: un-normalised `[B, C, F, h, w]`, or packed and normalised
            `[B, F * h * w, C]`.
        videos_per_prompt: Consecutive videos of the batch that share a prompt.
    """

    image: Frames | None
    crf: int | None = None
    latents: torch.Tensor | None = None
    videos_per_prompt: int = 1

    is_reference = False

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if there is no picture, or pictures do not fit the batch."""
        pipeline._require("vae")
        if self.image is None:
            if self.latents is None:
                raise ValueError("`image` is None; give an image, a list of images, an array, a tensor or a file name")
            return
        pictures = self._pictures()
        counts = sorted({1, plan.batch_size // self.videos_per_prompt, plan.batch_size})
        if len(pictures) not in counts:
            raise ValueError(
                f"`image` holds {len(pictures)} pictures; this call needs {' or '.join(map(str, counts))}"
            )
        for picture in pictures:
            check_crf("image_crf", self._crf(pipeline), 1, picture.dtype == torch.uint8)

    def places(self, plan: GenerationPlan) -> list[str]:  # noqa: ARG002 (a condition is asked with its plan)
        """The start of the video."""
        return ["video frame 0", "latent frame 0 of the video"]

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the pictures at the stage's size."""
        latent = self._first_latent(pipeline, plan) if self.image is None else self._encoded(pipeline, plan)
        return Streams([VideoConditionByLatentIndex(latent)], [])

    def picture(self) -> PIL.Image.Image | None:
        """The first picture, to be shown to a language model; `None` if the video continues latents."""
        if self.image is None:
            return None
        return first_picture(self.image[0] if isinstance(self.image, (list, tuple)) else self.image, float_range=1.0)

    def _encoded(self, pipeline: Any, plan: GenerationPlan) -> torch.Tensor:
        clips = [
            fit_cover(as_video_frames(picture, self._crf(pipeline)), plan.height, plan.width)
            for picture in self._pictures()
        ]
        latent = torch.cat([pipeline.encode_video(normalize_pixels(clip)) for clip in clips])
        return latent if len(latent) == 1 else latent.repeat_interleave(plan.batch_size // len(latent), 0)

    def _first_latent(self, pipeline: Any, plan: GenerationPlan) -> torch.Tensor:
        if self.latents.ndim == 5:
            return pipeline.vae.normalize_latents(self.latents[:, :, :1].to(pipeline._execution_device, torch.float32))
        tools = pipeline._tools(plan).video
        tokens = self.latents[:, : tools.tokens_per_frame]
        return tools.patchifier.unpatchify(tokens, tools.target_shape._replace(frames=1))

    def _pictures(self) -> list[torch.Tensor]:
        """Pixels `[1, H, W, 3]` of each picture, which may differ in size."""
        images = self.image if isinstance(self.image, (list, tuple)) else [self.image]
        return [picture[None] for image in images for picture in read_frames(image, float_range=1.0, name="image")]

    def _crf(self, pipeline: Any) -> int:
        return pipeline.preset.image_crf if self.crf is None else self.crf
