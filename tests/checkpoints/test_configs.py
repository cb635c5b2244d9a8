"""Metadata config <-> diffusers config, for the published and the miniature checkpoints."""

import json

import pytest
import torch

from ltx2_diffusers.checkpoints import configs
from ltx2_diffusers.checkpoints.config_video import vae_to_diffusers
from ltx2_diffusers.checkpoints.reference_configs import reference_config
from ltx2_diffusers.checkpoints.safetensors_io import Entry
from tests.golden_data import golden_cases, load_json, load_metadata

from .tiny import MODELS, UPSCALERS, expected_folder

COMPONENTS = ("transformer", "connectors", "vae", "audio_vae", "vocoder")
PUBLISHED = golden_cases("checkpoint/real_configs", "*.json")
# Later additions to the class, at their defaults; the presets were written before them.
NEWER_DEFAULTS = {
    "ff_bias": True,
    "audio_ff_bias": True,
    "use_prompt_adaln_single": True,
    "use_keyframes_abs_pos_embedding": False,
    "video_hidden_dim": 4096,
    "audio_hidden_dim": 2048,
    "scaling_factor": 1.0,
    "antialias_ratio": 2,
    "antialias_kernel_size": 12,
}


def published(name: str) -> dict:
    return load_json(f"checkpoint/real_configs/{name}.json")["metadata_config"]


def projection(columns: int) -> dict[str, Entry]:
    return {"text_proj_in.weight": Entry(torch.bfloat16, (8, columns), lambda: torch.zeros(8, columns))}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
@pytest.mark.parametrize("component", COMPONENTS)
def test_published_metadata_give_the_published_configs(path, component):
    reference = load_json(path)
    config = configs.to_diffusers(component, reference["metadata_config"])
    preset = reference["diffusers_configs"][component]
    assert {name: config[name] for name in preset} == preset
    assert all(NEWER_DEFAULTS[name] == value for name, value in config.items() if name not in preset)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_configs_give_back_the_metadata(path):
    metadata = load_json(path)["metadata_config"]
    forward = {component: configs.to_diffusers(component, metadata) for component in COMPONENTS}
    assert configs.to_original(forward) == metadata


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_miniature_metadata_and_configs_agree_both_ways(path):
    metadata = json.loads(load_metadata(path)["config"])
    expected = {name: load_json(expected_folder(path) / name / "config.json") for name in COMPONENTS}
    expected = {name: {k: v for k, v in config.items() if k[0] != "_"} for name, config in expected.items()}
    columns = expected["connectors"]["text_proj_in_factor"] * expected["connectors"]["caption_channels"]
    for name, config in expected.items():
        assert configs.to_diffusers(name, metadata, projection(columns)) == config
    assert configs.to_original(expected) == metadata


@pytest.mark.parametrize("path", UPSCALERS, ids=lambda path: path.stem)
def test_upscaler_metadata_and_configs_agree_both_ways(path):
    metadata = json.loads(load_metadata(path)["config"])
    expected = load_json(expected_folder(path) / "config.json")
    expected = {name: value for name, value in expected.items() if name[0] != "_"}
    assert configs.to_diffusers("latent_upsampler", metadata) == expected
    assert configs.to_original({"latent_upsampler": expected}) == metadata


def test_upscaler_config_fills_gaps_as_the_reference_does():
    config = configs.to_diffusers("latent_upsampler", {"_class_name": "LatentUpsampler", "spatial_scale": 1.5})
    assert (config["mid_channels"], config["use_rational_resampler"]) == (512, False)
    assert config["rational_spatial_scale"] == 1.5


@pytest.mark.parametrize("version, name", [("2.0", "ltx-2-19b"), ("2.3", "ltx-2.3-22b")])
def test_packaged_reference_configs_are_the_published_ones(version, name):
    assert reference_config(version) == published(name)


def test_version_2_5_is_2_3_without_video_feed_forward_biases_and_with_keyframe_positions():
    newer = configs.to_diffusers("transformer", reference_config("2.5"))
    older = configs.to_diffusers("transformer", reference_config("2.3"))
    changed = {name for name in newer if newer[name] != older[name]}
    assert changed == {"ff_bias", "use_keyframes_abs_pos_embedding"}
    both = {"transformer": newer, "connectors": configs.to_diffusers("connectors", reference_config("2.5"))}
    assert configs.to_original(both)["transformer"] == reference_config("2.5")["transformer"]


