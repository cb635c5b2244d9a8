"""The server's side of the replicas: starts them, hands them jobs, and hears what becomes of these."""

import logging
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import __version__
from ...checkpoints.packaged import PACKAGED
from ...cli.values import replaced_files
from ..group.settings import Group
from ..jobs import Job
from ..running import PATIENCE_S, Outcome, Report, Stop, Stopped, WorkerDied, follow, stopped_outcome
from ..settings import MIB, Settings
from .pulse import Pulse
from .settings import LOCAL, Fleet

logger = logging.getLogger(__name__)

_DEPLOYMENT = "clips"
# What is sent are jobs and pictures of previews, no clips.
_OBJECT_STORE = 128 * MIB
# How long jobs are counted before Ray Serve decides how many replicas there are to be.
_COUNT_S, _COUNTS_S = 2.0, 10.0
_CLOSE_S = 15.0


class FleetRunner:
    """Makes clips on replicas of Ray Serve, as many at a time as there may be replicas.

    Args:
        settings: The server. Its folder of data has to be shared by all machines.
        fleet: The replicas.
        group: Processes of each replica that make each clip together.

    Raises:
        ValueError: If there is no such cluster, or a replica cannot work; the message says why.
    """

    def __init__(self, settings: Settings, fleet: Fleet, group: Group) -> None:
        self.slots = fleet.most
        self._time_limit_s = settings.limits.time_limit
        # A server has one name, also after it was killed: then it ends the replicas that it left behind.
        self._name = "ltx2-" + re.sub(r"[^\w.-]+", "-", settings.name)
        _join(fleet)
        from ray import serve

        data = settings.data.absolute()
        for folder in (settings.inputs, settings.results):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._pulse = Pulse(data / f"{self._name}.pulse")
        arguments = {
            "engine": _engine(settings.engine),
            "inputs": settings.inputs.absolute(),
            "results": settings.results.absolute(),
            "time_limit_s": self._time_limit_s,
            "pulse": (self._pulse.file, self._pulse.token),
            "version": __version__,
            "group": group,
        }
        try:
            # Requests come in through the server alone.
            serve.start(proxy_location="Disabled")
            if self._name in serve.status().applications:
                serve.delete(self._name)
            self._handle = self._deployed(fleet, arguments)
            self.model = self._handle.model.remote().result()
        except BaseException:
            self.close()
            raise

    def run(self, jobs: Sequence[Job], report: Report, stopped: Stopped) -> dict[str, Outcome]:
        """See [`~ltx2_diffusers.serving.running.Runner`]."""
        call = _Call(self._handle, jobs, self._time_limit_s + PATIENCE_S)
        try:
            outcomes = follow(jobs, report, stopped, call.heard, call.stop, call.overdue)
        except Stop as stop:
            # The replica notices it, too, and ends.
            call.cancel()
            return {job.id: stopped_outcome(stop.reason, self._time_limit_s) for job in jobs}
        if outcomes is None:
            raise WorkerDied(f"a replica was lost ({call.error})")
        return outcomes

    def close(self) -> None:
        """End the replicas, and Ray if it was started here."""
        import ray
        from ray import serve

        try:
            serve.delete(self._name, _blocking=False)
            ends = time.monotonic() + _CLOSE_S
            while self._name in serve.status().applications and time.monotonic() < ends:
                time.sleep(0.1)
        except Exception:
            logger.exception("the replicas could not be ended")
        self._pulse.end()
        ray.shutdown()

    def _deployed(self, fleet: Fleet, arguments: Mapping[str, Any]) -> Any:
        from ray import serve

        from .replica import Clips

        deployment = serve.deployment(name=_DEPLOYMENT, **_options(fleet, self._time_limit_s))(Clips)
        try:
            return serve.run(deployment.bind(**arguments), name=self._name, route_prefix=None)
        except RuntimeError as error:
            # What a replica raised stands in its traceback alone.
            told = [one.message for one in serve.status().applications[self._name].deployments.values()]
            reasons = re.findall(r"ValueError: (.+)", "\n".join(told))
            raise ValueError(reasons[-1] if reasons else f"no replica could be started: {error}; {told}") from error


