"""Pictures and clips that a video shows at some place or at its start, and reference videos that it follows (IC-LoRA).

Shapes: B videos of the batch, C channels, F frames (latent ones beside h and w), H and W rows and columns of pixels, h and w
latent rows and columns.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Integral
from typing import ClassVar

import numpy as np
import PIL.Image
import torch

from ... import checks, conditioning
from ...media.frames import Frames, as_image, as_video_frames, check_crf, one_picture, rate_to_read, read_frames
from ...media.preprocess import fitted_frames, subsampled_frames
from ..plan import ClipPlan
from .condition import Condition, Items, Opened, Studio, video_item


@dataclass(frozen=True)
class LTX2VideoCondition(Condition):
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
        frame_rate: Frames per second that are read of a video file. Default `None`, the rate of the generated video, so
            that the clip keeps its speed: frames are left out or repeated by their times. `"source"` takes the file's
            frames one by one.

    A stage at a lower frame rate shows the frames of a clip that it has, cut to 8 k + 1 again, and a picture that falls
    between two of its frames at the later one; it appends what cannot be replaced there.
    """

    frames: Frames
    index: int = 0
    strength: float = 1.0
    crf: int | None = None
    frame: int | None = None
    mode: str = "auto"
    frame_rate: float | str | None = None
    arguments: ClassVar[Mapping[str, str]] = {}
    """Names of the arguments of a call that the fields come from, for messages."""

    @property
    def shows_picture(self) -> bool:
        """Always."""
        return True

    def opened(self, studio: Studio, plan: ClipPlan) -> "OpenedPictures":
        """Check the place and read the frames that the clip can show."""
        checks.check_unit(**{self._argument("strength"): self.strength})
        checks.check_choice("mode", self.mode, ("auto", "replace", "append"))
        start, replaces = self.place(plan)
        # Two frames tell a clip from a picture, even where only one of them fits.
        rate = rate_to_read(self.frame_rate, self.frames, plan.frame_rate)
        limit = max(2, plan.clip_frames - start)
        pixels = read_frames(self.frames, limit, name=self._argument("frames"), frame_rate=rate)
        crf = studio.image_crf if self.crf is None else self.crf
        check_crf(self._argument("crf"), crf, pixels)
        return OpenedPictures(studio, plan, self, pixels, start, replaces, crf)

    def place(self, plan: ClipPlan) -> tuple[int, bool]:
        """Pixel frame of the finished clip where it begins, and whether it is written into the video's own latents."""
        start, stride = self._start(plan), plan.sizes.temporal_ratio
        replaces = self.mode == "replace" or (self.mode == "auto" and start == 0)
        if replaces and start and (start - 1) % stride:
            nearest = (start - 1) // stride * stride + 1
            raise ValueError(
                f"frame {start} does not begin a latent frame, so nothing can be replaced there; use frame {nearest} or "
                f'{nearest + stride}, or mode="append"'
            )
        return start, replaces

    def _argument(self, field: str) -> str:
        return self.arguments.get(field, field)

    def _start(self, plan: ClipPlan) -> int:
        """Pixel frame where the condition begins."""
        if self.frame is not None:
            if self.index:
                raise ValueError(f"give either `index` ({self.index}) or `frame` ({self.frame}), not both")
            return _counted(self._argument("frame"), self.frame, plan.clip_frames)
        stride = plan.sizes.temporal_ratio
        index = _counted("index", self.index, (plan.clip_frames - 1) // stride + 1)
        return max(0, stride * (index - 1) + 1)


class ImageCondition(LTX2VideoCondition):
    """What a call gives as `image`."""

    arguments: ClassVar[Mapping[str, str]] = {"frames": "image", "crf": "image_crf"}


@dataclass(frozen=True)
class KeyframeCondition(LTX2VideoCondition):
    """One of the `images` of a call.

    Args:
        share: Where it goes between the first frame of the clip and the last, 0 to 1, instead of a `frame`.
    """

    share: Fraction | None = None
    arguments: ClassVar[Mapping[str, str]] = {
        "frames": "images",
        "frame": "frame_indices",
        "strength": "strengths",
        "crf": "image_crf",
    }

    def _start(self, plan: ClipPlan) -> int:
        return super()._start(plan) if self.share is None else round(self.share * (plan.clip_frames - 1))


@dataclass(frozen=True)
class OpenedPictures(Opened):
    """A picture or clip at its place.

    Args:
        studio: Encodes it.
        clip: Sizes of the finished clip.
        given: The condition.
        pixels: Frames `[F, H, W, 3]` in [0, 255], at least those that fit into the clip.
        start: Pixel frame of the finished clip where it begins.
        replaces: Whether it is written into the video's own latents rather than shown beside them.
        crf: See [`LTX2VideoCondition`].
    """

    studio: Studio
    clip: ClipPlan
    given: LTX2VideoCondition
    pixels: torch.Tensor
    start: int
    replaces: bool
    crf: int

    def refitted(self, plan: ClipPlan) -> "OpenedPictures":
        """At its place in a clip of another length; negative places are counted anew."""
        start, replaces = self.given.place(plan)
        return replace(self, clip=plan, start=start, replaces=replaces)

    @property
    def picture(self) -> PIL.Image.Image:
        """The first frame."""
        return as_image(self.pixels[0])

    @property
    def places(self) -> list[str]:
        """The pixel frame where it begins, and the latent frames that it replaces after that."""
        places = [f"video frame {self.start}"]
        if self.replaces:
            stride = self.clip.sizes.temporal_ratio
            first, count = (self.start + stride - 1) // stride, len(self._shown(self.clip))
            places += [f"latent frame {i} of the video" for i in range(first, first + (count + stride - 1) // stride)]
        return places

    def items(self, plan: ClipPlan) -> Items:
        """Encode the frames at the stage's size."""
        pixels = as_video_frames(self.pixels, self.crf)
        latent = self.studio.encode_video(fitted_frames(pixels, self._shown(plan), plan.height, plan.width))
        first, stride = bisect_left(plan.shown_frames, self.start), plan.sizes.temporal_ratio
        if self.replaces and (first == 0 or first % stride == 1):
            return video_item(
                conditioning.VideoConditionByLatentIndex(latent, self.given.strength, (first + stride - 1) // stride)
            )
        return video_item(conditioning.VideoConditionByKeyframeIndex(latent, first, self.given.strength))

    def _shown(self, plan: ClipPlan) -> list[int]:
        """Which frames a stage shows: those it has up to the end of the video, 8 k + 1 of them."""
        shown = [f - self.start for f in plan.shown_frames if 0 <= f - self.start < len(self.pixels)]
        return shown[: plan.sizes.whole_frames(len(shown))] or [0]


@dataclass(frozen=True)
class FirstFrameCondition(Condition):
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

    @property
    def shows_picture(self) -> bool:
        """Unless the video continues latents."""
        return self.image is not None

    def opened(self, studio: Studio, plan: ClipPlan) -> "OpenedFirstFrames":
        """Read the pictures, of which there has to be one for all videos, per prompt or per video."""
        if self.image is None:
            if self.latents is None:
                raise ValueError("`image` is None; give an image, a list of images, an array, a tensor or a file name")
            if self.crf is not None:
                raise ValueError(f"`image_crf` is {self.crf}, but `image` is None; leave it out")
            return OpenedFirstFrames(studio, latents=self.latents)
        images = self.image if isinstance(self.image, (list, tuple)) else [self.image]
        frames = [read_frames(one_picture(image), float_range=1.0, name="image") for image in images]
        pictures = [picture[None] for part in frames for picture in part]
        counts = sorted({1, plan.batch_size // self.videos_per_prompt, plan.batch_size})
        if len(pictures) not in counts:
            raise ValueError(
                f"`image` holds {len(pictures)} pictures; this call needs {' or '.join(map(str, counts))}"
            )
        crf = studio.image_crf if self.crf is None else self.crf
        for picture in pictures:
            check_crf("image_crf", crf, picture)
        return OpenedFirstFrames(studio, pictures, crf)


@dataclass(frozen=True)
class OpenedFirstFrames(Opened):
    """The first frames of the videos of a batch.

    Args:
        studio: Encodes them.
        pictures: Pixels `[1, H, W, 3]` of each picture, which may differ in size; empty to take those of `latents`.
        crf, latents: See [`FirstFrameCondition`].
    """

    studio: Studio
    pictures: Sequence[torch.Tensor] = ()
    crf: int = 0
    latents: torch.Tensor | None = None

    @property
    def places(self) -> list[str]:
        """The start of the video."""
        return ["video frame 0", "latent frame 0 of the video"]

    @property
    def picture(self) -> PIL.Image.Image | None:
        """The first picture; `None` if the video continues latents."""
        return as_image(self.pictures[0][0]) if self.pictures else None

    def items(self, plan: ClipPlan) -> Items:
        """Encode the pictures at the stage's size."""
        if self.latents is not None:
            latents = self.studio.normalized_video(self.latents, plan)
            return video_item(conditioning.VideoConditionByLatentIndex(latents[:, :, :1]))
        clips = [fitted_frames(as_video_frames(p, self.crf), [0], plan.height, plan.width) for p in self.pictures]
        latent = torch.cat([self.studio.encode_video(clip) for clip in clips])
        latent = latent if len(latent) == 1 else latent.repeat_interleave(plan.batch_size // len(latent), 0)
        return video_item(conditioning.VideoConditionByLatentIndex(latent))


@dataclass(frozen=True)
class LTX2ReferenceCondition(Condition):
    """A reference video that an IC-LoRA translates into the generated one.

    Args:
        frames: As in [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`], but floats lie in [0, 1]. A clip is
            cut to the length of the video and to 8 k + 1 frames.
        strength: 1 shows it exactly, 0 ignores it.
        downscale_factor: Size of the video over that of the reference, default what the active LoRAs were trained
            with (1 if they do not say).
        temporal_scale_factor: Frames of the video per frame of the reference, with the same default.
        attention_strength: How far video and reference see each other, 0 to 1; default `None` (fully).
        attention_mask: Where they see each other: pixels `[1, 1, F, H, W]` in [0, 1] of any height and width and as
            many frames as the reference keeps, multiplied by `attention_strength`; default `None` (everywhere).
        frame_rate: As in [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`].
    """

    frames: Frames
    strength: float = 1.0
    downscale_factor: int | None = None
    temporal_scale_factor: int | None = None
    attention_strength: float | None = None
    attention_mask: torch.Tensor | None = None
    frame_rate: float | str | None = None
    is_reference = True

    def opened(self, studio: Studio, plan: ClipPlan) -> "OpenedReference":
        """Check the strengths and read as many frames as the clip is long."""
        checks.check_unit(strength=self.strength, attention_strength=self.attention_strength)
        rate = rate_to_read(self.frame_rate, self.frames, plan.frame_rate)
        pixels = read_frames(self.frames, plan.clip_frames, float_range=1.0, frame_rate=rate)
        return OpenedReference(studio, self, pixels)

    def factors(self, studio: Studio) -> tuple[int, int]:
        """Downscale and temporal factor: what is given, else what the active LoRAs ask for."""
        factors = []
        trained = studio.reference_factors()
        for name, asked in (
            ("downscale_factor", trained.downscale),
            ("temporal_scale_factor", trained.temporal_scale),
        ):
            given = getattr(self, name)
            if given is not None:
                checks.check_at_least_one(**{name: given})
                if asked not in (1, given):
                    raise ValueError(
                        f"the reference's `{name}` is {given}, but the active LoRA was trained with {asked}; use {asked} "
                        "or leave it out"
                    )
            factors.append(asked if given is None else given)
        return factors[0], factors[1]


@dataclass(frozen=True)
class OpenedReference(Opened):
    """A reference video; it stands beside the video, and there may be many.

    Args:
        studio: Encodes it and knows the active LoRAs.
        given: The condition.
        pixels: Frames `[F, H, W, 3]` in [0, 255].
    """

    studio: Studio
    given: LTX2ReferenceCondition
    pixels: torch.Tensor

    def check(self, plan: ClipPlan) -> None:
        """Raise `ValueError` if the factors or the mask do not fit a stage."""
        factor, scale = self.given.factors(self.studio)
        multiple = plan.sizes.spatial_ratio * factor
        if plan.height % multiple or plan.width % multiple:
            raise ValueError(
                f"a reference of 1/{factor} the size cannot be encoded for a stage of {plan.height} x {plan.width} "
                f"pixels; use a height and width that are multiples of {multiple}"
            )
        if self.given.attention_mask is not None:
            _check_mask(self.given.attention_mask, len(self._kept(plan, scale)))

    def items(self, plan: ClipPlan) -> Items:
        """Encode the reference at its share of the stage's size."""
        factor, scale = self.given.factors(self.studio)
        sides = (plan.height // factor, plan.width // factor)
        latent = self.studio.encode_video(fitted_frames(self.pixels, self._kept(plan, scale), *sides))
        strength = self._token_strength(latent)
        return video_item(
            conditioning.VideoConditionByReferenceLatent(latent, factor, self.given.strength, scale, strength)
        )

    def _kept(self, plan: ClipPlan, scale: int) -> list[int]:
        """The frames that a stage and a reference with fewer frames per second keep, 8 k + 1 of them."""
        shown = [frame for frame in plan.shown_frames if frame < len(self.pixels)]
        kept = [shown[i] for i in subsampled_frames(len(shown), scale)]
        return kept[: plan.sizes.whole_frames(len(kept))]

    def _token_strength(self, latent: torch.Tensor) -> float | torch.Tensor:
        strength, mask = self.given.attention_strength, self.given.attention_mask
        strength = 1.0 if strength is None else strength
        if mask is None:
            return strength
        return strength * conditioning.pixel_mask_to_tokens(
            mask.to(latent.device), conditioning.VideoLatentShape.from_torch_shape(latent.shape)
        )


def with_defaults(
    conditions: Sequence[Condition], downscale_factor: int | None, strength: float, mask: torch.Tensor | None
) -> list[Condition]:
    """The conditions, in which reference conditions take the given fields where they do not say themselves."""
    checks.check_unit(conditioning_attention_strength=strength)
    if downscale_factor is not None:
        checks.check_at_least_one(reference_downscale_factor=downscale_factor)
    return [
        replace(
            condition,
            downscale_factor=downscale_factor if condition.downscale_factor is None else condition.downscale_factor,
            attention_strength=strength if condition.attention_strength is None else condition.attention_strength,
            attention_mask=mask if condition.attention_mask is None else condition.attention_mask,
        )
        if isinstance(condition, LTX2ReferenceCondition)
        else condition
        for condition in conditions
    ]


def keyframes(
    images: Sequence[Frames], indices: Sequence[int] | None, strengths: float | Sequence[float], crf: int | None
) -> list[Condition]:
    """Pictures shown beside a video, evenly from its first frame to its last if there are no `indices`."""
    if not isinstance(images, (list, tuple, np.ndarray, torch.Tensor)) or not len(images):
        raise ValueError(f"`images` has to be a list of at least one picture but is {images!r}; use [image]")
    shares = [Fraction(i, max(len(images) - 1, 1)) if indices is None else None for i in range(len(images))]
    frames: Sequence[int | None] = [None] * len(images) if indices is None else indices
    strengths = list(strengths) if isinstance(strengths, Iterable) else [strengths] * len(images)
    for name, values in (("frame_indices", frames), ("strengths", strengths)):
        if len(values) != len(images):
            raise ValueError(f"`{name}` has {len(values)} entries for {len(images)} `images`; give one each")
    return [
        KeyframeCondition(image, frame=index, strength=strength, crf=crf, mode="append", share=share)
        for image, index, strength, share in zip(images, frames, strengths, shares)
    ]


def _counted(name: str, value: int, count: int) -> int:
    """A place from 0 to `count - 1`; negative values count from the end."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"`{name}` has to be a whole number but is {value!r}; use 0")
    if not -count <= value < count:
        raise ValueError(f"`{name}` {value} lies outside the clip; use {-count} to {count - 1}")
    return int(value) % count


def _check_mask(mask: torch.Tensor, num_frames: int) -> None:
    if not isinstance(mask, torch.Tensor) or mask.is_complex() or mask.ndim != 5 or mask.shape[:2] != (1, 1):
        shape = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask)
        raise ValueError(
            f"the attention mask (`conditioning_attention_mask`) has to hold numbers [1, 1, F, H, W] but has shape {shape}"
        )
    if mask.shape[2] != num_frames:
        raise ValueError(
            f"the attention mask (`conditioning_attention_mask`) has {mask.shape[2]} frames, the reference {num_frames}"
        )
    for bound in mask.float().aminmax():
        checks.check_unit(conditioning_attention_mask=bound.item())
