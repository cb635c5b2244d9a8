"""From shots to segments: how long each is, what it shares, and which pictures it shows."""

from dataclasses import dataclass
from math import ceil

from ...checks import check_num_frames, check_seed
from ...conditioning.shapes import VIDEO_SCALE_FACTORS
from ...pipelines.recipes.extension.plan import MAX_SEGMENTS, check_overlap
from .board import Keyframe, Problems, Shot, Storyboard

_STRIDE = VIDEO_SCALE_FACTORS.time


@dataclass(frozen=True)
class PlannedSegment:
    """A segment of a storyboard.

    Args:
        shot: Place of its shot, from 0.
        start: Frame of the clip at which it begins, shared ones included.
        num_frames: Its frames, shared ones included, 8 k + 1.
        shared: Frames that the segment before has made already; 0 for the first one.
        prompt: Its text.
        negative_prompt: What to steer away from.
        seed: Seed of its noise.
        keyframes: Pictures that it shows, with their frames in the segment.
    """

    shot: int
    start: int
    num_frames: int
    shared: int
    prompt: str
    negative_prompt: str | None
    seed: int
    keyframes: tuple[tuple[int, Keyframe], ...]

    @property
    def first_new(self) -> int:
        """The first frame of the clip that it adds."""
        return self.start + self.shared

    @property
    def end(self) -> int:
        """The frame of the clip behind its last one."""
        return self.start + self.num_frames


def plan_storyboard(board: Storyboard) -> list[PlannedSegment]:
    """The segments of a storyboard, each at most as long as it says and those of a shot of nearly one length.

    Raises:
        ValueError: If shots are too short, or sizes contradict each other.
    """
    check_num_frames(board.num_frames, _STRIDE)
    check_overlap(board.overlap_frames, board.num_frames, _STRIDE)
    ends, problems = _shot_ends(board), Problems()
    _check_count((ends[-1] - board.overlap_frames) // (board.num_frames - board.overlap_frames))
    planned: list[PlannedSegment] = []
    for index, (shot, end) in enumerate(zip(board.shots, ends)):
        begin = ends[index - 1] if index else 0
        lengths = _lengths(board, begin, end)
        place = f"shot {index + 1}: "
        problems.tried(place, _check_texts, shot, len(lengths))
        for part, length in enumerate(lengths):
            shared = board.overlap_frames if planned else 0
            start = planned[-1].end - shared if planned else 0
            seed = board.seed + len(planned) if shot.seed is None else shot.seed + part
            problems.tried(place, check_seed, "seed", seed)
            shown = _shown(board, shot, begin, end, range(start + shared, start + length), start)
            text = shot.prompt if isinstance(shot.prompt, str) else shot.prompt[min(part, len(shot.prompt) - 1)]
            negative = board.negative_prompt if shot.negative_prompt is None else shot.negative_prompt
            planned.append(PlannedSegment(index, start, length, shared, text, negative, seed, shown))
    problems.raise_any()
    _check_count(len(planned))
    return planned


def _check_count(count: int) -> None:
    if count > MAX_SEGMENTS:
        raise ValueError(
            f"the storyboard has {count} segments, more than {MAX_SEGMENTS}; use longer ones (`num_frames`), or several "
            "storyboards"
        )


def _shot_ends(board: Storyboard) -> list[int]:
    """The frames at which shots end, 8 k + 1 and as near to their times as that allows."""
    ends: list[int] = []
    seconds, rate = 0.0, board.frame_rate
    for number, shot in enumerate(board.shots, start=1):
        seconds += shot.duration_s
        end = 1 + _STRIDE * round((seconds * rate - 1) / _STRIDE)
        # The second segment takes over as much of the first one.
        first = board.overlap_frames if len(board.shots) > 1 else 1 + _STRIDE
        least = ends[-1] + _STRIDE if ends else first
        if end < least:
            needed = ceil((least / rate - seconds + shot.duration_s) * 1000) / 1000
            raise ValueError(
                f"shot {number}: `duration_s` {shot.duration_s} is too short for {least - (ends[-1] if ends else 0)} frames at "
                f"{rate:g} per second, the fewest that it can have; use {needed}"
            )
        ends.append(end)
    return ends


def _lengths(board: Storyboard, begin: int, end: int) -> list[int]:
    """Frames of the fewest segments that make a shot together."""
    # Counted in strides, since all lengths are a multiple of it, and 1.
    shared, most = (board.overlap_frames - 1) // _STRIDE, (board.num_frames - 1) // _STRIDE
    new = (end - begin) // _STRIDE
    # The first segment of a clip shares nothing.
    free = 0 if begin else shared
    count = max(1, ceil((new - free) / (most - shared)))
    total = new + count * shared - free
    return [1 + _STRIDE * (total // count + (part < total % count)) for part in range(count)]


def _check_texts(shot: Shot, count: int) -> None:
    if not isinstance(shot.prompt, str) and len(shot.prompt) != count:
        raise ValueError(
            f"`prompt` has {len(shot.prompt)} texts, but the shot is made of {count} segments; give one text, or {count}"
        )


def _shown(
    board: Storyboard, shot: Shot, begin: int, end: int, new: range, start: int
) -> tuple[tuple[int, Keyframe], ...]:
    """Pictures of a shot that lie in the new frames of a segment, with their frames in it."""
    shown = []
    for one in shot.keyframes:
        frame = min(begin + round(one.at_s * board.frame_rate), end - 1)
        if one.mode == "replace" and frame:
            # Where its latent frame begins.
            frame = 1 + (frame - 1) // _STRIDE * _STRIDE
        if frame in new:
            shown.append((frame - start, one))
    return tuple(shown)
