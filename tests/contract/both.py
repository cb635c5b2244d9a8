"""The classes that diffusers ships for LTX-2 and those of this package, on components as tiny as diffusers' own tests take.

Everything here exists twice, named by the library it comes from, so that one check runs on both.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines import ltx2
from diffusers.utils import logging
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration

import ltx2_diffusers
from tests.models.video_vae_tools import SMALLEST
from tests.pipelines import tiny
from tests.tiny_checkpoints import tiny_checkpoint

logging.disable_progress_bar()

LIBRARIES = ("diffusers", "ours")
# Pipelines that generate from text; the two others, which enlarge and decode latents, have components and calls of their own.
GENERATING = ("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline", "LTX2InContextPipeline")
UPSAMPLING = "LTX2LatentUpsamplePipeline"
DECODING = "LTX2VideoDiffusionDecodePipeline"
# Take no guidance and no negative prompt, or make no sound.
SPECIAL = tuple(name for name in ("LTX2DFRPipeline", "LTX2HDRPipeline") if name in ltx2_diffusers.__all__)
PIPELINES = (*GENERATING, UPSAMPLING, DECODING, *SPECIAL)
WITH_TEXT = (*GENERATING, *SPECIAL)
# For what takes long: every class of ours, and one of diffusers that shows what is right.
CASES = [("ours", name) for name in GENERATING] + [("diffusers", GENERATING[0])]
each = pytest.mark.parametrize("name", PIPELINES)
generating = pytest.mark.parametrize("name", GENERATING)
both = pytest.mark.parametrize("library", LIBRARIES)

TRANSFORMER = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8,
    "num_layers": 2,
    "caption_channels": 32,
    "rope_double_precision": False,
    "rope_type": "split",
}
CONNECTORS = {
    "caption_channels": 32,
    "text_proj_in_factor": 3,
    "video_connector_num_attention_heads": 4,
    "video_connector_attention_head_dim": 8,
    "video_connector_num_layers": 1,
    "video_connector_num_learnable_registers": None,
    "audio_connector_num_attention_heads": 4,
    "audio_connector_attention_head_dim": 8,
    "audio_connector_num_layers": 1,
    "audio_connector_num_learnable_registers": None,
    "connector_rope_base_seq_len": 32,
    "rope_double_precision": False,
    "rope_type": "split",
}
VAE = SMALLEST | {"patch_size_t": 1, "encoder_causal": True, "decoder_causal": False}
AUDIO_VAE = {
    "base_channels": 4,
    "ch_mult": (1,),
    "num_res_blocks": 1,
    "resolution": 32,
    "latent_channels": 2,
    "mel_bins": 8,
}
VOCODER = {
    "in_channels": 16,
    "hidden_channels": 32,
    "upsample_kernel_sizes": [4, 4],
    "upsample_factors": [2, 2],
    "resnet_kernel_sizes": [3],
    "resnet_dilations": [[1, 3, 5]],
    "output_sampling_rate": 16000,
}
DURATION_HEAD = {
    "video_cross_attention_dim": 32,
    "audio_cross_attention_dim": 32,
    "pooler_hidden_dim": 16,
    "num_queries": 2,
    "mlp_hidden_dim": 8,
}
DIFFUSION_DECODER = {
    "latent_channels": 4,
    "patch_size": 2,
    "decoder_head_dim": 8,
    "decoder_stage_channels": (16, 16, 8, 8, 8),
    "decoder_stage_depths": (1, 1, 1, 1, 1),
    "decoder_stage_kernels": ((3, 3, 3),) * 4,
    "decoder_upsample_strides": ((1, 1, 1),) * 4,
    "decoder_upsample_channel_reductions": (1, 2, 1, 1),
    "decoder_stage5_kernel": (3, 3, 3),
    "decoder_t_emb_dim": 8,
    "spatial_compression_ratio": 2,
    "temporal_compression_ratio": 1,
}
UPSAMPLER = {"in_channels": 4, "mid_channels": 32, "num_blocks_per_stage": 1}

_MODELS = {
    "transformer": ("LTX2VideoTransformer3DModel", TRANSFORMER),
    "connectors": ("LTX2TextConnectors", CONNECTORS),
    "vae": ("AutoencoderKLLTX2Video", VAE),
    "audio_vae": ("AutoencoderKLLTX2Audio", AUDIO_VAE),
    "vocoder": ("LTX2Vocoder", VOCODER),
    "latent_upsampler": ("LTX2LatentUpsamplerModel", UPSAMPLER),
    "duration_head": ("LTX2DurationHead", DURATION_HEAD),
    "diffusion_decoder": ("LTX2VideoDiffusionDecoderModel", DIFFUSION_DECODER),
}
MODELS = tuple(_MODELS)
# Of pipelines of their own, or optional in the others.
_APART = ("latent_upsampler", "duration_head", "diffusion_decoder")

PROMPT = "a robot dancing"
NO_GUIDANCE = tiny.NO_GUIDANCE | {"spatio_temporal_guidance_blocks": [1]}
CFG = {"guidance_scale": 2.0, "audio_guidance_scale": 3.0}
_CALL = {
    "prompt": PROMPT,
    "negative_prompt": "",
    "height": 32,
    "width": 32,
    "num_frames": 5,
    "frame_rate": 25.0,
    "num_inference_steps": 2,
    "max_sequence_length": 16,
    "output_type": "pt",
    "use_cross_timestep": False,
    **NO_GUIDANCE,
}


def named(library: str, name: str) -> Any:
    """A class by the name that diffusers gives it."""
    if library == "ours":
        return getattr(ltx2_diffusers, name)
    return getattr(ltx2, name, None) or getattr(diffusers, name)


def new_model(library: str, component: str, **config: Any) -> Any:
    """A freshly initialised model in evaluation mode; the same weights in both libraries."""
    name, default = _MODELS[component]
    torch.manual_seed(0)
    source = named("diffusers", name)(**default | config)
    if library == "diffusers":
        return source.eval()
    model = named("ours", name)(**default | config)
    model.load_state_dict(source.state_dict())
    return model.eval()


@cache
def model(library: str, component: str) -> Any:
    """A model that no test changes."""
    return new_model(library, component)


@cache
def text_models() -> dict[str, Any]:
    """Text encoder and tokenizer of the packaged checkpoint."""
    folder = tiny_checkpoint("2.0")
    return {
        "text_encoder": Gemma3ForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        "tokenizer": AutoTokenizer.from_pretrained(folder / "tokenizer"),
    }


def optional(name: str) -> tuple[str, ...]:
    """What diffusers' pipeline of this name can do without."""
    return tuple(named("diffusers", name)._optional_components)


