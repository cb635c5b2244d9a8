"""The layout of diffusion fidelity rendering (DFR): where keyframes lie in time, and into which tiles a pass is cut.

DFR generates single frames beside a video, its keyframes, and refines the video from them. A clip is padded to whole segments,
each of which ends in a keyframe: the canvas. Shapes: B batch, C channels, F latent frames, h latent height, w latent width, L
audio latents, T tokens of a sequence (appended ones included), K tokens that a tile keeps, D features of a token.
"""

from collections.abc import Sequence
from itertools import pairwise, product
from math import prod
from typing import NamedTuple

import torch
from diffusers.utils import logging

from ..checks import check_at_least_one, check_from_zero, check_num_frames, check_shape, neighbours
from ..declared import takes_declared

logger = logging.get_logger(__name__)

SEGMENT_LATENT_CANDIDATES = (4, 3)
"""Latent frames that a segment may have, the better ones first."""
EPILOGUE_SPATIAL_OVERLAP = 12
"""Latent rows or columns that tiles of the epilogue share."""
MAX_CONDITIONING_FPS = 60.0
"""The frame rate that the network is told for any rate above `SNAP_CONDITIONING_FPS_ABOVE`."""
SNAP_CONDITIONING_FPS_ABOVE = 30.0
ANCHOR_KEYFRAME_STRENGTH = 0.95
"""How strongly a temporal round holds the keyframes of the round before."""
TEMPORAL_ANCESTRAL_ETA = 0.5
"""Share of fresh noise in the steps of a temporal round."""


class DimensionInterval(NamedTuple):
    """A tile along one axis: cells `start` to `end - 1`, of which the ramps at both ends lie in a neighbour, too."""

    start: int
    end: int
    left_ramp: int
    right_ramp: int

    @property
    def cells(self) -> slice:
        """The cells."""
        return slice(self.start, self.end)

    def weights(self) -> torch.Tensor:
        """Weights of the cells that rise along the left ramp and fall along the right one, so that neighbours sum to 1."""
        cells = torch.arange(1, self.end - self.start + 1)
        return (cells / (self.left_ramp + 1)).clamp(max=1) * (cells.flip(0) / (self.right_ramp + 1)).clamp(max=1)


class LTX2DFRTemporalTile(NamedTuple):
    """A stretch of a temporal round, all pixel frames counted from the start of the canvas.

    Args:
        interval: Its latent frames; the left ramp is a run-up, which the tile before has made.
        pixel_start, pixel_end: Its first and its last pixel frame.
        anchors: Where keyframes of the round before are pinned.
        slots: Where the round makes keyframes, in the middle between those.
    """

    interval: DimensionInterval
    pixel_start: int
    pixel_end: int
    anchors: tuple[int, ...]
    slots: tuple[int, ...]


class LTX2DFREpilogueTile(NamedTuple):
    """A window of the latent grid, and the weights `[F, h, w]` of what is predicted in it; those of all tiles sum to 1."""

    frames: slice
    heights: slice
    widths: slice
    blend_weight: torch.Tensor


class LTX2DFRTokenPlan(NamedTuple):
    """The tokens of a sequence that a tile keeps.

    Args:
        keep: Their indices `[K]`, those of the grid first.
        weights: The share `[K]` of this tile in what becomes of each.
        coords: Their positions `[B, 3, K, 2]`, counted from the tile's first cell.
    """

    keep: torch.Tensor
    weights: torch.Tensor
    coords: torch.Tensor


