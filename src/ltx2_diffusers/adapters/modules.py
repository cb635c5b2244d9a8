"""Every linear module of the LTX-2 transformer and text connectors, by its path in diffusers' names."""

import difflib
import re
from collections.abc import Iterable, Mapping

from ..checkpoints import keys

# Component -> module path -> (out, in), or None where the sizes are not known.
ModuleShapes = Mapping[str, Mapping[str, tuple[int, int] | None]]

_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_ATTENTION_LINEARS = ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")
_FEED_FORWARD_LINEARS = ("net.0.proj", "net.2")
_MODULATIONS = (
    "time_embed",
    "audio_time_embed",
    "prompt_adaln",
    "audio_prompt_adaln",
    "av_cross_attn_video_scale_shift",
    "av_cross_attn_audio_scale_shift",
    "av_cross_attn_video_a2v_gate",
    "av_cross_attn_audio_v2a_gate",
)
_MODULATION_LINEARS = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
_TOP_LINEARS = ("proj_in", "audio_proj_in", "proj_out", "audio_proj_out")
_CAPTION_PROJECTIONS = ("caption_projection", "audio_caption_projection")
_TEXT_PROJECTIONS = ("text_proj_in", "video_text_proj_in", "audio_text_proj_in")
_CONNECTORS = ("video_connector", "audio_connector")

# Modules in which one stream reads the other, or is modulated for that, and modules of the sound; the rest is the video.
_CROSS_MODAL = re.compile(r"(?:^|\.)(?:av_cross_attn_|audio_to_video_attn\b|video_to_audio_attn\b)")
_AUDIO = re.compile(r"(?:^|\.)audio_")
PARTS = ("video", "audio", "cross_modal", "connectors")
"""What an adapter may change with a strength of its own, see [`part_of`]."""


def part_of(component: str, path: str) -> str:
    """The part of a pipeline that a module belongs to, one of `PARTS`.

    "video" and "audio" are the streams of the transformer, each with its inputs, outputs and timesteps; "cross_modal" is what
    leads from one to the other; "connectors" are the text connectors.
    """
    if component == "connectors":
        return component
    if _CROSS_MODAL.search(path):
        return "cross_modal"
    return "audio" if _AUDIO.search(path) else "video"


def known_modules(num_blocks: int, num_connector_blocks: int) -> ModuleShapes:
    """The linear modules of all LTX-2 generations, for blocks 0 to the given numbers, without their sizes."""
    transformer = [
        *_TOP_LINEARS,
        *_joined(_CAPTION_PROJECTIONS, ("linear_1", "linear_2")),
        *_joined(_MODULATIONS, _MODULATION_LINEARS),
        *_block_linears(num_blocks, _ATTENTIONS, ("ff", "audio_ff")),
    ]
    blocks = _block_linears(num_connector_blocks, ("attn1",), ("ff",))
    connectors = [*_TEXT_PROJECTIONS, *_joined(_CONNECTORS, blocks)]
    return {"transformer": dict.fromkeys(transformer), "connectors": dict.fromkeys(connectors)}


def original_module(component: str, path: str) -> str:
    """The path of a module in a LoRA file of the original layout, without `diffusion_model.`."""
    original = keys.rename(component, [path], to="original")[path]
    prefix = keys.original_prefix(component, original)
    return original if prefix == "model.diffusion_model." else prefix + original


def written_names(modules: ModuleShapes) -> dict[str, tuple[str, str]]:
    """Module paths, in original and in diffusers' names -> (component, path in diffusers' names)."""
    places = ((component, path) for component, paths in modules.items() for path in paths)
    return {name: place for place in places for name in (place[1], original_module(*place))}


def nearest_module(name: str, modules: ModuleShapes) -> str:
    """The module whose name in either layout is most like `name`, a module name without any prefix."""
    return difflib.get_close_matches(name, sorted(written_names(modules)), n=1, cutoff=0.0)[0]


def _block_linears(num_blocks: int, attentions: Iterable[str], feed_forwards: Iterable[str]) -> list[str]:
    linears = [*_joined(attentions, _ATTENTION_LINEARS), *_joined(feed_forwards, _FEED_FORWARD_LINEARS)]
    return _joined([f"transformer_blocks.{index}" for index in range(num_blocks)], linears)


def _joined(heads: Iterable[str], tails: Iterable[str]) -> list[str]:
    return [f"{head}.{tail}" for head in heads for tail in tails]
