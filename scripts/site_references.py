"""References between docstrings, as diffusers writes them, for the pages of the API: `[`Name`]` leads to its entry."""

import re
from typing import Any

import griffe

import ltx2_diffusers
from ltx2_diffusers import conditioning, guidance, sampling, training

_REFERENCE = re.compile(r"\[`(~)?([\w.]+)`\](?![\[(])")
# A name that two lists have has its entry in the last one.
_ENTRIES = {
    name: f"{room.__name__}.{name}"
    for room in (sampling, guidance, conditioning, ltx2_diffusers)
    for name in room.__all__
} | {name: f"{getattr(training, name).__module__}.{name}" for name in training.__all__}


class References(griffe.Extension):
    """Makes links of the names in docstrings that have an entry, and plain code of the others."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object before it is parsed."""
        if obj.docstring:
            obj.docstring.value = _REFERENCE.sub(_linked, obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Leave out the constructor that Python gives to protocols, which nobody calls and whose source is elsewhere."""
        if "__init__" in cls.members and cls.members["__init__"].is_alias:
            del cls.members["__init__"]


def _linked(reference: re.Match[str]) -> str:
    """A reference as Markdown."""
    short = reference[2].rpartition(".")[2]
    return f"[`{short}`][{_ENTRIES[short]}]" if short in _ENTRIES else f"`{short}`"
