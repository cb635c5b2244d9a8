"""Where the tiles of the diffusion video decoder lie, and how large they may be.

Tiles are cut from the grid of the last stage before the diffusion. A cell of it becomes several frames and pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from .video_vae_tiling import BlendedAxis

SAFE_OVERLAP = 160
"""Pixels that tiles of published decoders share at least in the original, since attention reaches about as far."""
SAFE_OVERLAP_FRAMES = 40
"""The same in frames."""


@dataclass(frozen=True)
class TileSizes:
    """Sizes of tiles and distances from one to the next, in pixels and frames."""

    tile_sample_min_height: int = 768
    tile_sample_min_width: int = 768
    tile_sample_min_num_frames: int = 80
    tile_sample_stride_height: int = 704
    tile_sample_stride_width: int = 704
    tile_sample_stride_num_frames: int = 56

    @property
    def axes(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size and stride of time, height and width."""
        return tuple(
            (n, getattr(self, f"tile_sample_min_{n}"), getattr(self, f"tile_sample_stride_{n}"))
            for n in ("num_frames", "height", "width")
        )

    def changed(self, safe: bool, given: Mapping[str, int | None]) -> "TileSizes":
        """The same with what is given, and with the strides that safe overlaps leave unless a stride is given."""
        sizes = replace(self, **{name: value for name, value in given.items() if value})
        for name, size, stride in sizes.axes if safe else ():
            least = SAFE_OVERLAP_FRAMES if name == "num_frames" else SAFE_OVERLAP
            key = f"tile_sample_stride_{name}"
            if given.get(key) and size - stride < least:
                raise ValueError(
                    f"`{key}` is {stride}, which leaves tiles of {size} an overlap of {size - stride}, and `safe` ones share "
                    f"at least {least}; use {max(size - least, 0)}"
                )
            if size <= least:
                raise ValueError(
                    f"`tile_sample_min_{name}` is {size}, and `safe` tiles share {least}; use more than {least}"
                )
            if not given.get(key):
                sizes = replace(sizes, **{key: size - least})
        return sizes


SIZE_NAMES = tuple(field.name for field in fields(TileSizes))


@dataclass(frozen=True)
class Grid:
    """What the cells of tiles are.

    Args:
        cell: Frames, rows and columns of pixels that a cell becomes.
        smallest: Fewest cells of a tile in time, height and width.
    """

    cell: tuple[int, ...]
    smallest: tuple[int, ...]

    def check(self, sizes: TileSizes) -> None:
        """Raise `ValueError` for tiles that the attention does not fit into, or that do not meet."""
        for (name, size, stride), cell, least in zip(sizes.axes, self.cell, self.smallest):
            if size // cell < least:
                raise ValueError(
                    f"`tile_sample_min_{name}` has to be at least {least * cell}, below which the decoder's attention does not "
                    f"fit into a tile, but is {size}; use {least * cell}"
                )
            if not 1 <= stride // cell <= size // cell:
                raise ValueError(
                    f"`tile_sample_stride_{name}` has to be from {cell} to `tile_sample_min_{name}` = {size} but is {stride}; "
                    f"use {size if stride > size else cell}"
                )

    def axes(self, sizes: TileSizes, cells: Sequence[int]) -> tuple[BlendedAxis, ...]:
        """How so many cells in time, height and width are cut; in time, positions are frames and one more than there are."""
        return tuple(
            BlendedAxis(
                tile_intervals(count, size // cell, stride // cell, least),
                keep=stride // cell * cell,
                blend=(size // cell - stride // cell) * cell,
                size=count * cell,
            )
            for count, (_, size, stride), cell, least in zip(cells, sizes.axes, self.cell, self.smallest)
        )


def tile_intervals(length: int, tile: int, stride: int, smallest: int) -> tuple[tuple[int, int], ...]:
    """First and last cells of tiles: one if they all fit, else at multiples of `stride`, the last one to the end.

    A last one with fewer cells than `smallest` is part of the one before, which is longer then.
    """
    later = range(stride, length, stride) if length > tile else ()
    starts = [0, *(start for start in later if length - start >= smallest)]
    return tuple(zip(starts, [*(min(start + tile, length) for start in starts[:-1]), length]))
