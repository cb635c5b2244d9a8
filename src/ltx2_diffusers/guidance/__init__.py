"""Guidance: pure functions of predictions, and the perturbations that guided passes use."""

from .guiders import (
    CFGGuider,
    CFGStarRescalingGuider,
    LtxAPGGuider,
    MultiModalGuider,
    MultiModalGuiderParams,
    StatefulAPGGuider,
    STGGuider,
    params_at_sigma,
)
from .perturbations import (
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
    isolating_perturbations,
    stg_perturbations,
)

__all__ = [
    "BatchedPerturbationConfig",
    "CFGGuider",
    "CFGStarRescalingGuider",
    "LtxAPGGuider",
    "MultiModalGuider",
    "MultiModalGuiderParams",
    "Perturbation",
    "PerturbationConfig",
    "PerturbationType",
    "STGGuider",
    "StatefulAPGGuider",
    "isolating_perturbations",
    "params_at_sigma",
    "stg_perturbations",
]
