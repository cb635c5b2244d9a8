"""Which generation and kind of model a configuration belongs to."""

from collections.abc import Mapping
from typing import Any


def model_version(transformer_config: Mapping[str, Any]) -> str:
    """The generation of a transformer, read from the switches that came with it."""
    if transformer_config.get("use_keyframes_abs_pos_embedding") or not transformer_config.get("ff_bias", True):
        return "2.5"
    if transformer_config.get("cross_attn_mod") or transformer_config.get("gated_attn"):
        return "2.3"
    return "2.0"


def model_kind(scheduler_config: Mapping[str, Any]) -> str:
    """`"distilled"` if the scheduler takes given noise levels as they are, else `"dev"`."""
    return "dev" if scheduler_config.get("use_dynamic_shifting", True) else "distilled"
