"""What a training step minimises.

Shapes: B samples, S tokens, D features of a token.
"""

from dataclasses import dataclass

import torch

from ...conditioning import Streams
from .streams import TrainedStream

LEVEL_BOUNDS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Bounds of the noise levels over which losses are reported."""


def velocity_loss(predicted: torch.Tensor, velocity: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the tokens that count, one value per sample.

    Args:
        predicted: Velocities that the model says, `[B, S, D]`.
        velocity: Noise minus clean tokens, `[B, S, D]`.
        mask: True for tokens that count, `[B, S]`.

    Returns:
        float32 `[B]`; 0 for a sample in which none counts.
    """
    weight = mask.float().unsqueeze(-1)
    error = (predicted.float() - velocity.float()).square() * weight
    return error.mean(dim=(1, 2)) / weight.mean(dim=(1, 2)).clamp(min=1e-8)


@dataclass(frozen=True)
class StepLosses:
    """Losses of a step.

    Args:
        total: What is minimised: the weighted sum of both streams, averaged over the samples.
        streams: Loss of each sample per stream, detached `[B]`; `None` for a stream that is not trained.
        sigmas: Their noise levels, `[B]`.
    """

    total: torch.Tensor
    streams: Streams[torch.Tensor | None]
    sigmas: Streams[torch.Tensor | None]


def step_losses(
    predicted: Streams[torch.Tensor | None], streams: Streams[TrainedStream | None], weights: Streams[float]
) -> StepLosses:
    """The losses of the streams that are trained.

    Args:
        predicted: Velocities of both streams `[B, T, D]`, appended tokens after the target's.
        streams: What they are compared with.
        weights: Factor of each stream in the total.
    """
    total: torch.Tensor | None = None
    values: list[torch.Tensor | None] = []
    sigmas: list[torch.Tensor | None] = []
    for said, stream, weight in zip(predicted, streams, weights):
        if said is None or stream is None or stream.velocity is None or stream.loss_mask is None:
            values.append(None)
            sigmas.append(None)
            continue
        loss = velocity_loss(said[:, : stream.velocity.shape[1]], stream.velocity, stream.loss_mask)
        weighted = weight * loss.mean()
        total = weighted if total is None else total + weighted.to(total.device)
        values.append(loss.detach())
        sigmas.append(stream.sigma)
    return StepLosses(torch.zeros(()) if total is None else total, Streams(*values), Streams(*sigmas))
