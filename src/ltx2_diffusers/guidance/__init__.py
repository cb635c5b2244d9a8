"""Guidance: pure functions of predictions, and the perturbations that guided passes use."""

from ..models.negative_text import NagWeights, normalized_attention_guidance
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
from .presets import NEUTRAL, Preset, preset

__all__ = [
    "CFG_METHODS",
    "NEUTRAL",
    "BatchedPerturbationConfig",
    "BinnedGuider",
    "CFGGuider",
    "CFGStarRescalingGuider",
    "GuidanceOptions",
    "LtxAPGGuider",
    "MultiModalGuider",
    "MultiModalGuiderParams",
    "NagWeights",
    "Perturbation",
    "PerturbationConfig",
    "PerturbationType",
    "Preset",
    "STGGuider",
    "StatefulAPGGuider",
    "isolating_perturbations",
    "normalized_attention_guidance",
    "params_at_sigma",
    "preset",
    "stg_perturbations",
]
