"""Running jobs on a loaded checkpoint, one call at a time."""

import base64
import logging
import os
import queue
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..adapters.active import DISTILLED_ADAPTER, added_adapters
from ..application.storyboard.making import StoryboardProgress
from ..atomic import temporary_folder
from ..cli.identities import environment, file_sha256
from ..cli.loading import load_pipeline
from ..cli.manifest import STORYBOARD
from ..cli.modes import MODES, Mode, call_arguments
from ..cli.preview import ContactSheet
from ..media.copying import EncodedAnewWarning
from ..media.writing import ClipFile
from .jobs import Job, ServedModel, in_fields, shortened
from .manifests.identity import identity_of, used_by
from .memory.forecast import memory_facts
from .storyboards.making import make_film

if TYPE_CHECKING:
    from .group.ranks import Rank

logger = logging.getLogger(__name__)

Outcome = dict[str, Any]
"""`state`, and `result` of what was completed or `error` of what failed."""
Report = Callable[[str, str, dict[str, Any]], None]
"""Called with the name of a job, a kind of event and what there is to say."""
Stopped = Callable[[str], str | None]
"""Why a job is to end early, if it is."""

HANDED_BACK = "handed_back"
"""State of a job that goes back into the queue, and the reason to end it."""
_NEVER_DONE = 99
# How often a running job is asked whether it is to end.
_TICK_S = 0.05
# How long after its time limit a run that does not stop is given up, with the process that makes it.
PATIENCE_S = 60.0


class Runner(Protocol):
    """Makes clips."""

    model: ServedModel
    slots: int
    """How many calls of `run` it takes at a time, each from a thread of its own."""

    def run(self, jobs: Sequence[Job], report: Report, stopped: Stopped) -> dict[str, Outcome]:
        """Make the clips of jobs that one call can make, and return what came of each.

        Raises:
            WorkerDied: If nothing is known of what came of them.
        """
        ...

    def close(self) -> None:
        """Let go of the checkpoint."""
        ...


class WorkerDied(Exception):
    """The process that ran a job is gone."""


