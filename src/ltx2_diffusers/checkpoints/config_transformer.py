"""Config of transformer and connectors: section `transformer` of the metadata <-> diffusers' two configs.

Field names, defaults and supported constants are those of the configurators in the Lightricks reference.
"""

from collections.abc import Mapping
from typing import Any

from .config_fields import require, require_lists

SECTION = "transformer"

# Same name in both worlds, with the value that an absent field stands for.
_SAME = {
    "in_channels": 128,
    "out_channels": 128,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "cross_attention_dim": 4096,
    "audio_in_channels": 128,
    "audio_out_channels": 128,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 2048,
    "num_layers": 48,
    "activation_fn": "gelu-approximate",
    "norm_eps": 1e-6,
    "caption_channels": 3840,
    "timestep_scale_multiplier": 1000,
    "rope_type": "split",
}
# Introduced with 2.5; written to the metadata only where they differ.
_SAME_NEWER = {
    "ff_bias": True,
    "audio_ff_bias": True,
    "use_prompt_adaln_single": True,
    "use_keyframes_abs_pos_embedding": False,
}
# What the metadata does not say because every LTX-2 model has it.
_TRANSFORMER_CONSTANTS = {
    "patch_size": 1,
    "patch_size_t": 1,
    "audio_patch_size": 1,
    "audio_patch_size_t": 1,
    "vae_scale_factors": [8, 32, 32],
    "audio_scale_factor": 4,
    "audio_sampling_rate": 16000,
    "audio_hop_length": 160,
    "qk_norm": "rms_norm_across_heads",
    "norm_elementwise_affine": False,
    "attention_bias": True,
    "attention_out_bias": True,
    "causal_offset": 1,
}
_METADATA_CONSTANTS = {
    "dropout": 0.0,
    "attention_bias": True,
    "num_vector_embeds": None,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "use_linear_projection": False,
    "only_cross_attention": False,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "upcast_attention": False,
    "standardization_norm": "rms_norm",
    "norm_elementwise_affine": False,
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
    "use_audio_video_cross_attention": True,
    "share_ff": False,
    "av_cross_ada_norm": True,
    "use_middle_indices_grid": True,
    "connector_norm_output": True,
}
# Read by nobody, present in the published files.
_METADATA_EXTRAS = {
    "_class_name": "AVTransformer3DModel",
    "_diffusers_version": "0.25.1",
    "_name_or_path": "",
    "attention_type": "default",
    "norm_num_groups": 32,
    "causal_temporal_positioning": True,
    "use_embeddings_connector": True,
}
# Together they select how language-model states become text features: one shared projection (2.0) if all are absent,
# one per modality (2.3) with these values.
_PER_MODALITY = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
}
# Informative fields that go with the second variant.
_PER_MODALITY_EXTRAS = {"connector_learnable_registers_std": 1, "text_encoder_norm_type": "per_token_rms"}
_ROPE_MAX_POS = [20, 2048, 2048]
_AUDIO_ROPE_MAX_POS = [20]


def transformer_to_diffusers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The transformer's diffusers config, from section `transformer`."""
    _check(fields)
    frames, height, width = fields.get("positional_embedding_max_pos", _ROPE_MAX_POS)
    gated = fields.get("apply_gated_attention", False)
    modulated = fields.get("cross_attention_adaln", False)
    return {
        **{name: fields.get(name, default) for name, default in (_SAME | _SAME_NEWER).items()},
        **_TRANSFORMER_CONSTANTS,
        "pos_embed_max_pos": frames,
        "base_height": height,
        "base_width": width,
        "audio_pos_embed_max_pos": fields.get("audio_positional_embedding_max_pos", _AUDIO_ROPE_MAX_POS)[0],
        **_rope(fields),
        "cross_attn_timestep_scale_multiplier": int(fields.get("av_ca_timestep_scale_multiplier", 1)),
        "gated_attn": gated,
        "audio_gated_attn": gated,
        "cross_attn_mod": modulated,
        "audio_cross_attn_mod": modulated,
        "use_prompt_embeddings": not _is_per_modality(fields),
        # No field says how self-attention is perturbed; it changed together with the prompt modulation of 2.3.
        "perturbed_attn": modulated or gated,
    }


