"""Guidance formulas on predictions of the clean sample (x0), in float32 and per sample.

A guider's `delta` is added to the conditional prediction. Shapes: B batch, the other axes are the stream's own.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch

from ..checks import check_scales, check_share
from ..declared import settle

Binned = TypeVar("Binned")

# Keeps a projection on an all-zero prediction finite (value of the reference).
PROJECTION_EPS = 1e-8


def projection_coefficient(vector: torch.Tensor, onto: torch.Tensor) -> torch.Tensor:
    """How much of `onto` lies in `vector`, `[B, 1, ...]`: the inner product over the squared length of `onto`."""
    axes = tuple(range(1, vector.ndim))
    product = (vector * onto).sum(dim=axes, keepdim=True)
    return product / (onto.square().sum(dim=axes, keepdim=True) + PROJECTION_EPS)


def clip_norm(guidance: torch.Tensor, threshold: float) -> torch.Tensor:
    """Guidance `[B, ...]` shortened to a norm of at most `threshold` per sample; 0 leaves it alone."""
    if threshold <= 0:
        return guidance
    norm = torch.linalg.vector_norm(guidance, dim=tuple(range(1, guidance.ndim)), keepdim=True)
    return guidance * (threshold / norm).clamp(max=1.0)


def project_guidance(guidance: torch.Tensor, cond: torch.Tensor, eta: float) -> torch.Tensor:
    """Guidance whose share along the conditional prediction is scaled by `eta`."""
    parallel = projection_coefficient(guidance, cond) * cond
    return eta * parallel + (guidance - parallel)


def rescale_to_std(pred: torch.Tensor, cond: torch.Tensor, strength: float) -> torch.Tensor:
    """A guided prediction `[B, ...]` brought towards the standard deviation of the conditional one, per sample."""
    axes = tuple(range(1, pred.ndim))
    ratio = cond.std(dim=axes, keepdim=True) / pred.std(dim=axes, keepdim=True)
    return pred * (strength * ratio + (1 - strength))


def check_interval(name: str, interval: tuple[float, float] | None) -> None:
    """Raise `ValueError` unless an interval of noise levels is None or two rising numbers in [0, 1]."""
    if interval is not None and not (len(interval) == 2 and 0 <= interval[0] < interval[1] <= 1):
        low, high = min([*interval, 1.0]), max([*interval, 0.0])
        nearest = (max(low, 0.0), min(high, 1.0)) if max(low, 0.0) < min(high, 1.0) else (0.0, 1.0)
        raise ValueError(f"`{name}` has to be two rising noise levels in [0, 1] but is {interval}; use {nearest}")


class Guider(ABC):
    """One guidance term: from the conditional prediction and another one to what is added to the conditional one."""

    neutral: ClassVar[float] = 1.0
    scale: float

    @abstractmethod
    def delta(self, cond: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """What to add to `cond`, float32 `[B, ...]`.

        Args:
            cond: Prediction with the prompt `[B, ...]`.
            other: Prediction of the pass to move away from, of the same shape.
        """

    def enabled(self) -> bool:
        """Whether the other pass is needed."""
        return self.scale != self.neutral


@dataclass(frozen=True)
class CFGGuider(Guider):
    """Classifier-free guidance: away from the prediction of the negative prompt.

    Args:
        scale: Guidance scale; 1 is neutral.
    """

    scale: float

    def delta(self, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
        """What to add to `cond`."""
        return (self.scale - 1) * (cond.float() - uncond.float())


@dataclass(frozen=True)
class CFGStarRescalingGuider(Guider):
    """Classifier-free guidance with the negative prediction scaled to fit the conditional one (CFG-Zero*).

    Args:
        scale: Guidance scale; 1 is neutral.
    """

    scale: float

    def delta(self, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
        """What to add to `cond`."""
        cond, uncond = cond.float(), uncond.float()
        return (self.scale - 1) * (cond - projection_coefficient(cond, uncond) * uncond)


@dataclass(frozen=True)
class STGGuider(Guider):
    """Spatio-temporal guidance: away from the prediction of a perturbed pass.

    Args:
        scale: Guidance scale; 0 is neutral.
    """

    neutral: ClassVar[float] = 0.0
    scale: float

    def delta(self, cond: torch.Tensor, perturbed: torch.Tensor) -> torch.Tensor:
        """What to add to `cond`."""
        return self.scale * (cond.float() - perturbed.float())


@dataclass(frozen=True)
class LtxAPGGuider(Guider):
    """Adaptive projected guidance: clips guidance that is too long and weakens its share along the prediction.

    Args:
        scale: Guidance scale; 1 is neutral.
        eta: Weight of the share along the conditional prediction, default 1.0 (kept).
        norm_threshold: Largest norm of the guidance per sample, default 0.0 (any).
    """

    scale: float
    eta: float = 1.0
    norm_threshold: float = 0.0

    def delta(self, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
        """What to add to `cond`."""
        cond = cond.float()
        guidance = clip_norm(cond - uncond.float(), self.norm_threshold)
        return (self.scale - 1) * project_guidance(guidance, cond, self.eta)


@dataclass
class StatefulAPGGuider(Guider):
    """Adaptive projected guidance with momentum over the steps; one object serves one stream of one run.

    Args:
        scale: Weight of the guidance; 0 is neutral (not 1: the weight is not reduced by one here).
        eta: Weight of the share along the conditional prediction, default 1.0 (kept).
        norm_threshold: Largest norm of the guidance per sample, default 5.0; 0 for any.
        momentum: Share of the guidance of earlier steps, default 0.0.
    """

    neutral: ClassVar[float] = 0.0
    scale: float
    eta: float = 1.0
    norm_threshold: float = 5.0
    momentum: float = 0.0
    _running: torch.Tensor | None = field(default=None, init=False, repr=False)

    def delta(self, cond: torch.Tensor, uncond: torch.Tensor) -> torch.Tensor:
        """What to add to `cond`; remembers the guidance for the next call."""
        cond = cond.float()
        guidance = cond - uncond.float()
        if self.momentum != 0:
            if self._running is not None:
                guidance = self.momentum * self._running + guidance
            self._running = guidance
        return self.scale * project_guidance(clip_norm(guidance, self.norm_threshold), cond, self.eta)

    def continue_from(self, earlier: "StatefulAPGGuider") -> None:
        """Take over the momentum of a guider with another scale."""
        self._running = earlier._running


@dataclass(frozen=True)
class MultiModalGuiderParams:
    """Weights of the guidance terms of one stream; the defaults are neutral and cost nothing.

    Args:
        cfg_scale: Against the negative prompt; 1 is neutral.
        stg_scale: Against the perturbed pass; 0 is neutral.
        stg_blocks: Blocks that the perturbed pass perturbs in this stream; None means all, default none.
        rescale_scale: Share in [0, 1] of the conditional prediction's standard deviation that is restored; 0 is off.
        modality_scale: Against the pass in which the streams do not see each other; 1 is neutral.
        skip_step: Steps to skip after each guided one; 0 is off.
        interval: Lowest and highest noise level at which the terms act, in [0, 1]; None (default) is everywhere. Above and
            below, the conditional prediction is taken as it is.
    """

    cfg_scale: float = 1.0
    stg_scale: float = 0.0
    stg_blocks: tuple[int, ...] | list[int] | None = ()
    rescale_scale: float = 0.0
    modality_scale: float = 1.0
    skip_step: int = 0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        settle(self)
        check_interval("interval", self.interval)
        check_scales(cfg_scale=self.cfg_scale, stg_scale=self.stg_scale, modality_scale=self.modality_scale)
        check_share(rescale_scale=self.rescale_scale)
        if self.skip_step < 0:
            raise ValueError(f"skip_step must not be negative, got {self.skip_step}; use 0.")


class MultiModalGuider:
    """All guidance terms of one stream.

    Args:
        params: Weights of the terms.
        cfg_guider: Formula of the term against the negative prompt, default [`CFGGuider`] of `params.cfg_scale`. It
            follows `params.cfg_scale`, which decides whether the term is neutral.
        on_velocities: Whether the terms are those of velocities rather than of predictions of the clean sample, default
            False. Formulas with sums over a sample differ.
    """

    def __init__(
        self, params: MultiModalGuiderParams, cfg_guider: Guider | None = None, on_velocities: bool = False
    ) -> None:
        self.params = params
        self.on_velocities = on_velocities
        self.cfg_guider = CFGGuider(params.cfg_scale) if cfg_guider is None else cfg_guider
        self._stg_guider = STGGuider(params.stg_scale)
        # Away from the isolated pass goes the same way as away from the negative prompt.
        self._modality_guider = CFGGuider(params.modality_scale)

    def at_sigma(self, sigma: float) -> "MultiModalGuider":
        """The guider to use at a noise level: this one, or outside its interval one without terms."""
        interval = self.params.interval
        if interval is None or interval[0] <= sigma <= interval[1]:
            return self
        return MultiModalGuider(MultiModalGuiderParams(skip_step=self.params.skip_step), None, self.on_velocities)

    def parts(self) -> list["MultiModalGuider"]:
        """The guiders of all noise levels: this one."""
        return [self]

    def do_unconditional_generation(self) -> bool:
        """Whether the pass with the negative prompt is needed."""
        return not math.isclose(self.params.cfg_scale, 1.0)

    def do_perturbed_generation(self) -> bool:
        """Whether the perturbed pass is needed."""
        return not math.isclose(self.params.stg_scale, 0.0)

    def do_isolated_modality_generation(self) -> bool:
        """Whether the pass in which the streams do not see each other is needed."""
        return not math.isclose(self.params.modality_scale, 1.0)

    @property
    def is_guided(self) -> bool:
        """Whether any term acts."""
        return (
            self.do_unconditional_generation()
            or self.do_perturbed_generation()
            or self.do_isolated_modality_generation()
        )

    def should_skip_step(self, step: int) -> bool:
        """Whether this step reuses the stream's last prediction; the first step never does."""
        return self.params.skip_step != 0 and step % (self.params.skip_step + 1) != 0

    def calculate(
        self,
        cond: torch.Tensor,
        uncond: torch.Tensor | None = None,
        perturbed: torch.Tensor | None = None,
        isolated: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The guided prediction `[B, ...]` in float32.

        Args:
            cond: Prediction with the prompt.
            uncond: Prediction with the negative prompt; None where its term is neutral.
            perturbed: Prediction of the perturbed pass; None where its term is neutral.
            isolated: Prediction without attention between the streams; None where its term is neutral.
        """
        terms = (
            ("uncond", uncond, self.cfg_guider, self.do_unconditional_generation()),
            ("perturbed", perturbed, self._stg_guider, self.do_perturbed_generation()),
            ("isolated", isolated, self._modality_guider, self.do_isolated_modality_generation()),
        )
        cond = cond.float()
        pred = cond
        for name, other, guider, needed in terms:
            # A neutral term is left out, so that a pass made for the other stream changes nothing here.
            if not needed:
                continue
            if other is None:
                raise ValueError(f"{name} is missing although its scale is {guider.scale:g}; run that pass too.")
            pred = pred + guider.delta(cond, other)
        if self.params.rescale_scale == 0:
            return pred
        return rescale_to_std(pred, cond, self.params.rescale_scale)


class BinnedGuider:
    """Guiders of one stream for ranges of the noise level.

    Args:
        guiders: Bound of sigma to the guider up to it, see [`params_at_sigma`].
        from_below: Whether a guider begins at its bound instead. Default False.
    """

    def __init__(self, guiders: Mapping[float, MultiModalGuider], from_below: bool = False) -> None:
        self.guiders = dict(guiders)
        self.from_below = from_below

    def at_sigma(self, sigma: float) -> MultiModalGuider:
        """The guider to use at a noise level in [0, 1]."""
        return params_at_sigma(self.guiders, sigma, self.from_below).at_sigma(sigma)

    def parts(self) -> list[MultiModalGuider]:
        """The guiders of all noise levels."""
        return list(self.guiders.values())

    def do_unconditional_generation(self) -> bool:
        """Whether the pass with the negative prompt is needed at some level."""
        return any(guider.do_unconditional_generation() for guider in self.parts())


def params_at_sigma(bins: Mapping[float, Binned], sigma: float, from_below: bool = False) -> Binned:
    """What belongs to the smallest upper bound that is not below `sigma`, or to the largest bound.

    Args:
        bins: Upper bound of sigma to [`MultiModalGuiderParams`], or to anything else; each bin begins above the next
            smaller bound.
        sigma: Noise level in [0, 1].
        from_below: Whether bounds are lower ones: the largest that is not above `sigma`, or the smallest. Default False.
    """
    if not bins:
        raise ValueError("bins must hold params for at least one upper bound of sigma; use {1.0: params}.")
    if from_below:
        return bins[max((bound for bound in bins if bound <= sigma), default=min(bins))]
    return bins[min((bound for bound in bins if bound >= sigma), default=max(bins))]
