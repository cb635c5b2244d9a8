"""What running jobs say of themselves: how far they are and what they look like, for those who watch."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Any


@dataclass
class Entry:
    """What is known of a job that waits or runs.

    Args:
        ended: Resolved when the job has ended, whatever came of it.
        percent: How far it is.
        events: Latest event of each kind, with its number.
        count: Number of the latest event.
        stop: Why the job is to end early, if it is.
    """

    ended: "Future[None]" = field(default_factory=Future)
    percent: int = 0
    events: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    count: int = 0
    stop: str | None = None


class Board:
    """Entries of the jobs of this server, written by the thread that runs them and read by those that answer requests."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: dict[str, Entry] = {}

    def entry(self, job_id: str) -> Entry:
        """The entry of a job, a new one if there is none."""
        with self._lock:
            return self._entries.setdefault(job_id, Entry())

    def publish(self, job_id: str, kind: str, event: dict[str, Any]) -> None:
        """Make an event known; it replaces the one of its kind before it."""
        entry = self.entry(job_id)
        with self._lock:
            entry.count += 1
            entry.events[kind] = entry.count, event
            entry.percent = event.get("progress", entry.percent)

    def find(self, job_id: str) -> Entry | None:
        """The entry of a job that waits or runs here."""
        with self._lock:
            return self._entries.get(job_id)

    def news(self, entry: Entry | None, count: int) -> tuple[int, list[tuple[str, dict[str, Any]]]]:
        """The number of the latest event of an entry, and its events after the one of a number, in their order.

        Whoever holds an entry reads its last events after the job has ended, too.
        """
        if entry is None:
            return count, []
        with self._lock:
            newer = sorted((number, kind) for kind, (number, _) in entry.events.items() if number > count)
            return entry.count, [(kind, entry.events[kind][1]) for _, kind in newer]

    def percent(self, job_id: str) -> int:
        """How far a job is."""
        with self._lock:
            entry = self._entries.get(job_id)
            return 0 if entry is None else entry.percent

    def stop(self, job_id: str, reason: str) -> None:
        """Have a job end at its next step, if it is this server's."""
        with self._lock:
            if (entry := self._entries.get(job_id)) is not None and entry.stop is None:
                entry.stop = reason

    def resume(self, job_id: str) -> None:
        """Forget that a job was to end; it goes back into the queue."""
        with self._lock:
            if (entry := self._entries.get(job_id)) is not None:
                entry.stop = None

    def stopped(self, job_id: str) -> str | None:
        """Why a job is to end early, if it is."""
        with self._lock:
            entry = self._entries.get(job_id)
            return None if entry is None else entry.stop

    def end(self, job_id: str, still_runs: bool = False) -> None:
        """Tell who waits for a job that it has ended, and forget it.

        Args:
            job_id: The job.
            still_runs: Whether its run goes on to the next step, which has to know that it is to stop.
        """
        with self._lock:
            entry = self._entries.get(job_id) if still_runs else self._entries.pop(job_id, None)
        if entry is not None and not entry.ended.done():
            entry.ended.set_result(None)
