"""Configs of audio VAE and vocoder: sections `audio_vae` and `vocoder` of the metadata <-> diffusers.

Field names, defaults and supported constants are those of the configurators in the Lightricks reference.
"""

from collections.abc import Mapping
from typing import Any

from .config_fields import require

# Name in `ddconfig` -> diffusers name.
_AUDIO_NAMES = {
    "ch": "base_channels",
    "out_ch": "output_channels",
    "ch_mult": "ch_mult",
    "num_res_blocks": "num_res_blocks",
    "in_channels": "in_channels",
    "resolution": "resolution",
    "z_channels": "latent_channels",
    "norm_type": "norm_type",
    "causality_axis": "causality_axis",
    "dropout": "dropout",
    "double_z": "double_z",
}
_AUDIO_DEFAULTS = {"norm_type": "pixel", "causality_axis": "height", "dropout": 0.0, "double_z": True}
# Values of the mel front-end that the metadata carries and diffusers' config does not.
_AUDIO_PREPROCESSING = {"max_wav_value": 32768.0, "duration": 5.12, "stereo": True, "causal_padding": 3}
_AUDIO_STFT = {"filter_length": 1024, "win_length": 1024}
_AUDIO_MEL = {"mel_fmin": 0, "mel_fmax": 8000}

_VOCODER_NAMES = {
    "upsample_initial_channel": "hidden_channels",
    "upsample_rates": "upsample_factors",
    "upsample_kernel_sizes": "upsample_kernel_sizes",
    "resblock_kernel_sizes": "resnet_kernel_sizes",
    "resblock_dilation_sizes": "resnet_dilations",
}
_VOCODER_DEFAULTS = {
    "hidden_channels": 1024,
    "upsample_factors": [6, 5, 2, 2, 2],
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
    "resnet_kernel_sizes": [3, 7, 11],
    "resnet_dilations": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
}
# The vocoder reads the mel bins of all channels side by side.
_MEL_BINS = 64
_BWE_SAME = {"hop_length": 80, "input_sampling_rate": 16000, "output_sampling_rate": 48000}


def audio_vae_to_diffusers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The audio VAE's diffusers config, from section `audio_vae`."""
    params = fields["model"]["params"]
    ddconfig, preprocessing = params["ddconfig"], fields.get("preprocessing", {})
    require("audio_vae.model.params.ddconfig", ddconfig, {"downsample_time": False})
    stft, mel = preprocessing.get("stft", {}), preprocessing.get("mel", {})
    mel_bins = ddconfig.get("mel_bins") or mel.get("n_mel_channels") or fields.get("variables", {}).get("mel_bins")
    if mel_bins is None:
        raise ValueError("the checkpoint's config names no mel_bins in section audio_vae")
    return {
        **{new: ddconfig.get(old, _AUDIO_DEFAULTS.get(old)) for old, new in _AUDIO_NAMES.items()},
        # The reference attends at these resolutions, and in the middle, unless the file says otherwise.
        "attn_resolutions": list(ddconfig.get("attn_resolutions", [8, 16, 32])) or None,
        "mid_block_add_attention": ddconfig.get("mid_block_add_attention", True),
        "sample_rate": params.get("sampling_rate", 16000),
        "mel_hop_length": stft.get("hop_length", 160),
        "is_causal": stft.get("causal", True),
        "mel_bins": mel_bins,
    }


def audio_vae_to_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """Section `audio_vae` of the metadata, from the audio VAE's diffusers config."""
    ddconfig = {
        **{old: config[new] for old, new in _AUDIO_NAMES.items()},
        "mel_bins": config["mel_bins"],
        "downsample_time": False,
        "attn_resolutions": list(config["attn_resolutions"] or []),
        "mid_block_add_attention": config["mid_block_add_attention"],
    }
    rate, z_channels = config["sample_rate"], config["latent_channels"]
    return {
        "preprocessing": {
            "audio": {"sampling_rate": rate, **_AUDIO_PREPROCESSING},
            "stft": {**_AUDIO_STFT, "hop_length": config["mel_hop_length"], "causal": config["is_causal"]},
            "mel": {"n_mel_channels": config["mel_bins"], **_AUDIO_MEL},
        },
        "model": {"params": {"sampling_rate": rate, "embed_dim": z_channels, "ddconfig": ddconfig}},
    }


