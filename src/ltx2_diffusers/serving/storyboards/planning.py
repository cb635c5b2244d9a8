"""From a request for a storyboard to a job: everything that can be refused without the checkpoint is."""

import re
from collections.abc import Mapping
from typing import Any

from ...adapters.active import DISTILLED_ADAPTER
from ...application.storyboard.board import Problems, Storyboard, parse_storyboard
from ...application.storyboard.plan import PlannedSegment, plan_storyboard
from ...application.storyboard.track import check_length
from ...cli.jobs.storyboard import sized, with_defaults
from ...cli.manifest import STORYBOARD
from ...guidance import GuidanceOptions
from ...media.reading import probe
from ..admission import Refusal, admit
from ..inputs.reader import Inputs
from ..jobs import Job, JobMaker, check_model, check_texts, discard, new_id, shortened
from .fields import OWN, StoryboardRequest

_PLACE = re.compile(
    r"(?:shot (?P<shot>\d+): )?(?:keyframe (?P<keyframe>\d+): )?(?:.*?`(?P<name>\w+)`|(?P<bare>\w+) must )"
)


class StoryboardPlanner(JobMaker):
    """Makes jobs of storyboards."""

    def job(self, request: Any) -> Job:
        """The job of a request to `/v1/storyboards`, a `StoryboardRequest`.

        Raises:
            Refusal: If something is wrong with it; the message names a field.
        """
        check_model(request.model, self.settings)
        values = request.model_dump(exclude_unset=True, exclude=set(OWN))
        job_id = new_id()
        inputs = Inputs(self.media, self.settings.inputs / job_id)
        try:
            values = self._with_files(values, inputs)
            return self.planned(job_id, values, inputs.hashes, request.preview_every)
        except ValueError:
            discard(inputs.folder)
            raise

    def planned(
        self, job_id: str, values: Mapping[str, Any], hashes: Mapping[str, str], preview_every: int | None
    ) -> Job:
        """The job of a storyboard whose files lie in the folder of the job's inputs.

        Args:
            job_id: Name of the job.
            values: The storyboard as a mapping, files as paths.
            hashes: Names of the content of the files, by their names.
            preview_every: See [`Job`].

        Raises:
            Refusal: If something is wrong with it; the message names a field.
        """
        try:
            board = self._board(values)
            planned = self._plan(board)
        except (ValueError, OSError) as error:
            raise _refusal(error, values) from error
        texts = [shot.prompt if isinstance(shot.prompt, str) else "\n".join(shot.prompt) for shot in board.shots]
        return Job(
            id=job_id,
            options={STORYBOARD: board.as_mapping()},
            seed=board.seed,
            adapters={},
            with_sound=board.generate_audio,
            preview_every=preview_every,
            stream=False,
            mode=STORYBOARD,
            batch_key=None,
            prompt=board.prompt if board.director and board.prompt else "\n".join(texts),
            size=f"{board.width}x{board.height}",
            seconds=planned[-1].end / board.frame_rate,
            runs=len(planned) * (2 if board.settings.get("two_stage") else 1),
            media=dict(hashes),
        )

    def _with_files(self, values: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
        """The storyboard with files in place of their base64."""
        shots = [dict(shot) for shot in values["shots"]]
        shown = [(s, k, one) for s, shot in enumerate(shots) for k, one in enumerate(shot.get("keyframes") or ())]
        inputs.check_count({"shots": len(shown), "audio": values.get("audio") is not None})
        for place, shot in enumerate(shots):
            shot["keyframes"] = [
                {**one, "image": inputs.read(f"shots.{s}.keyframes.{k}.image", "picture", one["image"])}
                for s, k, one in shown
                if s == place
            ]
        values = {**values, "shots": shots}
        if values.get("audio") is not None:
            values["audio"] = inputs.read("audio", "sound", values["audio"])
        return values

    def _board(self, values: Mapping[str, Any]) -> Storyboard:
        """The storyboard with everything that a later version might choose otherwise, without contradictions."""
        checkpoint, loaded = self.settings.engine["checkpoint"], self.model.distilled_lora
        given: dict[str, Any] = {"checkpoint": checkpoint, "device": self.model.device}
        if values.get("two_stage") and loaded is not None:
            given["distilled_lora"] = ["", loaded]
        given[STORYBOARD] = parse_storyboard(sized(values, checkpoint)).as_mapping()
        board = parse_storyboard(with_defaults(given)[STORYBOARD])
        texts = [text for shot in board.shots for text in (shot.prompt, shot.negative_prompt)]
        check_texts([*texts, board.prompt, board.negative_prompt], self.settings.limits)
        board.check()
        self._check_adapters(board)
        return board

    def _check_adapters(self, board: Storyboard) -> None:
        """Only what is loaded can be asked for."""
        known = {*self.model.adapters, *([] if self.model.distilled_lora is None else [DISTILLED_ADAPTER])}
        problems = Problems()

        def check(named: Mapping[str, Any] | None, field: str) -> None:
            if unknown := sorted((named or {}).keys() - known):
                there = ", ".join(sorted(known)) or "none"
                raise ValueError(f"`{field}` names {unknown[0]!r}, which is not loaded; there are {there}")

        for number, shot in enumerate(board.shots, start=1):
            problems.tried(f"shot {number}: ", check, shot.adapters, "adapters")
        for field in ("stage_1_adapters", "stage_2_adapters"):
            problems.tried("", check, board.settings.get(field), field)
        problems.raise_any()

    def _plan(self, board: Storyboard) -> list[PlannedSegment]:
        """The segments, within the limits of this server."""
        limits = self.settings.limits
        seconds = sum(shot.duration_s for shot in board.shots)
        megapixels = seconds * board.frame_rate * board.width * board.height / 1e6
        if megapixels > limits.max_storyboard_megapixels:
            raise ValueError(
                f"`shots` last {seconds:.4g} s together, which are {megapixels:.4g} megapixels, more than the "
                f"{limits.max_storyboard_megapixels:g} that this server makes; use fewer or shorter ones, or a smaller size"
            )
        planned, call = plan_storyboard(board), board.call()
        names = ("width", "height", "num_inference_steps", "sigmas", "stage_2_sigmas")
        # One segment at a time is in memory.
        longest = max(one.num_frames for one in planned)
        admit({**{name: getattr(call, name) for name in names}, "num_frames": longest}, limits)
        if self.forecast is not None:
            segment = {"prompt": [""], "image_at": [], "num_frames": longest, "frame_rate": board.frame_rate}
            segment |= {"two_stage": None} if board.settings.get("two_stage") else {}
            self.forecast.check({**segment, "width": board.width, "height": board.height})
        if board.audio is not None:
            # What the reader of media wrote says exactly how long it is.
            given_s = (probe(board.audio).duration_s or 0.0) - board.audio_start_s
            check_length(board, planned[-1].end, given_s)
        return planned


def _refusal(error: Exception, values: Mapping[str, Any]) -> Refusal:
    """What is wrong, a line each, with the fields that it is about."""
    if isinstance(error, Refusal):
        return error
    lines = [shortened(line, values) for line in str(error).splitlines()]
    first, *others = [Refusal(line, _field_of(line)) for line in lines]
    return Refusal(str(first), first.field, others)


def _field_of(line: str) -> str | None:
    """The field that a line is about, by the names and numbers from the body to it."""
    match = _PLACE.match(line)
    if match is None:
        return None
    places = [f"{kind}s.{int(match[kind]) - 1}" for kind in ("shot", "keyframe") if match[kind] is not None]
    name = match["name"] or match["bare"]
    if not places and name not in StoryboardRequest.model_fields:
        return f"guidance_options.{name}" if name in GuidanceOptions.__dataclass_fields__ else None
    return ".".join([*places, name])
