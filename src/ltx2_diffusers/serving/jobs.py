"""From a request to a job: everything that can be refused is, before anything is computed."""

import json
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..cli.generate import with_defaults
from ..cli.messages import in_options
from ..cli.modes import Mode, call_arguments, check_call, choose_mode
from ..cli.values import Options, replaced_files
from ..conditioning.shapes import snap_frames
from .admission import Refusal, admit
from .inputs.reader import Inputs, MediaReader
from .memory.forecast import Forecast
from .schema import MEDIA_KINDS, SERVED, GenerateRequest, Placed, VideoRequest, Weighted, in_names, size_of
from .settings import Limits, Settings

# What the API of /generate calls some options.
_OTHER_NAMES = {"frame_rate": "fps", "steps": "num_inference_steps", "image_at": "image", "no_audio": "include_audio"}
# Options beside the text and the seed that clips made by one call may not have: they are about a single one.
_ALONE = ("extend", "retake", "add_sound", "enhance_prompt", "audio_only", "auto_length")


@dataclass(frozen=True)
class ServedModel:
    """What is known of the loaded checkpoint.

    Args:
        version: Version of the model, such as `"2.0"`.
        kind: `"dev"` or `"distilled"`.
        device: Where it runs.
        adapters: Names of LoRAs that requests may ask for.
        distilled_lora: Weight of the LoRA with which a dev checkpoint refines, if one is loaded.
        memory: What is loaded, as far as memory goes; see [`~ltx2_diffusers.serving.memory.forecast.memory_facts`]. Without it
            no clip is refused for its memory.
        predicts_length: Whether it has a duration head.
        identity: What tells it from others; see [`~ltx2_diffusers.serving.manifests.identity`].
    """

    version: str
    kind: str
    device: str
    adapters: tuple[str, ...] = ()
    distilled_lora: float | None = None
    memory: Mapping[str, Any] | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    predicts_length: bool = False

    def forecast(self, memory_gb: float | None) -> Forecast | None:
        """Foretells the memory of clips, within so many GiB if they are said."""
        return None if self.memory is None else Forecast(self.memory, self.version, self.kind, memory_gb)


