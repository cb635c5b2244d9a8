"""Configs of audio VAE and vocoder: sections `audio_vae` and `vocoder` of the metadata <-> diffusers.

Field names, defaults and supported constants are those of the configurators in the Lightricks reference.
"""

from collections.abc import Mapping
from typing import Any

from .config_fields import Field, Note, check_fields, read_fields, same_names, write_fields

_AUDIO_VAE = {
    "preprocessing": {
        "audio": {
            "sampling_rate": Field("sample_rate", is_read=False),
            "max_wav_value": Note(32768.0),
            "duration": Note(5.12),
            "stereo": Note(True),
            "causal_padding": Note(3),
        },
        "stft": {
            "filter_length": Note(1024),
            "hop_length": Field("mel_hop_length", 160),
            "win_length": Note(1024),
            "causal": Field("is_causal", True),
        },
        "mel": {"n_mel_channels": Field("mel_bins", is_read=False), "mel_fmin": Note(0), "mel_fmax": Note(8000)},
    },
    "model": {
        "params": {
            "sampling_rate": Field("sample_rate", 16000),
            "embed_dim": Field("latent_channels", is_read=False),
            "ddconfig": {
                **same_names(double_z=True, mel_bins=None, resolution=None, in_channels=None, ch_mult=None),
                **same_names(num_res_blocks=None, dropout=0.0, norm_type="pixel", causality_axis="height"),
                "z_channels": Field("latent_channels"),
                "downsample_time": False,
                "out_ch": Field("output_channels"),
                "ch": Field("base_channels"),
                # The reference attends at these resolutions, and in the middle, unless the file says otherwise.
                "attn_resolutions": Field(
                    "attn_resolutions", [8, 16, 32], lambda sizes: list(sizes) or None, lambda sizes: list(sizes or [])
                ),
                "mid_block_add_attention": Field("mid_block_add_attention", True),
            },
        }
    },
}

_MEL_BINS = 64


def _stage(prefix: str) -> dict[str, Field]:
    """What all vocoders have in common; the names of a second stage have a prefix in diffusers' config."""
    return {
        "upsample_initial_channel": Field(f"{prefix}hidden_channels", 1024),
        "upsample_rates": Field(f"{prefix}upsample_factors", [6, 5, 2, 2, 2]),
        "upsample_kernel_sizes": Field(f"{prefix}upsample_kernel_sizes", [16, 15, 8, 4, 4]),
        "resblock_kernel_sizes": Field(f"{prefix}resnet_kernel_sizes", [3, 7, 11]),
        "resblock_dilation_sizes": Field(f"{prefix}resnet_dilations", [[1, 3, 5], [1, 3, 5], [1, 3, 5]]),
        "stereo": Field(f"{prefix}out_channels", True, lambda stereo: 2 if stereo else 1, lambda count: count == 2),
    }


def _snake_stage(prefix: str, not_tanh: str | None) -> dict[str, Any]:
    """A stage of the two-stage vocoder; `not_tanh` is its final activation where that is not tanh."""
    return {
        **_stage(prefix),
        "resblock": "AMP1",
        "activation": Field(f"{prefix}act_fn", "snakebeta", choices=("snake", "snakebeta")),
        "use_tanh_at_final": Field(
            f"{prefix}final_act_fn", True, lambda tanh: "tanh" if tanh else not_tanh, lambda name: name == "tanh"
        ),
        "use_bias_at_final": Field(f"{prefix}final_bias", True),
    }


_ONE_STAGE = {
    **_stage(""),
    "resblock": "1",
    "output_sampling_rate": Field("output_sampling_rate", 24000, is_optional=True),
}
_TWO_STAGES = {
    "vocoder": _snake_stage("", not_tanh=None),
    "bwe": {
        **_snake_stage("bwe_", not_tanh="clamp"),
        **same_names(hop_length=80, input_sampling_rate=16000, output_sampling_rate=48000),
        "apply_final_activation": Field("bwe_final_act_fn", write=lambda name: name is not None, is_read=False),
        "n_fft": Field("filter_length", 512),
        "win_size": Field("window_length"),
        "num_mels": Field("num_mel_channels", _MEL_BINS),
    },
}


def audio_vae_to_diffusers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The audio VAE's diffusers config, from section `audio_vae`."""
    ddconfig, mel = fields["model"]["params"]["ddconfig"], fields.get("preprocessing", {}).get("mel", {})
    check_fields("audio_vae", _AUDIO_VAE, fields)
    mel_bins = ddconfig.get("mel_bins") or mel.get("n_mel_channels") or fields.get("variables", {}).get("mel_bins")
    if mel_bins is None:
        raise ValueError("the checkpoint's config names no mel_bins in section audio_vae")
    return read_fields(_AUDIO_VAE, fields) | {"mel_bins": mel_bins}


def audio_vae_to_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """Section `audio_vae` of the metadata, from the audio VAE's diffusers config."""
    return write_fields(_AUDIO_VAE, config)


def vocoder_to_diffusers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The diffusers config of `LTX2Vocoder` or, for the two stages of 2.3, `LTX2VocoderWithBWE`, from section `vocoder`."""
    if "bwe" not in fields:
        check_fields("vocoder", {**_ONE_STAGE, "use_tanh_at_final": True, "use_bias_at_final": True}, fields)
        fields = {"output_sampling_rate": fields.get("output_sample_rate", 24000), **fields}
        config = read_fields(_ONE_STAGE, fields)
        config |= {"act_fn": "leaky_relu", "antialias": False, "final_act_fn": "tanh", "final_bias": True}
        return config | _implied("", config)
    first, second = fields["vocoder"], fields["bwe"]
    check_fields("vocoder", _TWO_STAGES, fields)
    config = read_fields(_TWO_STAGES, fields) | {"antialias": True, "bwe_antialias": True}
    config["window_length"] = second.get("win_size", config["filter_length"])
    if not first.get("apply_final_activation", True):
        config["final_act_fn"] = None
    if not second.get("apply_final_activation", False):
        config["bwe_final_act_fn"] = None
    return config | _implied("", config) | _implied("bwe_", config)


def vocoder_to_original(config: Mapping[str, Any]) -> dict[str, Any]:
    """Section `vocoder` of the metadata, from the diffusers config of either vocoder class."""
    return write_fields(_TWO_STAGES if "bwe_hidden_channels" in config else _ONE_STAGE, config)


def _implied(prefix: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata do not say about a stage because it is the same for all."""
    return {
        # The mel bins of all channels are read side by side.
        f"{prefix}in_channels": _MEL_BINS * config[f"{prefix}out_channels"],
        f"{prefix}leaky_relu_negative_slope": 0.1,
        f"{prefix}antialias_ratio": 2,
        f"{prefix}antialias_kernel_size": 12,
    }
