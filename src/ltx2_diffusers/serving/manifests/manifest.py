"""The manifest of a finished job, and a new job that makes the same."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...cli.jobs.storyboard import as_written
from ...cli.manifest import STORYBOARD
from ...cli.replay import as_enhanced
from ...cli.values import replaced_files
from ..jobs import Job, discard, new_id
from ..schema import SERVED, Manifest
from .identity import changes

ENDPOINTS = {True: "/v1/storyboards", False: "/v1/videos"}


class Unrepeatable(Exception):
    """A job cannot be made again here."""


def manifest_of(job: Job, result: Mapping[str, Any], model: str) -> Manifest:
    """How a job was made.

    Args:
        job: The job.
        result: What came of it.
        model: Name of the served model.
    """
    left_out = ("file", "model", "versions", "enhanced_prompt", "prompts", "shots")
    return Manifest(
        endpoint=ENDPOINTS[STORYBOARD in job.options],
        request=_request(_settled(job, result)),
        seed=job.seed,
        model={"name": model, **result.get("model", {})},
        versions=result.get("versions", {}),
        result={name: value for name, value in result.items() if name not in left_out},
    )


def same_again(job: Job, result: Mapping[str, Any], loaded: Mapping[str, Any], inputs: Path) -> Job:
    """A job with another name that makes the same; the files that it needs are in its own folder of inputs.

    Args:
        job: The job.
        result: What came of it.
        loaded: What of the loaded checkpoint the job depends on.
        inputs: Folder of what requests bring.

    Raises:
        Unrepeatable: If its input files are gone, or the checkpoint is another one.
    """
    if changed := changes(result.get("model", {}), loaded):
        raise Unrepeatable(
            f"{', '.join(changed)} of this server {'is' if len(changed) == 1 else 'are'} not what this video was made with; "
            "the frames would be others"
        )
    job = _settled(job, result)
    again = replace(job, id=new_id())
    try:
        for file in job.files:
            _put(file, inputs / again.id / file.name)
    except OSError:
        discard(inputs / again.id)
        raise Unrepeatable("the files that this video was made of are gone; send them in a new request") from None
    return Job.from_json(again.to_json(), inputs)


def _put(file: Path, place: Path) -> None:
    """The same file at another place, if possible without a copy."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        return
    try:
        os.link(file, place)
    except OSError:
        shutil.copyfile(file, place)


def _settled(job: Job, result: Mapping[str, Any]) -> Job:
    """The job with the texts that a language model wrote in place of the question."""
    if STORYBOARD in job.options:
        board = as_written(job.options[STORYBOARD], result["prompts"])
        return replace(job, options={**job.options, STORYBOARD: board})
    return replace(job, options=as_enhanced(job.options, result.get("enhanced_prompt")))


def _request(job: Job) -> dict[str, Any]:
    """The body of a request that makes a job."""
    if STORYBOARD in job.options:
        said = {name: value for name, value in job.options[STORYBOARD].items() if name != "model"}
        said["shots"] = [_without_files(job, _given(shot), "image") for shot in said["shots"]]
        return {name: _without_files(job, value, name) for name, value in _given(said).items()}
    options = {name: value for name, value in job.options.items() if name in SERVED}
    request = {name: _without_files(job, _fields(value), name) for name, value in options.items()}
    texts = request["prompt"]
    request |= {"prompt": texts[0] if len(texts) == 1 else texts, "seed": job.seed}
    return request | ({"adapters": job.adapters} if job.adapters else {})


def _given(values: Any) -> Any:
    """Values without those that are left empty."""
    if isinstance(values, Mapping):
        return {name: _given(value) for name, value in values.items() if value is not None and value != ()}
    return [_given(value) for value in values] if isinstance(values, list) else values


def _fields(value: Any) -> Any:
    """Rows of frame, file and strength as the fields that a request has for them."""
    if not isinstance(value, list) or not any(isinstance(row, list) for row in value):
        return value
    fields = {3: ("frame", "media", "strength"), 2: ("media", "strength")}
    return [dict(zip(fields[len(row)], row)) for row in value]


def _without_files(job: Job, value: Any, field: str) -> Any:
    """A value with names of files' content in place of the files."""
    return replaced_files(value, lambda file: {"sha256": job.media.get(file.name), "field": field})
