"""Arguments as their annotations declare them: numbers of any library become Python's, and anything else is refused.

Annotations are read as `int | None`, `list[float]` or `Mapping[str, float]`; what they cannot tell, such as a range, is
checked where it is known. `Annotated[...]` marks what has a reader of its own, with more to say.
"""

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from decimal import Decimal
from functools import wraps
from math import isfinite
from numbers import Real
from os import PathLike
from reprlib import Repr
from typing import Any, ParamSpec, TypeVar

import numpy as np
import PIL.Image
import torch

P = ParamSpec("P")
R = TypeVar("R")

_UNFIT: Any = object()
"""What a reader answers to a value that is not of its kind."""
_NOTHING = type(None)
_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a finite number",
    str: "a `str`",
    torch.Tensor: "a tensor",
    torch.Generator: "a torch.Generator",
    np.ndarray: "an array",
    PIL.Image.Image: "an image",
    PathLike: "a path",
}
_PLURALS = {torch.Generator: "torch.Generator", int: "whole numbers", float: "finite numbers", str: "`str`"}
_UNIONS = (typing.Union, types.UnionType)
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def settle(record: Any) -> None:
    """Make every field of a dataclass a value of its declared type.

    Raises:
        ValueError: If one is not; the message names it.
    """
    for field in fields(record):
        # Postponed annotations, which only a subclass from elsewhere can have, are not known here.
        if field.init and not isinstance(field.type, str):
            value = getattr(record, field.name)
            if (read := _read(value, field.type)) is _UNFIT:
                raise _refusal(field.name, value, field.type)
            # The way in which frozen dataclasses set their fields themselves.
            object.__setattr__(record, field.name, read)


def settled(record: R) -> R:
    """The same of what may not be changed; what is no dataclass stays as it is."""
    if not is_dataclass(record) or isinstance(record, type):
        return record
    settle(record := replace(record))
    return record


