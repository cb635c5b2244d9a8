"""Sizes of weighted tiles, in pixels and frames.

The limits are the reference's and fit the published compression of 32 pixels and 8 frames per latent.
"""

from dataclasses import dataclass, replace

from diffusers.utils import logging

logger = logging.get_logger(__name__)

_PIXELS, _MIN_TILE_PIXELS = 32, 64
_FRAMES, _MIN_TILE_FRAMES = 8, 16
# Below these the encoder's seams show; the 2.0 reference raises smaller overlaps, the newest refuses them.
_MIN_ENCODE_OVERLAP_PIXELS, _MIN_ENCODE_OVERLAP_FRAMES = 64, 16


def _check_tile(names: tuple[str, str], size: int, overlap: int, unit: int, smallest: int) -> None:
    """Refuse a size or an overlap off the grid of `unit`, naming the nearest valid value."""
    size_name, overlap_name = names
    if size < smallest or size % unit:
        nearest = max(smallest, round(size / unit) * unit)
        raise ValueError(
            f"`{size_name}` must be a multiple of {unit}, at least {smallest}, got {size}; use {nearest}."
        )
    if overlap < 0 or overlap % unit or overlap >= size:
        nearest = min(max(0, round(overlap / unit) * unit), size - unit)
        raise ValueError(
            f"`{overlap_name}` must be a multiple of {unit}, at least 0 and below `{size_name}` = {size}, got "
            f"{overlap}; use {nearest}."
        )


