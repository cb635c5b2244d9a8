"""Tensor names of the original layout and of diffusers' layout, per component, and the way between them.

A name is split at its dots and every part is looked up in the table of its component; other parts stay. The tables are
one-to-one, so the same function serves both directions.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from .class_names import OPTIONAL_COMPONENTS, PIPELINE_COMPONENTS

Layout = Literal["original", "diffusers"]

COMPONENTS = (*PIPELINE_COMPONENTS, *OPTIONAL_COMPONENTS, "latent_upsampler")

TRANSFORMER_PARTS = {
    "patchify_proj": "proj_in",
    "audio_patchify_proj": "audio_proj_in",
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "prompt_adaln_single": "prompt_adaln",
    "audio_prompt_adaln_single": "audio_prompt_adaln",
    "scale_shift_table_a2v_ca_video": "video_a2v_cross_attn_scale_shift_table",
    "scale_shift_table_a2v_ca_audio": "audio_a2v_cross_attn_scale_shift_table",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
_CONNECTOR_NAMES = {"video_embeddings_connector": "video_connector", "audio_embeddings_connector": "audio_connector"}
CONNECTOR_PARTS = {
    **_CONNECTOR_NAMES,
    "transformer_1d_blocks": "transformer_blocks",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
PROJECTION_PARTS = {
    "aggregate_embed": "text_proj_in",
    "video_aggregate_embed": "video_text_proj_in",
    "audio_aggregate_embed": "audio_text_proj_in",
}
VOCODER_PARTS = {
    "conv_pre": "conv_in",
    "conv_post": "conv_out",
    "ups": "upsamplers",
    "resblocks": "resnets",
    "act_post": "act_out",
}
_STATISTICS = {
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}
# These two sit under `decoder.` only; the blocks' own embedders have the same name in both layouts.
_DECODER_HEAD = {"last_time_embedder": "time_embedder", "last_scale_shift_table": "scale_shift_table"}
# The one output projection of the duration head.
_POOLED = ("attention_pooler.cross_attn.out_proj.", "attention_pooler.to_out.")
# Queries, keys and values of an attention, which the original layout stores as one tensor by this name.
_QUERY_KEY_VALUE = (".to_q.", ".to_k.", ".to_v.")
_FUSED = {"duration_head": ".cross_attn.in_proj_", "diffusion_decoder": ".qkv."}
# Parts of names of the diffusion decoder; each is one of the other layout alone.
_DIFFUSION_PARTS = {
    ".attn.proj.": ".attn.to_out.0.",
    ".q_norm.": ".norm_q.",
    ".k_norm.": ".norm_k.",
    ".t_embedder.mlp.0.": ".t_embedder.timestep_embedder.linear_1.",
    ".t_embedder.mlp.2.": ".t_embedder.timestep_embedder.linear_2.",
    **_STATISTICS,
}
# Written by the 2.0 trainer, read by no implementation; the preview of the diffusion decoder; and the mark by which ComfyUI
# tells quantised models.
_IGNORED = re.compile(
    r"per_channel_statistics\.(channel|mean-of-stds(_over_std-of-means)?)$|decoder\.coarse_|(.*\.)?scaled_fp8$"
)

# Prefixes in front of a component's own names, tried in this order; "" is a file that holds this component alone.
_PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model.", "transformer.", ""),
    "connectors": ("model.diffusion_model.", "diffusion_model.", "connectors.", ""),
    **{component: (f"{component}.", "") for component in COMPONENTS[2:]},
    "diffusion_decoder": ("vae.", ""),
}
_PROJECTION_PREFIX = "text_embedding_projection."
# Older video-only files know one connector, without the stream's name.
_UNNAMED_CONNECTOR = "embeddings_connector"
CONNECTOR_ROOTS = (*(name for pair in _CONNECTOR_NAMES.items() for name in pair), _UNNAMED_CONNECTOR)
_PROJECTION_ROOTS = "|".join([*PROJECTION_PARTS, *PROJECTION_PARTS.values()])
# Names by which a component is recognised once its prefix is removed.
_MARKS = {
    "transformer": re.compile(r"(transformer_blocks\.\d+\.(attn1|audio_attn1)|patchify_proj|proj_in|adaln_single)\."),
    "connectors": re.compile(rf"({'|'.join(CONNECTOR_ROOTS)}|{_PROJECTION_ROOTS})\."),
    "vae": re.compile(r"(encoder\.(down_blocks|mid_block)|decoder\.(up_blocks|mid_block))\."),
    "audio_vae": re.compile(r"(encoder\.(down|mid)|decoder\.(up|mid))\."),
    "vocoder": re.compile(r"((vocoder|bwe_generator)\.)?(conv_pre|conv_in|ups|upsamplers|resblocks)\."),
    "duration_head": re.compile(r"attention_pooler\."),
    "diffusion_decoder": re.compile(r"decoder\.det_stages\."),
    "latent_upsampler": re.compile(r"(initial_conv|post_upsample_res_blocks|upsampler)\."),
}
_VAES = ("vae", "audio_vae", "diffusion_decoder")
_VAE_ROOTS = re.compile(r"(encoder|decoder|per_channel_statistics)\.|latents_(mean|std)$")
_FOREIGN = re.compile(r"(vae|audio_vae|vocoder|text_embedding_projection|duration_head|model|diffusion_model)\.")


def component_keys(component: str, keys: Iterable[str]) -> dict[str, str]:
    """The names a file holds of `component`: file name -> name without the component's prefix.

    Accepts names with the prefixes of a complete file, with `diffusion_model.`, and bare ones, in either layout.
    Tensors that no implementation reads are left out. The result is empty if the file lacks the component.
    """
    keys = list(keys)
    if component == "vocoder" and any(key.startswith(("bwe_generator.", "mel_stft.")) for key in keys):
        # A bare two-stage vocoder has a first stage called `vocoder`, which is not the component's prefix.
        return {key: key for key in keys if not _FOREIGN.match(key) or key.startswith("vocoder.")}
    for prefix in _PREFIXES[component]:
        local = {key: key[len(prefix) :] for key in keys if key.startswith(prefix)}
        local = {key: name for key, name in local.items() if _belongs(component, prefix, name)}
        if any(_MARKS[component].match(name) for name in local.values()):
            break
    else:
        local = {}
    if component == "connectors":
        local |= {key: key[len(_PROJECTION_PREFIX) :] for key in keys if key.startswith(_PROJECTION_PREFIX)}
        local = {key: name.removeprefix("connectors.") for key, name in local.items()}
    return {key: name for key, name in local.items() if not _IGNORED.match(name)}


def _belongs(component: str, prefix: str, name: str) -> bool:
    is_connector = _MARKS["connectors"].match(name.removeprefix("connectors.")) is not None
    if component == "connectors":
        return is_connector
    if component == "transformer" and is_connector:
        return False
    if prefix:
        return True
    return not _FOREIGN.match(name) and (component not in _VAES or _VAE_ROOTS.match(name) is not None)


def found_components(keys: Iterable[str]) -> list[str]:
    """The components of which a file holds tensors, in the order of `COMPONENTS`."""
    keys = list(keys)
    return [component for component in COMPONENTS if component_keys(component, keys)]


def unclaimed_keys(keys: Iterable[str]) -> list[str]:
    """Names that belong to no component and that no implementation is known to ignore."""
    keys = list(keys)
    claimed = {key for component in COMPONENTS for key in component_keys(component, keys)}
    return [key for key in keys if key not in claimed and not _IGNORED.search(key)]


def rename(component: str, names: Iterable[str], to: Layout) -> dict[str, str]:
    """Maps every name of `component` (prefix removed) to its name in the layout `to`, also without prefix.

    Names that already are in diffusers' layout stay as they are when `to` is "diffusers".
    """
    names = list(names)
    if to == "diffusers" and is_diffusers_layout(component, names):
        return {name: name for name in names}
    if component == "vae":
        return {name: _rename_video_vae(name, names, to) for name in names}
    if component == "audio_vae":
        statistics = _direction(_STATISTICS, to)
        return {name: statistics.get(name, name) for name in names}
    if component == "vocoder":
        return {name: _rename_vocoder(name, to) for name in names}
    if component == "diffusion_decoder":
        return {name: _with_parts(name, _direction(_DIFFUSION_PARTS, to)) for name in names}
    if component == "duration_head":
        old, new = _POOLED if to == "diffusers" else _POOLED[::-1]
        return {name: name.replace(old, new) for name in names}
    tables = {"transformer": TRANSFORMER_PARTS, "connectors": CONNECTOR_PARTS | PROJECTION_PARTS}
    renamed = {name: _map_parts(name, _direction(tables.get(component, {}), to)) for name in names}
    if component == "connectors" and to == "diffusers":
        unnamed = re.compile(rf"^{_UNNAMED_CONNECTOR}\.")
        return {name: unnamed.sub("video_connector.", new) for name, new in renamed.items()}
    return renamed


def split_names(component: str, name: str) -> list[str]:
    """The names in diffusers' layout of the tensors that the original stacks as `name`; only itself if it stacks none."""
    whole = _FUSED.get(component)
    return [name.replace(whole, part) for part in _QUERY_KEY_VALUE] if whole and whole in name else [name]


