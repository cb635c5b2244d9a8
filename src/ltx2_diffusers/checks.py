"""Checks of one value. Each raises `ValueError` with the value and the nearest valid one, before any compute."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .declared import as_declared, shown

MAX_SIDE = 16384
"""Most pixels a side, which is what H.264 holds."""
MAX_FRAME_RATE = 1000.0
MAX_SCALE = 1000.0
MAX_COUNT = 100_000
MAX_STEPS = 1000
MAX_SECONDS = 600.0
"""Longest sound of a run; the models were trained on 20 seconds."""


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; truth values are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_size(height: int, width: int, multiple: int) -> None:
    """`height` and `width` must be positive multiples of `multiple` pixels."""
    for name, value in (("height", height), ("width", width)):
        if is_whole(value):
            check_most(MAX_SIDE // multiple * multiple, **{name: value})
        if not is_whole(value) or value <= 0 or value % multiple:
            raise ValueError(
                f"`{name}` has to be divisible by {multiple} but is {value}; use {neighbours(value, multiple)}"
            )


def check_num_frames(num_frames: int, stride: int, name: str = "num_frames") -> None:
    """A number of frames must be `stride * k + 1`, since a latent frame after the first one holds `stride` frames."""
    if is_whole(num_frames):
        check_most(MAX_COUNT, **{name: num_frames})
    if not is_whole(num_frames) or num_frames < 1 or (num_frames - 1) % stride:
        raise ValueError(
            f"`{name}` has to be {stride} * k + 1 but is {num_frames}; use {neighbours(num_frames, stride, 1)}"
        )


def neighbours(value: Any, multiple: int, offset: int = 0) -> str:
    """The positive numbers `multiple * k + offset` next to `value`, for messages."""
    lower = (int(value if math.isfinite(value) else 0) - offset) // multiple * multiple + offset
    valid = [number for number in (lower, lower + multiple) if number > 0]
    return " or ".join(str(number) for number in valid) or str(multiple + offset)


def check_most(most: float, **values: float | None) -> None:
    """No given value may be above `most`."""
    for name, value in values.items():
        if value is not None and not value <= most:
            raise ValueError(f"`{name}` has to be at most {most:.10g} but is {shown(value)}; use {most:.10g}")


def check_scales(**values: float) -> None:
    """Guidance scales may be negative, but not so large that latents leave the range of their numbers."""
    for name, value in values.items():
        if not abs(value) <= MAX_SCALE:
            nearest = math.copysign(MAX_SCALE, value)
            raise ValueError(
                f"`{name}` has to be from {-MAX_SCALE:g} to {MAX_SCALE:g} but is {value}; use {nearest:g}"
            )


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
    """Everything given must be a floating-point tensor of finite values."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not (isinstance(tensor, torch.Tensor) and tensor.is_floating_point()):
            raise ValueError(
                f"`{name}` has to be a floating-point tensor but is {getattr(tensor, 'dtype', type(tensor).__name__)}"
            )
        if tensor.is_meta or tensor.layout != torch.strided or not tensor.numel():
            kind = "is empty" if not tensor.numel() else f"is on {tensor.device} in layout {tensor.layout}"
            raise ValueError(f"`{name}` {tuple(tensor.shape)} {kind}; give a dense tensor with values")
        check_finite(f"`{name}`", tensor, "give finite values")


def check_shape(name: str, tensor: torch.Tensor, shape: Sequence[int | None], rule: str) -> None:
    """A floating-point tensor of finite values must have a shape.

    Args:
        name: What messages call it.
        tensor: The tensor.
        shape: Its sizes; `None` stands for any.
        rule: Who needs it, with `{}` in the place of the shape, for the message.
    """
    got = tuple(tensor.shape)
    if len(got) != len(shape) or any(size not in (None, have) for size, have in zip(shape, got)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"`{name}` has shape {got}, but {rule.format(f'({wanted})')}")
    check_float_tensors(**{name: tensor})


def check_finite(what: str, tensor: torch.Tensor, remedy: str) -> None:
    """A floating-point tensor must hold neither NaN nor infinity.

    Args:
        what: What it is, for the message.
        tensor: The tensor.
        remedy: What to do.
    """
    # Eight-bit floats cannot be asked. Both ends of what holds NaN are NaN, and asking for them costs no memory.
    ends = torch.stack((tensor.float() if tensor.element_size() == 1 else tensor).detach().aminmax())
    if not ends.isfinite().all():
        raise ValueError(f"{what} holds values that are not finite (NaN or infinity); {remedy}")


def check_at_least_one(**values: int) -> None:
    """Every value must be a whole number from 1, and none that no machine can count to."""
    for name, value in values.items():
        if not is_whole(value) or value < 1:
            raise ValueError(f"`{name}` has to be a whole number of at least 1 but is {value!r}; use 1")
        check_most(MAX_COUNT, **{name: value})


def check_unit(**values: float | None) -> None:
    """Every given value must lie in [0, 1]."""
    for name, value in values.items():
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(f"`{name}` has to be between 0 and 1 but is {value}; use {_clamped(value)}")


def check_share(**values: float) -> None:
    """Every value must lie in [0, 1]; in the words of the building blocks, whose arguments are not a call's."""
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {value}; use {_clamped(value)}.")


def _clamped(value: float) -> float:
    """The number in [0, 1] next to a value; 1 next to what is no number."""
    return max(min(1.0, value), 0.0)


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


def check_generator(
    generator: torch.Generator | list[torch.Generator] | None, batch_size: int, device: torch.device | None = None
) -> None:
    """A list of generators needs one per video of the batch, and each a device that the call can draw on."""
    listed = generator if isinstance(generator, (list, tuple)) else [] if generator is None else [generator]
    if isinstance(generator, (list, tuple)) and len(generator) != batch_size:
        raise ValueError(
            f"got {len(generator)} generators for a batch of {batch_size}; give `generator` one, or one per video"
        )
    for one in listed:
        if not isinstance(one, torch.Generator):
            raise ValueError(f"`generator` has to hold torch.Generator but holds {shown(one)}")
        if device is not None and one.device.type not in ("cpu", device.type):
            raise ValueError(
                f"`generator` draws on {one.device}, but the pipeline runs on {device}; use one on the CPU"
            )


def as_device(device: torch.device | str) -> torch.device:
    """A device by its name."""
    try:
        return torch.device(device)
    except RuntimeError:
        raise ValueError(f"`device` is {device!r}, which is none; use 'cpu' or 'cuda'") from None


def check_seed(name: str, seed: int) -> None:
    """A seed has 64 bits."""
    if not is_whole(seed) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"`{name}` has to be a whole number of at most 64 bits but is {seed!r}; use 10")


def check_attention_kwargs(given: Mapping[str, Any] | None) -> None:
    """The attention takes nothing but the strength of LoRA adapters, a number."""
    if unknown := sorted(set(given or ()) - {"scale"}):
        raise ValueError(f"`attention_kwargs` holds {unknown}, which the attention does not take; it takes 'scale'")
    if given:
        as_declared("scale` of `attention_kwargs", given["scale"], float)