def resolve_canvas(num_frames: int, temporal_compression_ratio: int = 8) -> tuple[int, int, list[int]]:
    """Frames of the canvas, length of its segments, and the pixel frames of its keyframes: the last one of each segment.

    Segments are as long as leaves the fewest frames to be padded; of equally good lengths the longer one is taken.

    Args:
        num_frames: Pixel frames of the clip, 8 k + 1 and at least 9. That of a canvas gives the same canvas.
        temporal_compression_ratio: Pixel frames of a latent frame. Default 8.
    """
    ratio = temporal_compression_ratio
    check_num_frames(num_frames, ratio)
    if num_frames <= ratio:
        raise ValueError(f"`num_frames` is {num_frames}, but DFR needs a segment; use at least {ratio + 1}")
    lengths = [count * ratio for count in SEGMENT_LATENT_CANDIDATES]
    segment = min(lengths, key=lambda length: (1 - num_frames) % length)
    positions = list(range(segment, num_frames - 1 + segment, segment))
    return positions[-1] + 1, segment, positions


def pixel_to_latent_index(pixel_frame: int, temporal_compression_ratio: int = 8) -> int:
    """The latent frame whose last pixel frame this is."""
    ratio = temporal_compression_ratio
    if pixel_frame < 0 or pixel_frame % ratio:
        raise ValueError(
            f"pixel frame {pixel_frame} ends no latent frame of {ratio} frames; use {neighbours(pixel_frame, ratio)}"
        )
    return pixel_frame // ratio


def conditioning_frame_rate(frame_rate: float) -> float:
    """The frames per second in which DFR counts positions of the video, for the rate at which it is played."""
    return MAX_CONDITIONING_FPS if frame_rate > SNAP_CONDITIONING_FPS_ABOVE else frame_rate


