"""Checked access to the fields of a checkpoint's `config` metadata."""

from collections.abc import Mapping
from typing import Any


def require(section: str, fields: Mapping[str, Any], constants: Mapping[str, Any]) -> None:
    """Refuses a config that sets a field to a value which LTX-2 does not implement; absent fields pass.

    Args:
        section: Name of the section, for the message.
        fields: The section.
        constants: Field name -> the only supported value.
    """
    for name, supported in constants.items():
        if name in fields and fields[name] != supported:
            raise ValueError(
                f"the checkpoint's config sets {section}.{name} to {fields[name]!r}; only {supported!r} is supported"
            )


def require_lists(section: str, fields: Mapping[str, Any], lengths: Mapping[str, int]) -> None:
    """Refuses lists of a wrong length; absent fields pass."""
    for name, length in lengths.items():
        value = fields.get(name)
        if value is not None and (not isinstance(value, (list, tuple)) or len(value) != length):
            raise ValueError(f"the checkpoint's config has {section}.{name} = {value!r}; expected {length} numbers")