def is_two_stage(fields: Mapping[str, Any]) -> bool:
    """Whether section `vocoder` describes the two-stage vocoder of 2.3."""
    return "bwe" in fields


def vocoder_to_diffusers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The diffusers config of `LTX2Vocoder` or, for two stages, `LTX2VocoderWithBWE`, from section `vocoder`."""
    if not is_two_stage(fields):
        require("vocoder", fields, {"resblock": "1", "use_tanh_at_final": True, "use_bias_at_final": True})
        rate = fields.get("output_sampling_rate", fields.get("output_sample_rate", 24000))
        activation = {"act_fn": "leaky_relu", "antialias": False, "final_act_fn": "tanh", "final_bias": True}
        return _stage(fields) | activation | {"output_sampling_rate": rate}
    first, second = fields["vocoder"], fields["bwe"]
    num_samples = second.get("n_fft", 512)
    return {
        **_stage(first),
        **_snake("vocoder.vocoder", first, first.get("apply_final_activation", True), clamp=None),
        **{f"bwe_{name}": value for name, value in _stage(second).items()},
        **{
            f"bwe_{name}": value
            for name, value in _snake(
                "vocoder.bwe", second, second.get("apply_final_activation", False), clamp="clamp"
            ).items()
        },
        "filter_length": num_samples,
        "window_length": second.get("win_size", num_samples),
        "num_mel_channels": second.get("num_mels", _MEL_BINS),
        **{name: second.get(name, default) for name, default in _BWE_SAME.items()},
    }


def vocoder_to_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """Section `vocoder` of the metadata, from the diffusers config of either vocoder class."""
    if "bwe_hidden_channels" not in config:
        rate = config["output_sampling_rate"]
        fields = _stage_fields(config, "") | {"resblock": "1"}
        return fields if rate == 24000 else fields | {"output_sampling_rate": rate}
    second = {
        **_stage_fields(config, "bwe_"),
        **_snake_fields(config, "bwe_"),
        "apply_final_activation": config["bwe_final_act_fn"] is not None,
        **{name: config[name] for name in _BWE_SAME},
        "n_fft": config["filter_length"],
        "win_size": config["window_length"],
        "num_mels": config["num_mel_channels"],
    }
    return {"vocoder": _stage_fields(config, "") | _snake_fields(config, ""), "bwe": second}


def _stage(fields: Mapping[str, Any]) -> dict[str, Any]:
    channels = 2 if fields.get("stereo", True) else 1
    return {
        **{new: fields.get(old, _VOCODER_DEFAULTS[new]) for old, new in _VOCODER_NAMES.items()},
        "in_channels": _MEL_BINS * channels,
        "out_channels": channels,
        "leaky_relu_negative_slope": 0.1,
        "antialias_ratio": 2,
        "antialias_kernel_size": 12,
    }


def _snake(section: str, fields: Mapping[str, Any], has_final: bool, clamp: str | None) -> dict[str, Any]:
    """Activation part of an anti-aliased stage; `clamp` stands for a final activation that is not tanh."""
    require(section, fields, {"resblock": "AMP1"})
    activation = fields.get("activation", "snakebeta")
    if activation not in ("snake", "snakebeta"):
        raise ValueError(
            f"the checkpoint's config sets {section}.activation to {activation!r}; "
            "supported are 'snake' and 'snakebeta'"
        )
    final = "tanh" if fields.get("use_tanh_at_final", True) else clamp
    return {
        "act_fn": activation,
        "antialias": True,
        "final_act_fn": final if has_final else None,
        "final_bias": fields.get("use_bias_at_final", True),
    }


def _stage_fields(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    fields = {old: config[prefix + new] for old, new in _VOCODER_NAMES.items()}
    return fields | {"stereo": config[f"{prefix}out_channels"] == 2}


def _snake_fields(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        "resblock": "AMP1",
        "activation": config[f"{prefix}act_fn"],
        "use_tanh_at_final": config[f"{prefix}final_act_fn"] == "tanh",
        "use_bias_at_final": config[f"{prefix}final_bias"],
    }
