"""Config of transformer and connectors: section `transformer` of the metadata <-> diffusers' two configs.

Field names, defaults and supported constants are those of the configurators in the Lightricks reference.
"""

from collections.abc import Mapping
from typing import Any

from .config_fields import Field, Note, check_fields, read_fields, same_names, write_fields

SECTION = "transformer"

# What the metadata say of every LTX-2 model, and diffusers' configs do not.
_CONSTANTS = {
    "_class_name": Note("AVTransformer3DModel"),
    "_diffusers_version": Note("0.25.1"),
    "_name_or_path": Note(""),
    "attention_type": Note("default"),
    "norm_num_groups": Note(32),
    "causal_temporal_positioning": Note(True),
    "use_embeddings_connector": Note(True),
    "dropout": 0.0,
    "num_vector_embeds": None,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "standardization_norm": "rms_norm",
    "qk_norm": "rms_norm",
    "positional_embedding_type": "rope",
    **dict.fromkeys(("attention_bias", "cross_attention_norm", "use_audio_video_cross_attention"), True),
    **dict.fromkeys(("av_cross_ada_norm", "use_middle_indices_grid", "connector_norm_output"), True),
    **dict.fromkeys(("use_linear_projection", "only_cross_attention", "double_self_attention"), False),
    **dict.fromkeys(("upcast_attention", "norm_elementwise_affine", "share_ff"), False),
}
# Read by both components.
_SHARED = {
    "caption_channels": Field("caption_channels", 3840),
    "positional_embedding_theta": Field("rope_theta", 10000.0),
    "frequencies_precision": Field(
        "rope_double_precision",
        "float32",
        read=lambda precision: precision == "float64",
        write=lambda is_double: "float64" if is_double else "float32",
    ),
    "rope_type": Field("rope_type", "split", choices=("split", "interleaved")),
}
# Introduced with 2.5; written to the metadata only where they differ.
_NEWER = {
    **same_names(is_optional=True, ff_bias=True, audio_ff_bias=True, use_prompt_adaln_single=True),
    **same_names(is_optional=True, use_keyframes_abs_pos_embedding=False),
}
_TRANSFORMER = {
    **same_names(in_channels=128, out_channels=128, num_attention_heads=32, attention_head_dim=128),
    **same_names(audio_in_channels=128, audio_out_channels=128, audio_num_attention_heads=32),
    **same_names(audio_attention_head_dim=64, cross_attention_dim=4096, audio_cross_attention_dim=2048),
    **same_names(num_layers=48, norm_eps=1e-6, timestep_scale_multiplier=1000),
    **_SHARED,
    **_NEWER,
    "activation_fn": Field("activation_fn", "gelu-approximate", choices=("gelu-approximate",)),
    "positional_embedding_max_pos": Field(("pos_embed_max_pos", "base_height", "base_width"), [20, 2048, 2048]),
    "audio_positional_embedding_max_pos": Field(("audio_pos_embed_max_pos",), [20]),
    "av_ca_timestep_scale_multiplier": Field("cross_attn_timestep_scale_multiplier", 1, read=int, write=float),
    "apply_gated_attention": Field("gated_attn", False, write=bool, is_optional=True),
    "cross_attention_adaln": Field("cross_attn_mod", False, write=bool, is_optional=True),
}
# What diffusers' config says of every LTX-2 model, and the metadata do not.
_TRANSFORMER_CONSTANTS = {
    **dict.fromkeys(("patch_size", "patch_size_t", "audio_patch_size", "audio_patch_size_t", "causal_offset"), 1),
    **dict.fromkeys(("attention_bias", "attention_out_bias"), True),
    "vae_scale_factors": [8, 32, 32],
    "audio_scale_factor": 4,
    "audio_sampling_rate": 16000,
    "audio_hop_length": 160,
    "qk_norm": "rms_norm_across_heads",
    "norm_elementwise_affine": False,
}
_CONNECTORS = {
    **_SHARED,
    "connector_positional_embedding_max_pos": Field(("connector_rope_base_seq_len",), [4096]),
    "connector_num_attention_heads": Field("video_connector_num_attention_heads", 30),
    "connector_attention_head_dim": Field("video_connector_attention_head_dim", 128),
    "connector_num_layers": Field("video_connector_num_layers", 2),
    "connector_num_learnable_registers": Field("video_connector_num_learnable_registers", 128),
    "connector_apply_gated_attention": Field("video_gated_attn", False, write=bool, is_optional=True),
}
# The audio connector shares the video connector's fields, except for these where the section has them.
_AUDIO_CONNECTOR = ("audio_connector_num_attention_heads", "audio_connector_attention_head_dim")
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


def transformer_to_diffusers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The transformer's diffusers config, from section `transformer`."""
    _check(fields)
    config = read_fields(_TRANSFORMER, fields)
    gated, modulated = config["gated_attn"], config["cross_attn_mod"]
    return {
        **config,
        **_TRANSFORMER_CONSTANTS,
        "audio_gated_attn": gated,
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
    config = read_fields(_CONNECTORS, fields)
    config |= {name.replace("video", "audio"): value for name, value in config.items() if name.startswith("video")}
    config |= {name: fields[name] for name in _AUDIO_CONNECTOR if name in fields}
    # Without a projection per modality nothing reads the widths; diffusers then saves those of a silent section.
    widths = read_fields(_TRANSFORMER, fields if per_modality else {})
    return {
        **config,
        "text_proj_in_factor": text_proj_in_factor,
        "causal_temporal_positioning": False,
        "per_modality_projections": per_modality,
        "proj_bias": per_modality,
        "video_hidden_dim": widths["num_attention_heads"] * widths["attention_head_dim"],
        "audio_hidden_dim": widths["audio_num_attention_heads"] * widths["audio_attention_head_dim"],
    }


def to_original(transformer: Mapping[str, Any] | None, connectors: Mapping[str, Any] | None) -> dict[str, Any]:
    """Section `transformer` of the metadata, from the diffusers configs of transformer and connectors."""
    fields = write_fields(_CONSTANTS, {})
    if transformer is not None:
        fields |= write_fields(_TRANSFORMER, read_fields(_NEWER, {}) | dict(transformer))
        if not transformer["use_prompt_embeddings"]:
            fields |= _PER_MODALITY | _PER_MODALITY_EXTRAS
    if connectors is not None:
        fields |= _connector_fields(connectors)
    return fields


def _connector_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = write_fields(_CONNECTORS, config)
    audio = {name: config[name] for name in _AUDIO_CONNECTOR}
    if config["per_modality_projections"]:
        return fields | audio | _PER_MODALITY | _PER_MODALITY_EXTRAS
    is_shared = all(value == config[name.replace("audio", "video")] for name, value in audio.items())
    return fields if is_shared else fields | audio


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
    # The connectors of every supported model have biases in their feed-forwards.
    check_fields(SECTION, {**_CONSTANTS, **_TRANSFORMER, **_CONNECTORS, "connector_ff_bias": True}, fields)
