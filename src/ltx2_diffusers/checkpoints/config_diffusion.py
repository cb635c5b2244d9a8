"""Config and weights of the diffusion video decoder: section `vae` of the metadata <-> diffusers.

Field names and defaults are those of the Lightricks reference.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch

from .config_fields import Field, check_choice, check_fields, read_fields, same_names, write_fields
from .safetensors_io import Entry

CLASS_NAME = "CausalDiffusionVAE"
SIZES = {
    "latent_channels": ("decoder.conv_in.weight", 1),
    "decoder_t_emb_dim": ("decoder.t_embedder.timestep_embedder.linear_1.weight", 0),
}
"""The tensor and the axis that tell a size."""
_DECODER = {
    **same_names(out_channels=3, patch_size=4),
    "in_channels": Field("latent_channels", 128),
    "head_dim": Field("decoder_head_dim", 64),
    "stage_channels": Field("decoder_stage_channels"),
    "stage_depths": Field("decoder_stage_depths"),
    # The fifth is that of the diffusion, which has a field of its own.
    "stage_kernels": Field("decoder_stage_kernels", read=lambda kernels: kernels[:4]),
    "stage5_kernel": Field("decoder_stage5_kernel", (3, 7, 7)),
    "t_emb_dim": Field("decoder_t_emb_dim", 384),
    "timestep_scale_multiplier": Field("decoder_timestep_scale_multiplier", 1.0),
    "default_num_inference_steps": Field("decoder_num_inference_steps", 2),
}
_SECTION = {
    "_class_name": CLASS_NAME,
    "model_output_type": Field("decoder_model_output_type", "v", choices=("x0", "v")),
    "decoder": _DECODER,
}
_NEEDED = ("stage_channels", "stage_depths", "stage_kernels", "upsamples")
# What a gate of a block multiplies, which a network without gates has in its weights.
_GATED = {"gate_msa": "attn.to_out.0", "gate_mlp": "mlp.w_down", "gate_ctx": "context_proj"}


def decoder_to_diffusers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's diffusers config, from section `vae`; that of the published one if the section is empty."""
    if not fields:
        return {}
    check_fields("vae", _SECTION, fields)
    decoder = {"in_channels": fields.get("latent_channels", 128), **fields.get("decoder", {})}
    if missing := [name for name in _NEEDED if name not in decoder]:
        raise ValueError(f"the checkpoint's config has no vae.decoder.{missing[0]}")
    decoder = {"head_dim": decoder.get("na_head_dim", 64), **decoder}
    widths = decoder["stage_channels"]
    check_choice("vae.decoder.stage5_channels", decoder.get("stage5_channels", widths[-1]), (widths[-1],))
    config = read_fields(_SECTION, {**fields, "decoder": decoder})
    strides, reductions = zip(*decoder["upsamples"])
    return config | {
        "scaling_factor": 1.0,
        "decoder_upsample_strides": list(strides),
        "decoder_upsample_channel_reductions": list(reductions),
        "spatial_compression_ratio": config["patch_size"] * prod(stride[1] for stride in strides),
        "temporal_compression_ratio": prod(stride[0] for stride in strides),
    }


def decoder_to_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """Section `vae` of the metadata, from the decoder's diffusers config."""
    fields = write_fields(_SECTION, config)
    decoder = fields["decoder"]
    upsamples = zip(config["decoder_upsample_strides"], config["decoder_upsample_channel_reductions"])
    decoder["stage_kernels"] = [*decoder["stage_kernels"], decoder["stage5_kernel"]]
    decoder["upsamples"] = list(map(list, upsamples))
    return fields


def without_gates(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Tensors under diffusers' names, with the gates of blocks multiplied into the layers in front of them."""
    result = {name: entry for name, entry in entries.items() if name.rpartition(".")[2] not in _GATED}
    for name in entries.keys() - result.keys():
        block, _, kind = name.rpartition(".")
        for part in ("weight", "bias"):
            layer = f"{block}.{_GATED[kind]}.{part}"
            if layer in result:
                result[layer] = _gated(result[layer], entries[name])
    return result


def _gated(layer: Entry, gate: Entry) -> Entry:
    """The rows of a layer, each multiplied by its gate before it is rounded."""

    def load() -> torch.Tensor:
        values, gates = layer.load().float(), gate.load().float()
        return (values * gates.view(-1, *[1] * (values.ndim - 1))).to(layer.dtype)

    return Entry(layer.dtype, layer.shape, load)
