"""What the values of a configuration may be: of the annotated type, finite, and of a size that a network can have."""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args, get_origin

# Counts that may be zero; every other whole number of a network is the size of something.
_FROM_ZERO = ("causal_offset", "layers", "num_blocks_per_stage", "num_res_blocks", "layers_per_block")
# Fractions that something is divided by, or that a logarithm is taken of.
_ABOVE_ZERO = ("scaling_factor", "rope_theta", "rational_spatial_scale")


def check_types(init: Callable[..., Any], **values: Any) -> None:
    """Refuse values that the signature of a constructor does not allow, and numbers that are not finite, by name."""
    parameters = inspect.signature(init).parameters
    for name, value in values.items():
        if name not in parameters:
            continue
        annotation = parameters[name].annotation
        if not _fits(value, annotation):
            raise ValueError(f"`{name}` has to be {_described(annotation)} but is {value!r}")
        if not all(math.isfinite(number) for number in _numbers(value)):
            raise ValueError(f"`{name}` has to be finite but is {value!r}")


def check_sizes(**values: Any) -> None:
    """Refuse sizes of a network that are below 1, numbers of layers below 0, and fractions below 0."""
    for name, value in values.items():
        lowest = 0 if name.endswith(_FROM_ZERO) else 1
        for number in _numbers(value):
            whole = isinstance(number, Integral)
            if whole and number < lowest:
                raise ValueError(f"`{name}` has to be at least {lowest} but is {value!r}; use {lowest} or more")
            if not whole and (number < 0 or (number == 0 and name in _ABOVE_ZERO)):
                raise ValueError(f"`{name}` has to be greater than 0 but is {value!r}")


def _fits(value: Any, annotation: Any) -> bool:
    """Whether JSON could have given `value` for an argument of that type; a single value may stand for a list."""
    choices, origin = get_args(annotation), get_origin(annotation)
    if annotation in (int, float):
        whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
        return not isinstance(value, bool) and (whole or (annotation is float and isinstance(value, Real)))
    if annotation is bool:
        return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))
    if annotation is NoneType:
        return value is None
    if origin in (tuple, Sequence):
        entries = value if isinstance(value, (list, tuple)) else [value]
        return all(_fits(entry, choices[0]) for entry in entries)
    if choices:
        return any(_fits(value, choice) for choice in choices)
    return not isinstance(annotation, type) or annotation is inspect.Parameter.empty or isinstance(value, annotation)


def _described(annotation: Any) -> str:
    """A type as messages name it."""
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", NoneType: "None"}
    if annotation in words:
        return words[annotation]
    parts = [part for part in get_args(annotation) if part is not Ellipsis]
    if get_origin(annotation) in (tuple, Sequence):
        return f"a list, each entry {_described(parts[0])}"
    return " or ".join(map(_described, parts)) if parts else str(annotation)


def _numbers(value: Any) -> Iterator[Any]:
    """The numbers in a value or in nested lists; `True` and `False` are none."""
    if isinstance(value, Real) and not isinstance(value, bool):
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _numbers(entry)
