"""Configs of video VAE and latent upsampler: metadata <-> diffusers.

Field names, defaults and supported constants are those of the configurators in the Lightricks reference.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from .config_fields import require

SECTION = "vae"

_KINDS = {"space": "spatial", "time": "temporal", "all": "spatiotemporal"}
_KIND_NAMES = {kind: name for name, kind in _KINDS.items()}
_CONSTANTS = {
    "dims": 3,
    "norm_layer": "pixel_norm",
    "latent_log_var": "uniform",
    "use_quant_conv": False,
    "normalize_latent_channels": False,
}
_UPSAMPLER_SAME = {
    "in_channels": 128,
    "mid_channels": 512,
    "num_blocks_per_stage": 4,
    "dims": 3,
    "spatial_upsample": True,
    "temporal_upsample": False,
}


def vae_to_diffusers(fields: Mapping[str, Any], timestep_conditioning: bool | None = None) -> dict[str, Any]:
    """The video VAE's diffusers config, from section `vae`.

    Args:
        fields: The section.
        timestep_conditioning: Whether the weights have a timestep-conditioned decoder; decides where the section is
            silent (default: the reference's assumption for silent sections, conditioned).
    """
    if fields.get("_class_name") == "CausalDiffusionVAE":
        raise ValueError("vae._class_name 'CausalDiffusionVAE' (the diffusion decoder of LTX-2.5) is not supported")
    require(SECTION, fields, _CONSTANTS)
    latent_channels = fields.get("latent_channels", 128)
    encoder_layers, downsamples = _walk("encoder_blocks", fields, "_res")
    decoder_layers, upsamples = _walk("decoder_blocks", fields, "")
    downsample_type = [kind for kind, _ in downsamples]
    # The file lists the decoder from output to input; diffusers keeps that order except for the kinds.
    upsample_factor = [params.get("multiplier", 1) for _, params in upsamples]
    padding = fields.get("spatial_padding_mode")
    if timestep_conditioning is None:
        timestep_conditioning = True
    return {
        "in_channels": fields.get("in_channels", 3),
        "out_channels": fields.get("out_channels", 3),
        "latent_channels": latent_channels,
        "block_out_channels": _widths(latent_channels, [params.get("multiplier", 2) for _, params in downsamples]),
        "down_block_types": ["LTX2VideoDownBlock3D"] * len(downsamples),
        "layers_per_block": [params["num_layers"] for params in encoder_layers],
        "spatio_temporal_scaling": [True] * len(downsamples),
        "downsample_type": downsample_type,
        "decoder_block_out_channels": _widths(fields.get("decoder_base_channels", latent_channels), upsample_factor),
        "decoder_layers_per_block": [params["num_layers"] for params in decoder_layers],
        "decoder_spatio_temporal_scaling": [True] * len(upsamples),
        "decoder_inject_noise": [params.get("inject_noise", False) for params in decoder_layers],
        "upsample_type": [kind for kind, _ in reversed(upsamples)],
        "upsample_residual": [params.get("residual", False) for _, params in upsamples],
        "upsample_factor": upsample_factor,
        "timestep_conditioning": fields.get("timestep_conditioning", timestep_conditioning),
        "patch_size": fields.get("patch_size", 4),
        "patch_size_t": 1,
        "resnet_norm_eps": 1e-6,
        "scaling_factor": fields.get("scaling_factor", 1.0),
        "encoder_causal": True,
        "decoder_causal": fields.get("causal_decoder", False),
        "encoder_spatial_padding_mode": padding or fields.get("encoder_spatial_padding_mode", "zeros"),
        "decoder_spatial_padding_mode": fields.get("decoder_spatial_padding_mode", padding or "reflect"),
        "spatial_compression_ratio": fields.get("patch_size", 4) * 2 ** _count(downsample_type, "temporal"),
        "temporal_compression_ratio": 2 ** _count(downsample_type, "spatial"),
    }


def vae_to_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """Section `vae` of the metadata, from the video VAE's diffusers config."""
    factors, residual = config["upsample_factor"], config["upsample_residual"]
    inject_noise, decoder_layers = config["decoder_inject_noise"], config["decoder_layers_per_block"]
    base = config["decoder_block_out_channels"][0] // factors[0]
    # Two styles exist: 2.0 writes one padding per half and every flag, 2.3 one padding and no false flags.
    encoder_padding, decoder_padding = (config[f"{half}_spatial_padding_mode"] for half in ("encoder", "decoder"))
    verbose = encoder_padding != decoder_padding
    noise = [{"inject_noise": flag} if verbose or flag else {} for flag in inject_noise]
    add = [{"residual": flag} if verbose or flag else {} for flag in residual]
    decoder_blocks = [["res_x", {"num_layers": decoder_layers[0], **noise[0]}]]
    for index, kind in enumerate(reversed(config["upsample_type"])):
        decoder_blocks.append([f"compress_{_KIND_NAMES[kind]}", {**add[index], "multiplier": factors[index]}])
        decoder_blocks.append(["res_x", {"num_layers": decoder_layers[index + 1], **noise[index + 1]}])
    fields = {
        "_class_name": "CausalVideoAutoencoder",
        **_CONSTANTS,
        **{name: config[name] for name in ("in_channels", "out_channels", "latent_channels", "patch_size")},
        "encoder_blocks": _encoder_blocks(config),
        "decoder_blocks": decoder_blocks,
        "scaling_factor": config.get("scaling_factor", 1.0),
        "causal_decoder": config["decoder_causal"],
        "timestep_conditioning": config["timestep_conditioning"],
    }
    if verbose:
        fields |= {"encoder_spatial_padding_mode": encoder_padding, "decoder_spatial_padding_mode": decoder_padding}
    else:
        fields |= {"spatial_padding_mode": encoder_padding}
    if not verbose or base != config["latent_channels"]:
        fields |= {"encoder_base_channels": config["latent_channels"], "decoder_base_channels": base}
    return fields


def upsampler_to_diffusers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The latent upsampler's diffusers config, from an upscaler file's flat `config`."""
    scale = fields.get("spatial_scale", 2.0)
    if fields.get("rational_resampler") and scale not in (0.75, 1.5, 2.0, 4.0):
        raise ValueError(
            f"the checkpoint's config sets spatial_scale to {scale!r}; supported are 0.75, 1.5, 2.0 and 4.0"
        )
    return {
        **{name: fields.get(name, default) for name, default in _UPSAMPLER_SAME.items()},
        "rational_spatial_scale": scale,
        "use_rational_resampler": fields.get("rational_resampler", False),
    }


def upsampler_to_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """An upscaler file's flat `config`, from the latent upsampler's diffusers config."""
    fields = {"_class_name": "LatentUpsampler", **{name: config[name] for name in _UPSAMPLER_SAME}}
    # Without spatial upsampling nothing reads these two; the published temporal files may lack them.
    if config["spatial_upsample"] or config["rational_spatial_scale"] != 2.0:
        fields["spatial_scale"] = config["rational_spatial_scale"]
    if config["spatial_upsample"] or config["use_rational_resampler"]:
        fields["rational_resampler"] = config["use_rational_resampler"]
    return fields


def _walk(name: str, fields: Mapping[str, Any], suffix: str) -> tuple[list[dict], list[tuple[str, dict]]]:
    """Splits an alternating block list into residual groups and resampling blocks, refusing any other structure."""
    groups: list[dict] = []
    resamplers: list[tuple[str, dict]] = []
    if not fields.get(name):
        raise ValueError(f"the checkpoint's config has no {SECTION}.{name}")
    for index, (block, params) in enumerate(fields[name]):
        params = params if isinstance(params, Mapping) else {"num_layers": params}
        kind = _KINDS.get(block.removeprefix("compress_").removesuffix(suffix)) if index % 2 else None
        if index % 2 == 0 and block == "res_x":
            require(SECTION, params, {"attention_head_dim": None, "norm_layer": "pixel_norm"})
            groups.append(dict(params))
        elif kind and block == f"compress_{_KIND_NAMES[kind]}{suffix}":
            resamplers.append((kind, dict(params)))
        else:
            expected = (
                "res_x" if index % 2 == 0 else f"compress_space{suffix}, compress_time{suffix} or compress_all{suffix}"
            )
            raise ValueError(f"{SECTION}.{name}[{index}] of the checkpoint's config is {block!r}; expected {expected}")
    if len(groups) != len(resamplers) + 1:
        raise ValueError(f"{SECTION}.{name} of the checkpoint's config must end with res_x")
    return groups, resamplers


def _encoder_blocks(config: Mapping[str, Any]) -> list[list]:
    blocks: list[list] = [["res_x", {"num_layers": config["layers_per_block"][0]}]]
    width = config["latent_channels"]
    stages = zip(config["downsample_type"], config["block_out_channels"], config["layers_per_block"][1:])
    for kind, next_width, num_layers in stages:
        blocks.append([f"compress_{_KIND_NAMES[kind]}_res", {"multiplier": next_width // width}])
        blocks.append(["res_x", {"num_layers": num_layers}])
        width = next_width
    return blocks


def _widths(base: int, factors: Iterable[int]) -> list[int]:
    widths = []
    for factor in factors:
        base *= factor
        widths.append(base)
    return widths


def _count(kinds: list[str], other: str) -> int:
    return sum(kind != other for kind in kinds)
