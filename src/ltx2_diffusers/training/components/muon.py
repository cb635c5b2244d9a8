"""Muon: momentum whose matrices are made orthogonal before they change the weights (Jordan et al., 2024).

torch has one since 2.9, for matrices alone; networks of convolutions and older versions of torch need this one.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# A quintic that drives singular values towards 1 in few rounds; they end between 0.7 and 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
# The root mean square of AdamW's steps on matrices, as a part of the learning rate (arXiv 2502.16982).
_STEP_SIZE = 0.2


class Muon(torch.optim.Optimizer):
    """Muon for weights of two and more axes, Adam for the rest, at one learning rate.

    The first axis of a weight is its output; the others are taken together, so that a convolution is one matrix. Steps
    are as large as those of AdamW at the same learning rate.

    Args:
        params: What is trained.
        lr: Learning rate; a tensor on the device of the parameters if steps are recorded as a CUDA graph.
        betas: Of the momentum, and of the squares that Adam divides by. Default (0.95, 0.99).
        weight_decay: Part of a weight that a step takes away, times the learning rate. Default 0.0.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float | Tensor,
        betas: tuple[float, float] = (0.95, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Change every parameter that has a gradient; returns what `closure` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    change = self._orthogonal if parameter.ndim > 1 else self._adam
                    change(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def _orthogonal(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        momentum.lerp_(gradient, 1 - group["betas"][0])
        ahead = gradient.lerp(momentum, group["betas"][0]).flatten(1)
        size = group["lr"] * (_STEP_SIZE * max(ahead.shape) ** 0.5)
        parameter.sub_(orthogonalised(ahead).view_as(parameter) * size)

    def _adam(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        squares = state.setdefault("squares", torch.zeros_like(parameter))
        # A tensor, which a CUDA graph counts on.
        number = state.setdefault("count", torch.zeros((), device=parameter.device)).add_(1)
        momentum.lerp_(gradient, 1 - first)
        squares.lerp_(gradient.square(), 1 - second)
        size = (squares / (1 - second**number)).sqrt_().add_(1e-8)
        parameter.sub_(momentum / size * (group["lr"] / (1 - first**number)))


def orthogonalised(matrix: Tensor) -> Tensor:
    """The matrix `[M, N]` with its singular values brought close to 1, in bfloat16 by Newton and Schulz's iteration."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix / matrix.norm().clamp(min=1e-12)
    # Their exact values do not matter, and products of matrices are most of the work.
    x = (x.mT if is_tall else x).bfloat16()
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrix.dtype)
