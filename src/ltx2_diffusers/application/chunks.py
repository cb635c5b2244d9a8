"""How a video longer than a model makes at once is cut into parts that carry on from each other."""

from dataclasses import dataclass
from math import ceil

from ..checks import check_num_frames
from ..conditioning.shapes import VIDEO_SCALE_FACTORS, snap_frames

_STRIDE = VIDEO_SCALE_FACTORS.time


@dataclass(frozen=True)
class Chunk:
    """One part of a long video.

    Args:
        index: Place among the parts, from 0; also what is added to the seed.
        start: Frame of the whole video at which the part begins, carried frames included.
        num_frames: Frames of the part, 8 k + 1.
        carried: Frames at its start that the part before has made already, and that are cut off.
    """

    index: int
    start: int
    num_frames: int
    carried: int


def plan_chunks(num_frames: int, chunk_frames: int = 121, overlap_frames: int = 25) -> tuple[Chunk, ...]:
    """The fewest parts that make a video of `num_frames` frames, all of one length and that as short as it may be.

    They make up to 7 frames per part more than asked for, which are cut off at the end.

    Args:
        num_frames: Frames of the whole video, 8 k + 1.
        chunk_frames: Most frames of a part, 8 k + 1. Default 121, the reference length.
        overlap_frames: Frames that a part takes over from the one before, 8 k + 1. Default 25.
    """
    check_num_frames(num_frames, _STRIDE)
    check_num_frames(chunk_frames, _STRIDE, "chunk_frames")
    check_num_frames(overlap_frames, _STRIDE, "overlap_frames")
    if overlap_frames >= chunk_frames:
        raise ValueError(
            f"`overlap_frames` ({overlap_frames}) leaves nothing new in parts of {chunk_frames} frames; use "
            f"{chunk_frames - _STRIDE} or less"
        )
    count = fewest_parts(num_frames, chunk_frames, overlap_frames)
    length = shortest_part(num_frames, count, overlap_frames)
    step = length - overlap_frames
    return tuple(Chunk(i, i * step, length, overlap_frames if i else 0) for i in range(count))


def fewest_parts(num_frames: int, longest: int, overlap_frames: int) -> int:
    """How many parts of at most `longest` frames make a video together, if each takes over some from the one before."""
    return max(1, ceil((num_frames - overlap_frames) / (longest - overlap_frames)))


def shortest_part(num_frames: int, count: int, overlap_frames: int) -> int:
    """The fewest frames 8 k + 1 that each of `count` parts may have to make a video together."""
    # A part of L frames adds L - overlap of them: L + (count - 1) * (L - overlap) >= num_frames.
    frames = ceil((num_frames + (count - 1) * overlap_frames) / count)
    return snap_frames(frames + _STRIDE - 1)
