"""Builds a miniature LTX-2.5 repository beside that of 2.3, most of whose components it has.

Its own: a Gemma 4 as text encoder whose tokenizer puts no `<bos>` in front, a transformer with the switches of 2.5 and a
second one (`transformer_full`), a duration head, and the scheduler of a distilled model.
"""

import shutil
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration

from examples.mini_world.components import DTYPE, change_json, write_model
from examples.mini_world.text_model import SPECIAL_TOKENS, TEXT_LAYERS
from ltx2_diffusers import LTX2AVTransformer3DModel, LTX2DurationHead, LTX2VideoDiffusionDecoderModel
from ltx2_diffusers.checkpoints.folder import write_model_index, write_scheduler
from ltx2_diffusers.checkpoints.json_files import read_object

from . import weights
from .configs import AUDIO_WIDTH, TEXT_WIDTH, VIDEO_WIDTH, component_configs
from .text_model import MAX_TEXT_TOKENS, TEXT_HEADS, build_tokenizer

CHANGES = {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
HEAD = {
    "video_cross_attention_dim": VIDEO_WIDTH,
    "audio_cross_attention_dim": AUDIO_WIDTH,
    "pooler_hidden_dim": 16,
    "num_queries": 2,
    "mlp_hidden_dim": 16,
}
DECODER = {
    "latent_channels": 128,
    "decoder_stage_channels": [64, 32, 16, 16, 8],
    "decoder_stage_depths": [1, 1, 1, 1, 1],
    "decoder_head_dim": 8,
    "decoder_t_emb_dim": 16,
}
GEMMA_VERSION = "gemma4-tiny-ltx-v1"
_SHARED = ("connectors", "vae", "audio_vae", "vocoder", "latent_upsampler", "temporal_upsampler")


def build_newest(folder: Path, from_2_3: Path) -> None:
    """Write the repository; `from_2_3` is that of 2.3."""
    pairs = {
        name: tuple(pair)
        for name, pair in read_object(from_2_3 / "model_index.json").items()
        if isinstance(pair, list)
    }
    pairs = {name: pair for name, pair in pairs.items() if name in _SHARED}
    for name in _SHARED:
        shutil.copytree(from_2_3 / name, folder / name)
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        for name in ("transformer", "transformer_full"):
            model = LTX2AVTransformer3DModel(**component_configs("2.3")["transformer"] | CHANGES).eval()
            weights.draw_weights(model, f"2.5/{name}")
            pair = write_model(folder, name, model, "transformer")
            if name == "transformer":
                pairs[name] = pair
        head = LTX2DurationHead(**HEAD).eval()
        weights.draw_weights(head, "2.5/duration_head")
        # Within the second that tests of clips have patience for.
        torch.nn.init.constant_(head.mlp_out.bias, -0.5)
        pairs["duration_head"] = write_model(folder, "duration_head", head, "duration_head")
        # Beside the index, as published.
        decoder = LTX2VideoDiffusionDecoderModel(**DECODER).eval()
        weights.draw_weights(decoder, "2.5/diffusion_decoder")
        weights.draw_latent_statistics(decoder, "2.5/diffusion_decoder")
        write_model(folder, "diffusion_decoder", decoder, "diffusion_decoder")
        pairs |= _write_text_models(folder)
    write_scheduler(folder / "scheduler", distilled=True)
    write_model_index(folder, pairs)


def _write_text_models(folder: Path) -> dict[str, tuple[str, str]]:
    tokenizer = build_tokenizer()
    # That of Gemma 4 leaves `<bos>` to whoever wants it.
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 2 * TEXT_WIDTH,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": TEXT_HEADS,
        "num_key_value_heads": TEXT_HEADS // 2,
        "head_dim": TEXT_WIDTH // TEXT_HEADS,
        "global_head_dim": TEXT_WIDTH // TEXT_HEADS,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
        "max_position_embeddings": 2 * MAX_TEXT_TOKENS,
        **{f"{name}_token_id": SPECIAL_TOKENS.index(f"<{name}>") for name in ("pad", "eos", "bos")},
    }
    config = Gemma4UnifiedConfig(text_config=text, gemma_version=GEMMA_VERSION)
    config.vision_config = config.audio_config = None
    model = Gemma4UnifiedForConditionalGeneration(config).eval()
    weights.draw_weights(model, "2.5/text_encoder")
    model.to(DTYPE).save_pretrained(folder / "text_encoder")
    change_json(folder / "text_encoder" / "config.json", dtype="float32")
    tokenizer.save_pretrained(folder / "tokenizer")
    return {
        "text_encoder": ("transformers", "Gemma4UnifiedForConditionalGeneration"),
        "tokenizer": ("transformers", "GemmaTokenizer"),
    }