@dataclass(frozen=True)
class Job:
    """A generation that is checked and ready to run.

    Args:
        id: Its name.
        options: Options of `ltx2 generate`, or the storyboard as `storyboard`; input files are names in the folder of the job's
            inputs.
        seed: Seed of the noise.
        adapters: Strengths of LoRAs by name.
        with_sound: Whether sound is written.
        preview_every: Steps from one preview to the next, if there are to be any.
        stream: Whether the file can be read while it grows.
        mode: What kind of clip is made.
        batch_key: Jobs with equal keys can be made by one call; `None` for one that has to be alone.
        prompt: Text to show.
        size: Width and height, where the request says them.
        seconds: Length, where the request says it.
        runs: Runs of the denoising loop that it takes.
        media: Names of the content of the input files as they came (sha256), by their names.
    """

    id: str
    options: dict[str, Any]
    seed: int
    adapters: dict[str, float]
    with_sound: bool
    preview_every: int | None
    stream: bool
    mode: str
    batch_key: str | None
    prompt: str
    size: str | None
    seconds: float | None
    runs: int
    media: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The job as text; files by their names alone."""
        return json.dumps(vars(self), default=lambda path: {"file": path.name})

    @staticmethod
    def from_json(text: str, inputs: Path) -> "Job":
        """The job of a text; its files lie in a folder of its own in `inputs`."""
        folder = inputs / json.loads(text)["id"]
        return Job(**json.loads(text, object_hook=lambda value: located(value, folder)))

    @property
    def files(self) -> list[Path]:
        """Its input files."""
        return _paths(self.options)


@dataclass(frozen=True)
class JobMaker:
    """What jobs are made with.

    Args:
        settings: The server.
        model: The loaded checkpoint.
        media: Reads what requests bring.
        forecast: Foretells the memory of clips, if that can be done.
    """

    settings: Settings
    model: ServedModel
    media: MediaReader
    forecast: Forecast | None = None


class Planner(JobMaker):
    """Makes jobs of requests for a clip."""

    def generate(self, request: GenerateRequest) -> Job:
        """The job of a request to `/generate`.

        Raises:
            Refusal: If something is wrong with it; the message names a field.
        """
        given = {
            "prompt": [request.prompt],
            "negative_prompt": request.negative_prompt,
            "width": request.width,
            "height": request.height,
            "num_frames": request.num_frames,
            "frame_rate": float(request.fps),
        }
        said = request.model_fields_set if self.model.kind == "distilled" else GenerateRequest.model_fields.keys()
        if "num_inference_steps" in said:
            given["steps"] = request.num_inference_steps
        if "guidance_scale" in said:
            given["guidance_scale"] = request.guidance_scale
        job_id, media = new_id(), dict[str, Any]()
        if request.image is not None:
            media["image_at"] = [[0, request.image, 1.0 - request.image_cond_noise_scale]]
        if request.audio is not None:
            media["audio"] = request.audio
            given |= {"audio_cond_noise_scale": request.audio_cond_noise_scale, "audio_fit": "pad"}
        given |= self._read(job_id, media, _OTHER_NAMES)[0]
        job = self._job(job_id, given, request.seed, GenerateRequest.model_fields, _OTHER_NAMES)
        # The clip is made with its sound, which a silent file leaves out, so that its pictures do not depend on that.
        key = None if job.batch_key is None else f"{job.batch_key} {request.include_audio}"
        return replace(job, with_sound=request.include_audio, batch_key=key)

    def video(self, request: Any) -> Job:
        """The job of a request to `/v1/videos`, a `VideoRequest`.

        Raises:
            Refusal: If something is wrong with it; the message names a field.
        """
        check_model(request.model, self.settings)
        if unknown := sorted(request.adapters.keys() - self.model.adapters):
            known = ", ".join(self.model.adapters) or "none"
            raise Refusal(f"`adapters` names {unknown[0]!r}, which is not loaded; there are {known}", "adapters")
        said = {name: getattr(request, name) for name in SERVED}
        # A switch that is off is not given; a number that is 0 is.
        values = {name: value for name, value in said.items() if value is not None and value is not False}
        seed = values.pop("seed", None)
        texts = values["prompt"]
        values["prompt"] = [texts] if isinstance(texts, str) else texts
        if len(values["prompt"]) != 1 and "extend" not in values:
            raise Refusal("`prompt` has several texts, which are those of the parts of `extend`; give one", "prompt")
        values |= self._shortcuts(request, values)
        media = {name: _plain(values.pop(name)) for name in MEDIA_KINDS if name in values}
        job_id = new_id()
        read, hashes = self._read(job_id, media, {})
        values |= read
        job = self._job(job_id, values, seed, VideoRequest.model_fields, {})
        key = job.batch_key and f"{job.batch_key} {json.dumps(request.adapters, sort_keys=True)}"
        watched = {"preview_every": request.preview_every, "stream": request.stream}
        if request.stream and "audio_only" in values:
            discard(self.settings.inputs / job_id)
            raise Refusal("`stream` is not possible with `audio_only`, which makes no MP4 file", "stream")
        key = None if any(watched.values()) else key
        return replace(job, adapters=request.adapters, **watched, batch_key=key, media=hashes)

    def check_again(self, job: Job) -> None:
        """Check a job that was made before against the limits and the checkpoint of today.

        Raises:
            Refusal: If it would be refused now.
        """
        given = {name: value for name, value in job.options.items() if name in SERVED}
        self._job(job.id, given, job.seed, VideoRequest.model_fields, {})

    def _shortcuts(self, request: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        """What OpenAI's names say, in options."""
        found: dict[str, Any] = {}
        if request.input_reference is not None:
            found["image"] = request.input_reference
        if request.size is not None:
            found |= size_of(request.size)
        if request.seconds is not None:
            rate = values.get("frame_rate", 24.0)
            if not 0 < request.seconds * rate < 1e6:
                raise Refusal(f"`seconds` is {request.seconds:g}, which is too long; use 5", "seconds")
            found["num_frames"] = snap_frames(round(request.seconds * rate) + 4)
        names = {"image": "input_reference", "width": "size", "height": "size", "num_frames": "seconds"}
        for name in found:
            said = f"`{names[name]}` and `{name}` say the same" if name in values else None
            for other in (other for other, option in SERVED.items() if other in values and name in option.excludes):
                said = f"`{names[name]}` and `{other}` contradict each other"
            if said is not None:
                raise Refusal(f"{said}; leave one of them out", names[name])
        return found

    def _read(
        self, job_id: str, media: Mapping[str, Any], called: Mapping[str, str]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Options whose media are read and lie in files, in place of their base64, and names of their content."""
        inputs = Inputs(self.media, self.settings.inputs / job_id)
        counts = {name: 1 if isinstance(value, str) else len(value) for name, value in media.items()}
        inputs.check_count({called.get(name, name): count for name, count in counts.items()})

        def read(name: str, text: str) -> Path:
            return inputs.read(called.get(name, name), MEDIA_KINDS[name], text)

        found: dict[str, Any] = {}
        try:
            for name, value in media.items():
                if isinstance(value, str):
                    found[name] = read(name, value)
                else:
                    found[name] = [
                        [read(name, part) if isinstance(part, str) else part for part in row] for row in value
                    ]
        except ValueError:
            discard(inputs.folder)
            raise
        return found, inputs.hashes

    def _job(
        self, job_id: str, given: Options, seed: int | None, fields: Collection[str], called: Mapping[str, str]
    ) -> Job:
        """The job of options, after all checks that need no checkpoint."""
        limits = self.settings.limits
        try:
            check_texts([given["prompt"], given.get("negative_prompt")], limits)
            if "auto_length" in given and not self.model.predicts_length:
                raise ValueError(
                    "`auto_length` needs a duration head, which this server's checkpoint has not; use `seconds`"
                )
            mode = choose_mode(given, SERVED)
            options = with_defaults({**given, **self._loaded(given)}, mode)
            call = call_arguments(mode, options)
            check_call(mode, call, options)
            admit(call, limits)
            if self.forecast is not None:
                self.forecast.check(options)
        except (ValueError, OSError) as error:
            discard(self.settings.inputs / job_id)
            message = in_fields(str(error), given, called)
            raise Refusal(message, _field_of(message, fields)) from error
        options.pop("seed")
        width, height, frames = (call.get(name) for name in ("width", "height", "num_frames"))
        rate, segments = call.get("frame_rate") or 24.0, call.get("num_segments", 1)
        return Job(
            id=job_id,
            options=options,
            # What a double holds exactly, since clients read it as one.
            seed=secrets.randbelow(2**32) if seed is None else seed,
            adapters={},
            with_sound=True,
            preview_every=None,
            stream=False,
            mode=mode.name,
            batch_key=_batch_key(mode, options) if self._fits_together(options) else None,
            prompt="\n".join(given["prompt"]),
            size=f"{width}x{height}" if width and height and mode.makes_video else None,
            seconds=frames / rate if frames and segments == 1 and mode.makes_video else call.get("duration_s"),
            runs=segments * (2 if call.get("two_stage") else 1),
        )

    def _fits_together(self, options: Options) -> bool:
        """Whether as many clips as one call may make fit into memory."""
        count = self.settings.limits.max_batch
        return count == 1 or self.forecast is None or self.forecast.fits(options, count)

    def _loaded(self, given: Options) -> dict[str, Any]:
        """Options that say what is loaded."""
        loaded: dict[str, Any] = {"checkpoint": self.settings.engine["checkpoint"], "device": self.model.device}
        if self.model.distilled_lora is not None and given.keys() & {"two_stage", "distilled"}:
            loaded["distilled_lora"] = ["", self.model.distilled_lora]
        return loaded


def in_fields(message: str, given: Options, called: Mapping[str, str] = _OTHER_NAMES) -> str:
    """A message of a pipeline or of the command line in which the fields of a request stand."""
    return shortened(in_names(in_options(message, given), called), given)


def shortened(message: str, given: Options) -> str:
    """A message with the names of input files in place of their paths, which are nobody else's business."""
    for path in _paths(dict(given)):
        message = message.replace(str(path), path.name)
    return message


def check_model(name: str | None, settings: Settings) -> None:
    """Refuse a request for another model than the served one."""
    if name not in (None, settings.model):
        raise Refusal(f"`model` is {name!r}, but this server has {settings.model!r}", "model")


def check_texts(texts: Iterable[str | Collection[str] | None], limits: Limits) -> None:
    """Raise `ValueError` for a text, or one in a list, that is longer than a server takes."""
    lists = [[text] if isinstance(text, str) else text for text in texts if text is not None]
    if any(len(text) > limits.max_prompt for one in lists for text in one):
        raise ValueError(f"`prompt` is longer than the {limits.max_prompt} characters that this server takes")


def located(value: dict[str, Any], folder: Path) -> Any:
    """The file in a folder that an object of JSON stands for, or the object if it stands for none."""
    # A LoRA may be called "file".
    is_file = value.keys() == {"file"} and isinstance(value["file"], str)
    return folder / value["file"] if is_file else value


def discard(place: Path) -> None:
    """Remove a file or folder of a job, if it is there."""
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def new_id() -> str:
    """A name for a job that nobody can guess."""
    return f"video_{secrets.token_hex(16)}"


def _paths(value: Any) -> list[Path]:
    found: list[Path] = []
    replaced_files(value, found.append)
    return found


def _plain(value: Any) -> Any:
    """Media as rows of frame, content and strength."""
    if not isinstance(value, list):
        return value
    return [
        [*([row.frame] if isinstance(row, Placed) else []), row.media, row.strength]
        if isinstance(row, Weighted)
        else [row]
        for row in value
    ]


def _field_of(message: str, fields: Collection[str]) -> str | None:
    names = re.findall(r"`(\w+)`", message)
    return next((name for name in names if name in fields), None)


def _batch_key(mode: Mode, options: Options) -> str | None:
    if any(name in options for name in _ALONE) or any(_paths(value) for value in options.values()):
        return None
    shape = {name: value for name, value in options.items() if name != "prompt"}
    return json.dumps([mode.pipeline, shape], sort_keys=True)
