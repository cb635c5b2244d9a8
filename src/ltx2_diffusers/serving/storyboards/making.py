"""From the job of a storyboard to its film, shot by shot."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...application.storyboard.board import parse_storyboard
from ...application.storyboard.finished import FinishedSegments
from ...application.storyboard.making import StoryboardProgress, make_storyboard
from ...cli.manifest import STORYBOARD
from ..jobs import Job, discard

_FILM = "film.mp4"


def shot_file(results: Path, job_id: str, number: int) -> Path:
    """The file of a shot, counted from 1, once it is finished."""
    return results / job_id / f"shot_{number:04d}.mp4"


def drop_segments(results: Path, job_id: str) -> None:
    """Remove what a job that has ended would have gone on with; its shots stay."""
    film = results / job_id / _FILM
    film.unlink(missing_ok=True)
    discard(FinishedSegments(film).folder)


def make_film(
    job: Job,
    pipeline: Any,
    results: Path,
    identity: Mapping[str, Any],
    on_progress: Callable[[StoryboardProgress], None],
    **watched: Any,
) -> tuple[Path, dict[str, Any]]:
    """Make the film of a job, or go on with it; what is finished of it lies in a folder of its own among the results.

    Args:
        job: The job.
        pipeline: What makes its segments.
        results: Folder of finished clips.
        identity: What of the loaded checkpoint the job depends on. Made with another one, it is begun anew.
        on_progress: Called after each step and each segment.
        watched: Callback of the steps, and what it wants to see.

    Returns:
        The file, and what there is to tell of it.
    """
    board, folder = parse_storyboard(job.options[STORYBOARD]), results / job.id
    output = make_storyboard(
        board,
        pipeline,
        folder / _FILM,
        identity=identity,
        remake=True,
        # Until the result is noted, a killed server has to find them.
        keep_segments=True,
        shot_folder=folder,
        on_progress=on_progress,
        **watched,
    )
    info = output.info or {}
    return folder / _FILM, {"prompts": info["prompts"], "segments": info["segments"], "shots": len(board.shots)}
