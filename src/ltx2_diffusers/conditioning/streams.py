"""One value per stream: video and audio."""

from collections.abc import Callable, Sequence
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
    """What the two streams attend to.

    Args:
        video: `[B, S, Wv]`.
        audio: `[B, S, Wa]`.
        mask: 1 for positions to attend to and 0 for padding, `[B, S]`; default None, all of them.
    """

    video: torch.Tensor
    audio: torch.Tensor
    mask: torch.Tensor | None = None

    def repeat(self, times: int) -> "TextContext":
        """Each prompt's context `times` times in a row."""
        return self._each(lambda part: part.repeat_interleave(times, 0))

    def to(self, dtype: torch.dtype) -> "TextContext":
        """The context in a data type, but for the mask; the same tensors if it has that already."""
        return TextContext(self.video.to(dtype), self.audio.to(dtype), self.mask)

    def on(self, device: torch.device) -> "TextContext":
        """The context on a device."""
        return self._each(lambda part: part.to(device))

    def split(self, sizes: list[int]) -> list["TextContext"]:
        """The batch cut into parts of the given sizes."""
        masks = [None] * len(sizes) if self.mask is None else self.mask.split(sizes)
        return [TextContext(*parts) for parts in zip(self.video.split(sizes), self.audio.split(sizes), masks)]

    @classmethod
    def joined(cls, contexts: Sequence["TextContext"]) -> "TextContext":
        """Contexts of one length as a batch."""
        masks = [context.mask for context in contexts if context.mask is not None]
        video, audio = (torch.cat([getattr(c, name) for c in contexts]) for name in ("video", "audio"))
        return cls(video, audio, torch.cat(masks) if masks else None)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "TextContext":
        return TextContext(change(self.video), change(self.audio), None if self.mask is None else change(self.mask))


def on_streams(function: Callable[..., Result], *streams: Streams[Any]) -> Streams[Result | None]:
    """`function` of the values of each stream; None where the first value is None."""
    return Streams(*(None if values[0] is None else function(*values) for values in zip(*streams)))
