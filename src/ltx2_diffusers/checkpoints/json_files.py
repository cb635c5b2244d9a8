"""JSON files of checkpoints, which strangers write: read as objects, or refused by name."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object in `text`; `where` says in messages what it was read from.

    Raises:
        ValueError: If it is no JSON, nested too deeply to be read, or something else than an object.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"{where} is no JSON object: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}; fetch it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} has to be a JSON object but is a {type(value).__name__}")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds something else.
    """
    return parse_object(path.read_bytes(), repr(str(path)))


def read_config(path: Path) -> dict[str, Any]:
    """A configuration file, whose numbers are all finite and whose class is a name."""
    config = read_object(path)
    name = config.get("_class_name")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{str(path)!r}: `_class_name` has to be the name of a class but is {name!r}")
    check_finite(config, repr(str(path)))
    return config


def check_finite(config: Mapping[str, Any], where: str) -> None:
    """Refuse NaN and infinite numbers, which Python's JSON takes, by the key that holds them."""
    for key, number in _numbers(config, ""):
        if not math.isfinite(number):
            raise ValueError(f"{where}: `{key}` has to be finite but is {number}")


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:
    """All fractions in nested objects and lists, each with the name of the entry that it is found under."""
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _numbers(part, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _numbers(part, key)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` on top of `base`, section by section."""
    result = dict(base)
    for name, value in changes.items():
        both_nested = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if both_nested else value
    return result
