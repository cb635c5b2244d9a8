"""What a generation can be held to, as callers give it: pictures, clips, sounds, latents.

A condition is checked before any computation, and turned into condition items once per stage, at that stage's size.
Shapes: F frames, H and W rows and columns of pixels, N samples.
"""

from bisect import bisect_left
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import PIL.Image
import torch

from ...checks import check_choice, check_unit
from ...conditioning.items.appended import VideoConditionByKeyframeIndex
from ...conditioning.items.base import ConditionItem
from ...conditioning.items.latent_index import VideoConditionByLatentIndex
from ...conditioning.items.regions import ConditionByWholeLatent
from ...conditioning.streams import Streams
from ...media.frames import Frames, as_video_frames, check_crf, check_frames, first_picture, read_frames
from ...media.preprocess import fit_cover, normalize_pixels
from ..plan import GenerationPlan


@dataclass(frozen=True)
class LTX2VideoCondition:
    """A picture or clip that the video shows at some place.

    Args:
        frames: An image, an array `[H, W, 3]` or `[F, H, W, 3]`, a tensor `[3, H, W]` or `[F, 3, H, W]`, bytes or
            floats in [0, 255], the name of an image or video file, or a list of these. A clip is cut to 8 k + 1 frames
            and to the end of the video.
        index: Latent frame of the finished video where it goes; negative ones count from the end. Latent frame `i > 0`
            begins at pixel frame `8 * (i - 1) + 1`.
        strength: 1 keeps it exactly, 0 ignores it.
        crf: H.264 quality of the round trip that single images take, default the checkpoint's; 0 skips it.
        frame: Pixel frame of the finished video where it goes, instead of `index`; negative ones count from the end.
        mode: `"replace"` writes it into the video's own latents, which needs a place that begins a latent frame;
            `"append"` shows it beside them. Default `"auto"`: replace at the start, append elsewhere.

    A stage at a lower frame rate shows the frames of a clip that it has, cut to 8 k + 1 again, and a picture that falls
    between two of its frames at the later one; it appends what cannot be replaced there.
    """

    frames: Frames
    index: int = 0
    strength: float = 1.0
    crf: int | None = None
    frame: int | None = None
    mode: str = "auto"

    is_reference = False

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if place, strength or frames are not valid."""
        pipeline._require("vae")
        check_unit(strength=self.strength)
        check_choice("mode", self.mode, ("auto", "replace", "append"))
        start = self._start(plan)
        if self._replaces(start) and start and (start - 1) % 8:
            nearest = (start - 1) // 8 * 8 + 1
            raise ValueError(
                f"frame {start} does not begin a latent frame, so nothing can be replaced there; use frame {nearest} or "
                f'{nearest + 8}, or mode="append"'
            )
        check_crf("crf", self._crf(pipeline), *check_frames(self.frames))

    def places(self, plan: GenerationPlan) -> list[str]:
        """The pixel frame where it begins, and the latent frames that it replaces after that."""
        start = self._start(plan)
        places = [f"video frame {start}"]
        if self._replaces(start):
            count = len(self._taken(check_frames(self.frames)[0], plan))
            first = (start + 7) // 8
            places += [f"latent frame {i} of the video" for i in range(first, first + (count + 7) // 8)]
        return places

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the frames at the stage's size."""
        start = self._start(plan)
        # Two frames tell a clip from a picture, even where only one of them fits.
        pixels = read_frames(self.frames, max(2, plan.clip_frames - start))
        pixels = as_video_frames(pixels, self._crf(pipeline))[self._taken(len(pixels), plan)]
        latent = pipeline.encode_video(normalize_pixels(fit_cover(pixels, plan.height, plan.width)))
        first = bisect_left(plan.shown_frames, start)
        if self._replaces(start) and (first == 0 or first % 8 == 1):
            return _video_item(VideoConditionByLatentIndex(latent, self.strength, (first + 7) // 8))
        return _video_item(VideoConditionByKeyframeIndex(latent, first, self.strength))

    def _taken(self, count: int, plan: GenerationPlan) -> list[int]:
        """Which of `count` frames a stage shows: those it has up to the end of the video, 8 k + 1 of them."""
        start = self._start(plan)
        shown = [frame - start for frame in plan.shown_frames if 0 <= frame - start < count]
        return shown[: (len(shown) - 1) // 8 * 8 + 1] or [0]

    def _crf(self, pipeline: Any) -> int:
        return pipeline.preset.image_crf if self.crf is None else self.crf

    def _replaces(self, start: int) -> bool:
        return self.mode == "replace" or (self.mode == "auto" and start == 0)

    def _start(self, plan: GenerationPlan) -> int:
        """Pixel frame where the condition begins."""
        if self.frame is not None:
            if self.index:
                raise ValueError(f"give either `index` ({self.index}) or `frame` ({self.frame}), not both")
            return _counted("frame", self.frame, plan.clip_frames)
        index = _counted("index", self.index, (plan.clip_frames - 1) // 8 + 1)
        return max(0, 8 * (index - 1) + 1)


@dataclass(frozen=True)
class WholeVideoCondition:
    """A video that is given as a whole, for which only sound is made.

    Args:
        frames: As in [`LTX2VideoCondition`].
        noise_scale: 0 keeps the video exactly (default), 1 ignores it.
    """

    frames: Frames
    noise_scale: float = 0.0

    is_reference = False

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if the video is shorter than the clip."""
        check_unit(noise_scale=self.noise_scale)
        available, _ = check_frames(self.frames)
        if available < plan.clip_frames:
            raise ValueError(f"the video has {available} frames, fewer than `num_frames` {plan.clip_frames}")

    def places(self, plan: GenerationPlan) -> list[str]:
        """The whole video."""
        return ["the video stream"]

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Encode the video at the stage's size."""
        pixels = read_frames(self.frames, plan.clip_frames)[plan.shown_frames]
        latent = pipeline.encode_video(normalize_pixels(fit_cover(pixels, plan.height, plan.width)))
        return _video_item(ConditionByWholeLatent(latent, self.noise_scale))


def _video_item(item: ConditionItem) -> Streams:
    return Streams([item], [])


def _counted(name: str, value: int, count: int) -> int:
    """A place from 0 to `count - 1`; negative values count from the end."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"`{name}` has to be a whole number but is {value!r}; use 0")
    if not -count <= value < count:
        raise ValueError(f"`{name}` {value} lies outside the clip; use {-count} to {count - 1}")
    return int(value) % count


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

    def places(self, plan: GenerationPlan) -> list[str]:
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
