"""Parts of a given clip that are made anew while the rest is kept.

Shapes: F pixel frames, H and W rows and columns of pixels, h and w latent rows and columns.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch.nn import functional

from ...conditioning.items.regions import ConditionOutsideRegion, tokens_in_time
from ...conditioning.streams import Streams
from ...media.preprocess import fit_cover, normalize_pixels
from ...models.audio_vae import conform_latent_length
from ..plan import GenerationPlan

Mask = torch.Tensor | np.ndarray | PIL.Image.Image


@dataclass(frozen=True)
class RetakeCondition:
    """Keeps a clip outside a stretch of time.

    Args:
        start_s, end_s: The stretch that is made anew, in seconds.
        pixels: Frames `[F, H, W, 3]` in [0, 255] of the clip; `None` leaves the video alone.
        audio: Waveform `[B, C, N]` and its sampling rate; `None` leaves the audio alone.
        region: Where the pictures are made anew during the stretch, a mask in [0, 1] `[H, W]` or one per frame
            `[F, H, W]`, or an image; any size. A latent that holds any pixel of it is made anew. Default everywhere.
    """

    start_s: float
    end_s: float
    pixels: torch.Tensor | None = None
    audio: tuple[torch.Tensor, int] | None = None
    region: Mask | None = None

    is_reference = False

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if the stretch or the region lies outside the clip."""
        pipeline._require(*(["vae"] if self.pixels is not None else []), *(["audio_vae"] if self.audio else []))
        if not 0 <= self.start_s < self.end_s:
            raise ValueError(f"`start_s` {self.start_s} and `end_s` {self.end_s} have to be 0 <= start_s < end_s")
        if self.start_s >= plan.duration_s:
            raise ValueError(
                f"`start_s` {self.start_s} lies behind the end of the clip; it lasts {plan.duration_s:.3f} s"
            )
        # One audio latent (40 ms) of slack: a file rounds its duration to frames.
        if self.end_s > plan.duration_s + 0.04:
            raise ValueError(
                f"`end_s` {self.end_s} lies behind the end of the clip; it lasts {plan.duration_s:.3f} s, use at most that"
            )
        if self.pixels is not None and self.region is not None:
            tools = pipeline._tools(plan).video
            marked = tools.patchifier.patchify(self._mask(plan)[None].float())
            if not (marked * tokens_in_time(*self._video_stretch(plan), tools, marked.device)).any():
                raise ValueError(
                    "`region` is empty during the stretch, so that nothing would be made anew; mark at least one pixel by 1"
                )

    def places(self, plan: GenerationPlan) -> list[str]:
        """The streams that are kept in part."""
        given = (("the video stream", self.pixels), ("the audio stream", self.audio))
        return [stream for stream, value in given if value is not None]

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the clip at the stage's size."""
        video, audio = [], []
        if self.pixels is not None:
            pixels = normalize_pixels(fit_cover(self.pixels[plan.shown_frames], plan.height, plan.width))
            region = None if self.region is None else self._mask(plan).float()
            video = [ConditionOutsideRegion(pipeline.encode_video(pixels), *self._video_stretch(plan), region)]
        if self.audio is not None:
            waveform, rate = self.audio
            latent = pipeline.encode_audio(waveform[..., : round(plan.duration_s * rate)], rate)
            latent = conform_latent_length(latent, plan.audio.frames)
            # The last latent may end before the video does, and stands for the rest.
            last_s = pipeline._tools(plan).audio.positions()[0, 0, -1].mean().item()
            audio = [ConditionOutsideRegion(latent, min(self.start_s, last_s), self.end_s)]
        return Streams(video, audio)

    def _video_stretch(self, plan: GenerationPlan) -> tuple[float, float]:
        """The stretch in the seconds in which the video's positions are counted."""
        return self.start_s * plan.motion_speed, self.end_s * plan.motion_speed

    def _mask(self, plan: GenerationPlan) -> torch.Tensor:
        """The region as a mask of latents `[1, F', h, w]`."""
        mask = np.array(self.region.convert("L")) / 255 if isinstance(self.region, PIL.Image.Image) else self.region
        mask = torch.as_tensor(mask)
        mask = mask[None] if mask.ndim == 2 else mask
        if mask.ndim != 3 or len(mask) not in (1, plan.clip_frames):
            raise ValueError(
                f"`region` has to be a mask [H, W] or [{plan.clip_frames}, H, W] but has shape {tuple(mask.shape)}"
            )
        if mask.shape[1] < plan.video.height or mask.shape[2] < plan.video.width:
            raise ValueError(
                f"`region` has {mask.shape[1]} x {mask.shape[2]} pixels, too few for {plan.video.height} x "
                f"{plan.video.width} latents; give it the size of the video"
            )
        marked = functional.adaptive_max_pool2d((mask > 0.5).float(), plan.video[3:])
        if len(marked) == 1:
            return marked.bool().expand(plan.video.frames, -1, -1)[None]
        # A frame of a stage at a lower rate stands for those before it that the stage leaves out, too.
        between = marked.tensor_split([frame + 1 for frame in plan.shown_frames[:-1]])
        marked = torch.stack([frames.amax(0) for frames in between])
        # The first latent frame holds one pixel frame, every other as many as the rest shares out evenly.
        later = marked[1:].unflatten(0, (plan.video.frames - 1, -1)).amax(1)
        return torch.cat([marked[:1], later]).bool()[None]
