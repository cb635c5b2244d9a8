"""What the engine asks of a condition."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from ...conditioning.streams import Streams
from ..plan import GenerationPlan


class Condition(Protocol):
    """What the engine asks of a condition; one that only the sound knows says so by `stream = "audio"`."""

    is_reference: bool

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if the condition does not fit a stage of these sizes."""

    def places(self, plan: GenerationPlan) -> Iterable[str]:
        """Places of the finished clip that no other condition may claim."""

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """Condition items for each stream at the sizes of a stage."""


def listed_conditions(name: str, given: Any) -> list[Condition]:
    """The conditions of an argument that takes one, a list, or `None`."""
    conditions = [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]
    for condition in conditions:
        if not all(hasattr(condition, method) for method in ("check", "places", "items")):
            raise ValueError(
                f"`{name}` has to hold conditions of this package but holds {type(condition)}; for a picture or clip "
                "use LTX2VideoCondition(frames=...)"
            )
    return conditions


def check_conflicts(conditions: Sequence[Any], plan: Any) -> None:
    """No two conditions may claim the same place of a stream."""
    claimed: dict[Any, Any] = {}
    for condition in conditions:
        for place in condition.places(plan):
            if place in claimed:
                raise ValueError(f"two conditions claim {place}; keep one of them, or move the other to a free frame")
            claimed[place] = condition


def check_heard(conditions: Sequence[Any], streams: Any) -> None:
    """A condition on the sound needs a sound that is generated."""
    silent = [c for c in conditions if getattr(c, "stream", None) == "audio" and not streams.audio]
    if silent:
        raise ValueError(
            f"{type(silent[0]).__name__} is given, but this call makes no sound; leave it out, or pass generate_audio=True"
        )
