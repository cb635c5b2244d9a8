"""What the engine asks of a condition, and what a condition asks of a pipeline.

A condition is what a caller gives: values and file names. Opened, before anything is computed, it has read its files and
checked them against the clip, once; then it is encoded for every stage, at that stage's size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import PIL.Image
import torch

from ...adapters.mixin import ReferenceFactors
from ...conditioning import ConditionItem, Streams
from ...declared import settled
from ..plan import ClipPlan, Size

Items = Streams[Sequence[ConditionItem]]
"""What holds each stream at the sizes of a stage."""


class Studio(Protocol):
    """What conditions ask of a pipeline."""

    @property
    def image_crf(self) -> int:
        """H.264 quality of the round trip that pictures take where a condition does not say."""

    def reference_factors(self) -> ReferenceFactors:
        """The scale in which the active LoRAs expect references."""

    def encode_video(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised latents `[B, C, F, h, w]` of pixels `[B, 3, frames, H, W]` in [-1, 1]."""

    def encode_audio(self, waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
        """Normalised latents `[B, C, L, M]` of a waveform `[B, channels, samples]` in [-1, 1]."""

    def normalized_video(self, latents: torch.Tensor, plan: ClipPlan) -> torch.Tensor:
        """Normalised latents `[B, C, F, h, w]` of those that a call gives, un-normalised or packed."""


@dataclass(frozen=True)
class Waveform:
    """A sound.

    Args:
        samples: Samples `[B, C, N]` in [-1, 1].
        rate: Samples per second.
        path: File whose sound, from its start, this is; `None` for one from elsewhere.
    """

    samples: torch.Tensor
    rate: int
    path: str | None = None

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.samples.shape[-1] / self.rate


@dataclass(frozen=True)
class SourceClip:
    """A clip to work on.

    Args:
        pixels: Frames `[F, H, W, 3]` in [0, 255].
        frame_rate: Frames per second.
        audio: Its sound, or `None` for a silent clip.
        path: File whose pictures, all of them, these are; `None` for frames from elsewhere.
        file_duration_s: Length of the file in seconds, if its pictures come at another rate, or at none.
    """

    pixels: torch.Tensor
    frame_rate: float
    audio: Waveform | None
    path: str | None
    file_duration_s: float | None = None

    @property
    def num_frames(self) -> int:
        """Pixel frames."""
        return len(self.pixels)

    @property
    def duration_s(self) -> float:
        """Length in seconds of the pictures that are handed over, which are those of the file, if there is one."""
        return self.num_frames / self.frame_rate if self.file_duration_s is None else self.file_duration_s

    def size(self, height: int, width: int, num_frames: int, motion_speed: float) -> Size:
        """The size of a clip made from it, at its frame rate."""
        return Size(height, width, num_frames, self.frame_rate, motion_speed)


class Opened(ABC):
    """A condition whose files are read and checked."""

    original: SourceClip | Waveform | None = None
    """What is handed over untouched instead of the stream that the condition holds; saving copies its packets."""

    @property
    def picture(self) -> PIL.Image.Image | None:
        """Its first picture, for a language model that rewrites the prompt; `None` if it shows none."""
        return None

    @property
    def places(self) -> Sequence[str]:
        """Places of the finished clip that no other condition may claim."""
        return ()

    def refitted(self, _plan: ClipPlan) -> "Opened":
        """The same, read for a longer clip, for a shorter one. Most conditions look at the clip only when they are encoded.

        Raises:
            ValueError: If it does not fit.
        """
        return self

    def check(self, plan: ClipPlan) -> None:  # noqa: B027 (most conditions fit every stage)
        """Raise `ValueError` if it does not fit a stage of these sizes, with the stage's adapters active."""

    @abstractmethod
    def items(self, plan: ClipPlan) -> Items:
        """Condition items for each stream at the sizes of a stage."""


class Condition(ABC):
    """Something that a generation is held to."""

    is_reference: ClassVar[bool] = False
    """Whether it takes part only in stages with references."""
    stream: ClassVar[str | None] = None
    """`"video"` or `"audio"` for a condition that means nothing without this stream."""

    sets_length: ClassVar[bool] = False
    """Whether the length of the clip has to follow from it, and not from the text."""

    @property
    def shows_picture(self) -> bool:
        """Whether it has a picture for a language model to see that rewrites the prompt."""
        return False

    @property
    def holds(self) -> bool:
        """Whether it gives its stream as a whole, which is kept exactly and takes no guidance."""
        return False

    @abstractmethod
    def opened(self, studio: Studio, plan: ClipPlan) -> Opened:
        """Read and check it for a clip of these sizes.

        Raises:
            ValueError: If a value is out of range, or a file cannot be read or does not fit the clip.
        """


Conditions = Annotated[Condition | Sequence[Condition] | None, "read by as_conditions"]
"""What arguments take that hold one condition or several."""


@dataclass(frozen=True)
class ReadyItems(Condition, Opened):
    """Condition items that are made already, for one stage.

    Args:
        ready: Those of each stream.
    """

    ready: Items

    def opened(self, _studio: Studio, _plan: ClipPlan) -> "ReadyItems":
        """The same."""
        return self

    def items(self, _plan: ClipPlan) -> Items:
        """Those that there are."""
        return self.ready


def as_conditions(name: str, given: object) -> list[Condition]:
    """The conditions of an argument that takes one, a list, or `None`."""
    conditions = []
    for condition in () if given is None else given if isinstance(given, (list, tuple)) else (given,):
        if not isinstance(condition, Condition):
            raise ValueError(
                f"`{name}` has to hold conditions of this package but holds {type(condition)}; for a picture or clip "
                "use LTX2VideoCondition(frames=...)"
            )
        conditions.append(settled(condition))
    return conditions


def held_streams(conditions: Sequence[Condition]) -> Streams[bool]:
    """Which streams are given as a whole and kept exactly."""
    held = {condition.stream for condition in conditions if condition.holds}
    return Streams("video" in held, "audio" in held)


def check_heard(conditions: Sequence[Condition], streams: Streams[bool]) -> None:
    """A condition on the sound needs a sound that is generated."""
    silent = [condition for condition in conditions if condition.stream == "audio" and not streams.audio]
    if silent:
        raise ValueError(
            f"{type(silent[0]).__name__} is given, but this call makes no sound; leave it out, or pass generate_audio=True"
        )


def check_conflicts(conditions: Sequence[Opened]) -> None:
    """No two conditions may claim the same place of a stream."""
    claimed: set[str] = set()
    for place in (place for condition in conditions for place in condition.places):
        if place in claimed:
            raise ValueError(f"two conditions claim {place}; keep one of them, or move the other to a free frame")
        claimed.add(place)


def video_item(item: ConditionItem) -> Items:
    """One condition item of the video."""
    return Streams([item], [])


def audio_item(item: ConditionItem) -> Items:
    """One condition item of the sound."""
    return Streams([], [item])
