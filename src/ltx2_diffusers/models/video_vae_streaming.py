"""Decoding a clip in chunks of frames with the numbers of decoding it whole.

A 3x3x3 convolution needs, beside a frame, its neighbours in time. What it has seen of a chunk and needs again for the
next one is kept, so that no frame is computed twice and none is blended. Without causality a convolution waits for the
frame after, so that what it gives trails what it was given by a frame, and by two after a residual block.

Shapes: B batch, C channels, F frames, H height, W width.
"""

import math
from collections.abc import Callable, Hashable, Iterator

import torch

# Of `[B, C, F, H, W]`, counted from the end for tensors with more axes in front.
TIME = -3


def may_overwrite() -> bool:
    """Whether intermediate tensors may be written in place: not while autograd or the compiler records them."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


class Carried:
    """What the layers of one stage keep between the chunks of one decode, by layer.

    The layers themselves keep nothing: decodes in several threads, or one that is left in the middle, do not meet.

    Attributes:
        is_last: Whether the chunk at hand is the clip's last one.
    """

    def __init__(self) -> None:
        self.is_last = False
        self._frames: dict[Hashable, torch.Tensor] = {}
        self._drawn: dict[Hashable, torch.Tensor] = {}
        self._begun: set[Hashable] = set()

    def take(self, layer: Hashable) -> torch.Tensor | None:
        """The frames kept for a layer, which are forgotten; `None` before its first chunk."""
        return self._frames.pop(layer, None)

    def keep(self, layer: Hashable, frames: torch.Tensor) -> None:
        """Keep a copy of frames for the layer's next chunk, if there is one."""
        if not self.is_last:
            # A view would keep the whole chunk.
            self._frames[layer] = frames.clone()

    def add(self, layer: Hashable, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """`own + other`, into `own` where allowed, where `own` trails `other`: frames of `other` wait for theirs."""
        waiting = self.take(layer)
        if not may_overwrite():
            other = other if waiting is None else torch.cat([waiting, other], dim=TIME)
            count = own.shape[TIME]
            self.keep(layer, other[..., count:, :, :])
            return own + other[..., :count, :, :]
        start, left = 0, []
        for part in [other] if waiting is None else [waiting, other]:
            used = min(part.shape[TIME], own.shape[TIME] - start)
            own[..., start : start + used, :, :].add_(part[..., :used, :, :])
            start += used
            left.append(part[..., used:, :, :])
        self.keep(layer, left[0] if len(left) == 1 else torch.cat(left, dim=TIME))
        return own

    def begins(self, layer: Hashable, frames: torch.Tensor) -> bool:
        """Whether these are the first frames that a layer makes; a chunk may make none."""
        if layer in self._begun or not frames.shape[TIME]:
            return False
        self._begun.add(layer)
        return True

    def once(self, key: Hashable, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `draw` returned for the first chunk."""
        if key not in self._drawn:
            self._drawn[key] = draw()
        return self._drawn[key]


Stage = Callable[[torch.Tensor, Carried | None], torch.Tensor]
"""A part of the decoder, run on a chunk with what it keeps, or with `None` on a whole clip."""


def stream_stage(
    stage: Stage, chunks: Iterator[torch.Tensor], num_frames: int, most_frames: int
) -> Iterator[torch.Tensor]:
    """Run a stage on the chunks of a clip of `num_frames` as they come, on at most `most_frames` at a time.

    Yields:
        `[B, C, f, H, W]`, where f may be 0.
    """
    carried, seen = Carried(), 0
    for chunk in chunks:
        # Of about equal length, since a single frame at the end would cost more than its share.
        for part in chunk.tensor_split(max(1, math.ceil(chunk.shape[TIME] / most_frames)), dim=TIME):
            if part.shape[TIME]:
                seen += part.shape[TIME]
                carried.is_last = seen == num_frames
                yield stage(part, carried)
        # It would live on while the next one is made.
        del chunk, part


def joined_frames(chunks: Iterator[torch.Tensor], num_frames: int, dim: int = TIME) -> torch.Tensor:
    """Chunks of a clip of `num_frames` as one tensor, each freed as soon as it is copied.

    Args:
        chunks: `[B, C, f, H, W]`, or frames along `dim`.
        num_frames: Frames of all chunks.
        dim: The axis of frames. Default -3.
    """
    if not may_overwrite():
        return torch.cat(list(chunks), dim=dim)
    video, start = None, 0
    for chunk in chunks:
        if video is None:
            video = chunk.new_empty(*chunk.shape[:dim], num_frames, *chunk.shape[dim + 1 :])
        video.narrow(dim, start, chunk.shape[dim]).copy_(chunk)
        start += chunk.shape[dim]
        del chunk
    if video is None:
        raise ValueError("there are no frames to join; a clip has at least one")
    return video
