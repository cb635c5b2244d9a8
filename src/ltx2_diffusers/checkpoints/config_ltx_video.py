"""Configs of LTX-Video's files: the metadata's sections -> the configs of diffusers' classes.

The sections of the published models stand for files without metadata.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

from ..yaml_files import read_mapping
from .config_fields import Field, Note, check_choice, check_fields, read_fields, same_names
from .config_video import KINDS, VAE_FIELDS, upsampler_to_diffusers
from .safetensors_io import Entry

_TRANSFORMER = {
    "_class_name": Note("Transformer3DModel"),
    **same_names(num_layers=28, num_attention_heads=32, attention_head_dim=64, cross_attention_dim=2048),
    **same_names(caption_channels=4096, in_channels=128, out_channels=128, norm_eps=1e-6),
    **same_names(norm_elementwise_affine=False, attention_bias=True),
    "activation_fn": Field("activation_fn", "gelu-approximate", choices=("gelu-approximate",)),
    "qk_norm": Field("qk_norm", "rms_norm", read=lambda _: "rms_norm_across_heads", choices=("rms_norm",)),
    **{"standardization_norm": "rms_norm", "adaptive_norm": "single_scale_shift", "attention_type": "default"},
    **{"positional_embedding_type": "rope", "positional_embedding_theta": 10000.0, "timestep_scale_multiplier": 1000},
    "positional_embedding_max_pos": [20, 2048, 2048],
    **dict.fromkeys(("only_cross_attention", "double_self_attention", "upcast_attention"), False),
    **{"use_linear_projection": False, "num_vector_embeds": None},
}
_VAE = VAE_FIELDS | {"timestep_conditioning": Field("timestep_conditioning", False), "spatial_padding_mode": "zeros"}
_PUBLISHED = Path(__file__).parents[1] / "resources" / "configs" / "ltx-video-vae.yaml"


def to_diffusers(component: str, metadata: Mapping[str, Any], entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The config of diffusers' class for a component of LTX-Video.

    Args:
        component: `"transformer"`, `"vae"` or `"latent_upsampler"`.
        metadata: The parsed `config` metadata; a missing section stands for the published model.
        entries: The component's tensors under diffusers' names.

    Raises:
        ValueError: If a value has no counterpart in diffusers' classes.
    """
    if component == "latent_upsampler":
        config = upsampler_to_diffusers(metadata or _upsampler_sizes(entries))
        check_choice("rational_resampler", config.pop("use_rational_resampler"), (False,))
        check_choice("spatial_scale", config.pop("rational_spatial_scale"), (2.0,))
        return config
    if component == "transformer":
        fields = metadata.get("transformer") or _transformer_sizes(entries)
        check_fields("transformer", _TRANSFORMER, fields)
        return {**read_fields(_TRANSFORMER, fields), "attention_out_bias": True, "patch_size": 1, "patch_size_t": 1}
    return vae_to_diffusers(metadata.get("vae") or read_mapping(_PUBLISHED)[_layout_of_names(entries)])