class Stop(Exception):
    """A run ends before it is done.

    Args:
        reason: Why: `"cancelled"`, `"handed_back"` or `"time_limit"`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LocalRunner:
    """Makes clips in this process.

    Args:
        options: Options of `ltx2 generate` that say what is loaded, defaults filled in.
        results: Folder of finished clips.
        time_limit_s: Longest a run may take.
        rank: What this process is among those that make each clip together; default it makes them alone.
    """

    slots = 1

    def __init__(
        self, options: Mapping[str, Any], results: Path, time_limit_s: float, rank: "Rank | None" = None
    ) -> None:
        import ltx2_diffusers

        self._agreed: Callable[[str | None], str | None] = _alone if rank is None else rank.said_by_first
        self._results, self._time_limit_s, self._offload = results, time_limit_s, options["offload"]
        # It has the components of all others.
        pipeline = load_pipeline(options, ltx2_diffusers.LTX2TwoStagePipeline)
        if rank is not None:
            rank.share(pipeline)
        self._pipelines: dict[str, Any] = {type(pipeline).__name__: pipeline}
        self._hooked, self._device = pipeline, options["device"]
        adapters = options.get("adapters", {})
        distilled = options["distilled_lora"][1] if "distilled_lora" in options else None
        preset = pipeline.preset
        names, identity = tuple(sorted(adapters)), identity_of(options)
        memory = memory_facts(pipeline, options)
        facts = (preset.version, preset.kind, options["device"], names, distilled, memory, identity)
        self.model = ServedModel(*facts, pipeline.has("duration_head"))
        self._environment = environment(options["device"])
        results.mkdir(parents=True, exist_ok=True)

    def run(self, jobs: Sequence[Job], report: Report, stopped: Stopped) -> dict[str, Outcome]:
        """See [`Runner`]."""
        started = time.perf_counter()
        watcher = _Watcher(jobs, report, stopped, started + self._time_limit_s, self._results, self._agreed)
        try:
            files, told = self._film(jobs[0], watcher) if jobs[0].mode == STORYBOARD else self._made(jobs, watcher)
        except Stop as stop:
            return dict.fromkeys([job.id for job in jobs], stopped_outcome(stop.reason, self._time_limit_s))
        except ValueError as error:
            speaking = shortened if jobs[0].mode == STORYBOARD else in_fields
            message = speaking(str(error), jobs[0].options)
            return dict.fromkeys([job.id for job in jobs], _failed("invalid_request", message))
        except Exception as error:
            logger.exception("a job failed: %s", type(error).__name__)
            return dict.fromkeys([job.id for job in jobs], self._broken(error))
        finally:
            watcher.clean_up()
        told |= {"generation_seconds": round(time.perf_counter() - started, 3), "versions": self._environment}
        told |= {"model": used_by(jobs[0], self.model.identity)}
        return {job.id: {"state": "completed", "result": {**_facts(file), **told}} for job, file in zip(jobs, files)}

    def close(self) -> None:
        """The checkpoint goes with this object."""

    def _film(self, job: Job, watcher: "_Watcher") -> tuple[list[Path], dict[str, Any]]:
        """The finished file of a storyboard, in the folder of results, and what there is to tell of it."""
        mode = next(mode for mode in MODES if mode.pipeline == "LTX2ExtendPipeline")
        identity, seen = used_by(job, self.model.identity), {"callback_on_step_end_tensor_inputs": watcher.inputs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EncodedAnewWarning)
            film, told = make_film(
                job,
                self._pipeline(mode),
                self._results,
                identity,
                watcher.follow,
                callback_on_step_end=watcher,
                **seen,
            )
        finished = self._results / f"{job.id}.mp4"
        os.replace(film, finished)
        return [finished], told

    def _made(self, jobs: Sequence[Job], watcher: "_Watcher") -> tuple[list[Path], dict[str, Any]]:
        """Finished files of jobs, in the folder of results, and what there is to tell of them."""
        mode, first = next(mode for mode in MODES if mode.name == jobs[0].mode), jobs[0]
        options = {**first.options, "prompt": [text for job in jobs for text in job.options["prompt"]]}
        pipeline = self._pipeline(mode)
        suffix = ".wav" if not mode.makes_video and "video" not in options else ".mp4"
        with temporary_folder(self._results) as folder, warnings.catch_warnings():
            # The files of a request are the server's own, of a kind that no MP4 file holds.
            warnings.simplefilter("ignore", EncodedAnewWarning)
            call = {**call_arguments(mode, options), **self._run_arguments(jobs, watcher, folder / f"clip{suffix}")}
            with self._adapters(pipeline, first):
                output = pipeline(**call)
            made = output.info["path"]
            told = {name: output.info[name] for name in ("enhanced_prompt",) if name in output.info}
            files = [made] if isinstance(made, str) else made
            finished = [self._results / f"{job.id}{suffix}" for job in jobs]
            for file, place in zip(files, finished, strict=True):
                os.replace(file, place)
        return finished, told

    def _run_arguments(self, jobs: Sequence[Job], watcher: "_Watcher", path: Path) -> dict[str, Any]:
        import torch

        first = jobs[0]
        file: Path | ClipFile = path
        generators = [torch.Generator("cpu").manual_seed(job.seed) for job in jobs]
        if path.suffix == ".mp4":
            growing = growing_file(self._results, first.id) if first.stream else None
            # Decoding may last longer than a step.
            file = ClipFile(path, growing, first.with_sound, on_frames=lambda _: watcher.check())
        return {
            "generator": generators if len(jobs) > 1 else generators[0],
            "output_type": "uint8",
            "save_path": file,
            "callback_on_step_end": watcher,
            "callback_on_step_end_tensor_inputs": watcher.inputs,
        }

    def _pipeline(self, mode: Mode) -> Any:
        """The pipeline of a mode, on the components that are loaded."""
        name, loaded = mode.pipeline, next(iter(self._pipelines.values()))
        if name not in self._pipelines:
            self._pipelines[name] = mode.pipeline_class.from_pipe(loaded)
            self._pipelines[name].pass_layout = loaded.pass_layout
            self._pipelines[name].set_progress_bar_config(disable=True)
        pipeline = self._pipelines[name]
        if self._offload != "none" and pipeline is not self._hooked:
            # Components know one pipeline that moves them.
            getattr(pipeline, f"enable_{self._offload}_cpu_offload")(device=self._device)
            self._hooked = pipeline
        return pipeline

    def _adapters(self, pipeline: Any, job: Job) -> Any:
        strengths = dict(job.adapters)
        if "distilled" in job.options and "distilled_lora" in job.options:
            strengths[DISTILLED_ADAPTER] = job.options["distilled_lora"][1]
        return added_adapters(pipeline, strengths) if strengths else nullcontext()

    def _broken(self, error: Exception) -> Outcome:
        import torch

        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            if torch.device(self._device).type == "cuda":
                torch.cuda.empty_cache()
            return _failed(
                "out_of_memory",
                "the clip does not fit into the memory of the machine; ask for a smaller or shorter one",
            )
        return _failed("server_error", "the server could not make the clip; its log says why")


def follow(
    jobs: Sequence[Job],
    report: Report,
    stopped: Stopped,
    heard: "queue.SimpleQueue[dict[str, Any] | None]",
    stop: Callable[[str, str], None],
    overdue: Callable[[], bool],
) -> dict[str, Outcome] | None:
    """What came of jobs that run elsewhere; `None` if whoever runs them is gone.

    Args:
        jobs: The jobs of one call.
        report, stopped: See [`Runner`].
        heard: What is heard of the call: messages with an `"event"`, at last one with the `"outcomes"`, or `None`.
        stop: Called once with a job that is to end and the reason.
        overdue: Whether the call takes so much longer than it may that it has to be given up.

    Raises:
        Stop: With `"time_limit"`, if it is overdue.
    """
    told: set[str] = set()
    while True:
        for job in jobs:
            if job.id not in told and (reason := stopped(job.id)):
                told.add(job.id)
                stop(job.id, reason)
        try:
            message = heard.get(timeout=_TICK_S)
        except queue.Empty:
            if overdue():
                raise Stop("time_limit") from None
            continue
        if message is None:
            return None
        if "outcomes" in message:
            return dict(message["outcomes"])
        if "event" in message:
            report(*message["event"])


def quiet_prompts() -> None:
    """Silence warnings that quote prompts, which are no business of a log."""
    for room in ("prompts", "application"):
        logging.getLogger(f"ltx2_diffusers.{room}").setLevel(logging.ERROR)


def growing_file(results: Path, job_id: str) -> Path:
    """The file of a job while it is written, if that can be read meanwhile."""
    return results / f"{job_id}.growing.mp4"


class _Watcher:
    """The step callback of a run: tells how far it is and what it looks like, and ends it when it is to end."""

    def __init__(
        self,
        jobs: Sequence[Job],
        report: Report,
        stopped: Stopped,
        deadline: float,
        folder: Path,
        agreed: Callable[[str | None], str | None],
    ) -> None:
        self._jobs, self._report, self._stopped, self._deadline = jobs, report, stopped, deadline
        self._agreed = agreed
        every = jobs[0].preview_every
        self._sheet = None if every is None else ContactSheet(folder / f".{jobs[0].id}.preview.jpg", every)
        self._runs_begun, self._shots = 0, dict[str, int]()
        self.inputs = () if self._sheet is None else self._sheet.inputs

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """After a step."""
        self.check()
        steps, self._runs_begun = pipeline.num_timesteps, self._runs_begun + (step == 0)
        share = (self._runs_begun - 1 + (step + 1) / steps) / max(self._jobs[0].runs, self._runs_begun)
        event = {
            "progress": min(_NEVER_DONE, int(100 * share)),
            "run": self._runs_begun,
            "step": step + 1,
            "steps": steps,
            **self._shots,
        }
        for job in self._jobs:
            self._report(job.id, "progress", event)
        if self._sheet is not None:
            self._sheet(pipeline, step, timestep, tensors)
            self._show(event)
        return {}

    def check(self) -> None:
        """End the run if nobody wants it any more, or it takes too long.

        Raises:
            Stop: That is how.
        """
        # Processes that make a clip together end at the same check, or some would wait for the others.
        if reason := self._agreed(self._reason()):
            raise Stop(reason)

    def _reason(self) -> str | None:
        """Why this process would end the run."""
        reasons = [self._stopped(job.id) for job in self._jobs]
        if all(reasons):
            return reasons[0]
        return "time_limit" if time.perf_counter() > self._deadline else None

    def follow(self, progress: StoryboardProgress) -> None:
        """How far a storyboard is: before each step is told, after each segment, and while prompts are written."""
        if not progress.step:
            self.check()
            return
        job = self._jobs[0]
        shots = {"finished": progress.shots, "total": len(job.options[STORYBOARD]["shots"])}
        if not self._shots:
            # Of one that goes on, these were made before.
            self._runs_begun = job.runs * (progress.segment - 1) // progress.num_segments
        if progress.shots > self._shots.get("shots", 0):
            self._report(job.id, "shot", shots)
        self._shots = {"shots": progress.shots, "segment": progress.segment, "segments": progress.num_segments}

    def _show(self, event: Mapping[str, Any]) -> None:
        """Report the picture, if this step drew one."""
        path = self._sheet.path if self._sheet is not None else None
        if path is not None and path.exists():
            picture = base64.b64encode(path.read_bytes()).decode()
            path.unlink()
            facts = {name: event[name] for name in ("run", "step", "steps")}
            self._report(self._jobs[0].id, "preview", {**facts, "image": f"data:image/jpeg;base64,{picture}"})

    def clean_up(self) -> None:
        """Remove a picture that was not shown."""
        if self._sheet is not None:
            self._sheet.path.unlink(missing_ok=True)


def _facts(file: Path) -> dict[str, Any]:
    """What is told of a finished clip."""
    from ..media.reading import probe

    info = probe(file)
    return {
        "file": file.name,
        "sha256": file_sha256(file),
        "width": info.width,
        "height": info.height,
        "frames": info.num_frames,
        "frame_rate": None if info.frame_rate is None else float(info.frame_rate),
        "seconds": info.duration_s,
        "has_audio": info.sampling_rate is not None,
    }


def _alone(reason: str | None) -> str | None:
    return reason


def _failed(code: str, message: str) -> Outcome:
    return {"state": "failed", "error": {"code": code, "message": message}}


def stopped_outcome(reason: str, time_limit_s: float) -> Outcome:
    """What came of a job that ended early."""
    if reason == "time_limit":
        return _failed("time_limit", f"the clip took longer than the {time_limit_s:g} s that this server gives")
    return {"state": reason}
