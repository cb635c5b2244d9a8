"""The classes that diffusers ships for LTX-2 and those of this package, on components as tiny as diffusers' own tests take.

Everything here exists twice, named by the library it comes from, so that one check runs on both.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines import ltx2
from diffusers.utils import logging
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration

import ltx2_diffusers
from ltx2_diffusers.checkpoints.packaged import packaged_checkpoint

logging.disable_progress_bar()

LIBRARIES = ("diffusers", "ours")
# Pipelines that generate from text; the fifth, which enlarges latents, has components and a call of its own.
GENERATING = ("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline", "LTX2InContextPipeline")
UPSAMPLING = "LTX2LatentUpsamplePipeline"
PIPELINES = (*GENERATING, UPSAMPLING)

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
VAE = {
    "latent_channels": 4,
    "block_out_channels": (8,),
    "decoder_block_out_channels": (8,),
    "layers_per_block": (1,),
    "decoder_layers_per_block": (1, 1),
    "spatio_temporal_scaling": (True,),
    "decoder_spatio_temporal_scaling": (True,),
    "decoder_inject_noise": (False, False),
    "downsample_type": ("spatial",),
    "upsample_residual": (False,),
    "upsample_factor": (1,),
    "patch_size": 1,
    "patch_size_t": 1,
    "encoder_causal": True,
    "decoder_causal": False,
}
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
UPSAMPLER = {"in_channels": 4, "mid_channels": 32, "num_blocks_per_stage": 1}
