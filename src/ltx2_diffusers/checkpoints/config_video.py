"""Configs of video VAE and latent upsampler: metadata <-> diffusers.

Field names, defaults and supported constants are those of the configurators in the Lightricks reference.
"""

from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise
from typing import Any

from . import config_diffusion
from .config_fields import Field, Note, check_choice, check_fields, read_fields, same_names, write_fields

SECTION = "vae"

_KINDS = {"space": "spatial", "time": "temporal", "all": "spatiotemporal"}
_KIND_NAMES = {kind: name for name, kind in _KINDS.items()}
_VAE = {
    "_class_name": Note("CausalVideoAutoencoder"),
    "dims": 3,
    "norm_layer": "pixel_norm",
    "latent_log_var": "uniform",
    "use_quant_conv": False,
    "normalize_latent_channels": False,
    **same_names(in_channels=3, out_channels=3, latent_channels=128, patch_size=4, scaling_factor=1.0),
    "causal_decoder": Field("decoder_causal", False),
    "timestep_conditioning": Field("timestep_conditioning", True),
}
_UPSAMPLER = {
    "_class_name": Note("LatentUpsampler"),
    **same_names(in_channels=128, mid_channels=512, num_blocks_per_stage=4, dims=3),
    **same_names(spatial_upsample=True, temporal_upsample=False),
    "spatial_scale": Field("rational_spatial_scale", 2.0),
    "rational_resampler": Field("use_rational_resampler", False),
}


def vae_to_diffusers(fields: Mapping[str, Any], timestep_conditioning: bool = True) -> dict[str, Any]:
    """The video VAE's diffusers config, from section `vae`.

    Args:
        fields: The section.
        timestep_conditioning: Whether the weights have a timestep-conditioned decoder; decides where the section is
            silent. Default `True`, the reference's assumption for silent sections.
    """
    if fields.get("_class_name") == config_diffusion.CLASS_NAME:
        raise ValueError(
            f"vae._class_name is {config_diffusion.CLASS_NAME!r}, a diffusion decoder, which encodes nothing; load it with "
            "LTX2VideoDiffusionDecoderModel, and the autoencoder from its own file"
        )
    check_fields(SECTION, _VAE, fields)
    config = read_fields(_VAE, {"timestep_conditioning": timestep_conditioning, **fields})
    encoder_layers, downsamples = _walk("encoder_blocks", fields, "_res")
    decoder_layers, upsamples = _walk("decoder_blocks", fields, "")
    downsample_type = [kind for kind, _ in downsamples]
    # The file lists the decoder from output to input; diffusers keeps that order except for the kinds.
    upsample_factor = [params.get("multiplier", 1) for _, params in upsamples]
    latent_channels, padding = config["latent_channels"], fields.get("spatial_padding_mode")
    return config | {
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
        "patch_size_t": 1,
        "resnet_norm_eps": 1e-6,
        "encoder_causal": True,
        "encoder_spatial_padding_mode": padding or fields.get("encoder_spatial_padding_mode", "zeros"),
        "decoder_spatial_padding_mode": fields.get("decoder_spatial_padding_mode", padding or "reflect"),
        "spatial_compression_ratio": config["patch_size"] * 2 ** sum(kind != "temporal" for kind in downsample_type),
        "temporal_compression_ratio": 2 ** sum(kind != "spatial" for kind in downsample_type),
    }


