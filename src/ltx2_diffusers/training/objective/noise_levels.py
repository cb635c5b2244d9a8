"""Noise levels that a training step asks of the model, one per sample, and the randomness of a step.

Shapes: B samples of a batch, S tokens of a stream.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

# The published models were trained with the mean of the logit-normal moving from 0.95 at 1024 tokens to 2.05 at 4096.
_MEANS, _TOKENS = (0.95, 2.05), (1024, 4096)
# The newest form is stretched so that these quantiles of a normal distribution, 0.5 % and 99.9 %, become 0 and 1.
_LOWEST, _HIGHEST = -2.5758, 3.0902


class Draws(Protocol):
    """Where a step takes its random numbers from."""

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        """N(0, 1), float32, of a shape whose first axis is the batch."""

    def uniform(self, shape: Sequence[int]) -> torch.Tensor:
        """U[0, 1), float32, of a shape whose first axis is the batch."""

    def once(self) -> float:
        """One number U[0, 1) for the whole batch, on all processes the same."""


class RowDraws:
    """Random numbers of one step, in which every row of the batch has a source of its own.

    A row's numbers depend on the seed, the step and the row's place in the batch of all processes alone: not on how many
    processes share the batch, nor on what was drawn before, so that a resumed run repeats them.

    Args:
        seed: Seed of the run.
        step: Forward passes before this one, over all epochs.
        rows: Place of each row in the batch of all processes.
        device: Where the numbers are wanted; they are drawn on the CPU.
    """

    def __init__(self, seed: int, step: int, rows: Sequence[int], device: torch.device | str = "cpu") -> None:
        self._rows = [generator_of(seed, step, row) for row in rows]
        self._batch = generator_of(seed, step, "batch")
        self._device = device

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        """N(0, 1), float32, of a shape whose first axis is the batch."""
        return self._stacked(torch.randn, shape)

    def uniform(self, shape: Sequence[int]) -> torch.Tensor:
        """U[0, 1), float32, of a shape whose first axis is the batch."""
        return self._stacked(torch.rand, shape)

    def once(self) -> float:
        """One number U[0, 1) for the whole batch, on all processes the same."""
        return torch.rand((), generator=self._batch).item()

    def _stacked(self, draw: Any, shape: Sequence[int]) -> torch.Tensor:
        if shape[0] != len(self._rows):
            raise ValueError(f"the batch has {len(self._rows)} rows, but numbers for {shape[0]} are asked for")
        rows = [draw(tuple(shape[1:]), generator=generator) for generator in self._rows]
        return torch.stack(rows).to(self._device)


class TorchDraws:
    """Random numbers of torch's global source, drawn where they are wanted.

    Args:
        device: Where the numbers are wanted.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = device

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        """N(0, 1), float32, of a shape whose first axis is the batch."""
        return torch.randn(tuple(shape), device=self._device)

    def uniform(self, shape: Sequence[int]) -> torch.Tensor:
        """U[0, 1), float32, of a shape whose first axis is the batch."""
        return torch.rand(tuple(shape), device=self._device)

    def once(self) -> float:
        """One number U[0, 1) for the whole batch."""
        return torch.rand(()).item()


