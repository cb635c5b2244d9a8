"""The networks of ltx2-mini: the structure of LTX-2.0 with every width and depth small."""

from typing import Any

from transformers import Gemma3ForConditionalGeneration, GemmaTokenizer

from .scenes import NEW_SHAPE, SHAPES, prompts
from .text_model import TEXT_LAYERS, build_text_encoder, build_tokenizer

TEXT_WIDTH, TEXT_HEADS, VOCABULARY_SIZE = 64, 4, 512
TEXT_POSITIONS = 64
"""Text positions of training and generation, a multiple of the registers."""
SHIFT = 2.5
"""Shift of the noise schedule, whatever the size of the clip."""
HEADS, HEAD_DIM, AUDIO_HEAD_DIM = 6, 36, 12
AUDIO_FEATURES = 64

# One position of the decoder's last stage is a patch of 4 x 4 pixels, so it is as wide as a patch; layers are cheapest
# where the picture is smallest.
VIDEO_VAE: dict[str, Any] = {
    "block_out_channels": (32, 64, 64, 128),
    "layers_per_block": (0, 1, 1, 1, 1),
    "decoder_block_out_channels": (48, 48, 96),
    "decoder_layers_per_block": (1, 2, 3, 1),
    "upsample_factor": (1, 1, 2),
    "decoder_causal": False,
    "decoder_spatial_padding_mode": "zeros",
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}

# The finest level is as wide as a token of latents: 4 channels of 16 bins.
AUDIO_VAE: dict[str, Any] = {
    "base_channels": AUDIO_FEATURES,
    "latent_channels": AUDIO_FEATURES // 16,
    "ch_mult": (1, 1, 1),
    "num_res_blocks": 0,
}

VOCODER: dict[str, Any] = {
    "hidden_channels": 128,
    "resnet_kernel_sizes": (3, 7),
    "resnet_dilations": ((1, 3, 5), (1, 3, 5)),
}
# Half of it: 64 mel bins of one side.
VOCODER_SIDE: dict[str, Any] = VOCODER | {"in_channels": 64, "hidden_channels": 64, "out_channels": 1}

# Wide rather than deep: velocities carry the noise of all 128 channels of a token, so that a stream of hardly more channels
# has no place left for anything else.
TRANSFORMER: dict[str, Any] = {
    "num_layers": 3,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "cross_attention_dim": HEADS * HEAD_DIM,
    "audio_num_attention_heads": HEADS,
    "audio_attention_head_dim": AUDIO_HEAD_DIM,
    "audio_cross_attention_dim": HEADS * AUDIO_HEAD_DIM,
    "audio_in_channels": AUDIO_FEATURES,
    "audio_out_channels": AUDIO_FEATURES,
    "caption_channels": TEXT_WIDTH,
    "rope_type": "split",
    "use_prompt_embeddings": True,
    # Positions are parts of the longest clip and the largest picture: those of the published models, 20 s and 2048 pixels,
    # would all be close to 0.
    "pos_embed_max_pos": 4,
    "audio_pos_embed_max_pos": 4,
    "base_height": 256,
    "base_width": 256,
}

CONNECTORS: dict[str, Any] = {
    "caption_channels": TEXT_WIDTH,
    "text_proj_in_factor": TEXT_LAYERS + 1,
    "video_connector_num_attention_heads": 4,
    "video_connector_attention_head_dim": TEXT_WIDTH // 4,
    "video_connector_num_layers": 1,
    "video_connector_num_learnable_registers": 16,
    "audio_connector_num_attention_heads": 4,
    "audio_connector_attention_head_dim": TEXT_WIDTH // 4,
    "audio_connector_num_layers": 1,
    "audio_connector_num_learnable_registers": 16,
    "rope_type": "split",
    "rope_double_precision": True,
}

LATENT_UPSAMPLER: dict[str, Any] = {"mid_channels": 32, "num_blocks_per_stage": 1, "use_rational_resampler": False}


def tokenizer() -> GemmaTokenizer:
    """One token for every word of the world's captions; other words are spelt."""
    corpus = [text for text, _ in prompts("train", 3000, 0, shapes=(*SHAPES, NEW_SHAPE))]
    return build_tokenizer(corpus, VOCABULARY_SIZE, TEXT_POSITIONS)


def text_encoder(vocabulary_size: int) -> Gemma3ForConditionalGeneration:
    """A small Gemma 3 with weights as constructed."""
    return build_text_encoder(vocabulary_size, TEXT_WIDTH, TEXT_HEADS, TEXT_POSITIONS)
