"""The thread that takes jobs from the queue and has them run, one call at a time."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from .board import Board
from .jobs import Job, discard
from .metrics import Metrics
from .running import Outcome, Runner, WorkerDied
from .settings import Settings
from .store import CANCELLED, FINISHED, Row, Store
from .storyboards.making import drop_segments

logger = logging.getLogger(__name__)

# How often the queue is looked into without being told, leases are renewed, and old jobs are removed.
_LOOK_S, _HOLD_S, _SWEEP_S = 1.0, 10.0, 600.0
_HANDED_BACK = "handed_back"
_DAY_S = 24 * 3600.0


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
        self._running: list[Row] = []
        self._news, self._ending = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Put back what an earlier life of this server left, and begin."""
        for job_id in self._store.recover(from_this=True):
            self.remove(job_id)
        self._sweep()
        self._ending.clear()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._work, self._hold)]
        for thread in self._threads:
            thread.start()

    @property
    def works(self) -> bool:
        """Whether jobs are being taken."""
        return bool(self._threads) and self._threads[0].is_alive() and not self._ending.is_set()

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
        self._news.set()
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
        """Take no further jobs, wait for the running one, and hand it back if that takes too long."""
        self._ending.set()
        self._news.set()
        worker, holder = self._threads
        worker.join(grace_s)
        if worker.is_alive():
            for row in list(self._running):
                self._board.stop(row.id, _HANDED_BACK)
            worker.join(grace_s)
        holder.join()
        if worker.is_alive():
            for row in list(self._running):
                self._store.hand_back(row, counts=False)
        self._runner.close()

    def _drop(self, job_id: str) -> None:
        """Let go of a job that there is no more, with all its files; of one that still runs, when its run has ended."""
        if not self._runs(job_id):
            discard(self._settings.inputs / job_id)
            for place in (self._settings.results / job_id, *self._settings.results.glob(f"{job_id}.*")):
                discard(place)
        self._board.end(job_id, self._runs(job_id))

    def _forget(self, job_id: str) -> None:
        """Let go of what a job that has ended needs no more."""
        if not self._runs(job_id):
            drop_segments(self._settings.results, job_id)
        self._board.end(job_id, self._runs(job_id))

    def _runs(self, job_id: str) -> bool:
        return any(row.id == job_id for row in self._running)

    def _work(self) -> None:
        while not self._ending.is_set():
            try:
                rows = self._store.claim(self._settings.limits.max_batch)
                if rows:
                    self._run(rows)
                else:
                    self._news.wait(_LOOK_S)
                    self._news.clear()
            except Exception:
                # The database may be away for a while.
                logger.exception("the queue could not be read; trying again")
                time.sleep(_LOOK_S)

    def _run(self, rows: Sequence[Row]) -> None:
        jobs = [Job.from_json(row.job, self._settings.inputs) for row in rows]
        self._running = list(rows)
        # Those that were cancelled between being taken and being noted here.
        for job_id in self._store.hold(rows):
            self._board.stop(job_id, CANCELLED)
        for row in rows:
            self._board.publish(row.id, "status", {"status": row.state, "progress": 0})
        started = time.perf_counter()
        outcomes: dict[str, Outcome] = {}
        try:
            outcomes = self._runner.run(jobs, self._report, self._board.stopped)
        except WorkerDied as error:
            logger.warning("%s while it ran %s", error, ", ".join(row.id for row in rows))
            self._metrics.worker_deaths.inc()
        except Exception:
            logger.exception("a worker could not be started")
            self._ending.wait(_LOOK_S)
        finally:
            self._running = []
        self._metrics.seconds.observe(time.perf_counter() - started)
        for row in rows:
            self._take(row, outcomes.get(row.id))

    def _take(self, row: Row, outcome: Outcome | None) -> None:
        """Note what came of a job; nothing is known of one whose worker died."""
        if outcome is None or outcome["state"] == _HANDED_BACK:
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
        row = next(row for row in self._running if row.id == job_id)
        try:
            self._store.note_shots(row, shots)
        except Exception:
            # The clip goes on without the database.
            logger.exception("a finished shot of %s could not be noted", job_id)

    def _hold(self) -> None:
        """Renew leases, take over what dead servers left, end what was cancelled elsewhere, and remove old jobs."""
        swept = time.monotonic()
        while not self._ending.wait(_HOLD_S):
            try:
                for job_id in self._store.hold(list(self._running)):
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
