"""The contract of samplers: a clean prediction in, the next states out.

A sampler's `step` receives a function that predicts the clean tokens of both streams and calls it as often as its
method needs, at whatever noise levels. Noise comes from a function given to the sampler, asked for video first and
for audio second.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from ..conditioning.streams import States, Tensors

# Standard normal noise in the shape, dtype and device of its argument.
NoiseSampler = Callable[[torch.Tensor], torch.Tensor]


class Predict(Protocol):
    """Predicts the clean tokens of both streams, blended with given tokens, from states at a noise level."""

    def __call__(self, states: States, sigma: torch.Tensor) -> Tensors: ...

    def negative(self) -> Tensors:
        """The latest predictions for the negative prompt alone, unblended; asked by CFG++ only."""
        ...


class Sampler(Protocol):
    """What the denoising loop asks of a sampler; an object serves one run at a time.

    `predictions_per_step` says how often a step asks `predict`; the last one may do so once more.
    """

    predictions_per_step: int

    def step(self, predict: Predict, states: States, sigmas: torch.Tensor, step: int) -> tuple[States, Tensors]:
        """Move from `sigmas[step]` to `sigmas[step + 1]`.

        Args:
            predict: predicts clean tokens, one forward of the network (with its guidance) per call.
            states: `LatentState` of each stream, None for an absent one.
            sigmas: the run's falling noise levels `[N + 1]`, float32 on the CPU.
            step: index of the step.

        Returns:
            The new states and the latest prediction.
        """
        ...