def vae_to_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """Section `vae` of the metadata, from the video VAE's diffusers config."""
    width, factors = config["latent_channels"], config["upsample_factor"]
    base = config["decoder_block_out_channels"][0] // factors[0]
    # Two styles exist: 2.0 writes one padding per half and every flag, 2.3 one padding and no false flags.
    paddings = {name: config[name] for name in ("encoder_spatial_padding_mode", "decoder_spatial_padding_mode")}
    padding, decoder_padding = paddings.values()
    verbose = padding != decoder_padding
    noise = [{"inject_noise": flag} if verbose or flag else {} for flag in config["decoder_inject_noise"]]
    residual = [{"residual": flag} if verbose or flag else {} for flag in config["upsample_residual"]]
    fields = write_fields(_VAE, {"scaling_factor": 1.0, **config}) | {
        "encoder_blocks": _blocks(
            [{"num_layers": count} for count in config["layers_per_block"]],
            [f"compress_{_KIND_NAMES[kind]}_res" for kind in config["downsample_type"]],
            [
                {"multiplier": _ratio(after, before)}
                for before, after in pairwise([width, *config["block_out_channels"]])
            ],
        ),
        "decoder_blocks": _blocks(
            [{"num_layers": count, **flag} for count, flag in zip(config["decoder_layers_per_block"], noise)],
            [f"compress_{_KIND_NAMES[kind]}" for kind in reversed(config["upsample_type"])],
            [{**flag, "multiplier": factor} for factor, flag in zip(factors, residual)],
        ),
    }
    fields |= paddings if verbose else {"spatial_padding_mode": padding}
    if not verbose or base != width:
        fields |= {"encoder_base_channels": width, "decoder_base_channels": base}
    return fields


def upsampler_to_diffusers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The latent upsampler's diffusers config, from an upscaler file's flat `config`."""
    config = read_fields(_UPSAMPLER, fields)
    # A temporal upsampler has no rational resampler, whatever its file says of one.
    if config["use_rational_resampler"] and not config["temporal_upsample"]:
        check_choice("spatial_scale", config["rational_spatial_scale"], (0.75, 1.5, 2.0, 4.0))
    return config


def upsampler_to_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """An upscaler file's flat `config`, from the latent upsampler's diffusers config."""
    fields = write_fields(_UPSAMPLER, config)
    if not config["spatial_upsample"]:
        # Nothing reads these two then; the published temporal files may lack them.
        unused = {"spatial_scale": 2.0, "rational_resampler": False}
        return {name: value for name, value in fields.items() if name not in unused or value != unused[name]}
    return fields


def _walk(
    name: str, fields: Mapping[str, Any], suffix: str
) -> tuple[list[Mapping[str, Any]], list[tuple[str, Mapping[str, Any]]]]:
    """Splits an alternating block list into residual groups and resampling blocks, refusing any other structure."""
    if not fields.get(name):
        raise ValueError(f"the checkpoint's config has no {SECTION}.{name}")
    kinds = {f"compress_{kind_name}{suffix}": kind for kind_name, kind in _KINDS.items()}
    groups: list[Mapping[str, Any]] = []
    resamplers: list[tuple[str, Mapping[str, Any]]] = []
    for index, (block, params) in enumerate(fields[name]):
        params = params if isinstance(params, Mapping) else {"num_layers": params}
        if index % 2 == 0 and block == "res_x":
            check_fields(SECTION, {"attention_head_dim": None, "norm_layer": "pixel_norm"}, params)
            groups.append(params)
        elif index % 2 and block in kinds:
            resamplers.append((kinds[block], params))
        else:
            expected = " or ".join(", ".join(kinds).rsplit(", ", 1)) if index % 2 else "res_x"
            raise ValueError(f"{SECTION}.{name}[{index}] of the checkpoint's config is {block!r}; expected {expected}")
    if len(groups) != len(resamplers) + 1:
        raise ValueError(f"{SECTION}.{name} of the checkpoint's config must end with res_x")
    return groups, resamplers


def _blocks(groups: list[dict[str, Any]], names: list[str], resamplers: list[dict[str, Any]]) -> list[list[Any]]:
    """The alternating block list of residual groups and resampling blocks between them."""
    blocks: list[list[Any]] = [["res_x", groups[0]]]
    for group, name, resampler in zip(groups[1:], names, resamplers):
        blocks += [[name, resampler], ["res_x", group]]
    return blocks


def _ratio(after: int, before: int) -> int | float:
    """The multiplier between two widths; only miniatures have widths that shrink."""
    return after / before if after % before else after // before


def _widths(base: int, factors: Iterable[int | float]) -> list[int]:
    return list(accumulate(factors, lambda width, factor: round(width * factor), initial=base))[1:]
