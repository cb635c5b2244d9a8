"""A process that holds the checkpoint and makes clips, so that what happens to it does not happen to the server.

The two talk in lines of JSON over its standard input and output.
"""

import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..cli.loading import check_device
from .group.ranks import FirstRank, OtherRank, Rank, environment_of, rank_of
from .group.settings import ALONE, Group
from .jobs import Job, ServedModel
from .lines import read_message, written
from .running import (
    PATIENCE_S,
    LocalRunner,
    Outcome,
    Report,
    Stop,
    Stopped,
    WorkerDied,
    follow,
    quiet_prompts,
    stopped_outcome,
)

logger = logging.getLogger(__name__)

_CLOSE_S = 10.0


class WorkerProcess:
    """Makes clips in a process of its own, which is started anew when it dies.

    Args:
        options: Options of `ltx2 generate` that say what is loaded, defaults filled in.
        inputs: Folder of what requests bring.
        results: Folder of finished clips.
        time_limit_s: Longest a run may take.
        group: Processes that make each clip together, of which this is the first; default it makes them alone.

    Raises:
        ValueError: If the checkpoint cannot be loaded.
    """

    slots = 1

    def __init__(
        self, options: Mapping[str, Any], inputs: Path, results: Path, time_limit_s: float, group: Group = ALONE
    ) -> None:
        self._ranks = group.ranks
        self._settings = {
            "group": asdict(group),
            "options": dict(options),
            "inputs": inputs.absolute(),
            "results": results.absolute(),
        }
        self._settings["time_limit_s"] = self._time_limit_s = time_limit_s
        self._closed = False
        self._start()

    @property
    def process_id(self) -> int:
        """The id of the process."""
        return self._process.pid

    def run(self, jobs: Sequence[Job], report: Report, stopped: Stopped) -> dict[str, Outcome]:
        """See [`~ltx2_diffusers.serving.running.Runner`]."""
        if self._process.poll() is not None:
            self._start()
        self._send(run=[job.to_json() for job in jobs])
        deadline = time.monotonic() + self._time_limit_s + PATIENCE_S
        try:
            outcomes = follow(jobs, report, stopped, self._lines, self._stop, lambda: time.monotonic() > deadline)
        except Stop as stop:
            self._process.kill()
            return {job.id: stopped_outcome(stop.reason, self._time_limit_s) for job in jobs}
        if outcomes is None:
            raise WorkerDied(f"the worker ended with status {self._process.wait()}")
        return outcomes

    def close(self) -> None:
        """See [`~ltx2_diffusers.serving.running.Runner`]."""
        self._closed = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment_of(self._ranks)}
        # A session of its own, so that an interrupt at the terminal reaches the server alone, which ends it in order.
        self._process = subprocess.Popen(_command(), text=True, encoding="utf-8", start_new_session=True, **pipes)  # type: ignore[call-overload]
        self._lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(self._process, self._lines), daemon=True).start()
        self._send(**self._settings)
        first = self._lines.get()
        if first is None:
            raise WorkerDied(f"the worker ended with status {self._process.wait()} while it loaded the checkpoint")
        if "refused" in first:
            self._process.wait()
            raise ValueError(first["refused"])
        facts = first["ready"]
        self.model = ServedModel(**{**facts, "adapters": tuple(facts["adapters"])})

    @staticmethod
    def _read(process: subprocess.Popen, lines: "queue.SimpleQueue[dict[str, Any] | None]") -> None:
        for line in process.stdout or ():
            message = json.loads(line)
            if message.get("ends"):
                # The next job needs a new one.
                process.wait()
            lines.put(message)
        lines.put(None)

    def _stop(self, job_id: str, reason: str) -> None:
        self._send(stop=job_id, reason=reason)

    def _send(self, **message: Any) -> None:
        if self._process.stdin is None:
            return
        try:
            print(written(message), file=self._process.stdin, flush=True)
        except OSError:
            # It is gone; the thread that reads says so.
            logger.warning("the worker does not listen any more")


def _command() -> list[str]:
    """What starts such a process."""
    return [sys.executable, "-m", "ltx2_diffusers.serving.worker"]


def main() -> int:
    """Load the checkpoint and make clips until the server is gone."""
    # What libraries print goes where errors go.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        # In one piece, as several threads may speak.
        out.write(f"{written(message)}\n")

    quiet_prompts()
    settings = read_message(sys.stdin.readline())
    wanted: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
    stops: dict[str, str] = {}
    rank: Rank | None = None
    try:
        rank = rank_of(settings, say, _command())
        # Whoever waits for other ranks has to notice that they are gone.
        end = os._exit if rank is None else rank.end
        threading.Thread(target=_listen, args=(wanted, stops, end), daemon=True).start()
        runner = _runner(settings, rank)
    except (ValueError, OSError) as error:
        say(refused=str(error))
        if rank is not None:
            rank.end(2)
        return 2
    if isinstance(rank, FirstRank):
        rank.wait()
    say(ready=vars(runner.model))

    def report(*event: Any) -> None:
        if not isinstance(rank, OtherRank):
            say(event=event)

    while True:
        jobs = [Job.from_json(text, settings["inputs"]) for text in wanted.get()]
        if rank is not None:
            rank.begin(jobs)
        outcomes = runner.run(jobs, report, stops.get)
        if rank is not None:
            rank.finish(outcomes)
        say(outcomes=outcomes)
        stops.clear()


def _runner(settings: Mapping[str, Any], rank: Rank | None) -> LocalRunner:
    """What makes the clips, or this process's part of them."""
    options, results = settings["options"], settings.get("place", settings["results"])
    if rank is None:
        check_device(options["device"])
    else:
        options = {**options, "device": rank.device}
        check_device(options["device"])
        rank.join()
    return LocalRunner(options, results, settings["time_limit_s"], rank)


def _listen(wanted: "queue.SimpleQueue[list[str]]", stops: dict[str, str], end: Callable[[int], None]) -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "run" in message:
            wanted.put(message["run"])
        else:
            stops[message["stop"]] = message["reason"]
    # The server is gone, and with it everybody who could want the clip that is being made.
    end(0)


if __name__ == "__main__":
    sys.exit(main())
