"""The tiny checkpoints as pipelines of this package and of diffusers, and how tests call them."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers import LTX2Pipeline as DiffusersLTX2Pipeline
from diffusers.utils import logging

from ltx2_diffusers import LTX2Pipeline
from tests.tiny_checkpoints import tiny_checkpoint

logging.disable_progress_bar()

PROMPT = "A red fox walks through deep snow while the wind howls."
NEGATIVE = "blurry"
# Small and quick; every value given, so that no default of either library takes part.
SIZE = {"height": 64, "width": 96, "num_frames": 9, "frame_rate": 24.0, "num_inference_steps": 2}
NO_GUIDANCE = {
    "guidance_scale": 1.0,
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_scale": 1.0,
    "audio_stg_scale": 0.0,
    "audio_modality_scale": 1.0,
    "audio_guidance_rescale": 0.0,
}
CFG = NO_GUIDANCE | {"guidance_scale": 3.0, "audio_guidance_scale": 7.0}
ALL_GUIDANCE = {
    "guidance_scale": 3.0,
    "stg_scale": 1.0,
    "modality_scale": 3.0,
    "guidance_rescale": 0.7,
    "audio_guidance_scale": 7.0,
    "audio_stg_scale": 0.5,
    "audio_modality_scale": 2.0,
    "audio_guidance_rescale": 0.4,
    "spatio_temporal_guidance_blocks": [1],
}
EXPLICIT = {**SIZE, "use_cross_timestep": False, "max_sequence_length": 64, "output_type": "latent"}


def seeded(*seeds: int) -> Any:
    """A CPU generator, or a list of them."""
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return generators[0] if len(seeds) == 1 else generators


def load(source: str | Path = "2.0", pipeline_class: type = LTX2Pipeline, **kwargs: Any) -> DiffusionPipeline:
    """A fresh float32 pipeline; `source` is the version of a tiny checkpoint or a folder."""
    folder = tiny_checkpoint(source) if isinstance(source, str) else source
    pipeline = pipeline_class.from_pretrained(folder, dtype=torch.float32, **kwargs)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@cache
def ours(name: str = "2.0") -> LTX2Pipeline:
    """A tiny checkpoint in this package's classes, shared by tests that leave it as it is."""
    return load(name)


@cache
def theirs(name: str = "2.0") -> DiffusersLTX2Pipeline:
    """The same checkpoint in diffusers' classes."""
    return load(name, DiffusersLTX2Pipeline)


def max_difference(actual: Any, expected: Any) -> float:
    """Largest absolute difference of two outputs, over frames and audio."""
    pairs = ((actual.frames, expected.frames), (actual.audio, expected.audio))
    tensors = [tuple(map(torch.as_tensor, pair)) for pair in pairs]
    assert all(a.shape == e.shape for a, e in tensors), [(a.shape, e.shape) for a, e in tensors]
    return max((a - e).abs().max().item() for a, e in tensors)


def with_token_sigmas(pipeline_class: type) -> type:
    """A pipeline of diffusers that converts velocities at each token's own noise level, as this package does."""

    class TokenSigmas(pipeline_class):
        def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
            prepared = super().prepare_latents(*args, **kwargs)
            self.held = prepared[1]
            return prepared

        def convert_velocity_to_x0(
            self, sample: torch.Tensor, velocity: torch.Tensor, step: int, scheduler: Any
        ) -> torch.Tensor:
            share = 1 - self.held if scheduler is self.scheduler else 1
            return sample - velocity * (scheduler.sigmas[step] * share)

    return TokenSigmas


@cache
def sibling(name: str, pipeline_class: type) -> DiffusionPipeline:
    """Another pipeline of either library on the same models."""
    is_theirs = any(base.__module__.startswith("diffusers.pipelines.ltx2") for base in pipeline_class.__mro__)
    base = theirs(name) if is_theirs else ours(name)
    pipeline = pipeline_class.from_pipe(base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
