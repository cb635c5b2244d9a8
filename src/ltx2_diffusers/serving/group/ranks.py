"""The processes of a group: the first one talks with the server, and starts the others, which do as it does.

It tells them what the server tells it, line by line over their standard input, and hears of them over their standard output.
Whether a run ends early it decides alone, and says so at every check, where the others wait for that.
"""

import json
import os
import queue
import shutil
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ...atomic import temporary_folder
from ...cli.jobs.ranks import join, own_device
from ...devices import launched
from ..jobs import Job, discard
from ..lines import written
from .settings import Group

Say = Callable[..., None]
"""Says a message, given by name, to whoever started this process."""
T = TypeVar("T")

_HOST, _PORT = "127.0.0.1", "MASTER_PORT"
# What may have happened to one rank alone, for which the others wait in the middle of the run then.
_OWN_ERRORS = ("server_error", "out_of_memory")


def environment_of(ranks: int) -> dict[str, str] | None:
    """The environment of the first of several ranks; `None` for one alone, which has that of its server."""
    if ranks == 1:
        return None
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    numbers = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": ranks, "OMP_NUM_THREADS": max(1, threads // ranks)}
    return {**os.environ, **{name: str(number) for name, number in numbers.items()}}


class Rank(ABC):
    """One of the processes, seen from within.

    Args:
        settings: What the server said first.
        say: Says something to whoever started this process.
    """

    def __init__(self, settings: Mapping[str, Any], say: Say) -> None:
        self._parallel, self._say = Group(**settings["group"]).parallel, say
        self.device = own_device(settings["options"]["device"])

    def join(self) -> None:
        """Wait until all ranks are there."""
        from torch import distributed

        process = launched()
        join(self.device, store=self._store(), rank=process.rank, world_size=process.world)
        # Beside the one of the devices, for what is said in host memory.
        self._talk = distributed.new_group(backend="gloo")

    def share(self, pipeline: Any) -> None:
        """Let a pipeline share its calls with the other ranks."""
        pipeline.enable_parallelism(self._parallel)

    def said_by_first(self, value: T) -> T:
        """What the first rank gives here; all have to call this."""
        from torch import distributed

        said = [value]
        distributed.broadcast_object_list(said, 0, group=self._talk)
        return said[0]

    def begin(self, jobs: Sequence[Job]) -> None:
        """Wait until all ranks begin with jobs."""
        from torch import distributed

        self._prepare(jobs)
        distributed.barrier(self._talk)

    def finish(self, outcomes: Mapping[str, Mapping[str, Any]]) -> None:
        """End all ranks after an error that the others have not had, who wait for this one in the middle of a run."""
        codes = {outcome.get("error", {}).get("code") for outcome in outcomes.values()}
        if not codes.isdisjoint(_OWN_ERRORS):
            if "server_error" not in codes:
                self._say(outcomes=outcomes, ends=True)
            # Else it may be that another rank has died: the server hears of that, and has the job made again.
            self.end(1)

    @abstractmethod
    def end(self, status: int) -> None:
        """End this process, and those that it started."""

    @abstractmethod
    def _store(self) -> Any:
        """Where the ranks find each other."""

    @abstractmethod
    def _prepare(self, jobs: Sequence[Job]) -> None:
        """Do what has to be done before any rank begins."""


class FirstRank(Rank):
    """The process that talks with the server and writes the results.

    Args:
        settings, say: See [`Rank`].
        command: What starts another rank.
    """

    def __init__(self, settings: Mapping[str, Any], say: Say, command: Sequence[str]) -> None:
        from torch.distributed import TCPStore

        super().__init__(settings, say)
        world = launched().world
        self._meeting = TCPStore(_HOST, 0, world, is_master=True, wait_for_workers=False)
        self._heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._ending = threading.Lock()
        # Ended processes leave it to this one to remove what they wrote.
        self._writing = temporary_folder(settings["results"])
        self._place = self._writing.__enter__()
        self._others: list[subprocess.Popen[str]] = []
        for rank in range(1, world):
            environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), _PORT: str(self._meeting.port)}
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
            self._others.append(subprocess.Popen(command, env=environment, **pipes))
        for rank, process in enumerate(self._others, start=1):
            threading.Thread(target=self._hear, args=(process,), daemon=True).start()
            self._tell(process, **settings, place=self._place / str(rank))

    def begin(self, jobs: Sequence[Job]) -> None:
        """See [`Rank`]."""
        for process in self._others:
            self._tell(process, run=[job.to_json() for job in jobs])
        super().begin(jobs)

    def finish(self, outcomes: Mapping[str, Mapping[str, Any]]) -> None:
        """See [`Rank`]; otherwise wait until all have finished."""
        super().finish(outcomes)
        self.wait()

    def wait(self) -> None:
        """Wait until each other rank has said that it is ready, or done."""
        for _ in self._others:
            self._heard.get()

    def end(self, status: int) -> None:
        """See [`Rank`]; the first thread that calls this does it."""
        with self._ending:
            for process in self._others:
                process.kill()
            for process in self._others:
                process.wait()
            with suppress(OSError):
                self._writing.__exit__(None, None, None)
            os._exit(status)

    def _store(self) -> Any:
        return self._meeting

    def _prepare(self, jobs: Sequence[Job]) -> None:
        """The others copy what they need."""

    def _hear(self, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            message = json.loads(line)
            if "refused" in message or message.get("ends"):
                self._say(**message)
                self.end(2)
            self._heard.put(message)
        self.end(1)

    @staticmethod
    def _tell(process: "subprocess.Popen[str]", **message: Any) -> None:
        # One that is gone is noticed by the thread that hears it.
        with suppress(OSError):
            print(written(message), file=process.stdin, flush=True)


class OtherRank(Rank):
    """A process that does as the first one does, and whose results nobody wants.

    Args:
        settings, say: See [`Rank`].
    """

    def __init__(self, settings: Mapping[str, Any], say: Say) -> None:
        super().__init__(settings, say)
        self._results, self._place = Path(settings["results"]), Path(settings["place"])

    def finish(self, outcomes: Mapping[str, Mapping[str, Any]]) -> None:
        """See [`Rank`]; otherwise forget what was written."""
        super().finish(outcomes)
        for path in self._place.iterdir():
            discard(path)

    def end(self, status: int) -> None:
        """See [`Rank`]."""
        os._exit(status)

    def _store(self) -> Any:
        from torch.distributed import TCPStore

        return TCPStore(_HOST, int(os.environ[_PORT]), launched().world, is_master=False)

    def _prepare(self, jobs: Sequence[Job]) -> None:
        """Copy what is finished of a storyboard, behind which all ranks go on."""
        for job in jobs:
            if (self._results / job.id).is_dir():
                shutil.copytree(self._results / job.id, self._place / job.id)


def rank_of(settings: Mapping[str, Any], say: Say, command: Sequence[str]) -> Rank | None:
    """What this process is within its group; `None` if it is alone."""
    if Group(**settings["group"]).ranks == 1:
        return None
    return OtherRank(settings, say) if "place" in settings else FirstRank(settings, say, command)
