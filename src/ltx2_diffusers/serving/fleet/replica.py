"""A replica: holds the checkpoint on the GPU or GPUs that Ray gave it, and makes one clip at a time."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from ... import __version__
from ...cli.loading import check_device
from ..group.settings import Group
from ..jobs import Job, ServedModel
from ..running import HANDED_BACK, PATIENCE_S, LocalRunner, Runner, WorkerDied, quiet_prompts
from ..worker import WorkerProcess
from .pulse import PulseReader


class Clips:
    """The deployment: what the server calls, over Ray.

    Args:
        engine: Options of `ltx2 generate` that say what is loaded, defaults filled in and names of files whole.
        inputs: Folder of what requests bring.
        results: Folder of finished clips.
        time_limit_s: Longest a run may take.
        pulse: File by which the server shows that it lives, and its token.
        version: Of the server's package.
        group: Processes that make each clip together, each on one of the replica's GPUs.

    Raises:
        ValueError: If it cannot work on this machine.
    """

    def __init__(
        self,
        engine: Mapping[str, Any],
        inputs: Path,
        results: Path,
        time_limit_s: float,
        pulse: tuple[Path, str],
        version: str,
        group: Group,
    ) -> None:
        quiet_prompts()
        machine = socket.gethostname()
        if version != __version__:
            raise ValueError(
                f"the machine {machine} has version {__version__}, and the server {version}; install the same"
            )
        self._pulse = PulseReader(*pulse)
        self._pulse.check()
        try:
            if group.ranks > 1:
                self._runner: Runner = WorkerProcess(engine, inputs, results, time_limit_s, group)
            else:
                check_device(engine["device"])
                self._runner = LocalRunner(engine, results, time_limit_s)
        except (ValueError, OSError, WorkerDied) as error:
            raise ValueError(f"the machine {machine} cannot load the checkpoint: {error}") from error
        self._inputs, self._longest_s = inputs, time_limit_s + PATIENCE_S
        self._began: float | None = None
        # A run that was cancelled goes on to its next step, and the next call waits for that.
        self._free = asyncio.Lock()

    async def model(self) -> ServedModel:
        """What is known of the checkpoint."""
        return self._runner.model

    async def run(self, jobs: list[str]) -> AsyncIterator[dict[str, Any]]:
        """Make clips; tells `begun`, each `event`, and at last the `outcomes`.

        If the caller cancels the call or is gone, the run ends at its next step.
        """
        loop, heard = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None]()
        ending = threading.Event()

        def report(*event: Any) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, {"event": event})

        def stopped(_job_id: str) -> str | None:
            return HANDED_BACK if ending.is_set() or self._pulse.lost() else None

        async with self._free:
            self._began = time.monotonic()
            made = loop.run_in_executor(
                None, self._runner.run, [Job.from_json(text, self._inputs) for text in jobs], report, stopped
            )
            made.add_done_callback(lambda _: heard.put_nowait(None))
            try:
                yield {"begun": True}
                while (message := await heard.get()) is not None:
                    yield message
                yield {"outcomes": await made}
            finally:
                ending.set()
                await asyncio.wait([made])
                self._began = None

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces a replica that raises here.

        Raises:
            RuntimeError: If a run has not ended long after it should have.
        """
        began = self._began
        if began is not None and time.monotonic() - began > self._longest_s:
            raise RuntimeError("a run does not end")
