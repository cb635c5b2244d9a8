"""What a server is told when it starts: its limits, and what it loads."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..checks import check_positive

MIB = 2**20


def _limit(default: float | None, help: str, said: str = "") -> Any:
    """A limit; `said` is its default in words, where that is no number."""
    return field(default=default, metadata={"help": f"{help}; default {said or f'{default:g}'}"})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of requests and of the server's own means. Each is an option of `ltx2 serve`, with dashes.

    Args:
        max_queue: Most jobs that wait; a further one is answered with 429.
        max_batch: Most requests of equal shape that one call makes. Above 1 a result may differ from that of a call of
            its own in the last place of a number.
        time_limit: Longest a job may run, in seconds.
        grace: How long a server that is asked to end waits for the running job, in seconds, before it hands it back.
        keep_days: How long finished jobs and their files are kept.
        max_body_mb: Largest body of a request, in MiB.
        max_media_mb: Largest media file in a request, in MiB.
        max_media: Most media files in a request.
        max_picture_megapixels: Largest picture, and largest frame of a clip.
        max_clip_frames: Longest clip.
        max_clip_megapixels: Largest clip, all its frames together.
        max_sound_s: Longest sound, in seconds.
        media_time: How long reading one media file may take, in seconds.
        media_memory_mb: How much memory reading one media file may take, in MiB.
        max_megapixels: Largest clip to be made, all its frames together.
        max_memory_gb: Most memory of the device that a clip may take together with the weights, in GiB; default what the
            device has when the checkpoint is loaded.
        max_storyboard_megapixels: Largest clip of a storyboard; `max_megapixels` is for each of its segments then.
        max_steps: Most denoising steps of a stage.
        max_prompt: Longest prompt, in characters.
    """

    max_queue: int = _limit(64, "most jobs that wait; a further one is answered with 429")
    max_batch: int = _limit(
        1, "most requests of equal shape made by one call, equal to calls of their own but for rounding"
    )
    time_limit: float = _limit(3600.0, "longest a job may run, in seconds")
    grace: float = _limit(30.0, "seconds that a server which is asked to end waits for the running job")
    keep_days: float = _limit(7.0, "how long finished jobs and their files are kept")
    max_body_mb: float = _limit(128.0, "largest body of a request, in MiB")
    max_media_mb: float = _limit(64.0, "largest media file in a request, in MiB")
    max_media: int = _limit(16, "most media files in a request")
    max_picture_megapixels: float = _limit(64.0, "largest picture, and largest frame of a clip")
    max_clip_frames: int = _limit(1500, "longest clip in a request, in frames")
    max_clip_megapixels: float = _limit(1500.0, "largest clip in a request, all its frames together")
    max_sound_s: float = _limit(600.0, "longest sound in a request, in seconds")
    media_time: float = _limit(20.0, "seconds that reading a media file may take")
    media_memory_mb: float = _limit(2048.0, "memory that reading a media file may take, in MiB")
    max_megapixels: float = _limit(1500.0, "largest clip to be made, all its frames together")
    max_memory_gb: float | None = _limit(
        None,
        "most memory of the device that a clip may take together with the weights, in GiB",
        "what it has when the checkpoint is loaded",
    )
    max_storyboard_megapixels: float = _limit(15_000.0, "largest clip of a storyboard, all its frames together")
    max_steps: int = _limit(200, "most denoising steps of a stage")
    max_prompt: int = _limit(10_000, "longest prompt, in characters")

    def __post_init__(self) -> None:
        check_positive(**{one.name: getattr(self, one.name) for one in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A server.

    Args:
        data: Folder of jobs, inputs and results.
        database: URL of the database of jobs, of PostgreSQL or SQLite; default a SQLite file in `data`.
        name: What tells this server from others on the same database.
        model: Name that the API gives the checkpoint.
        engine: Options of `ltx2 generate` that say what is loaded, and where.
        api_keys: Keys, one of which every request has to bring; none asks for none.
        origins: Web sites that may call the server from a browser.
        limits: See there.
    """

    data: Path
    database: str | None = None
    name: str = "server"
    model: str = "ltx2-mini"
    engine: Mapping[str, Any] = field(default_factory=dict)
    api_keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    limits: Limits = Limits()

    @property
    def database_url(self) -> str:
        """The URL in use."""
        return self.database or f"sqlite:///{self.data.absolute() / 'jobs.db'}"

    @property
    def inputs(self) -> Path:
        """Folder of what requests bring, a folder per job."""
        return self.data / "inputs"

    @property
    def results(self) -> Path:
        """Folder of what is made."""
        return self.data / "results"