def components(library: str, name: str, make: Callable[[str, str], Any] = model) -> dict[str, Any]:
    """Everything that the constructor of diffusers' pipeline takes, by name; the optional ones are `None`."""
    if name == UPSAMPLING:
        return {part: make(library, part) for part in ("vae", "latent_upsampler")}
    if name == DECODING:
        decoder = make(library, "diffusion_decoder")
        return {"diffusion_decoder": decoder, "scheduler": FlowMatchEulerDiscreteScheduler(), "vae": None}
    models = {part: make(library, part) for part in MODELS if part not in _APART}
    return models | text_models() | {"scheduler": FlowMatchEulerDiscreteScheduler()} | dict.fromkeys(optional(name))


def quiet(pipeline: DiffusionPipeline) -> Any:
    """The pipeline without progress bars."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pipeline(library: str, name: str, make: Callable[[str, str], Any] = model, **changes: Any) -> Any:
    """A new pipeline; its models are shared unless `make` is [`new_model`]."""
    return quiet(named(library, name)(**components(library, name, make) | changes))


def seeded(seed: int = 0) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def picture() -> PIL.Image.Image:
    """Noise of 32 x 32 pixels."""
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def call(library: str, name: str, **changes: Any) -> dict[str, Any]:
    """Arguments of a small call, none of them left to a default that the libraries disagree on."""
    if name == UPSAMPLING:
        latents = torch.randn(1, 4, 3, 4, 4, generator=seeded(1))
        return {"latents": latents, "height": 8, "width": 8, "output_type": "pt", "generator": seeded()} | changes
    if name == DECODING:
        latents = torch.randn(1, 4, 3, 4, 4, generator=seeded(1))
        return {"latents": latents, "output_type": "pt", "generator": seeded()} | changes
    size = {
        "prompt": PROMPT,
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "max_sequence_length": 16,
        "output_type": "pt",
    }
    if name == "LTX2DFRPipeline":
        return size | {"sigmas": [1.0, 0.5], "generate_slots": False, "generator": seeded()} | changes
    if name == "LTX2HDRPipeline":
        reference = named(library, "LTX2HDRReferenceCondition")(frames=[picture()] * 9)
        # Light of an HDR picture is far above 1, where single precision ends sooner.
        given = {"reference_conditions": [reference], "num_inference_steps": 2, "output_type": "latent"}
        given |= {"generator": seeded()}
        return size | given | changes
    given: dict[str, Any] = {}
    if name == "LTX2ImageToVideoPipeline":
        given = {"image": picture()}
    elif name == "LTX2ConditionPipeline":
        given = {"conditions": [named(library, "LTX2VideoCondition")(frames=picture(), index=0, strength=1.0)]}
    elif name == "LTX2InContextPipeline":
        given = {"reference_conditions": [named(library, "LTX2ReferenceCondition")(frames=[picture()] * 5)]}
    return _CALL | given | {"generator": seeded()} | changes


def run(library: str, name: str, pipe: Any = None, **changes: Any) -> Any:
    """The output of a small call of a pipeline, by default of a new one."""
    return (pipe or pipeline(library, name))(**call(library, name, **changes))


def difference(one: Any, other: Any) -> float:
    """Largest absolute difference of the tensors of two outputs or of two tuples."""
    pairs = zip(*(part.to_tuple() if hasattr(part, "to_tuple") else part for part in (one, other)))
    tensors = [pair for pair in pairs if isinstance(pair[0], torch.Tensor)]
    assert tensors and all(a.shape == b.shape for a, b in tensors), [(a.shape, b.shape) for a, b in tensors]
    return max((a.float() - b.float()).abs().max().item() for a, b in tensors)
