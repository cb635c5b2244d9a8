"""Whether the server takes what a request asks for."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..conditioning.shapes import VIDEO_SCALE_FACTORS
from ..models.duration_head import frames_within
from .settings import Limits


class Refusal(ValueError):
    """What is wrong with a request.

    Args:
        message: What is wrong.
        field: Name of the field, if it is one field's fault; inside of others by all names and numbers to it, with dots.
        others: What else is wrong with it.
    """

    def __init__(self, message: str, field: str | None = None, others: "Sequence[Refusal]" = ()) -> None:
        super().__init__(message)
        self.field = field
        self.others = tuple(others)

    @property
    def place(self) -> list[str | int]:
        """Where the field stands in a body."""
        return [int(part) if part.isdigit() else part for part in (self.field or "").split(".") if part]


def admit(call: Mapping[str, Any], limits: Limits) -> None:
    """Refuse a call that is larger than the server makes.

    Args:
        call: Arguments of the pipeline's call.
        limits: See there.

    Raises:
        ValueError: If it is; the message names an argument.
    """
    frames = call.get("num_frames", 0)
    if frames is None:
        # That of the longest clip that may be predicted.
        bounds = call["min_seconds"], call["max_seconds"]
        frames = frames_within(bounds[1], call["frame_rate"], VIDEO_SCALE_FACTORS.time, *bounds)
    frames *= call.get("num_segments", 1)
    megapixels = call.get("width", 0) * call.get("height", 0) * frames / 1e6
    if megapixels > limits.max_megapixels:
        raise ValueError(
            f"`num_frames` {frames} of {call['width']}x{call['height']} pixels are {megapixels:.4g} megapixels, more than the "
            f"{limits.max_megapixels:g} that this server makes; ask for a shorter or a smaller clip"
        )
    steps = call.get("num_inference_steps") or 0
    if steps > limits.max_steps:
        raise ValueError(
            f"`num_inference_steps` is {steps}, more than the {limits.max_steps} that this server makes; use {limits.max_steps}"
        )
    for name in ("sigmas", "stage_2_sigmas"):
        if len(call.get(name) or ()) > limits.max_steps:
            raise ValueError(f"`{name}` has more than the {limits.max_steps} steps that this server makes")
