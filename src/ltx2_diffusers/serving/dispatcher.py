"""The threads that take jobs from the queue and have them run, as many calls at a time as the runner has slots."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from .board import Board
from .jobs import Job, discard
from .metrics import Metrics
from .running import HANDED_BACK, Outcome, Runner, WorkerDied
from .settings import Settings
from .store import AWAY, CANCELLED, FINISHED, Row, Store
from .storyboards.making import drop_segments

logger = logging.getLogger(__name__)

# How often the queue is looked into without being told, leases are renewed, and old jobs are removed.
_LOOK_S, _HOLD_S, _SWEEP_S = 1.0, 10.0, 600.0
_DAY_S = 24 * 3600.0
T = TypeVar("T")


class Dispatcher:
    """Runs the jobs of a store on a runner.

    Args:
        settings: The server.
        store: The jobs.
        runner: What makes the clips.
        board: Where running jobs say how far they are.
        metrics: What is counted.
    """

    def __init__(self, settings: Settings, store: Store, runner: Runner, board: Board, metrics: Metrics) -> None:
        self._settings, self._store, self._runner = settings, store, runner
        self._board, self._metrics = board, metrics
        # What runs, and what was claimed and is not noted as done or handed back yet.
        self._running: list[Row] = []
        self._claimed: list[Row] = []
        self._news, self._submitted = threading.Condition(), 0
        # `_ending`: take nothing more; `_over`: nothing runs any more whose lease has to be held.
        self._ending, self._over = threading.Event(), threading.Event()
        self._workers: list[threading.Thread] = []
        self._holder = threading.Thread()

    def start(self) -> None:
        """Put back what an earlier life of this server left, and begin."""
        for job_id in self._store.recover(from_this=True):
            self.remove(job_id)
        self._sweep()
        self._ending.clear()
        self._over.clear()
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(self._runner.slots)]
        self._holder = threading.Thread(target=self._hold, daemon=True)
        for thread in (*self._workers, self._holder):
            thread.start()

    @property
    def works(self) -> bool:
        """Whether jobs are being taken."""
        alive = [worker.is_alive() for worker in self._workers]
        return bool(alive) and all(alive) and not self._ending.is_set()

    def submit(
        self, job: Job, tenant: str, waited_for: bool = False, request_key: str | None = None
    ) -> tuple[str, "Future[None]"]:
        """Put a job into the queue; its name, and what is resolved when it has ended.

        Raises:
            QueueFull: If too many jobs wait.
        """
        ended = self._board.entry(job.id).ended
        try:
            job_id = self._store.add(job, tenant, waited_for, request_key)
        except BaseException:
            self._drop(job.id)
            raise
        if job_id != job.id:
            self._drop(job.id)
        self._wake()
        return job_id, ended

    def cancel(self, job_id: str) -> bool:
        """Cancel a job; `False` if it has ended already."""
        if not self._store.cancel(job_id):
            return False
        self._board.stop(job_id, CANCELLED)
        self._ended(job_id, CANCELLED)
        return True

    def remove(self, job_id: str) -> None:
        """Forget a job with all its files."""
        self._store.remove(job_id)
        self._drop(job_id)

    def stop(self, grace_s: float) -> None:
        """Take no further jobs, wait for those that run, and hand back what takes too long."""
        self._ending.set()
        self._wake()
        self._wait(grace_s)
        for row in self._rows():
            self._board.stop(row.id, HANDED_BACK)
        self._wait(grace_s)
        self._over.set()
        self._holder.join()
        # If the database is away, the next start puts them back.
        with suppress(*AWAY):
            for row in self._rows():
                self._store.hand_back(row, counts=False)
        self._runner.close()

    def _wake(self) -> None:
        with self._news:
            self._submitted += 1
            self._news.notify_all()

    def _wait(self, seconds: float) -> None:
        """Wait for what runs."""
        ends = time.monotonic() + seconds
        for worker in self._workers:
            worker.join(max(0.0, ends - time.monotonic()))

    def _rows(self) -> list[Row]:
        """What runs."""
        with self._news:
            return list(self._running)

    def _drop(self, job_id: str) -> None:
        """Let go of a job that there is no more, with all its files; of one that still runs, when its run has ended."""
        still_runs = self._runs(job_id)
        if not still_runs:
            discard(self._settings.inputs / job_id)
            for place in (self._settings.results / job_id, *self._settings.results.glob(f"{job_id}.*")):
                discard(place)
        self._board.end(job_id, still_runs)

    def _forget(self, job_id: str) -> None:
        """Let go of what a job that has ended needs no more."""
        still_runs = self._runs(job_id)
        if not still_runs:
            drop_segments(self._settings.results, job_id)
        self._board.end(job_id, still_runs)

    def _runs(self, job_id: str) -> bool:
        return any(row.id == job_id for row in self._rows())

    def _work(self) -> None:
        while not self._ending.is_set():
            submitted = self._submitted
            try:
                rows = self._store.claim(self._settings.limits.max_batch)
                if rows:
                    self._run(rows)
                else:
                    self._wait_for_news(submitted)
            except Exception:
                # The database may be away for a while.
                logger.exception("the queue could not be read; trying again")
                time.sleep(_LOOK_S)

    def _wait_for_news(self, submitted: int) -> None:
        """Wait until more jobs have been submitted than this many, or it is time to look."""
        with self._news:
            self._news.wait_for(lambda: self._submitted > submitted, _LOOK_S)

    def _run(self, rows: Sequence[Row]) -> None:
        jobs = [Job.from_json(row.job, self._settings.inputs) for row in rows]
        with self._news:
            self._running += rows
            self._claimed += rows
        started = time.perf_counter()
        outcomes: dict[str, Outcome] = {}
        try:
            for row in rows:
                self._board.publish(row.id, "status", {"status": row.state, "progress": 0})
            # Those that were cancelled between being taken and being noted here.
            for job_id in self._reached(lambda: self._store.hold(rows)):
                self._board.stop(job_id, CANCELLED)
            outcomes = self._runner.run(jobs, self._report, self._board.stopped)
        except WorkerDied as error:
            logger.warning("%s while it ran %s", error, ", ".join(row.id for row in rows))
            self._metrics.worker_deaths.inc()
        except Exception:
            logger.exception("the worker or the database could not be reached")
            self._ending.wait(_LOOK_S)
        finally:
            with self._news:
                self._running = [row for row in self._running if row not in rows]
        self._metrics.seconds.observe(time.perf_counter() - started)
        try:
            for row in rows:
                self._reached(partial(self._take, row, outcomes.get(row.id)))
        finally:
            with self._news:
                self._claimed = [row for row in self._claimed if row not in rows]

    def _reached(self, change: Callable[[], T]) -> T:
        """What a change of the database gives; one that is away is waited for, so that no clip is made twice."""
        while True:
            try:
                return change()
            except AWAY as error:
                if self._ending.wait(_LOOK_S):
                    raise
                logger.warning("the database cannot be reached, trying again: %s", error)

    def _take(self, row: Row, outcome: Outcome | None) -> None:
        """Note what came of a job; nothing is known of one whose worker died."""
        if outcome is None or outcome["state"] == HANDED_BACK:
            self._store.hand_back(row, counts=outcome is None)
        elif self._store.finish(row, outcome["state"], outcome.get("result"), outcome.get("error")):
            self._ended(row.id, outcome["state"])
            return
        now = self._store.get(row.id)
        if now is None:
            self._drop(row.id)
        elif now.state in FINISHED:
            # It was cancelled while it ran, or has died too often.
            self._forget(row.id)
            if outcome is not None and "result" in outcome:
                (self._settings.results / outcome["result"]["file"]).unlink(missing_ok=True)
        else:
            # It may be taken here again.
            self._board.resume(row.id)

    def _ended(self, job_id: str, state: str) -> None:
        self._metrics.jobs.labels(state).inc()
        self._forget(job_id)
        logger.info("%s %s", job_id, state)

    def _report(self, job_id: str, kind: str, event: dict) -> None:
        self._board.publish(job_id, kind, event)
        if kind == "progress":
            self._metrics.steps.inc()
        elif kind == "shot":
            self._note_shots(job_id, event["finished"])

    def _note_shots(self, job_id: str, shots: int) -> None:
        row = next(row for row in self._rows() if row.id == job_id)
        try:
            self._store.note_shots(row, shots)
        except Exception:
            # The clip goes on without the database.
            logger.exception("a finished shot of %s could not be noted", job_id)

    def _hold(self) -> None:
        """Renew leases, take over what dead servers left, end what was cancelled elsewhere, and remove old jobs."""
        swept = time.monotonic()
        while not self._over.wait(_HOLD_S):
            try:
                with self._news:
                    claimed = list(self._claimed)
                for job_id in self._store.hold(claimed):
                    self._board.stop(job_id, CANCELLED)
                for job_id in self._store.recover(from_this=False):
                    self.remove(job_id)
                if time.monotonic() - swept > _SWEEP_S:
                    swept = time.monotonic()
                    self._sweep()
            except Exception:
                logger.exception("the database could not be reached; trying again")

    def _sweep(self) -> None:
        """Remove jobs that ended long ago, and files of none."""
        for job_id in self._store.expired(time.time() - self._settings.limits.keep_days * _DAY_S):
            self.remove(job_id)
        for folder in (self._settings.inputs, self._settings.results):
            for path in folder.glob("video_*") if folder.is_dir() else ():
                self._drop_orphan(path)

    def _drop_orphan(self, path: Path) -> None:
        """Remove what a killed server left of a job that was never noted, or that has ended."""
        if time.time() - path.stat().st_mtime > _SWEEP_S:
            row = self._store.get(path.stem)
            if row is None:
                discard(path)
            elif row.state in FINISHED and path.is_dir():
                drop_segments(self._settings.results, row.id)