def generator_of(*names: object) -> torch.Generator:
    """A generator of its own for every tuple of names."""
    digest = hashlib.sha256(repr(names).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class NoiseLevels(Protocol):
    """A distribution of noise levels."""

    def sample(self, batch_size: int, num_tokens: int, draws: Draws) -> torch.Tensor:
        """Noise levels in [0, 1], float32 `[B]`, for streams of so many generated tokens."""


@dataclass(frozen=True)
class UniformLevels:
    """All levels between two bounds are equally likely.

    Args:
        min_value: Lowest level, default 0.0.
        max_value: Highest level, default 1.0.
    """

    min_value: float = 0.0
    max_value: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_value < self.max_value <= 1:
            raise ValueError(
                f"min_value and max_value have to be 0 <= min_value < max_value <= 1 but are {self.min_value} and "
                f"{self.max_value}; use 0.0 and 1.0"
            )

    def sample(self, batch_size: int, num_tokens: int, draws: Draws) -> torch.Tensor:  # noqa: ARG002 (does not depend)
        """Noise levels `[B]`."""
        return draws.uniform((batch_size,)) * (self.max_value - self.min_value) + self.min_value


@dataclass(frozen=True)
class LogitNormalLevels:
    """The logistic function of a normal variable whose mean grows with the number of tokens (LTX-2.0).

    Args:
        std: Standard deviation of the normal variable, default 1.0.
    """

    std: float = 1.0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std has to be positive but is {self.std}; use 1.0")

    def sample(self, batch_size: int, num_tokens: int, draws: Draws) -> torch.Tensor:
        """Noise levels `[B]`, strictly between 0 and 1."""
        return torch.sigmoid(self.std * draws.normal((batch_size,)) + shifted_mean(num_tokens))


@dataclass(frozen=True)
class StretchedLogitNormalLevels:
    """The same, stretched to the whole of [0, 1] and mixed with uniform levels (LTX-2.3 and later).

    Args:
        std: Standard deviation of the normal variable, default 1.0.
        eps: Levels below are reflected, and uniform ones begin here; default 0.001.
        uniform_prob: Share of uniform levels, default 0.1.
    """

    std: float = 1.0
    eps: float = 1e-3
    uniform_prob: float = 0.1

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std has to be positive but is {self.std}; use 1.0")
        for name, value, usual in (("eps", self.eps, 1e-3), ("uniform_prob", self.uniform_prob, 0.1)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} has to lie in [0, 1] but is {value}; use {usual}")

    def sample(self, batch_size: int, num_tokens: int, draws: Draws) -> torch.Tensor:
        """Noise levels `[B]`; all three numbers of a row are drawn, whichever is used."""
        mean = torch.tensor(shifted_mean(num_tokens))
        lowest, highest = (torch.sigmoid(mean + z * self.std) for z in (_LOWEST, _HIGHEST))
        normal = torch.sigmoid(self.std * draws.normal((batch_size,)) + mean)
        stretched = (normal - lowest) / (highest - lowest)
        stretched = torch.where(stretched < self.eps, 2 * self.eps - stretched, stretched).clamp(0, 1)
        uniform = (1 - self.eps) * draws.uniform((batch_size,)) + self.eps
        return torch.where(draws.uniform((batch_size,)) > self.uniform_prob, stretched, uniform)


LEVELS: dict[str, Any] = {
    "uniform": UniformLevels,
    "shifted_logit_normal_2_0": LogitNormalLevels,
    "shifted_logit_normal_newest": StretchedLogitNormalLevels,
}
"""Distributions by name."""


def shifted_mean(num_tokens: int) -> float:
    """Mean of the normal variable for a number of tokens; a straight line through the two published points."""
    slope = (_MEANS[1] - _MEANS[0]) / (_TOKENS[1] - _TOKENS[0])
    return _MEANS[0] + slope * (num_tokens - _TOKENS[0])


def noise_levels(mode: str, params: dict[str, float], generation: str) -> NoiseLevels:
    """The distribution of a configuration.

    Args:
        mode: A name of `LEVELS`, or "shifted_logit_normal": the form that a model of this generation was trained with.
        params: Arguments of the distribution.
        generation: "2.0", "2.3", ...
    """
    if mode == "shifted_logit_normal":
        mode = "shifted_logit_normal_2_0" if generation == "2.0" else "shifted_logit_normal_newest"
    if mode not in LEVELS:
        raise ValueError(f"timestep_sampling_mode has to be one of {', '.join(LEVELS)} but is {mode!r}")
    known = list(LEVELS[mode].__dataclass_fields__)
    if unknown := [name for name in params if name not in known]:
        raise ValueError(f"timestep_sampling_params of {mode} are {', '.join(known)}, not {unknown[0]!r}")
    return LEVELS[mode](**params)
