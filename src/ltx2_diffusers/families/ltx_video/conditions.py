"""What a video of LTX-Video is held to: pictures and clips at any frame, and reference clips.

Shapes: B videos of the batch, C channels, F latent frames, h and w latent rows and columns, T tokens, n frames of a clip.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ... import checks, conditioning
from ...conditioning import ConditionItem, LatentState, VideoLatentTools
from ...conditioning.items.base import append_latent
from ...conditioning.items.regions import hold_tokens
from ...conditioning.tools import in_seconds
from ...declared import settle
from ...media.files import exact_frame_rate
from ...media.frames import Frames, read_frames
from ...media.reading import probe, read_video
from ...pipelines.arguments import Generators
from ...pipelines.conditions import Condition, Opened, Studio
from ...pipelines.conditions.condition import Items, ReadyItems, video_item
from ...pipelines.plan import ClipPlan
from .media import cropped, degraded, margins

# Latent frames of a clip inside the video that are shown beside it: they hold one frame and eight, as at the start of a clip.
PREFIX_FRAMES = 2


@dataclass(frozen=True)
class LTXVideoCondition:
    """A picture or clip that the video shows.

    At frame 0 it takes the place of the video's own latents. Later on a picture is shown beside them, and a clip takes their
    place but for its first nine frames, which are shown beside them. What later conditions hold, they hold in place of
    earlier ones.

    Args:
        image: A picture, in any form that `image` of a call takes. Either this or `video`.
        video: A clip: a list of images, an array `[n, H, W, 3]`, a tensor `[n, 3, H, W]` of bytes or of floats in [0, 255], or
            the name of a file. It is cut to the end of the video and to 8 k + 1 frames.
        frame_index: Pixel frame where it goes, for a clip a multiple of 8. Default 0.
        strength: 1 (default) keeps it exactly, 0 ignores it.
        position: Left and upper edge in pixels, multiples of 32, of what is smaller than the video, or `"centre"`; it goes there
            in its own size, at frame 0 and in a call with one scale. Default `None`: it is scaled to cover the frame and cropped.
    """

    image: Frames | None = None
    video: Frames | None = None
    frame_index: int = 0
    strength: float = 1.0
    position: Sequence[int] | str | None = None

    def __post_init__(self) -> None:
        settle(self)
        if isinstance(self.image, (list, tuple)) and len(self.image) != 1:
            raise ValueError(
                f"`image` of a condition is one picture but has {len(self.image)}; use `video`, or `conditions`"
            )
        if self.position not in (None, "centre") and (isinstance(self.position, str) or len(self.position) != 2):
            raise ValueError(f'`position` has to be (left, upper) or "centre" but is {self.position!r}; use (0, 0)')


@dataclass(frozen=True)
class Preparation:
    """How frames are prepared before they are encoded.

    Args:
        size: Height and width of the finished clip, to whose shape frames are cropped.
        crf, blur: H.264 quality of a round trip, 0 for none, and whether frames are blurred before.
        generator: Source of noise.
        canvas: Height and width of what is generated, in the middle of which the finished clip lies. Default `None`, those
            of the clip.
        num_frames: Frames of the finished clip. Default `None`, those that are generated.
    """

    size: tuple[int, int]
    crf: int = 0
    blur: bool = False
    generator: Generators = None
    canvas: tuple[int, int] | None = None
    num_frames: int | None = None

    def prepared(self, pixels: torch.Tensor, is_placed: bool = False) -> torch.Tensor:
        """Pixels `[n, H, W, 3]` in [0, 255] as `[1, 3, n, H', W']` in [-1, 1], in the shape of the clip but for placed ones."""
        frames = degraded(pixels if is_placed else cropped(pixels, *self.size), self.crf, self.blur)
        if self.canvas is None or self.canvas == self.size:
            return frames
        if is_placed:
            raise ValueError(
                f"`position` is given, but the sides {self.size} are no multiples of 32; use {self.canvas}"
            )
        return torch.nn.functional.pad(resized(frames, *self.size), margins(self.size, self.canvas))


@dataclass(frozen=True)
class FrameCondition(Condition):
    """A condition of a call.

    Args:
        given: What the caller gives.
        preparation: How its frames are prepared.
    """

    given: LTXVideoCondition
    preparation: Preparation

    def __post_init__(self) -> None:
        checks.check_unit(strength=self.given.strength)
        if (self.given.image is None) == (self.given.video is None):
            raise ValueError("a condition needs either `image` or `video`, and not both")

    def opened(self, studio: Studio, plan: ClipPlan) -> "OpenedFrames":
        """Check the place and read the frames that the video can show."""
        given, start, last = self.given, self.given.frame_index, (self.preparation.num_frames or plan.num_frames) - 1
        if not 0 <= start <= last:
            raise ValueError(
                f"`frame_index` has to be from 0 to {last} but is {start}; use {min(max(start, 0), last)}"
            )
        if given.image is not None:
            pixels = read_frames(given.image, 1, name="image")
        else:
            clip: Any = given.video
            pixels = read_frames(clip, plan.num_frames - start, name="video", frame_rate=plan.frame_rate)
            stride = plan.sizes.temporal_ratio
            if len(pixels) > 1 and start % stride:
                near = checks.neighbours(start, stride)
                raise ValueError(f"`frame_index` of a clip is {start}, no multiple of {stride}; use {near}")
            pixels = pixels[: plan.sizes.whole_frames(len(pixels))]
        if given.position is not None and start:
            raise ValueError(f"`position` is given at `frame_index` {start}, but belongs to frame 0; leave it out")
        return OpenedFrames(studio, self, self.preparation.prepared(pixels, given.position is not None))


class ReferenceCondition(FrameCondition):
    """A clip that an IC-LoRA follows, all of it beside the video and in the first pass alone."""

    is_reference = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.given.frame_index or self.given.position is not None:
            raise ValueError(
                f"`reference_conditions` lie at frame 0 of the whole frame, but one has frame_index={self.given.frame_index} and position={self.given.position!r}"
            )

    def check_length(self, plan: ClipPlan) -> None:
        """Raise `ValueError` if it is no clip that is as long as a video; of a file nothing is decoded."""
        clip: Any = self.given.video
        if clip is None:
            raise ValueError(
                "a long video follows clips as long as itself; give the reference as `video`, not `image`"
            )
        is_file = isinstance(clip, str | os.PathLike)
        count = round(probe(clip).duration_s * plan.frame_rate) if is_file else len(clip)
        if count < plan.num_frames:
            fewer = plan.sizes.whole_frames(count)
            raise ValueError(f"a reference has {count} frames, fewer than the video; use num_frames={fewer}")

    def part(self, plan: ClipPlan, start: int, end: int) -> torch.Tensor:
        """Prepared pixels `[1, 3, n, h, w]` at a size for the latent frames from `start` to `end`; no others are kept."""
        clip: Any = self.given.video
        first, count = start * plan.sizes.temporal_ratio, plan.sizes.pixel_frames(end - start)
        if isinstance(clip, str | os.PathLike):
            start_s: Any = first / exact_frame_rate(plan.frame_rate)
            pixels = read_video(clip, count, start_s, frame_rate=plan.frame_rate)
        else:
            pixels = read_frames(clip[first : first + count], name="reference_conditions")
        return resized(self.preparation.prepared(pixels), plan.height, plan.width)


@dataclass(frozen=True)
class OpenedFrames(Opened):
    """Prepared frames at their place.

    Args:
        studio: Encodes them.
        condition: The condition.
        pixels: `[1, 3, n, H, W]` in [-1, 1].
    """

    studio: Studio
    condition: FrameCondition
    pixels: torch.Tensor

    def check(self, plan: ClipPlan) -> None:
        """Raise `ValueError` if placed frames do not lie inside the stage's, or stages differ in size."""
        position = self.condition.given.position
        if position is None:
            return
        asked, sides = self.condition.preparation.size, self.pixels.shape[3:]
        if (plan.height, plan.width) != asked:
            raise ValueError("`position` is in pixels of a video that is made at once; pass multi_scale=False")
        (left, top), ratio = self._corner(plan), plan.sizes.spatial_ratio
        fits = left >= 0 and top >= 0 and top + sides[0] <= asked[0] and left + sides[1] <= asked[1]
        if not fits or any(side % ratio for side in (left, top, *sides)):
            raise ValueError(
                f"`position` ({left}, {top}) and the size {tuple(sides)} of what goes there have to be multiples of {ratio} inside "
                f"of {asked} pixels; use position=(0, 0)"
            )
        corner = (left // ratio, top // ratio)
        if not without_free_edges(self.pixels[..., ::ratio, ::ratio], corner, plan.video)[0].numel():
            raise ValueError(
                f"nothing is left of {tuple(sides)} pixels at `position` ({left}, {top}): of sides that do not touch an edge of the "
                f"video, {ratio} pixels are left out; use a larger picture"
            )

    def _corner(self, plan: ClipPlan) -> tuple[int, int]:
        position: Any = self.condition.given.position
        height, width = self.pixels.shape[3:]
        centre = (plan.width - width) // 2, (plan.height - height) // 2
        return centre if position == "centre" else position

    def items(self, plan: ClipPlan) -> Items:
        """Encode the frames at the stage's size; noise is drawn as the conditions come."""
        return self.held(self.latents(plan), plan, self.condition.given.frame_index)

    def latents(self, plan: ClipPlan) -> torch.Tensor:
        """Normalised latents `[B, C, F, h, w]` of the frames at the stage's size, drawn from what the autoencoder says of them."""
        placed, generator = self.condition.given.position is not None, self.condition.preparation.generator
        pixels = self.pixels if placed else resized(self.pixels, plan.height, plan.width)
        encode: Any = partial(self.studio.encode_video, pixels)
        drawn = [encode(generator=one) for one in (generator if isinstance(generator, list) else [generator])]
        return torch.cat(drawn).expand(plan.batch_size, -1, -1, -1, -1)

    def held(self, latent: torch.Tensor, plan: ClipPlan, start: int) -> Items:
        """What holds the video to encoded frames.

        Args:
            latent: The latents.
            plan: Sizes of the video, which may be shorter than the frames.
            start: Pixel frame of the video where they begin, below 0 for a clip that began before it.
        """
        given, generator = self.condition.given, self.condition.preparation.generator
        strength, first = given.strength, start // plan.sizes.temporal_ratio
        if self.condition.is_reference:
            return video_item(conditioning.VideoConditionByReferenceLatent(latent, strength=strength))
        column, row = 0, 0
        if given.position is not None:
            corner = tuple(side // plan.sizes.spatial_ratio for side in self._corner(plan))
            latent, (column, row) = without_free_edges(latent, corner, plan.video)
        if start <= 0:
            # The first latent frame of a video stands for one frame, and of a clip that began before for eight: it is left out.
            skipped = 1 - first if first else 0
            return video_item(LatentsInPlace(latent[:, :, skipped:], strength, (first + skipped, row, column)))
        prefix, rest = latent[:, :, :PREFIX_FRAMES], latent[:, :, PREFIX_FRAMES:]
        if plan.sizes.tokens_wait:
            noise = conditioning.GaussianNoiser(generator).draw(prefix.shape, latent.device)
            prefix = torch.lerp(noise, prefix, strength)
        inside = [LatentsInPlace(rest, strength, (first + PREFIX_FRAMES, 0, 0))] if rest.shape[2] else []
        return conditioning.Streams([*inside, FramesBeside(prefix, start, strength)], [])


@dataclass(frozen=True)
class LatentsInPlace(ConditionItem[VideoLatentTools]):
    """Latents in the place of the video's own; where tokens wait, these hold noise already, and are mixed with them.

    Args:
        latent: Encoded frames `[B, C, F, h, w]`; those behind the video's end are left out.
        strength: 1 keeps them exactly (default), 0 ignores them.
        corner: Latent frame, row and column where they go. Default the first ones.
    """

    latent: torch.Tensor
    strength: float = 1.0
    corner: tuple[int, int, int] = (0, 0, 0)

    def apply_to(self, state: LatentState, tools: VideoLatentTools) -> LatentState:
        """The state with the latents in the place of the target's."""
        canvas = torch.zeros(tuple(tools.target_shape)).to(state.latent)
        latent = self.latent[:, :, : max(canvas.shape[2] - self.corner[0], 0)]
        place = tuple(slice(first, first + n) for first, n in zip(self.corner, latent.shape[2:]))
        here = canvas[:, :1].clone()
        canvas[:, :, *place], here[:, :, *place] = latent.to(canvas), 1.0
        region = tools.patchifier.patchify(here)
        held = hold_tokens(state, tools, canvas, region * (self.strength if state.waits else 1.0))
        # Of two conditions on a token the later one counts.
        mask = torch.where(region > 0, 1.0 - self.strength, state.denoise_mask[:, : tools.num_tokens])
        return replace(held, denoise_mask=torch.cat([mask, state.denoise_mask[:, tools.num_tokens :]], dim=1))


@dataclass(frozen=True)
class FramesBeside(ConditionItem[VideoLatentTools]):
    """Latents that are shown beside the video's own, with the times of a clip that begins at a frame.

    Args:
        latent: Encoded frames `[B, C, F, h, w]`; where tokens wait, mixed with noise as far as `strength` asks.
        frame_index: Pixel frame where they begin.
        strength: 1 keeps them exactly, 0 lets them be denoised fully.
        skipped: Latent frames at their start that are not shown. Default 0.
    """

    latent: torch.Tensor
    frame_index: int
    strength: float
    skipped: int = 0

    def apply_to(self, state: LatentState, tools: VideoLatentTools) -> LatentState:
        """The state with the tokens appended."""
        shape = conditioning.VideoLatentShape.from_torch_shape(self.latent.shape)
        pixels = tools.pixel_bounds(shape, tools.causal_fix, state.positions.device)
        pixels[:, 0] += self.frame_index
        times = in_seconds(pixels[:, :, self.skipped * tools.tokens_per_frame :], tools.fps)
        return append_latent(
            state, replace(tools, fill_latent=True), self.latent[:, :, self.skipped :], times, self.strength
        )


def beside(latent: torch.Tensor, frame_index: int, strength: float, skipped: int = 0) -> ReadyItems:
    """What shows latents beside the video's own, see [`FramesBeside`]."""
    return ReadyItems(video_item(FramesBeside(latent, frame_index, strength, skipped)))


def without_free_edges(
    latent: torch.Tensor, corner: Sequence[int], target: conditioning.VideoLatentShape
) -> tuple[torch.Tensor, tuple[int, int]]:
    """Latents `[B, C, F, h, w]` inside a larger frame without the row or column of each side that touches no edge of it.

    What the autoencoder makes of such sides knows of a border that is none.

    Args:
        latent: The latents.
        corner: Their left and upper edge, in latents.
        target: Shape of the frame's latents.

    Returns:
        What is left, and its left and upper edge.
    """
    (left, top), (rows, columns) = corner, latent.shape[3:]
    x, y = int(left > 0), int(top > 0)
    right, bottom = columns - int(left + columns < target.width), rows - int(top + rows < target.height)
    return latent[..., y:bottom, x:right], (left + x, top + y)


def resized(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pixels `[B, 3, n, H, W]` at another size, whatever their shape; bilinear without antialiasing, as the original."""
    if pixels.shape[3:] == (height, width):
        return pixels
    interpolate = torch.nn.functional.interpolate
    frames = [interpolate(one, (height, width), mode="bilinear") for one in pixels.float().unbind(2)]
    return torch.stack(frames, dim=2)