def _transformer_sizes(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The fields of a published transformer that differ between the sizes, from its tensors; all have 32 heads."""
    width, channels = entries["proj_in.weight"].shape
    layers = {name.split(".")[1] for name in entries if name.startswith("transformer_blocks.")}
    return {
        "num_layers": len(layers),
        "attention_head_dim": width // 32,
        "cross_attention_dim": width,
        "caption_channels": entries["caption_projection.linear_1.weight"].shape[1],
        **dict.fromkeys(("in_channels", "out_channels"), channels),
    }


def _upsampler_sizes(entries: Mapping[str, Entry]) -> dict[str, Any]:
    weight = entries["initial_conv.weight"]
    blocks = {name.split(".")[1] for name in entries if name.startswith("res_blocks.")}
    sizes = {"mid_channels": weight.shape[0], "in_channels": weight.shape[1], "num_blocks_per_stage": len(blocks)}
    # One in space has a convolution over pictures.
    in_space = len(entries["upsampler.0.weight"].shape) == 4
    return {**sizes, "dims": len(weight.shape) - 2, "spatial_upsample": in_space, "temporal_upsample": not in_space}


def _layout_of_names(entries: Mapping[str, Entry]) -> str:
    """The layout of a published autoencoder, from its tensors."""
    if not any(".conv_out." in name and name.startswith("encoder.down_blocks.") for name in entries):
        return "v095"
    return "v091" if any(name.startswith("decoder.time_embedder.") for name in entries) else "v090"


def vae_layout(config: Mapping[str, Any]) -> str:
    """The layout of an autoencoder of diffusers' class: `"v090"`, `"v091"`, or `"v095"` of 0.9.5 and later."""
    if "LTXVideo095DownBlock3D" in config.get("down_block_types", ()):
        return "v095"
    return "v091" if config.get("timestep_conditioning") else "v090"


@dataclass
class _Stage:
    """A group of residual blocks, and what follows it: a block that resamples, and a factor of the width."""

    layers: Mapping[str, Any]
    sampler: str = ""
    multiplier: int = 1
    residual: bool = False
    widening: int = 1


def _stages(name: str, fields: Mapping[str, Any]) -> list[_Stage]:
    """The blocks of one half from the pixels inwards; the last stage is the middle."""
    stages: list[_Stage] = []
    blocks = fields.get(name) or fields.get("blocks") or ()
    for index, (block, params) in enumerate(blocks):
        params = params if isinstance(params, Mapping) else {"num_layers": params}
        if block == "res_x":
            stages.append(_Stage(params))
        elif stages and block == "res_x_y":
            stages[-1].widening = params.get("multiplier", 2)
        elif stages and not stages[-1].sampler and block.startswith("compress_"):
            last = stages[-1]
            last.sampler, last.residual = block, params.get("residual", False)
            last.multiplier = params.get("multiplier", 2 if block.endswith("_res") else 1)
        else:
            raise ValueError(f"vae.{name}[{index}] of the checkpoint's config is {block!r}, which has no place there")
    if len(stages) < 2 or stages[-1].sampler:
        raise ValueError(f"the checkpoint's config has no vae.{name} that ends with res_x")
    return stages


def vae_to_diffusers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The config of diffusers' autoencoder, from section `vae`."""
    check_fields("vae", _VAE, fields)
    encoder, decoder = (_stages(name, fields) for name in ("encoder_blocks", "decoder_blocks"))
    is_newer = any(stage.sampler.endswith("_res") for stage in encoder)
    kinds = {f"compress_{name}_res": kind for name, kind in KINDS.items()} if is_newer else {"compress_all": "conv"}
    for name, stages, samplers in (("encoder", encoder, kinds), ("decoder", decoder, ("compress_all",))):
        for stage in stages:
            check_choice(f"vae.{name}_blocks", stage.sampler, (*samplers, ""))
    widths = _widths(fields.get("encoder_base_channels", 128), encoder)
    decoder_widths = _widths(fields.get("decoder_base_channels", 128), decoder)
    halvings = [stage.sampler for stage in encoder if stage.sampler]
    config = read_fields(_VAE, fields)
    return config | {
        "block_out_channels": widths if is_newer else widths[:-1],
        "down_block_types": ["LTXVideo095DownBlock3D" if is_newer else "LTXVideoDownBlock3D"] * (len(encoder) - 1),
        "layers_per_block": [stage.layers["num_layers"] for stage in encoder],
        "spatio_temporal_scaling": [bool(stage.sampler) for stage in encoder[:-1]],
        "downsample_type": [kinds.get(stage.sampler, "conv") for stage in encoder[:-1]],
        "decoder_block_out_channels": [n * stage.multiplier for n, stage in zip(decoder_widths, decoder[:-1])],
        "decoder_layers_per_block": [stage.layers["num_layers"] for stage in decoder],
        "decoder_spatio_temporal_scaling": [bool(stage.sampler) for stage in decoder[:-1]],
        "decoder_inject_noise": [stage.layers.get("inject_noise", False) for stage in decoder],
        "upsample_residual": [stage.residual for stage in decoder[:-1]],
        "upsample_factor": [stage.multiplier for stage in decoder[:-1]],
        "patch_size_t": 1,
        "resnet_norm_eps": 1e-6,
        "encoder_causal": True,
        "spatial_compression_ratio": config["patch_size"] * 2 ** sum("time" not in name for name in halvings),
        "temporal_compression_ratio": 2 ** sum("space" not in name for name in halvings),
    }


def _widths(width: int, stages: Sequence[_Stage]) -> list[int]:
    """Width of every stage."""
    return list(accumulate((stage.multiplier * stage.widening for stage in stages[:-1]), mul, initial=width))