def connectors_to_diffusers(fields: Mapping[str, Any], text_proj_in_factor: int) -> dict[str, Any]:
    """The text connectors' diffusers config, from section `transformer`.

    Args:
        fields: The section.
        text_proj_in_factor: Number of language-model states per token (49 for Gemma 3 12B), which only the
            projection's shape tells.
    """
    _check(fields)
    per_modality = _is_per_modality(fields)
    gated = fields.get("connector_apply_gated_attention", False)
    config: dict[str, Any] = {
        "caption_channels": fields.get("caption_channels", 3840),
        "text_proj_in_factor": text_proj_in_factor,
        "connector_rope_base_seq_len": fields.get("connector_positional_embedding_max_pos", [4096])[0],
        **_rope(fields),
        "rope_type": fields.get("rope_type", "split"),
        "causal_temporal_positioning": False,
        "video_gated_attn": gated,
        "audio_gated_attn": gated,
        "per_modality_projections": per_modality,
        "proj_bias": per_modality,
        # Without a projection per modality nothing reads the widths; diffusers then saves its defaults.
        "video_hidden_dim": 4096,
        "audio_hidden_dim": 2048,
    }
    for name, default in (("num_attention_heads", 30), ("attention_head_dim", 128)):
        shared = fields.get(f"connector_{name}", default)
        config[f"video_connector_{name}"] = shared
        config[f"audio_connector_{name}"] = fields.get(f"audio_connector_{name}", shared)
    for name, default in (("num_layers", 2), ("num_learnable_registers", 128)):
        config[f"video_connector_{name}"] = config[f"audio_connector_{name}"] = fields.get(
            f"connector_{name}", default
        )
    if per_modality:
        for stream, prefix in (("video", ""), ("audio", "audio_")):
            heads = fields.get(f"{prefix}num_attention_heads", _SAME[f"{prefix}num_attention_heads"])
            config[f"{stream}_hidden_dim"] = heads * fields.get(
                f"{prefix}attention_head_dim", _SAME[f"{prefix}attention_head_dim"]
            )
    return config


def to_original(transformer: Mapping[str, Any] | None, connectors: Mapping[str, Any] | None) -> dict[str, Any]:
    """Section `transformer` of the metadata, from the diffusers configs of transformer and connectors."""
    fields = _METADATA_EXTRAS | _METADATA_CONSTANTS
    if transformer is not None:
        fields |= _transformer_fields(transformer)
    if connectors is not None:
        fields |= _connector_fields(connectors)
    return fields


def _transformer_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: config[name] for name in _SAME}
    fields |= {name: config[name] for name, usual in _SAME_NEWER.items() if config.get(name, usual) != usual}
    fields |= {
        "positional_embedding_theta": config["rope_theta"],
        "frequencies_precision": "float64" if config["rope_double_precision"] else "float32",
        "positional_embedding_max_pos": [config[name] for name in ("pos_embed_max_pos", "base_height", "base_width")],
        "audio_positional_embedding_max_pos": [config["audio_pos_embed_max_pos"]],
        "av_ca_timestep_scale_multiplier": float(config["cross_attn_timestep_scale_multiplier"]),
    }
    if config["gated_attn"]:
        fields["apply_gated_attention"] = True
    if config["cross_attn_mod"]:
        fields["cross_attention_adaln"] = True
    if not config["use_prompt_embeddings"]:
        fields |= _PER_MODALITY | _PER_MODALITY_EXTRAS
    return fields


def _connector_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = {
        "caption_channels": config["caption_channels"],
        "positional_embedding_theta": config["rope_theta"],
        "frequencies_precision": "float64" if config["rope_double_precision"] else "float32",
        "rope_type": config["rope_type"],
        "connector_positional_embedding_max_pos": [config["connector_rope_base_seq_len"]],
    }
    for name in ("num_attention_heads", "attention_head_dim", "num_layers", "num_learnable_registers"):
        fields[f"connector_{name}"] = config[f"video_connector_{name}"]
    own_audio = [f"audio_connector_{name}" for name in ("num_attention_heads", "attention_head_dim")]
    if config["per_modality_projections"] or any(
        config[name] != config[name.replace("audio", "video")] for name in own_audio
    ):
        fields |= {name: config[name] for name in own_audio}
    if config["video_gated_attn"]:
        fields["connector_apply_gated_attention"] = True
    if config["per_modality_projections"]:
        fields |= _PER_MODALITY | _PER_MODALITY_EXTRAS
    return fields


def _rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "rope_theta": fields.get("positional_embedding_theta", 10000.0),
        "rope_double_precision": fields.get("frequencies_precision") == "float64",
    }


def _is_per_modality(fields: Mapping[str, Any]) -> bool:
    found = {name: fields[name] for name in _PER_MODALITY if name in fields}
    if found and found != _PER_MODALITY:
        raise ValueError(
            f"the checkpoint's config sets {found} in section {SECTION}; supported are none of these fields, or "
            f"all of {_PER_MODALITY}"
        )
    return bool(found)


def _check(fields: Mapping[str, Any]) -> None:
    if fields.get("_class_name") == "Transformer3DModel":
        raise ValueError(
            "this is an LTX-Video 0.9 checkpoint (transformer._class_name 'Transformer3DModel'), not LTX-2"
        )
    require(SECTION, fields, _METADATA_CONSTANTS)
    if fields.get("rope_type") not in (None, "split", "interleaved"):
        raise ValueError(
            f"the checkpoint's config sets {SECTION}.rope_type to {fields['rope_type']!r}; "
            "supported are 'split' and 'interleaved'"
        )
    # The connectors of every supported model have biases in their feed-forwards.
    require(SECTION, fields, {"connector_ff_bias": True})
    lengths = {"positional_embedding_max_pos": 3, "audio_positional_embedding_max_pos": 1}
    require_lists(SECTION, fields, lengths | {"connector_positional_embedding_max_pos": 1})
