"""Config of the duration head: parts of two sections of the metadata <-> diffusers' config."""

from collections.abc import Mapping
from typing import Any

from .config_fields import Field, read_fields, same_names, write_fields
from .safetensors_io import Entry

_FIELDS = {
    "transformer": {
        "cross_attention_dim": Field("video_cross_attention_dim", 4096),
        "audio_cross_attention_dim": Field("audio_cross_attention_dim", 2048),
    },
    "duration_head": {
        **same_names(pooler_hidden_dim=256, num_queries=1, num_pooler_heads=4),
        "mlp_hidden": Field("mlp_hidden_dim", 256),
    },
}
SIZES = {
    "video_cross_attention_dim": ("video_input_proj.weight", 1),
    "audio_cross_attention_dim": ("audio_input_proj.weight", 1),
    "pooler_hidden_dim": ("video_input_proj.weight", 0),
    "num_queries": ("attention_pooler.query_tokens", 0),
    "mlp_hidden_dim": ("mlp_hidden.weight", 0),
}
"""The tensor and the axis that tell a size; no tensor tells the number of heads."""


def duration_head_to_diffusers(metadata: Mapping[str, Any], entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The head's diffusers config, from its sections as far as there are any, else from the tensors."""
    sizes = {key: entries[name].shape[axis] for key, (name, axis) in SIZES.items() if name in entries}
    known = write_fields(_FIELDS, {**read_fields(_FIELDS, {}), **sizes})
    return read_fields(_FIELDS, {name: {**known[name], **metadata.get(name, {})} for name in known})


def duration_head_to_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of the metadata, from the head's diffusers config."""
    return write_fields(_FIELDS, config)