@pytest.mark.parametrize(
    "component, field, value",
    [
        ("transformer", "qk_norm", "layer_norm"),
        ("transformer", "attention_bias", False),
        ("transformer", "rope_type", "learned"),
        ("transformer", "use_middle_indices_grid", False),
        ("connectors", "connector_ff_bias", False),
        ("connectors", "caption_proj_before_connector", True),
        ("vae", "norm_layer", "group_norm"),
        ("vae", "latent_log_var", "per_channel"),
        ("vocoder", "resblock", "2"),
    ],
)
def test_unsupported_values_are_refused_by_name(component, field, value):
    metadata = published("ltx-2-19b")
    section = "transformer" if component == "connectors" else component
    metadata[section][field] = value
    with pytest.raises(ValueError, match=field):
        configs.to_diffusers(component, metadata)


@pytest.mark.parametrize("blocks", [[["attn_res_x", {"num_layers": 1}]], [["res_x", 1], ["compress_all", {}]], []])
def test_unknown_vae_structures_are_refused(blocks):
    fields = published("ltx-2-19b")["vae"] | {"encoder_blocks": blocks}
    with pytest.raises(ValueError, match="encoder_blocks"):
        vae_to_diffusers(fields)


def test_block_parameters_may_be_a_bare_number():
    fields = published("ltx-2-19b")["vae"]
    fields["encoder_blocks"] = [[name, params.get("num_layers", params)] for name, params in fields["encoder_blocks"]]
    assert vae_to_diffusers(fields)["layers_per_block"] == [4, 6, 6, 2, 2]


def test_weights_decide_on_timestep_conditioning_where_the_metadata_are_silent():
    metadata = published("ltx-2-19b")
    del metadata["vae"]["timestep_conditioning"]
    scalar = {"decoder.timestep_scale_multiplier": Entry(torch.float32, (), lambda: torch.zeros(()))}
    assert configs.to_diffusers("vae", metadata, scalar)["timestep_conditioning"] is True
    assert configs.to_diffusers("vae", metadata, {})["timestep_conditioning"] is False


def test_video_vae_padding_has_a_precedence():
    fields = published("ltx-2-19b")["vae"]
    assert vae_to_diffusers(fields)["decoder_spatial_padding_mode"] == "reflect"
    assert vae_to_diffusers(fields | {"spatial_padding_mode": "zeros"})["decoder_spatial_padding_mode"] == "reflect"
    del fields["decoder_spatial_padding_mode"]
    assert vae_to_diffusers(fields | {"spatial_padding_mode": "zeros"})["decoder_spatial_padding_mode"] == "zeros"
    assert vae_to_diffusers(fields)["decoder_spatial_padding_mode"] == "reflect"


@pytest.mark.parametrize(
    "component, name, value",
    [("transformer", "audio_gated_attn", True), ("transformer", "patch_size", 2), ("vae", "patch_size_t", 2)],
)
def test_values_the_original_layout_cannot_express_are_refused_on_the_way_back(component, name, value):
    config = configs.to_diffusers(component, published("ltx-2-19b"))
    with pytest.raises(ValueError, match=name):
        configs.to_original({component: config | {name: value}})


def test_upscaler_config_can_be_read_off_the_shapes():
    metadata = {"in_channels": 4, "mid_channels": 32, "num_blocks_per_stage": 1, "rational_resampler": True}
    shapes = {
        "initial_conv.weight": (32, 4, 3, 3, 3),
        "res_blocks.0.conv1.weight": (32, 32, 3, 3, 3),
        "upsampler.conv.weight": (128, 32, 3, 3),
    }
    entries = {name: Entry(torch.bfloat16, shape, lambda: torch.zeros(())) for name, shape in shapes.items()}
    expected = configs.to_diffusers("latent_upsampler", metadata)
    assert configs.upsampler_config_from_shapes(entries) == expected
