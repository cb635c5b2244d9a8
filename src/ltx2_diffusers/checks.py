"""Checks of one value. Each raises `ValueError` with the value and the nearest valid one, before any compute."""

from collections.abc import Sequence
from typing import Any

import torch


def check_size(height: int, width: int, multiple: int) -> None:
    """`height` and `width` must be positive multiples of `multiple` pixels."""
    for name, value in (("height", height), ("width", width)):
        if not isinstance(value, int) or value <= 0 or value % multiple:
            raise ValueError(
                f"`{name}` has to be divisible by {multiple} but is {value}; use {_neighbours(value, multiple)}"
            )


def check_num_frames(num_frames: int, stride: int, name: str = "num_frames") -> None:
    """A number of frames must be `stride * k + 1`, since a latent frame after the first one holds `stride` frames."""
    if not isinstance(num_frames, int) or num_frames < 1 or (num_frames - 1) % stride:
        raise ValueError(
            f"`{name}` has to be {stride} * k + 1 but is {num_frames}; use {_neighbours(num_frames, stride, 1)}"
        )


def _neighbours(value: Any, multiple: int, offset: int = 0) -> str:
    lower = (int(value) - offset) // multiple * multiple + offset
    valid = [number for number in (lower, lower + multiple) if number > 0]
    return " or ".join(str(number) for number in valid) or str(multiple + offset)


def check_positive(**values: float | None) -> None:
    """Every given value must be a number above zero."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"`{name}` has to be greater than 0 but is {value}")


def check_from_zero(**values: float) -> None:
    """Every value must be a number from zero on."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"`{name}` has to be at least 0 but is {value}; use 0")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """`value` must be one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` has to be one of {', '.join(map(repr, choices))} but is {value!r}")


def check_float_tensors(**tensors: Any) -> None:
    """Everything given must be a floating-point tensor."""
    for name, tensor in tensors.items():
        if tensor is not None and not (isinstance(tensor, torch.Tensor) and tensor.is_floating_point()):
            raise ValueError(
                f"`{name}` has to be a floating-point tensor but is {getattr(tensor, 'dtype', type(tensor).__name__)}"
            )


def check_at_least_one(**values: int) -> None:
    """Every value must be a whole number from 1."""
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` has to be a whole number of at least 1 but is {value!r}; use 1")


def check_unit(**values: float | None) -> None:
    """Every given value must lie in [0, 1]."""
    for name, value in values.items():
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(f"`{name}` has to be between 0 and 1 but is {value}; use {min(max(value, 0.0), 1.0)}")


def check_loaded(missing: Sequence[str]) -> None:
    """No component that a call needs may be missing."""
    if missing:
        raise ValueError(
            f"this call needs the components {list(missing)}, which the pipeline was built without; pass them to the "
            "constructor or to from_pretrained"
        )


def check_per_video(name: str, value: float | list[float] | None, batch_size: int) -> None:
    """A list needs one value per video of the batch."""
    if isinstance(value, list) and len(value) not in (1, batch_size):
        raise ValueError(
            f"got {len(value)} values in `{name}` for a batch of {batch_size}; give one, or one per video"
        )


def check_generator(generator: torch.Generator | list[torch.Generator] | None, batch_size: int) -> None:
    """A list of generators needs one per video of the batch."""
    if isinstance(generator, (list, tuple)) and len(generator) != batch_size:
        raise ValueError(f"got {len(generator)} generators for a batch of {batch_size}; give one, or one per video")