def takes_declared(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function see its arguments as values of their declared types, and refuse those that are none."""
    signature = inspect.signature(function)
    kinds = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    variable = {name for name, p in signature.parameters.items() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        for name in bound.arguments.keys() - variable:
            if kinds[name] is not inspect.Parameter.empty:
                bound.arguments[name] = as_declared(name, bound.arguments[name], kinds[name])
        return function(*bound.args, **bound.kwargs)

    return call


def as_declared(name: str, value: Any, kind: Any) -> Any:
    """A value as one of a declared type.

    Args:
        name: What messages call it.
        value: The value.
        kind: The annotation.

    Raises:
        ValueError: If it is no such value.
    """
    if (read := _read(value, kind)) is _UNFIT:
        raise _refusal(name, value, kind)
    return read


def _refusal(name: str, value: Any, kind: Any) -> ValueError:
    return ValueError(f"`{name}` has to be {_all_words(kind)} but is {shown(value)}{_nearest(value, kind)}")


def shown(value: Any) -> str:
    """A value for messages: what it says, in short, or its size."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        what = "a tensor" if isinstance(value, torch.Tensor) else "an array"
        return repr(value.tolist()) if value.ndim == 0 else f"{what} of {value.dtype} {tuple(value.shape)}"
    if isinstance(value, (str, list, tuple, dict)):
        return _SHORT.repr(value)
    # Python refuses to write out whole numbers of thousands of digits.
    is_huge = isinstance(value, int) and value.bit_length() > 512
    return f"a number of {value.bit_length()} bits" if is_huge else repr(value)[:120]


def whole_number(value: Any) -> Any:
    """A whole number of any library as Python's; truth values are none."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, torch.Tensor) and value.dtype == torch.bool):
        return _UNFIT
    try:
        return value.__index__()
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return _UNFIT


def finite_number(value: Any) -> Any:
    """A finite number of any library as Python's; truth values and texts are none."""
    if whole_number(value) is not _UNFIT:
        value = whole_number(value)
    elif isinstance(value, (torch.Tensor, np.ndarray)):
        is_number = value.size == 1 if isinstance(value, np.ndarray) else value.numel() == 1 and not value.is_meta
        value = value.item() if is_number else value
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        return _UNFIT
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return _UNFIT
    return number if isfinite(number) else _UNFIT


def _truth(value: Any) -> Any:
    return bool(value) if isinstance(value, (bool, np.bool_)) else _UNFIT


_READERS: dict[Any, Callable[[Any], Any]] = {bool: _truth, int: whole_number, float: finite_number}


def _read(value: Any, kind: Any) -> Any:
    """The value as one of a declared type, or `_UNFIT`."""
    if kind is Any:
        return value
    if kind is str:
        # Half a surrogate pair is no text that a tokenizer or a file name takes.
        is_text = isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
        return value if is_text else _UNFIT
    if kind in _READERS:
        return _READERS[kind](value)
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in _UNIONS:
        # What is one of the classes stays as it is, a fraction among floats for example.
        ordered = sorted(parts, key=lambda one: (one is not type(value), one in _READERS))
        return next((read for read in (_read(value, one) for one in ordered) if read is not _UNFIT), _UNFIT)
    if origin is Callable:
        return value if callable(value) else _UNFIT
    if origin in (list, tuple, Sequence):
        return _listed(value, origin, parts[0])
    if origin in (dict, Mapping):
        return _mapped(value, *parts)
    if origin is None and isinstance(kind, type):
        return value if isinstance(value, kind) else _UNFIT
    # Streams and what is annotated to have a reader of its own.
    return value


def _listed(value: Any, origin: Any, kind: Any) -> Any:
    """A list of values of one type, or an array of them along its first axis."""
    is_array = isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim > 0 and kind is not Any
    if not is_array and not isinstance(value, (list, tuple, range)):
        return _UNFIT
    read = [_read(one, kind) for one in value]
    if any(one is _UNFIT for one in read):
        return _UNFIT
    return tuple(read) if isinstance(value, tuple) and origin is not list else read


def _mapped(value: Any, keys: Any, values: Any) -> Any:
    if not isinstance(value, Mapping):
        return _UNFIT
    read = {_read(key, keys): _read(one, values) for key, one in value.items()}
    return _UNFIT if _UNFIT in read or any(one is _UNFIT for one in read.values()) else read


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in _UNIONS else (kind,)


def _all_words(kind: Any) -> str:
    """What a value may be, in words; that it may be left out goes without saying."""
    *others, last = dict.fromkeys(_words(one) for one in _alternatives(kind) if one is not _NOTHING)
    return f"{', '.join(others)} or {last}" if others else last


def _words(kind: Any) -> str:
    """A type in words."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Callable:
        return "a function"
    if origin in (list, tuple, Sequence):
        if typing.get_origin(parts[0]) in _UNIONS:
            return f"a list, each {_all_words(parts[0])}"
        return "a list" if parts[0] is Any else f"a list of {_plural(parts[0])}"
    if origin in (dict, Mapping):
        return f"a mapping of {_plural(parts[0])} to {_plural(parts[1])}"
    return _WORDS.get(kind, f"a {_name(kind)}")


def _plural(kind: Any) -> str:
    if typing.get_origin(kind) in _UNIONS:
        return " or ".join(_plural(one) for one in typing.get_args(kind) if one is not _NOTHING)
    if typing.get_origin(kind) in (dict, Mapping):
        return "mappings of {} to {}".format(*map(_plural, typing.get_args(kind)))
    return "values" if kind is Any else _PLURALS.get(kind) or _name(kind)


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def _nearest(value: Any, kind: Any) -> str:
    """What to give instead, where that can be told."""
    lists = [one for one in _alternatives(kind) if typing.get_origin(one) in (list, Sequence)]
    if any(typing.get_args(one) != (Any,) and _read([value], one) is not _UNFIT for one in lists):
        return "; put it into a list"
    if isinstance(value, str) and str in _alternatives(kind):
        return ", which holds half a surrogate pair"
    numbers = [one for one in _alternatives(kind) if one in (int, float)]
    if not numbers:
        return ""
    number = finite_number(value)
    with suppress(TypeError, ValueError):
        number = float(value) if number is _UNFIT and isinstance(value, (str, bool)) else number
    if number is _UNFIT or not isfinite(number):
        return ""
    return f"; use {number if float in numbers else round(number)}"
