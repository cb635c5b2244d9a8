"""Guidance: pure functions of predictions, and the perturbations that guided passes use."""

from .guiders import (
    BinnedGuider,
    CFGGuider,
    CFGStarRescalingGuider,
    LtxAPGGuider,
    MultiModalGuider,
    MultiModalGuiderParams,
    StatefulAPGGuider,
    STGGuider,
    params_at_sigma,
)
from .options import CFG_METHODS, GuidanceOptions
from .perturbations import (
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
    isolating_perturbations,
    stg_perturbations,
)

__all__ = [
    "CFG_METHODS",
    "BatchedPerturbationConfig",
    "BinnedGuider",
    "CFGGuider",
    "CFGStarRescalingGuider",
    "GuidanceOptions",
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
