"""Parts of a given clip that are made anew while the rest is kept.

Shapes: F pixel frames, H and W rows and columns of pixels, h and w latent rows and columns.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import PIL.Image
import torch
from torch.nn import functional

from ...conditioning.items.regions import ConditionOutsideRegion, tokens_in_time
from ...conditioning.streams import Streams
from ...media.preprocess import fit_cover, normalize_pixels
from ...models.audio_vae import conform_latent_length
from ..plan import ClipPlan
from .condition import Condition, Opened, Studio
from .source import Waveform

Mask = torch.Tensor | np.ndarray | PIL.Image.Image


@dataclass(frozen=True)
class RetakeCondition(Condition):
    """Keeps a clip outside a stretch of time.

    Args:
        start_s, end_s: The stretch that is made anew, in seconds.
        pixels: Frames `[F, H, W, 3]` in [0, 255] of the clip; `None` leaves the video alone.
        audio: Its sound; `None` leaves the audio alone.
        region: Where the pictures are made anew during the stretch, a mask in [0, 1] `[H, W]` or one per frame
            `[F, H, W]`, or an image; any size. A latent that holds any pixel of it is made anew. Default everywhere.
    """

    start_s: float
    end_s: float
    pixels: torch.Tensor | None = None
    audio: Waveform | None = None
    region: Mask | None = None

    def opened(self, studio: Studio, plan: ClipPlan) -> "OpenedRetake":
        """Check that the stretch lies within the clip."""
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
        return OpenedRetake(studio, plan, self)


@dataclass(frozen=True)
class OpenedRetake(Opened):
    """A clip that is kept outside a stretch.

    Args:
        studio: Encodes it.
        clip: Sizes of the finished clip.
        given: The condition, whose clip is read already.
    """

    studio: Studio
    clip: ClipPlan
    given: RetakeCondition

    @property
    def places(self) -> list[str]:
        """The streams that are kept in part."""
        given = (("the video stream", self.given.pixels), ("the audio stream", self.given.audio))
        return [stream for stream, value in given if value is not None]

    def check(self, plan: ClipPlan) -> None:
        """Raise `ValueError` if the region does not fit a stage, or leaves nothing of it to make anew."""
        if self.given.pixels is None or self.given.region is None:
            return
        tools = plan.tools.video
        marked = tools.patchifier.patchify(_region_mask(self.given.region, plan)[None].float())
        if not (marked * tokens_in_time(*self._video_stretch, tools, marked.device)).any():
            raise ValueError(
                "`region` is empty during the stretch, so that nothing would be made anew; mark at least one pixel by 1"
            )

    def items(self, plan: ClipPlan) -> Streams:
        """Encode the clip at the stage's size."""
        video, audio = [], []
        if self.given.pixels is not None:
            pixels = normalize_pixels(fit_cover(self.given.pixels[plan.shown_frames], plan.height, plan.width))
            region = None if self.given.region is None else _region_mask(self.given.region, plan).float()
            video = [ConditionOutsideRegion(self.studio.encode_video(pixels), *self._video_stretch, region)]
        if self.given.audio is not None:
            # The last latent may end before the video does, and stands for the rest.
            last_s = plan.tools.audio.positions()[0, 0, -1].mean().item()
            start_s = min(self.given.start_s, last_s)
            audio = [ConditionOutsideRegion(self._audio_latent, start_s, self.given.end_s)]
        return Streams(video, audio)

    @property
    def _video_stretch(self) -> tuple[float, float]:
        """The stretch in the seconds in which the video's positions are counted."""
        return self.given.start_s * self.clip.motion_speed, self.given.end_s * self.clip.motion_speed

    @cached_property
    def _audio_latent(self) -> torch.Tensor:
        sound = self.given.audio
        samples = sound.samples[..., : round(self.clip.duration_s * sound.rate)]
        return conform_latent_length(self.studio.encode_audio(samples, sound.rate), self.clip.audio.frames)


def _region_mask(region: Mask, plan: ClipPlan) -> torch.Tensor:
    """The region as a mask of latents `[1, F', h, w]`."""
    mask = torch.as_tensor(np.array(region.convert("L")) / 255 if isinstance(region, PIL.Image.Image) else region)
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
