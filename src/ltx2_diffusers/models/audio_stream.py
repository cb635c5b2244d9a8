"""The sound's part of a block on a CUDA stream of its own: its small kernels run beside the video's large ones.

Both streams of a device compute what they would compute one after the other. They wait for each other where one reads what
the other has made, and what crosses from one to the other is held until both have met: memory is given back to the stream
that it was taken on, which may use it at once.
"""

import functools
from typing import Any, Protocol

import torch
from torch import nn

from .perturbation import Keep
from .transformer_block import BlockStream, LTX2AVTransformerBlock, StreamInputs


class Lane(Protocol):
    """A second stream of a device, beside the current one."""

    def run(self) -> Any:
        """A context whose operations run on it."""

    def follow(self) -> None:
        """What comes on it waits for what the current stream has been given."""

    def rejoin(self) -> None:
        """What comes on the current stream waits for what it has been given."""


class CudaLane:
    """A CUDA stream.

    Args:
        device: Of both streams.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def run(self) -> Any:
        """A context whose operations run on it."""
        return torch.cuda.stream(self.stream)

    def follow(self) -> None:
        """What comes on it waits for what the current stream has been given."""
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))

    def rejoin(self) -> None:
        """What comes on the current stream waits for what it has been given."""
        torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)


@functools.cache
def cuda_lane(device: torch.device) -> CudaLane:
    """The lane of a device."""
    return CudaLane(device)


class BesideStream(BlockStream):
    """A stream of a block on a lane of its own.

    Args:
        lane ([`Lane`]): Where its operations run.
        block, prefix, tokens, inputs: Of [`BlockStream`].
    """

    def __init__(self, lane: Lane, block: nn.Module, prefix: str, tokens: torch.Tensor, inputs: StreamInputs) -> None:
        self.lane, self.held = lane, [tokens]
        lane.follow()
        with lane.run():
            super().__init__(block, prefix, tokens, inputs)

    def attend_to_self(self, keep: Keep, passthrough: bool) -> None:
        """The self-attention branch."""
        with self.lane.run():
            super().attend_to_self(keep, passthrough)

    def attend_to_text(self, *args: Any, **kwargs: Any) -> None:
        """The attention to a text context."""
        with self.lane.run():
            super().attend_to_text(*args, **kwargs)

    def read_for(self, directions: list[str]) -> dict[str, torch.Tensor]:
        """Tokens for the attention between the streams; the other stream has made its own before."""
        with self.lane.run():
            copies = super().read_for(directions)
        self.held += copies.values()
        self.lane.rejoin()
        self.lane.follow()
        return copies

    def take_from(self, other: BlockStream, normed: torch.Tensor, other_normed: torch.Tensor, keep: Keep) -> None:
        """The attention to the other stream."""
        self.held.append(other_normed)
        with self.lane.run():
            super().take_from(other, normed, other_normed, keep)

    def feed_forward(self) -> None:
        """The feed-forward branch."""
        with self.lane.run():
            super().feed_forward()

    def finish(self) -> torch.Tensor:
        """Tokens after the last branch; the other stream has finished before, so that both meet."""
        with self.lane.run():
            tokens = super().finish()
        self.lane.rejoin()
        self.held.clear()
        return tokens


def view_beside(block: nn.Module, prefix: str, tokens: torch.Tensor, inputs: StreamInputs) -> BlockStream:
    """A stream of a block beside the other one, where there is a card and no gradients are kept."""
    if not tokens.is_cuda or torch.is_grad_enabled():
        return BlockStream(block, prefix, tokens, inputs)
    return BesideStream(cuda_lane(tokens.device), block, prefix, tokens, inputs)


def run_beside(model: Any, is_on: bool) -> None:
    """Have the sound's part of every block of a transformer run beside the video's, or after it."""
    for block in model.transformer_blocks:
        if is_on:
            block.audio_view = view_beside
        else:
            block.__dict__.pop("audio_view", None)


def runs_beside(model: Any) -> bool:
    """Whether the sound's part of the blocks runs beside the video's."""
    blocks = getattr(model, "transformer_blocks", ())
    return any(isinstance(one, LTX2AVTransformerBlock) and "audio_view" in one.__dict__ for one in blocks)
