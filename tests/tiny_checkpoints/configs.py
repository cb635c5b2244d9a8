"""Configurations of the miniature checkpoints: those of LTX-2.0 and LTX-2.3 with small widths and depths.

Kept from the real models: every compression factor, the 128 video latent channels, the 16 bins of the audio latent, the
sampling rates, all switches. Changed: channels, heads, blocks, layers and kernel sets.
"""

from typing import Any

# Width and number of layers of the text encoder; the connectors see all hidden states, the embeddings included.
TEXT_WIDTH = 32
TEXT_LAYERS = 2
VIDEO_HEADS, VIDEO_HEAD_DIM = 2, 16
AUDIO_HEADS, AUDIO_HEAD_DIM = 2, 8
VIDEO_WIDTH = VIDEO_HEADS * VIDEO_HEAD_DIM
AUDIO_WIDTH = AUDIO_HEADS * AUDIO_HEAD_DIM
# The statistics of the packed audio latent have as many entries as the VAE has base channels, so 8 x 16 of them, as in
# the real model, would need a VAE of the real width.
AUDIO_LATENT_CHANNELS, AUDIO_LATENT_BINS = 2, 16
# The first encoder stage is as wide as the latent (128 channels): a residual block there would be a third of the files.
ENCODER_LAYERS = (0, 1, 1, 1, 1)


def component_configs(version: str) -> dict[str, dict[str, Any]]:
    """Component folder -> what differs from the defaults of the component's class."""
    newer = version == "2.3"
    return {
        "transformer": _transformer(newer),
        "connectors": _connectors(newer),
        "vae": _video_vae_newer() if newer else _video_vae(),
        "audio_vae": _audio_vae(),
        "vocoder": _vocoder_newer() if newer else _vocoder(),
        "latent_upsampler": _upsampler(rational=not newer, temporal=False),
        "temporal_upsampler": _upsampler(rational=False, temporal=True),
    }


def _transformer(newer: bool) -> dict[str, Any]:
    return {
        "num_layers": 2,
        "num_attention_heads": VIDEO_HEADS,
        "attention_head_dim": VIDEO_HEAD_DIM,
        "cross_attention_dim": VIDEO_WIDTH,
        "audio_num_attention_heads": AUDIO_HEADS,
        "audio_attention_head_dim": AUDIO_HEAD_DIM,
        "audio_cross_attention_dim": AUDIO_WIDTH,
        "audio_in_channels": AUDIO_LATENT_CHANNELS * AUDIO_LATENT_BINS,
        "audio_out_channels": AUDIO_LATENT_CHANNELS * AUDIO_LATENT_BINS,
        "caption_channels": TEXT_WIDTH,
        "rope_type": "split",
        "gated_attn": newer,
        "audio_gated_attn": newer,
        "cross_attn_mod": newer,
        "audio_cross_attn_mod": newer,
        "perturbed_attn": newer,
        "use_prompt_embeddings": not newer,
    }


def _connectors(newer: bool) -> dict[str, Any]:
    # Without projections per stream, both connectors are as wide as the text encoder.
    video_head_dim = VIDEO_HEAD_DIM if newer else TEXT_WIDTH // VIDEO_HEADS
    audio_head_dim = AUDIO_HEAD_DIM if newer else TEXT_WIDTH // AUDIO_HEADS
    config = {
        "caption_channels": TEXT_WIDTH,
        "text_proj_in_factor": TEXT_LAYERS + 1,
        "video_connector_num_attention_heads": VIDEO_HEADS,
        "video_connector_attention_head_dim": video_head_dim,
        "video_connector_num_layers": 2,
        "video_connector_num_learnable_registers": 16,
        "video_gated_attn": newer,
        "audio_connector_num_attention_heads": AUDIO_HEADS,
        "audio_connector_attention_head_dim": audio_head_dim,
        "audio_connector_num_layers": 2,
        "audio_connector_num_learnable_registers": 16,
        "audio_gated_attn": newer,
        "connector_rope_base_seq_len": 4096,
        "rope_theta": 10000.0,
        "rope_double_precision": True,
        "causal_temporal_positioning": False,
        "rope_type": "split",
        "per_modality_projections": newer,
        "proj_bias": newer,
    }
    return config | ({"video_hidden_dim": VIDEO_WIDTH, "audio_hidden_dim": AUDIO_WIDTH} if newer else {})


def _audio_vae() -> dict[str, Any]:
    return {
        "base_channels": AUDIO_LATENT_CHANNELS * AUDIO_LATENT_BINS,
        "ch_mult": (1, 1, 1),
        "num_res_blocks": 1,
        "latent_channels": AUDIO_LATENT_CHANNELS,
    }


def _video_vae() -> dict[str, Any]:
    return {
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": ENCODER_LAYERS,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
        "decoder_block_out_channels": (8, 16, 32),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "decoder_causal": False,
        "decoder_spatial_padding_mode": "reflect",
    }


def _video_vae_newer() -> dict[str, Any]:
    return {
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": ENCODER_LAYERS,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
        "decoder_block_out_channels": (8, 16, 16, 32),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
        "decoder_spatio_temporal_scaling": (True, True, True, True),
        "decoder_inject_noise": (False, False, False, False, False),
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_factor": (2, 2, 1, 2),
        "upsample_residual": (False, False, False, False),
        "decoder_causal": False,
        "decoder_spatial_padding_mode": "zeros",
    }


def _vocoder() -> dict[str, Any]:
    return {"hidden_channels": 64, "resnet_kernel_sizes": [3, 5], "resnet_dilations": [[1, 3, 5], [1, 3, 5]]}


def _vocoder_newer() -> dict[str, Any]:
    return {
        "hidden_channels": 64,
        "resnet_kernel_sizes": [3],
        "resnet_dilations": [[1, 3, 5]],
        "bwe_hidden_channels": 32,
        "bwe_resnet_kernel_sizes": [3],
        "bwe_resnet_dilations": [[1, 3, 5]],
        "filter_length": 256,
        "window_length": 256,
    }


def _upsampler(rational: bool, temporal: bool) -> dict[str, Any]:
    return {
        "mid_channels": 32,
        "num_blocks_per_stage": 1,
        "spatial_upsample": not temporal,
        "temporal_upsample": temporal,
        "use_rational_resampler": rational,
    }
