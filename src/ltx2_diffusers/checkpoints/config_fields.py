"""Tables of the fields in a checkpoint's `config` metadata, and the one way to check, read and write them.

A table has the shape of its section. An entry is a `Field` if diffusers' config knows it too, a `Note` if no
implementation reads it, a table if it is a section of its own, or else the only value that LTX-2 implements.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Values are those of JSON documents.
Table = Mapping[str, Any]


@dataclass(frozen=True)
class Note:
    """A field that is written with this value for information."""

    value: Any


@dataclass(frozen=True)
class Field:
    """A field that both layouts have.

    Args:
        own: Its name in diffusers' config; several names share the items of a list.
        default: What an absent field stands for.
        read, write: What becomes of the value on its way into diffusers' config and back, default nothing.
        choices: The supported values, default any.
        is_optional: Whether it is written only where it differs from `default`, default False.
        is_read: Whether diffusers' value comes from this field, default True; or from another one that it repeats.
    """

    own: str | tuple[str, ...]
    default: Any = None
    read: Callable[[Any], Any] = lambda value: value
    write: Callable[[Any], Any] = lambda value: value
    choices: tuple[Any, ...] = ()
    is_optional: bool = False
    is_read: bool = True


def same_names(is_optional: bool = False, **defaults: Any) -> dict[str, Field]:
    """Fields that have the same name in both layouts, from their defaults."""
    return {name: Field(name, default, is_optional=is_optional) for name, default in defaults.items()}


def check_fields(section: str, table: Table, fields: Mapping[str, Any]) -> None:
    """Refuses values that LTX-2 does not implement, and lists of a wrong length, by name; absent fields pass."""
    for name, entry in table.items():
        if isinstance(entry, Note) or name not in fields:
            continue
        place, value = f"{section}.{name}", fields[name]
        if isinstance(entry, Mapping):
            check_fields(place, entry, value)
        elif not isinstance(entry, Field):
            check_choice(place, value, (entry,))
        elif isinstance(entry.own, tuple):
            _check_length(place, value, len(entry.own))
        elif entry.choices:
            check_choice(place, value, entry.choices)


def check_choice(place: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuses a value of the field at `place` that is none of `choices`."""
    if value not in choices:
        *others, last = map(repr, choices)
        supported = f"supported are {', '.join(others)} and {last}" if others else f"only {last} is supported"
        raise ValueError(f"the checkpoint's config sets {place} to {value!r}; {supported}")


def _check_length(place: str, value: Any, length: int) -> None:
    if value is not None and (not isinstance(value, (list, tuple)) or len(value) != length):
        raise ValueError(f"the checkpoint's config has {place} = {value!r}; expected {length} numbers")


def read_fields(table: Table, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What `table` knows of diffusers' config, from a section of the metadata."""
    config: dict[str, Any] = {}
    for name, entry in table.items():
        if isinstance(entry, Mapping):
            config |= read_fields(entry, fields.get(name, {}))
        elif isinstance(entry, Field) and entry.is_read:
            value = entry.read(fields.get(name, entry.default))
            config.update({entry.own: value} if isinstance(entry.own, str) else zip(entry.own, value))
    return config


def write_fields(table: Table, config: Mapping[str, Any]) -> dict[str, Any]:
    """The section of the metadata that `table` describes, from diffusers' config."""
    fields: dict[str, Any] = {}
    for name, entry in table.items():
        if isinstance(entry, Mapping):
            fields[name] = write_fields(entry, config)
        elif isinstance(entry, Field):
            own = entry.own
            value = entry.write(config[own] if isinstance(own, str) else [config[part] for part in own])
            if not entry.is_optional or value != entry.default:
                fields[name] = value
        else:
            fields[name] = entry.value if isinstance(entry, Note) else entry
    return fields
