"""The denoiser, the samplers and the one denoising loop."""

from .contract import Predict, Sampler
from .denoiser import GuidedDenoiser, PassLayout
from .loop import denoise, with_latents
from .samplers import get_sampler
from .steppers import euler_step, post_process, to_denoised, to_velocity
from .tiles import TiledTransformer

__all__ = [
    "GuidedDenoiser",
    "PassLayout",
    "Predict",
    "Sampler",
    "TiledTransformer",
    "denoise",
    "euler_step",
    "get_sampler",
    "post_process",
    "to_denoised",
    "to_velocity",
    "with_latents",
]