def stacked_name(component: str, name: str) -> str:
    """The name of the tensor in which the original stacks `name` of diffusers' layout; itself if it does not."""
    part = next((part for part in _QUERY_KEY_VALUE if part in name), None)
    return name.replace(part, _FUSED[component]) if part and component in _FUSED else name


def is_diffusers_layout(component: str, names: Iterable[str]) -> bool:
    """Whether names without prefix are in diffusers' layout already (only the VAEs' tables make a difference)."""
    parts = {part for name in names for part in name.split(".")}
    return component in _VAES and bool(parts & {"latents_mean", "mid_block", "resnets"})


def original_prefix(component: str, name: str) -> str:
    """The prefix under which a complete original file stores `name` (original layout) of `component`."""
    if component == "connectors" and name.split(".")[0] in PROJECTION_PARTS:
        return _PROJECTION_PREFIX
    return "" if component == "latent_upsampler" else _PREFIXES[component][0]


def joined_prefix(component: str) -> str:
    """The prefix that tells names of `component`, of either layout, from those of all others."""
    return _PREFIXES[component][0]


def _direction(table: Mapping[str, str], to: Layout) -> Mapping[str, str]:
    return table if to == "diffusers" else {new: old for old, new in table.items()}


def _map_parts(name: str, table: Mapping[str, str]) -> str:
    return ".".join(table.get(part, part) for part in name.split("."))


