"""What every network's step of training is: a module that turns a batch into named losses."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Losses = dict[str, torch.Tensor]
"""Named losses; `"loss"` is their weighted sum, from which gradients are computed."""


class TrainingStep(nn.Module):
    """A step of training. Its modules are what it trains and what it only reads; the latter are frozen.

    The attribute `critic` is the network that learns to tell what is made from what is real, or None.
    """

    critic: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        # Not on the class, where it would hide what a subclass sets: modules are no plain attributes.
        self.critic = None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that are trained, by the names of their folders."""
        raise NotImplementedError

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        """The losses of a batch, whose entries the step's class describes."""
        raise NotImplementedError

    def critic_losses(self) -> Losses:
        """The losses of the critic on what the last `forward` made; raises `ValueError` without a critic."""
        raise ValueError(f"{type(self).__name__} has no critic; give one to its constructor.")

    @property
    def device(self) -> torch.device:
        """Where the first parameter lies."""
        return next(self.parameters()).device


def trained_parameters(*networks: nn.Module) -> list[nn.Parameter]:
    """The parameters of networks that take gradients."""
    return [parameter for network in networks for parameter in network.parameters() if parameter.requires_grad]


def weighted(losses: Mapping[str, torch.Tensor], weights: Mapping[str, float]) -> Losses:
    """The losses behind their weighted sum `"loss"`, which comes first.

    Raises:
        ValueError: If a loss has no weight.
    """
    if unknown := losses.keys() - weights.keys():
        raise ValueError(f"no weight is given for the loss {sorted(unknown)[0]!r}; give one of {sorted(weights)}.")
    total = sum((weights[name] * loss for name, loss in losses.items()), start=torch.zeros(()))
    return {"loss": total, **losses}


@contextmanager
def held(network: nn.Module) -> Iterator[None]:
    """Keep gradients from the parameters of a network that is only asked, not trained; they still pass through it."""
    parameters = trained_parameters(network)
    _require_grad(parameters, False)
    try:
        yield
    finally:
        _require_grad(parameters, True)


def _require_grad(parameters: Iterable[nn.Parameter], value: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(value)
