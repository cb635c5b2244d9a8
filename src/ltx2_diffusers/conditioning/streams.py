"""One value per stream: video and audio."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from .state import LatentState

Value = TypeVar("Value")
Result = TypeVar("Result")


class Streams(NamedTuple, Generic[Value]):
    """One value per stream; `None` for a stream that is absent."""

    video: Value
    audio: Value


States = Streams[LatentState | None]
"""The latent states of both streams."""

Tensors = Streams[torch.Tensor | None]
"""A tensor of each stream: latents, or predictions of the clean tokens `[B, T, D]`."""


@dataclass(frozen=True)
class TextContext:
    """What the two streams attend to: `video` `[B, S, Wv]` and `audio` `[B, S, Wa]`."""

    video: torch.Tensor
    audio: torch.Tensor

    def repeat(self, times: int) -> "TextContext":
        """Each prompt's context `times` times in a row."""
        return TextContext(self.video.repeat_interleave(times, 0), self.audio.repeat_interleave(times, 0))

    def to(self, dtype: torch.dtype) -> "TextContext":
        """The context in a data type; the same tensors if it has that already."""
        return TextContext(self.video.to(dtype), self.audio.to(dtype))

    def split(self, sizes: list[int]) -> list["TextContext"]:
        """The batch cut into parts of the given sizes."""
        return [TextContext(*pair) for pair in zip(self.video.split(sizes), self.audio.split(sizes))]


def on_streams(function: Callable[..., Result], *streams: Streams[Any]) -> Streams[Result | None]:
    """`function` of the values of each stream; None where the first value is None."""
    return Streams(*(None if values[0] is None else function(*values) for values in zip(*streams)))