@dataclass(frozen=True)
class SpatialTilingConfig:
    """Spatial tiles.

    Args:
        tile_size_in_pixels: Longest side of a tile, a multiple of 32 from 64; decoding shortens the tiles of the
            other axis to the aspect ratio of the video. Or (height, width), taken as they are, where 0 leaves an
            axis whole.
        tile_overlap_in_pixels: Overlap of neighbours, a multiple of 32 below the size; a number or (height, width).
    """

    tile_size_in_pixels: int | tuple[int, int]
    tile_overlap_in_pixels: int | tuple[int, int] = 0

    def __post_init__(self) -> None:
        names = "tile_size_in_pixels", "tile_overlap_in_pixels"
        if isinstance(self.tile_size_in_pixels, int) and not isinstance(self.tile_overlap_in_pixels, int):
            raise ValueError(
                f"`tile_overlap_in_pixels` is {self.tile_overlap_in_pixels!r} but `tile_size_in_pixels` is the single "
                f"number {self.tile_size_in_pixels}; give both as numbers, or the size as (height, width)."
            )
        for size, overlap in self.axes:
            if (size, overlap) != (0, 0) or isinstance(self.tile_size_in_pixels, int):
                _check_tile(names, size, overlap, _PIXELS, _MIN_TILE_PIXELS)

    @property
    def axes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(size, overlap) of height and of width."""
        sizes, overlaps = (
            (value, value) if isinstance(value, int) else tuple(value)
            for value in (self.tile_size_in_pixels, self.tile_overlap_in_pixels)
        )
        for name, value in (("tile_size_in_pixels", sizes), ("tile_overlap_in_pixels", overlaps)):
            if len(value) != 2:
                raise ValueError(f"`{name}` must be a number or (height, width), got {value!r}.")
        # An axis that is left whole has no seams, hence no overlap.
        height, width = ((size, overlap if size else 0) for size, overlap in zip(sizes, overlaps))
        return height, width


@dataclass(frozen=True)
class TemporalTilingConfig:
    """Tiles in time.

    Args:
        tile_size_in_frames: Frames of a tile, a multiple of 8 from 16.
        tile_overlap_in_frames: Overlap of neighbours, a multiple of 8 below the size.
    """

    tile_size_in_frames: int
    tile_overlap_in_frames: int = 0

    def __post_init__(self) -> None:
        names = "tile_size_in_frames", "tile_overlap_in_frames"
        _check_tile(names, self.tile_size_in_frames, self.tile_overlap_in_frames, _FRAMES, _MIN_TILE_FRAMES)


@dataclass(frozen=True)
class TilingConfig:
    """Tiles in space and time; a part that is None leaves its axes whole.

    Args:
        spatial_config: Tiles in height and width.
        temporal_config: Tiles in time.
    """

    spatial_config: SpatialTilingConfig | None = None
    temporal_config: TemporalTilingConfig | None = None

    @classmethod
    def default(cls) -> "TilingConfig":
        """The defaults of the reference for 2.0: 512 pixels overlapping by 64, 64 frames overlapping by 24."""
        return cls(SpatialTilingConfig(512, 64), TemporalTilingConfig(64, 24))

    @property
    def follows_aspect(self) -> bool:
        """Whether the spatial size is the longest side of a tile rather than one size per axis."""
        return self.spatial_config is not None and isinstance(self.spatial_config.tile_size_in_pixels, int)

    def space_tiles(self, pixels_per_unit: int) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
        """(size, overlap) of height and of width in units of `pixels_per_unit`, None for an axis left whole."""
        if self.spatial_config is None:
            return None, None
        names = "tile_size_in_pixels", "tile_overlap_in_pixels"
        height, width = (_in_units(names, axis, pixels_per_unit) for axis in self.spatial_config.axes)
        return height, width

    def time_tile(self, frames_per_unit: int) -> tuple[int, int] | None:
        """(size, overlap) of time in units of `frames_per_unit`, None if left whole."""
        if self.temporal_config is None:
            return None
        axis = self.temporal_config.tile_size_in_frames, self.temporal_config.tile_overlap_in_frames
        return _in_units(("tile_size_in_frames", "tile_overlap_in_frames"), axis, frames_per_unit)


def _in_units(names: tuple[str, str], axis: tuple[int, int], unit: int) -> tuple[int, int] | None:
    for name, value in zip(names, axis):
        if value % unit:
            raise ValueError(
                f"`{name}` must be a multiple of this model's compression, {unit}, got {value}; use "
                f"{max(unit, round(value / unit) * unit)}."
            )
    return (axis[0] // unit, axis[1] // unit) if axis[0] else None


def encoding_config(config: TilingConfig, raise_overlaps: bool) -> TilingConfig:
    """Make sure that overlaps suffice for encoding: 64 pixels and 16 frames.

    Args:
        config: The requested tiles.
        raise_overlaps: Whether smaller overlaps are raised with a warning instead of refused.
    """
    spatial, temporal = config.spatial_config, config.temporal_config
    if spatial is not None:
        minimum = _MIN_ENCODE_OVERLAP_PIXELS
        height, width = (_encode_overlap("pixels", *axis, minimum, _PIXELS, raise_overlaps) for axis in spatial.axes)
        sizes = spatial.axes[0][0], spatial.axes[1][0]
        spatial = SpatialTilingConfig(sizes, (height, width))
    if temporal is not None:
        size, overlap = temporal.tile_size_in_frames, temporal.tile_overlap_in_frames
        minimum = _MIN_ENCODE_OVERLAP_FRAMES
        overlap = _encode_overlap("frames", size, overlap, minimum, _FRAMES, raise_overlaps)
        temporal = replace(temporal, tile_overlap_in_frames=overlap)
    return TilingConfig(spatial, temporal)


def _encode_overlap(unit: str, size: int, overlap: int, minimum: int, step: int, raise_overlaps: bool) -> int:
    if size == 0 or overlap >= minimum:
        return overlap
    if size <= minimum:
        raise ValueError(
            f"`tile_size_in_{unit}` must be above the {minimum} {unit} by which encoded tiles overlap, got {size}; "
            f"use {minimum + step}."
        )
    if not raise_overlaps:
        raise ValueError(
            f"`tile_overlap_in_{unit}` must be at least {minimum} for encoding, got {overlap}; use {minimum}."
        )
    logger.warning(f"`tile_overlap_in_{unit}` is raised from {overlap} to {minimum}, the least for encoding.")
    return minimum