def _with_parts(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def _rename_vocoder(name: str, to: Layout) -> str:
    # The low-pass filter of the anti-aliased activation is one level deeper in the original.
    if to == "diffusers":
        return _map_parts(name, VOCODER_PARTS).replace(".downsample.lowpass.", ".downsample.")
    return _map_parts(name, _direction(VOCODER_PARTS, to)).replace(".downsample.filter", ".downsample.lowpass.filter")


def _rename_video_vae(name: str, names: list[str], to: Layout) -> str:
    statistics = _direction(_STATISTICS, to)
    if name in statistics:
        return statistics[name]
    half, _, rest = name.partition(".")
    head, _, tail = rest.partition(".")
    if half == "decoder" and head in _direction(_DECODER_HEAD, to):
        return f"decoder.{_direction(_DECODER_HEAD, to)[head]}{'.' + tail if tail else ''}"
    if to == "diffusers":
        rest = _block_to_diffusers(half, rest, names)
    else:
        rest = _block_to_original(half, rest, names)
    return f"{half}.{_map_parts(rest, _direction({'res_blocks': 'resnets'}, to))}"


def _block_to_diffusers(half: str, rest: str, names: list[str]) -> str:
    """The original numbers residual and resampling blocks through: even and odd, ending (encoder) with the middle."""
    match = re.match(r"(down|up)_blocks\.(\d+)\.(.*)", rest)
    if not match:
        return rest
    kind, index, tail = match[1], int(match[2]), match[3]
    is_middle = index == (2 * _num_stages(names, "original") if half == "encoder" else 0)
    if is_middle:
        return f"mid_block.{tail}"
    if index % 2:
        return f"{kind}_blocks.{index // 2}.{kind}samplers.0.{tail}"
    return f"{kind}_blocks.{index // 2 if half == 'encoder' else index // 2 - 1}.{tail}"


def _block_to_original(half: str, rest: str, names: list[str]) -> str:
    if rest.startswith("mid_block."):
        index = 2 * _num_stages(names, "diffusers") if half == "encoder" else 0
        return f"{'down' if half == 'encoder' else 'up'}_blocks.{index}.{rest.removeprefix('mid_block.')}"
    match = re.match(r"(down|up)_blocks\.(\d+)\.((?:down|up)samplers\.0\.)?(.*)", rest)
    if not match:
        return rest
    index = 2 * int(match[2])
    if match[3]:
        index += 1
    elif half == "decoder":
        index += 2
    return f"{match[1]}_blocks.{index}.{match[4]}"


def _num_stages(names: list[str], layout: Layout) -> int:
    """Number of resampling stages of the encoder."""
    indices = [int(match[1]) for name in names if (match := re.match(r"encoder\.down_blocks\.(\d+)\.", name))]
    return max(indices) // 2 if layout == "original" else max(indices) + 1