class _Call:
    """A call of a replica, heard by a thread of its own.

    Args:
        handle: The deployment.
        jobs: What it is to make.
        longest_s: How long it may take from when a replica has begun.
    """

    def __init__(self, handle: Any, jobs: Sequence[Job], longest_s: float) -> None:
        self._jobs, self._longest_s = jobs, longest_s
        self._stops: dict[str, str] = {}
        self._began: float | None = None
        self.error = ""
        self.heard: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._response = handle.options(stream=True).run.remote([job.to_json() for job in jobs])
        threading.Thread(target=self._hear, daemon=True).start()

    def stop(self, job_id: str, reason: str) -> None:
        """Have the call end early once none of its jobs is wanted."""
        self._stops[job_id] = reason
        if len(self._stops) == len(self._jobs):
            self.cancel()

    def cancel(self) -> None:
        """Have the call end early, whether it has begun or waits for a replica."""
        self._response.cancel()

    def overdue(self) -> bool:
        """Whether the replica has not ended long after it should have."""
        return self._began is not None and time.monotonic() - self._began > self._longest_s

    def _hear(self) -> None:
        from ray.exceptions import TaskCancelledError

        try:
            for message in self._response:
                if self._began is None:
                    self._began = time.monotonic()
                self.heard.put(message)
        except TaskCancelledError as error:
            self.error = type(error).__name__
            if len(self._stops) == len(self._jobs):
                self.heard.put({"outcomes": {job_id: {"state": reason} for job_id, reason in self._stops.items()}})
        except Exception as error:
            self.error = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        self.heard.put(None)


def _join(fleet: Fleet) -> None:
    """Start Ray on this machine, or join a cluster.

    Raises:
        ValueError: If this machine is too small, or there is no such cluster.
    """
    # The machine tells nobody what is done with it, unless its owner wants that.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if fleet.address != LOCAL:
        try:
            host, _, port = fleet.address.rpartition(":")
            if host:
                # Ray itself would try for minutes.
                socket.create_connection((host, int(port)), _CLOSE_S).close()
            ray.init(fleet.address, log_to_driver=False, logging_level=logging.WARNING)
        except (OSError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"--ray {fleet.address}: there is no Ray cluster ({error}); start one with: ray start --head"
            ) from error
        if lack := _lack(fleet, fleet.least, ray.cluster_resources()):
            # Some clusters grow when they are asked to.
            logger.warning("%s; the server starts when there is room for them", lack)
        return
    started: dict[str, Any] = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    ray.init("local", log_to_driver=False, logging_level=logging.WARNING, **started)
    if lack := _lack(fleet, fleet.most, ray.cluster_resources()):
        ray.shutdown()
        raise ValueError(
            f"{lack}; use fewer --replicas, give each less, or join a cluster of more machines with --ray auto"
        )


def _lack(fleet: Fleet, count: int, there: Mapping[str, float]) -> str | None:
    """What so many replicas need and is not there."""
    for name, each in {"CPU": fleet.cpus, "GPU": fleet.gpus, **fleet.resources}.items():
        if there.get(name, 0.0) < each * count:
            return f"--replicas {count} of {each:g} {name} each need {each * count:g}, and there are {there.get(name, 0.0):g}"
    return None


def _options(fleet: Fleet, time_limit_s: float) -> dict[str, Any]:
    """What Ray Serve is told of the deployment."""
    given: dict[str, Any] = {"num_replicas": fleet.least}
    if fleet.most > fleet.least:
        scale: dict[str, Any] = {"min_replicas": fleet.least, "max_replicas": fleet.most, "target_ongoing_requests": 1}
        scale |= {"upscale_delay_s": fleet.scale_up_after, "downscale_delay_s": fleet.scale_down_after}
        # Jobs that wait for a replica count, too.
        given = {"autoscaling_config": {**scale, "metrics_interval_s": _COUNT_S, "look_back_period_s": _COUNTS_S}}
    resources = {"num_cpus": fleet.cpus, "num_gpus": fleet.gpus, "resources": dict(fleet.resources)}
    return {
        **given,
        "ray_actor_options": resources,
        "max_ongoing_requests": 1,
        # One that is to go may finish its clip.
        "graceful_shutdown_timeout_s": time_limit_s + PATIENCE_S,
        "graceful_shutdown_wait_loop_s": 0.5,
        # What keeps the first replica from working keeps all others from it.
        "max_constructor_retry_count": 1,
    }


def _engine(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options whose files have their whole names, since replicas work in folders of their own."""
    found = {name: replaced_files(value, Path.absolute) for name, value in options.items()}
    for name in ("checkpoint", "text_encoder", "upsampler", "diffusion_decoder"):
        value = found.get(name)
        if isinstance(value, str) and value not in PACKAGED and Path(value).exists():
            found[name] = str(Path(value).absolute())
    if "prompt_cache" in found:
        found["prompt_cache"] = str(Path(found["prompt_cache"]).absolute())
    return found
