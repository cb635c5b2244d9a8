"""Metadata `config` of original checkpoints <-> diffusers configs, for all components."""

import math
from collections.abc import Mapping
from typing import Any

from diffusers.utils import logging

from . import config_audio, config_diffusion, config_duration, config_transformer, config_video
from .safetensors_io import Entry

logger = logging.get_logger(__name__)

# What tells that the metadata describe a component, where it is no section of that name; an upscaler's config is flat.
_SECTIONS = {"connectors": "transformer", "latent_upsampler": "mid_channels", "diffusion_decoder": "vae"}
# Components whose section has their name, and who reads and writes it.
_READERS = {
    "transformer": config_transformer.transformer_to_diffusers,
    "audio_vae": config_audio.audio_vae_to_diffusers,
    "vocoder": config_audio.vocoder_to_diffusers,
}
_WRITERS = {
    "vae": config_video.vae_to_original,
    "audio_vae": config_audio.audio_vae_to_original,
    "vocoder": config_audio.vocoder_to_original,
}
# Gemma 3 12B: the embedding and 48 layers.
_NUM_TEXT_STATES = 49
_SCHEDULER = {
    "_class_name": "RectifiedFlowScheduler",
    "_diffusers_version": "0.25.1",
    "num_train_timesteps": 1000,
    "shifting": None,
    "base_resolution": None,
    "sampler": "LinearQuadratic",
}
# A switch of the implementation that the original layout has no field for; it changes no weights.
_RUNTIME_SWITCHES = {"perturbed_attn"}


def has_config(component: str, metadata_config: Mapping[str, Any]) -> bool:
    """Whether the metadata describe `component`."""
    return bool(metadata_config.get(_SECTIONS.get(component, component)))


def to_diffusers(
    component: str, metadata_config: Mapping[str, Any], entries: Mapping[str, Entry] | None = None
) -> dict[str, Any]:
    """The complete diffusers config of `component`, from the metadata of an original checkpoint.

    Args:
        component: One of `keys.COMPONENTS`.
        metadata_config: The parsed `config` metadata.
        entries: The component's tensors under diffusers names; they tell what the metadata leave open. Without them
            the published model's number of text states and no timestep-conditioned decoder are assumed.
    """
    if component == "latent_upsampler":
        return config_video.upsampler_to_diffusers(metadata_config)
    if component == "duration_head":
        return config_duration.duration_head_to_diffusers(metadata_config, entries or {})
    if component == "diffusion_decoder":
        return config_diffusion.decoder_to_diffusers(metadata_config.get("vae") or {})
    fields = metadata_config[_SECTIONS.get(component, component)]
    if component == "connectors":
        return config_transformer.connectors_to_diffusers(fields, _num_text_states(fields, entries or {}))
    if component == "vae":
        conditioned = "decoder.timestep_scale_multiplier" in (entries or {})
        return config_video.vae_to_diffusers(fields, timestep_conditioning=conditioned)
    return _READERS[component](fields)


def to_original(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The metadata `config` of an original checkpoint, from the diffusers configs of its components.

    Args:
        configs: Component name -> diffusers config; either a latent upsampler alone, or any of the others.

    Raises:
        ValueError: If the original layout cannot express a value; the message names it.
    """
    if "latent_upsampler" in configs and len(configs) > 1:
        raise ValueError(f"an upscaler has a file of its own; it cannot be joined with {sorted(configs)}")
    try:
        metadata = _sections(configs)
    except KeyError as error:
        raise ValueError(f"a diffusers config of {', '.join(configs)} lacks the key {error}") from None
    for component, config in configs.items():
        _check_expressed(component, config, metadata)
    return metadata


def _sections(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if "latent_upsampler" in configs:
        return config_video.upsampler_to_original(configs["latent_upsampler"])
    metadata: dict[str, Any] = {"scheduler": _SCHEDULER}
    if "transformer" in configs or "connectors" in configs:
        metadata["transformer"] = config_transformer.to_original(configs.get("transformer"), configs.get("connectors"))
    if "diffusion_decoder" in configs:
        if "vae" in configs:
            raise ValueError(
                "the original layout describes the convolutional decoder and the diffusion decoder by the same section; write "
                "`diffusion_decoder` to a file of its own"
            )
        metadata["vae"] = config_diffusion.decoder_to_original(configs["diffusion_decoder"])
    if "duration_head" in configs:
        head = config_duration.duration_head_to_original(configs["duration_head"])
        # The transformer says the same two widths, which are compared below.
        metadata |= {**head, "transformer": {**head["transformer"], **metadata.get("transformer", {})}}
    return metadata | {name: write(configs[name]) for name, write in _WRITERS.items() if name in configs}


def _check_expressed(component: str, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
    """Reads the metadata back: what does not come back as it went in would silently change the model."""
    back = to_diffusers(component, metadata)
    if component == "connectors":
        back["text_proj_in_factor"] = config["text_proj_in_factor"]
    unknown = sorted(name for name in config if name not in back and not name.startswith("_"))
    if unknown:
        logger.info(f"{component}: the original layout has no fields for {', '.join(unknown)}")
    lost = [name for name, value in back.items() if name in config and not same_value(config[name], value)]
    if switches := [name for name in lost if name in _RUNTIME_SWITCHES]:
        logger.warning(f"{component}: {', '.join(switches)} is not recorded by the original layout")
    if lost := [name for name in lost if name not in _RUNTIME_SWITCHES]:
        values = ", ".join(f"{name}={config[name]!r} (would be read as {back[name]!r})" for name in lost)
        raise ValueError(f"{component}: the original layout cannot express {values}")


def same_value(one: Any, other: Any) -> bool:
    """Whether two config values are equal, lists and tuples counting alike."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same_value(a, b) for a, b in zip(one, other))
    return one == other


def _num_text_states(fields: Mapping[str, Any], entries: Mapping[str, Entry]) -> int:
    name = next((name for name in ("text_proj_in.weight", "video_text_proj_in.weight") if name in entries), None)
    if name is None:
        return _NUM_TEXT_STATES
    columns, caption_channels = entries[name].shape[1], fields.get("caption_channels", 3840)
    if columns % caption_channels:
        raise ValueError(f"{name} has {columns} columns, which is no multiple of caption_channels={caption_channels}")
    return columns // caption_channels


def upsampler_config_from_shapes(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """The latent upsampler's diffusers config, read off its tensors for files without metadata."""
    mid_channels, in_channels = entries["initial_conv.weight"].shape[:2]
    is_rational = "upsampler.conv.weight" in entries
    weight = entries["upsampler.conv.weight" if is_rational else "upsampler.0.weight"]
    growth = weight.shape[0] // mid_channels
    scale = math.isqrt(growth) if is_rational else 2
    if is_rational and scale not in (2, 4):
        raise ValueError(
            "this upscaler's scale is 1.5 or 0.75, which its tensors do not tell apart; pass "
            "original_config={'rational_resampler': True, 'spatial_scale': 1.5, 'mid_channels': ...}"
        )
    is_temporal = not is_rational and len(weight.shape) == 5
    blocks = {name.split(".")[1] for name in entries if name.startswith("res_blocks.")}
    return {
        "in_channels": in_channels,
        "mid_channels": mid_channels,
        "num_blocks_per_stage": len(blocks),
        "dims": len(entries["initial_conv.weight"].shape) - 2,
        "spatial_upsample": not is_temporal or growth == 8,
        "temporal_upsample": is_temporal,
        "rational_spatial_scale": float(scale),
        "use_rational_resampler": is_rational,
    }
