"""What a request for a storyboard holds: the fields of [`Storyboard`] and of its parts, with the types that these declare."""

import inspect
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

import pydantic
from pydantic import BaseModel, create_model

from ...application.storyboard.board import SETTINGS, Keyframe, Shot, Storyboard
from ...guidance import GuidanceOptions
from ...pipelines.recipes.extension.pipeline import LTX2ExtendPipeline
from ...pipelines.recipes.extension.plan import MAX_SEGMENTS, ExtendArguments
from ..schema import Media, Strict, Text

# What the server loads, what is no plain value, and what is for whoever writes attention processors of their own.
_LEFT_OUT = ("model", "settings", "bins", "audio_bins", "attention_kwargs")
_RECORDS = {Shot: "StoryboardShot", Keyframe: "StoryboardKeyframe", GuidanceOptions: "StoryboardGuidance"}


def _told(documented: Any) -> dict[str, str]:
    """What a docstring says of each argument."""
    parts = re.split(r"^    (\w+(?:, \w+)*): ", inspect.getdoc(documented) or "", flags=re.MULTILINE)
    entries = zip(parts[1::2], (re.split(r"\n\n|\n(?=\S)", text)[0] for text in parts[2::2]))
    return {name: " ".join(text.split()) for names, text in entries for name in names.split(", ")}


def _wire_type(declared: Any) -> Any:
    """The type of a field in JSON, of the one that Python's has."""
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    if origin in (typing.Union, types.UnionType):
        if os.PathLike in parts:
            return Media | None if type(None) in parts else Media
        return typing.Union[tuple(map(_wire_type, parts))]  # noqa: UP007 (made at run time)
    if origin in (list, Sequence):
        return list[_wire_type(parts[0])]  # type: ignore[misc]
    if origin in (dict, Mapping):
        return dict[Text, _wire_type(parts[1])]  # type: ignore[misc]
    return _record(declared) if declared in _RECORDS else Text if declared is str else declared


def _field(one: Field, about: str | None) -> tuple[Any, Any]:
    kind = _wire_type(one.type)
    # What Python takes the names of files for, a request brings.
    facts: dict[str, Any] = {} if kind in (Media, Media | None) else {"description": about}
    if one.name == "shots":
        facts |= {"min_length": 1, "max_length": MAX_SEGMENTS}
    if one.default_factory is not MISSING:
        facts["default_factory"] = one.default_factory
    elif one.default is not MISSING:
        facts["default"] = one.default
    return kind, pydantic.Field(**facts)


def _fields(kind: Any, documented: Any, names: Sequence[str] | None = None) -> dict[str, Any]:
    told = _told(documented)
    wanted = [one for one in fields(kind) if one.name not in _LEFT_OUT and (names is None or one.name in names)]
    return {one.name: _field(one, told.get(one.name)) for one in wanted}


def _record(kind: Any) -> type[BaseModel]:
    name = _RECORDS[kind]
    if name not in _made:
        about = (inspect.getdoc(kind) or "").partition("\n")[0]
        _made[name] = create_model(name, __base__=Strict, __doc__=about, **_fields(kind, kind))
    return _made[name]


class _Request(Strict):
    """What a storyboard says beside its own fields."""

    model: str | None = pydantic.Field(None, description="name of the served model")
    preview_every: int | None = pydantic.Field(
        None, ge=1, description="steps from one preview among the events to the next; none by default"
    )


_made: dict[str, type[BaseModel]] = {}
OWN = tuple(_Request.model_fields)
"""Fields that are the server's, and no storyboard's."""
StoryboardRequest: type[_Request] = create_model(
    "StoryboardRequest",
    __base__=_Request,
    __doc__="A clip of several shots to be made in the background, as `ltx2 storyboard` reads it from a file.",
    **_fields(Storyboard, Storyboard),
    **_fields(ExtendArguments, LTX2ExtendPipeline.__call__, SETTINGS),
)
