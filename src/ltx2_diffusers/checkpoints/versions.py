"""Which generation and kind of model a configuration belongs to."""

from collections.abc import Mapping
from typing import Any

from .json_files import parse_object


def model_version(transformer_config: Mapping[str, Any]) -> str:
    """The generation of a transformer, read from the switches that came with it."""
    if transformer_config.get("use_keyframes_abs_pos_embedding") or not transformer_config.get("ff_bias", True):
        return "2.5"
    if transformer_config.get("cross_attn_mod") or transformer_config.get("gated_attn"):
        return "2.3"
    return "2.0"


def check_gemma(metadata: Mapping[str, str], text_config: Mapping[str, Any], name: str) -> None:
    """Refuse a text encoder of another version than a checkpoint was trained with, where both say theirs.

    Args:
        metadata: Metadata of the original file with the transformer.
        text_config: Configuration of the text encoder.
        name: What messages call the checkpoint.
    """
    wanted = parse_object(metadata.get("gemma_source_checkpoint", "{}"), f"`gemma_source_checkpoint` of {name!r}")
    versions = [said.get("gemma_version") for said in (wanted, text_config)]
    if None not in versions and versions[0] != versions[1]:
        raise ValueError(
            f"{name!r} was trained with the text encoder {versions[0]!r}, but `text_encoder` is {versions[1]!r}; load the former"
        )


def model_kind(scheduler_config: Mapping[str, Any]) -> str:
    """`"distilled"` if the scheduler takes given noise levels as they are, else `"dev"`."""
    return "dev" if scheduler_config.get("use_dynamic_shifting", True) else "distilled"