@takes_declared
def trim_canvas(latents: torch.Tensor, num_frames: int, temporal_compression_ratio: int = 8) -> torch.Tensor:
    """The latents `[B, C, F, h, w]` of the first `num_frames` pixel frames, without what pads the canvas."""
    check_shape("latents", latents, (None,) * 5, "a canvas has {}")
    check_num_frames(num_frames, temporal_compression_ratio)
    return latents[:, :, : (num_frames - 1) // temporal_compression_ratio + 1]


def split_canvas_at_seams(
    seams: Sequence[int], num_tiles: int, overlap: int, dim_size: int
) -> list[DimensionInterval]:
    """Tiles of whole segments; each but the first has a run-up of `overlap` cells that end with the seam before it.

    Args:
        seams: Cells that part the segments, from 0 to the last cell.
        num_tiles: How many tiles; no more than there are segments. The first ones get what is left over.
        overlap: Cells of the run-up, as far as there are so many.
        dim_size: Cells of the axis.
    """
    check_from_zero(overlap=overlap)
    check_at_least_one(num_tiles=num_tiles)
    rises = all(before < after for before, after in pairwise(seams))
    if len(seams) < 2 or not rises or (seams[0], seams[-1]) != (0, dim_size - 1):
        raise ValueError(f"`seams` has to rise from 0 to the last cell, {dim_size - 1}, but is {list(seams)}")
    count = min(num_tiles, len(seams) - 1)
    share, left_over = divmod(len(seams) - 1, count)
    bounds = [seams[tile * share + min(tile, left_over)] for tile in range(count + 1)]
    intervals = [DimensionInterval(0, bounds[1] + 1, 0, 0)]
    for seam, last in pairwise(bounds[1:]):
        start = max(0, seam + 1 - overlap)
        intervals.append(DimensionInterval(start, last + 1, seam + 1 - start, 0))
    return intervals


def temporal_tile_plan(
    seam_positions: Sequence[int], num_frames: int, num_tiles: int, temporal_compression_ratio: int = 8
) -> list[LTX2DFRTemporalTile]:
    """Tiles of a temporal round; each but the first begins with the last segment of the one before, and its seam.

    Args:
        seam_positions: Pixel frames of the keyframes that there are, rising, the last one at the end of the canvas.
        num_frames: Pixel frames of the canvas.
        num_tiles: How many tiles; no more than there are segments.
        temporal_compression_ratio: Pixel frames of a latent frame. Default 8.
    """
    ratio = temporal_compression_ratio
    seams = [0, *(pixel_to_latent_index(position, ratio) for position in seam_positions)]
    tiles = []
    for interval in split_canvas_at_seams(seams, num_tiles, sum(seams[1:2]) + 1, (num_frames - 1) // ratio + 1):
        start, end = interval.start * ratio, (interval.end - 1) * ratio
        anchors = tuple(position for position in seam_positions if start <= position <= end)
        marks = [start, *(position for position in anchors if position > start)]
        slots = tuple((left + right) // 2 for left, right in pairwise(marks))
        tiles.append(LTX2DFRTemporalTile(interval, start, end, anchors, slots))
    return tiles


def split_by_count(dim_size: int, num_tiles: int, overlap: int) -> list[DimensionInterval]:
    """Tiles of equal size (the first ones a cell longer where that is needed) that share `overlap` cells with the next."""
    size, longer = divmod(dim_size + overlap * (num_tiles - 1), num_tiles)
    if num_tiles > 1 and size <= overlap:
        raise ValueError(
            f"`overlap` is {overlap}, but {num_tiles} tiles of {dim_size} cells can share {max(dim_size - num_tiles, 0)} at most"
        )
    starts = [tile * (size - overlap) + min(tile, longer) for tile in range(num_tiles + 1)]
    last = num_tiles - 1
    return [
        DimensionInterval(start, following + overlap, overlap if tile else 0, overlap if tile < last else 0)
        for tile, (start, following) in enumerate(pairwise(starts))
    ]


def epilogue_tiles(
    latent_shape: tuple[int, int, int], frame_tiles: int, frame_seams: Sequence[int]
) -> list[LTX2DFREpilogueTile]:
    """Windows in which the epilogue runs over a latent grid, two rows of two at each stretch of time.

    Stretches of time end at keyframes, which both neighbours make the same, so that they need no blending there.

    Args:
        latent_shape: Latent frames, rows and columns.
        frame_tiles: Stretches of time.
        frame_seams: Latent frames at whose end the keyframes lie; without any inside of the grid, stretches are blended.
    """
    check_at_least_one(frame_tiles=frame_tiles)
    run_up = frame_seams[0] + 1 if frame_tiles > 1 and frame_seams else 0
    overlaps = (run_up, EPILOGUE_SPATIAL_OVERLAP, EPILOGUE_SPATIAL_OVERLAP)
    names, counts, seams = ("frames", "rows", "columns"), (frame_tiles, 2, 2), (frame_seams, (), ())
    axes = [_weighted(*axis) for axis in zip(names, latent_shape, counts, overlaps, seams)]
    return [
        LTX2DFREpilogueTile(frames, rows, columns, long[:, None, None] * high[:, None] * wide)
        for (frames, long), (rows, high), (columns, wide) in product(*axes)
    ]


def _weighted(
    name: str, size: int, num_tiles: int, overlap: int, seams: Sequence[int]
) -> list[tuple[slice, torch.Tensor]]:
    """Cells and weights of the tiles of an axis, as far as it is long enough for them; blended without seams inside."""
    if size < num_tiles:
        logger.warning(f"{size} latent {name} are too few for {num_tiles} tiles and become one")
        num_tiles, overlap = 1, 0
    if num_tiles > 1 and overlap > size - num_tiles:
        logger.warning(f"{size} latent {name} leave {num_tiles} tiles an overlap of {size - num_tiles}, not {overlap}")
        overlap = size - num_tiles
    if num_tiles > 1 and (inner := sorted({seam for seam in seams if 0 < seam < size - 1})):
        tiles = split_canvas_at_seams([0, *inner, size - 1], num_tiles, overlap, size)
        # What the neighbour has made counts nothing here.
        return [(one.cells, (torch.arange(one.end - one.start) >= one.left_ramp).float()) for one in tiles]
    if num_tiles > 1 and seams:
        logger.warning(f"`frame_seams` {list(seams)} lie outside of {size} latent frames; tiles are blended")
    return [(one.cells, one.weights()) for one in split_by_count(size, num_tiles, overlap)]


def check_tiles(tiles: Sequence[LTX2DFREpilogueTile], grid: tuple[int, int, int]) -> None:
    """Raises `ValueError` unless the weights of the tiles sum to 1 everywhere on a grid of latent frames, rows and columns."""
    total, remedy = torch.zeros(grid), f"make them with epilogue_tiles({grid}, ...)"
    for frames, rows, columns, weight in tiles:
        window = total[frames, rows, columns]
        if window.shape != weight.shape:
            raise ValueError(
                f"`video_tiles` holds a window {tuple(weight.shape)} that reaches out of the latent grid {grid}; {remedy}"
            )
        window += weight.to(window)
    if not torch.allclose(total, torch.ones(()), atol=1e-4):
        sums = f"{total.min():g} up to {total.max():g}"
        raise ValueError(
            f"the weights of `video_tiles` sum to {sums} on the latent grid {grid} and not to 1; {remedy}"
        )


def video_tile_plan(
    tiles: Sequence[LTX2DFREpilogueTile], video_coords: torch.Tensor, latent_shape: tuple[int, int, int]
) -> list[LTX2DFRTokenPlan]:
    """Which tokens of a sequence each tile keeps: those of its window, and appended ones that overlap it on every axis.

    Args:
        tiles: Windows whose weights sum to 1 on the grid.
        video_coords: Start and end of every token `[B, 3, T, 2]`, the grid's first.
        latent_shape: Latent frames, rows and columns of the grid.

    Raises:
        ValueError: If an appended token lies outside of every tile.
    """
    grid = torch.arange(prod(latent_shape), device=video_coords.device).view(latent_shape)
    appended = video_coords[:, :, grid.numel() :]
    windows = [grid[tile.frames, tile.heights, tile.widths].flatten() for tile in tiles]
    starts = [video_coords[:, :, window, 0].amin(2, keepdim=True) for window in windows]
    ends = [video_coords[:, :, window, 1].amax(2, keepdim=True) for window in windows]
    inside = torch.stack(
        [((appended[..., 0] < end) & (appended[..., 1] > start)).all(1).any(0) for start, end in zip(starts, ends)]
    )
    keepers = inside.sum(0)
    if lost := (keepers == 0).nonzero().flatten().tolist():
        raise ValueError(
            f"{len(lost)} appended tokens (the first is {grid.numel() + lost[0]}) lie outside of every tile, so that nothing would "
            "denoise them; keep keyframes and references within the canvas"
        )
    plans = []
    for tile, window, start, kept in zip(tiles, windows, starts, inside):
        keep = torch.cat([window, grid.numel() + kept.nonzero().flatten()])
        weights = torch.cat([tile.blend_weight.to(video_coords).flatten(), 1 / keepers[kept].to(video_coords)])
        plans.append(LTX2DFRTokenPlan(keep, weights, video_coords[:, :, keep] - start[..., None]))
    return plans


def audio_window(
    audio: torch.Tensor, pixel_start: int, num_frames: int, frame_rate: float, source_seconds: float, num_latents: int
) -> torch.Tensor:
    """The sound of a stretch of time, stretched to so many latents by linear interpolation.

    Args:
        audio: Packed latents `[B, L, D]` of the whole sound.
        pixel_start, num_frames: The stretch in pixel frames.
        frame_rate: Frames per second at which they are played.
        source_seconds: Length of the whole sound.
        num_latents: Latents of the result.

    Returns:
        `[B, num_latents, D]`.
    """
    last = audio.shape[1] - 1
    per_frame = audio.shape[1] / source_seconds / frame_rate
    steps = torch.arange(num_latents, device=audio.device, dtype=torch.float32)
    places = (pixel_start * per_frame + num_frames * per_frame / num_latents * steps).clamp(0, last)
    before = places.long()
    return torch.lerp(audio[:, before], audio[:, (before + 1).clamp(max=last)], (places - before).to(audio)[:, None])
