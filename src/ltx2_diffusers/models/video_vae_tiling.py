"""Two ways to run the video VAE on tiles, as functions that know no network.

Blended tiles are diffusers' scheme: fixed strides, each tile fades into its finished upper, left or earlier
neighbour. Weighted tiles are the reference's scheme: every tile is multiplied by a mask per axis (time, height,
width) and summed; it can be streamed in time.

Shapes: x is `[B, C, F, H, W]` of pixels or latents; masks are 1-D. Spans are half-open index pairs.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch

from .video_vae_tiling_config import TilingConfig

TIME, HEIGHT, WIDTH = 2, 3, 4

# Encodes or decodes one tile.
Run = Callable[[torch.Tensor], torch.Tensor]
# Runs tiles and hands out the results in the same order, as `map` does.
RunTiles = Callable[[Run, Iterable[torch.Tensor]], Iterator[torch.Tensor]]


@dataclass(frozen=True)
class BlendedAxis:
    """How one axis is cut for blended tiles.

    Args:
        spans: Input span of each tile.
        keep: Output positions that each tile but the last contributes (the first frames of a video one more).
        blend: Output positions over which a tile fades in from its neighbour.
        size: Output positions of the whole axis.
    """

    spans: tuple[tuple[int, int], ...]
    keep: int
    blend: int
    size: int

    def target(self, index: int) -> slice:
        """Output span of tile `index`; the last one reaches the end."""
        last = index == len(self.spans) - 1
        return slice(index * self.keep, self.size if last else (index + 1) * self.keep)


def blended_spans(dimension: int, tile: int, stride: int, min_size: int = 1) -> tuple[tuple[int, int], ...]:
    """Spans of `tile` positions at multiples of `stride`; a last one below `min_size` joins the one before."""
    spans = [(start, min(start + tile, dimension)) for start in range(0, dimension, stride)]
    if len(spans) > 1 and spans[-1][1] - spans[-1][0] < min_size:
        spans[-2:] = [(spans[-2][0], dimension)]
    return tuple(spans)


def blend_into(current: torch.Tensor, previous: torch.Tensor | None, extent: int, dim: int) -> None:
    """Fade the head of `current` in from the tail of `previous` along `dim`, in place.

    Position y of n has weight y / n for `current`; n is `extent` clipped to both sizes.
    """
    if previous is None:
        return
    extent = min(extent, previous.shape[dim], current.shape[dim])
    if extent == 0:
        return
    shape = [1] * current.ndim
    shape[dim] = extent
    weight = (torch.arange(extent, dtype=torch.float64) / extent).view(shape)
    fade_in, fade_out = (w.to(current.device, torch.float32) for w in (weight, 1 - weight))
    tail = previous.narrow(dim, previous.shape[dim] - extent, extent)
    head = current.narrow(dim, 0, extent)
    head.copy_(tail * fade_out + head * fade_in)


def tail(x: torch.Tensor, extent: int, dim: int) -> torch.Tensor:
    """A copy of the last `extent` positions, so that the tile itself can be freed."""
    extent = min(extent, x.shape[dim])
    return x.narrow(dim, x.shape[dim] - extent, extent).clone()


def run_blended_space(
    x: torch.Tensor, run: Run, rows: BlendedAxis, columns: BlendedAxis, run_tiles: RunTiles = map
) -> torch.Tensor:
    """Run `x` tile by tile, row-major, and blend the results."""
    spans = product(rows.spans, columns.spans)
    return blended_space(run_tiles(run, (x[:, :, :, slice(*r), slice(*c)] for r, c in spans)), rows, columns)


def blended_space(made: Iterable[torch.Tensor], rows: BlendedAxis, columns: BlendedAxis) -> torch.Tensor:
    """Blend tiles, row-major, as they are made; only the borders of finished ones are kept."""
    output: torch.Tensor
    tiles = iter(made)
    above: list[torch.Tensor | None] = [None] * len(columns.spans)
    for i in range(len(rows.spans)):
        left = None
        for j in range(len(columns.spans)):
            tile = next(tiles)
            blend_into(tile, above[j], rows.blend, HEIGHT)
            blend_into(tile, left, columns.blend, WIDTH)
            above[j] = tail(tile, rows.blend, HEIGHT)
            left = tail(tile, columns.blend, WIDTH)
            if i == j == 0:
                output = tile.new_empty(*tile.shape[:HEIGHT], rows.size, columns.size)
            target_y, target_x = rows.target(i), columns.target(j)
            height, width = target_y.stop - target_y.start, target_x.stop - target_x.start
            output[:, :, :, target_y, target_x] = tile[:, :, :, :height, :width]
            # It would live on while the next one is made.
            del tile
    return output


def run_blended_time(x: torch.Tensor, run: Run, axis: BlendedAxis, trim: slice) -> torch.Tensor:
    """Run `x` in chunks of frames and blend the results.

    Args:
        x: `[B, C, F, H, W]`.
        run: Encodes or decodes one chunk.
        axis: The time axis; the first chunk contributes one position more than `axis.keep`.
        trim: What remains of every chunk but the first before blending.
    """
    parts, previous = [], None
    for i, (start, end) in enumerate(axis.spans):
        # One position is trimmed again: a later chunk that has no other would be computed for nothing.
        if i > 0 and end - start == 1:
            continue
        chunk = run(x[:, :, start:end])
        chunk = chunk[:, :, trim] if i > 0 else chunk
        blend_into(chunk, previous, axis.blend, TIME)
        previous = tail(chunk, axis.blend, TIME)
        parts.append(chunk[:, :, : axis.keep + (i == 0)])
    return torch.cat(parts, dim=TIME)[:, :, : axis.size]


class Interval(NamedTuple):
    """A span of one axis and the lengths over which it shares weight with its neighbours."""

    start: int
    end: int
    left_ramp: int
    right_ramp: int

    @property
    def size(self) -> int:
        """Positions covered."""
        return self.end - self.start


def split_symmetric(dimension: int, size: int, overlap: int, min_size: int = 1) -> list[Interval]:
    """Cut `dimension` into intervals of `size` that overlap by `overlap`; the last may be shorter.

    A last interval below `min_size` joins the one before.
    """
    if dimension <= size:
        return [Interval(0, dimension, 0, 0)]
    step = size - overlap
    count = math.ceil((dimension - overlap) / step)
    if dimension - (count - 1) * step < min_size:
        count -= 1
    return [
        Interval(
            start=i * step,
            end=dimension if i == count - 1 else i * step + size,
            left_ramp=overlap if i else 0,
            right_ramp=overlap if i < count - 1 else 0,
        )
        for i in range(count)
    ]


def split_causal_latent(dimension: int, size: int, overlap: int) -> list[Interval]:
    """Cut latent time; all intervals but the first start one early, since a first latent holds a single frame."""
    first, *rest = split_symmetric(dimension, size, overlap)
    return [first, *(i._replace(start=i.start - 1, left_ramp=i.left_ramp + 1) for i in rest)]


def split_frames(dimension: int, size: int, overlap: int) -> list[Interval]:
    """Cut pixel time; all intervals but the last gain a frame to have 8 k + 1, and later tiles yield to earlier."""
    *head, last = split_symmetric(dimension, size, overlap)
    return [i._replace(right_ramp=0) for i in (*(i._replace(end=i.end + 1) for i in head), last)]


def trapezoid_mask(length: int, left: int, right: int, from_zero: bool = False) -> torch.Tensor:
    """Weights `[length]` that rise over `left` and fall over `right` positions and are 1 between.

    The rise is i / left if `from_zero`, else (i + 1) / (left + 1); the fall ends at 1 / (right + 1).
    """
    left, right = min(max(left, 0), length), min(max(right, 0), length)
    mask = torch.ones(length)
    rise = torch.arange(left) / left if from_zero and left else torch.arange(1, left + 1) / (left + 1)
    mask[:left] *= rise
    mask[length - right :] *= torch.arange(right, 0, -1) / (right + 1)
    return mask.clamp(0, 1)


def rectangle_mask(length: int, left: int, right: int) -> torch.Tensor:
    """Weights `[length]` that are 0 at the first `left` and the last `right` positions and 1 between."""
    mask = torch.ones(length)
    mask[:left] = 0
    mask[length - right :] = 0
    return mask


class WeightedSpan(NamedTuple):
    """One tile along one axis: what it reads, where it writes, with which weights `[target size]`."""

    source: slice
    target: slice
    weight: torch.Tensor


@dataclass(frozen=True)
class TilePlan:
    """Tiles of all three axes; the tiles are all combinations, and along each axis their weights sum to 1."""

    time: list[WeightedSpan]
    height: list[WeightedSpan]
    width: list[WeightedSpan]

    @property
    def size(self) -> tuple[int, int]:
        """Output height and width."""
        return self.height[-1].target.stop, self.width[-1].target.stop


def _normalized(spans: Sequence[WeightedSpan]) -> list[WeightedSpan]:
    """Divide by the sum of weights at each position: masks of all tiles are products, so each axis stands alone."""
    total = torch.zeros(spans[-1].target.stop)
    for span in spans:
        total[span.target] += span.weight
    total.clamp_(min=1e-8)
    return [span._replace(weight=span.weight / total[span.target]) for span in spans]


def _split_sides(
    sides: Sequence[int], config: TilingConfig, space: int, min_side: int, coupled: bool
) -> list[list[Interval]]:
    """Intervals of height and width, in latents; `coupled` lets tiles follow the aspect ratio if `config` does."""
    axes = []
    for side, tile in zip(sides, config.space_tiles(space)):
        size, overlap = tile or (side, 0)
        if tile is not None and coupled and config.follows_aspect:
            size = round(size * side / max(sides))
        axes.append(split_symmetric(side, max(2, overlap + 1, size), overlap, min_side))
    return axes


def plan_decode(shape: Sequence[int], config: TilingConfig, ratios: tuple[int, int], min_side: int) -> TilePlan:
    """Plan the tiles that decode latents of `shape`.

    Args:
        shape: Latent frames, height and width.
        config: Tile sizes and overlaps in pixels and frames.
        ratios: Pixels per latent in space and in time.
        min_side: Smallest height and width, in latents, that the decoder can pad.
    """
    space, time = ratios
    frames, *sides = shape

    def in_frames(i: Interval) -> WeightedSpan:
        rise = 1 + time * (i.left_ramp - 1) if i.left_ramp else 0
        weight = trapezoid_mask(time * (i.size - 1) + 1, rise, time * i.right_ramp, from_zero=True)
        return WeightedSpan(slice(i.start, i.end), slice(time * i.start, time * (i.end - 1) + 1), weight)

    def in_pixels(i: Interval) -> WeightedSpan:
        weight = trapezoid_mask(space * i.size, space * i.left_ramp, space * i.right_ramp)
        return WeightedSpan(slice(i.start, i.end), slice(space * i.start, space * i.end), weight)

    height, width = _split_sides(sides, config, space, min_side, coupled=True)
    chunks = split_causal_latent(frames, *(config.time_tile(time) or (frames, 0)))
    return _plan(map(in_frames, chunks), map(in_pixels, height), map(in_pixels, width))


def plan_encode(
    shape: Sequence[int], config: TilingConfig, ratios: tuple[int, int], min_side: int, discard_seams: bool
) -> TilePlan:
    """Plan the tiles that encode a video of `shape`.

    Args:
        shape: Frames (8 k + 1), height and width in pixels.
        config: Tile sizes and overlaps in pixels and frames.
        ratios: Pixels per latent in space and in time.
        min_side: Smallest height and width, in latents, that the encoder can pad.
        discard_seams: Whether tiles drop their outermost latents at a seam and the rest is averaged in space and
            taken from the earlier tile in time (reference 2.0), rather than fading into each other (newest).
    """
    space, time = ratios
    frames, *sides = shape

    def from_chunk(i: Interval) -> WeightedSpan:
        weight = trapezoid_mask(i.size, i.left_ramp, i.right_ramp, from_zero=True)
        return WeightedSpan(slice(time * i.start, time * (i.end - 1) + 1), slice(i.start, i.end), weight)

    def from_frames(i: Interval) -> WeightedSpan:
        target = slice(i.start // time, (i.end - 1) // time + 1)
        discarded = 1 + (i.left_ramp - 1) // time if i.left_ramp else 0
        return WeightedSpan(slice(i.start, i.end), target, rectangle_mask(target.stop - target.start, discarded, 0))

    def from_pixels(i: Interval) -> WeightedSpan:
        if discard_seams:
            weight = rectangle_mask(i.size, max(0, i.left_ramp - 1), int(i.right_ramp > 0))
        else:
            weight = trapezoid_mask(i.size, i.left_ramp, i.right_ramp)
        return WeightedSpan(slice(space * i.start, space * i.end), slice(i.start, i.end), weight)

    height, width = _split_sides([side // space for side in sides], config, space, min_side, coupled=False)
    latent_frames = (frames - 1) // time + 1
    tile = config.time_tile(time)
    if discard_seams:
        size, overlap = (tile[0] * time, tile[1] * time) if tile else (frames, 0)
        chunks = map(from_frames, split_frames(frames, size, overlap))
    else:
        chunks = map(from_chunk, split_causal_latent(latent_frames, *(tile or (latent_frames, 0))))
    return _plan(chunks, map(from_pixels, height), map(from_pixels, width))


def _plan(*axes: Iterable[WeightedSpan]) -> TilePlan:
    return TilePlan(*(_normalized(list(axis)) for axis in axes))


def run_weighted(x: torch.Tensor, run: Run, plan: TilePlan, run_tiles: RunTiles = map) -> torch.Tensor:
    """Run every tile of `plan` on `x` and return their weighted sum."""
    chunks = list(stream_weighted(x, run, plan, run_tiles))
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks, dim=TIME)


def stream_weighted(x: torch.Tensor, run: Run, plan: TilePlan, run_tiles: RunTiles = map) -> Iterator[torch.Tensor]:
    """Yield the weighted sum of `plan`'s tiles in order of time, each part as soon as no later tile adds to it.

    At most one temporal group of tiles and the overlap of its predecessors are alive, whatever the length of `x`.
    """
    ends = [later.target.start for later in plan.time[1:]] + [plan.time[-1].target.stop]
    overlap = None
    for span, end in zip(plan.time, ends):
        group = _run_group(x, run, plan, span, run_tiles)
        if overlap is not None:
            group[:, :, : overlap.shape[TIME]] += overlap
        finished = end - span.target.start
        overlap = group[:, :, finished:].clone()
        if finished:
            yield group[:, :, :finished].to(x.dtype)
        # The generator would otherwise hold this group while it computes the next.
        del group


def _run_group(x: torch.Tensor, run: Run, plan: TilePlan, span: WeightedSpan, run_tiles: RunTiles) -> torch.Tensor:
    """Sum the weighted tiles that share one span of time, in at least single precision."""
    group: torch.Tensor
    places = list(product(plan.height, plan.width))
    tiles = run_tiles(run, (x[:, :, span.source, row.source, column.source] for row, column in places))
    for index, ((row, column), tile) in enumerate(zip(places, tiles)):
        if index == 0:
            dtype = torch.promote_types(tile.dtype, torch.float32)
            group = tile.new_zeros(*tile.shape[: TIME + 1], *plan.size, dtype=dtype)
        mask = span.weight[:, None, None] * (row.weight[:, None] * column.weight)
        group[:, :, :, row.target, column.target] += tile * mask.to(tile.device)
    return group
