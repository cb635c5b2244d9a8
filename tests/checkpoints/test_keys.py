"""Tensor names: both layouts, both directions, every way in which files carry them."""

import pytest
import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from safetensors import safe_open

from ltx2_diffusers.checkpoints import keys
from tests.golden_data import golden_cases, load_json

from .tiny import UPSCALERS

KEY_MAPS = golden_cases("checkpoint/key_maps", "*.json")
DIFFUSERS_CLASSES = {
    "transformer": LTX2VideoTransformer3DModel,
    "connectors": LTX2TextConnectors,
    "vae": AutoencoderKLLTX2Video,
    "audio_vae": AutoencoderKLLTX2Audio,
}


def renamed_file(names: list[str]) -> dict[str, list[str] | None]:
    """Original file name -> [component, diffusers name] for every name, null for dropped ones."""
    result: dict[str, list[str] | None] = dict.fromkeys(names)
    for component in keys.COMPONENTS:
        local = keys.component_keys(component, names)
        renamed = keys.rename(component, local.values(), to="diffusers")
        result |= {key: [component, renamed[name]] for key, name in local.items()}
    return result


def original_names(component: str, names: list[str]) -> dict[str, str]:
    """Diffusers name -> name in a complete original file."""
    renamed = keys.rename(component, names, to="original")
    return {name: keys.original_prefix(component, new) + new for name, new in renamed.items()}


@pytest.mark.parametrize("path", KEY_MAPS, ids=lambda path: path.stem)
def test_every_name_of_a_complete_file_maps_as_in_the_golden_table(path):
    expected = load_json(path)
    assert renamed_file(list(expected)) == expected
    assert keys.unclaimed_keys(expected) == []


@pytest.mark.parametrize("path", KEY_MAPS, ids=lambda path: path.stem)
def test_the_inverse_gives_back_the_original_names(path):
    table = {key: tuple(place) for key, place in load_json(path).items() if place}
    for component in keys.COMPONENTS:
        names = {name: key for key, (owner, name) in table.items() if owner == component}
        assert original_names(component, list(names)) == names


@pytest.mark.parametrize("path", KEY_MAPS, ids=lambda path: path.stem)
@pytest.mark.parametrize("component", ["transformer", "connectors", "vae", "audio_vae", "vocoder"])
def test_a_file_already_in_diffusers_names_passes_through(path, component):
    names = [place[1] for place in load_json(path).values() if place and place[0] == component]
    local = keys.component_keys(component, names)
    assert local == {name: name for name in names}
    assert keys.rename(component, names, to="diffusers") == local
    assert keys.found_components(names) == [component]


@pytest.mark.parametrize("path", KEY_MAPS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "component, prefixes",
    [("transformer", ("", "diffusion_model.")), ("vae", ("",)), ("audio_vae", ("",)), ("vocoder", ("",))],
)
def test_files_of_one_component_may_lack_its_prefix(path, component, prefixes):
    table = {key: place[1] for key, place in load_json(path).items() if place and place[0] == component}
    complete = {"transformer": "model.diffusion_model."}.get(component, f"{component}.")
    for prefix in prefixes:
        names = {prefix + key.removeprefix(complete): name for key, name in table.items()}
        assert keys.found_components(names) == [component]
        assert renamed_file(list(names)) == {key: [component, name] for key, name in names.items()}


@pytest.mark.parametrize("path", UPSCALERS, ids=lambda path: path.stem)
def test_upscalers_have_the_same_names_in_both_layouts(path):
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    assert renamed_file(names) == {name: ["latent_upsampler", name] for name in names}
    assert original_names("latent_upsampler", names) == {name: name for name in names}


@pytest.mark.parametrize("version", ["ltx-2-19b", "ltx-2.3-22b"])
@pytest.mark.parametrize("component", ["transformer", "connectors", "vae", "audio_vae", "vocoder"])
@pytest.mark.quick_cases(4)
def test_all_names_of_the_published_sizes_convert_both_ways(version, component):
    config = load_json(f"checkpoint/real_configs/{version}.json")["diffusers_configs"][component]
    vocoder = LTX2VocoderWithBWE if "bwe_hidden_channels" in config else LTX2Vocoder
    with torch.device("meta"):
        names = list(DIFFUSERS_CLASSES.get(component, vocoder)(**config).state_dict())
    originals = original_names(component, names)
    assert len(set(originals.values())) == len(names)
    assert renamed_file(list(originals.values())) == {key: [component, name] for name, key in originals.items()}
    # No name of the other layout is left, except where both agree.
    assert not any(
        part in key.split(".") for key in originals.values() for part in ("norm_q", "resnets", "upsamplers")
    )


def test_block_numbers_of_the_video_vae_by_hand():
    # Two stages: residual groups 0, 2 and, in the middle, 4; resampling blocks 1 and 3.
    names = [f"encoder.down_blocks.{index}.{kind}.weight" for index, kind in enumerate(["res_blocks.0", "conv"] * 2)]
    names += ["encoder.down_blocks.4.res_blocks.1.weight"]
    assert list(keys.rename("vae", names, to="diffusers").values()) == [
        "encoder.down_blocks.0.resnets.0.weight",
        "encoder.down_blocks.0.downsamplers.0.conv.weight",
        "encoder.down_blocks.1.resnets.0.weight",
        "encoder.down_blocks.1.downsamplers.0.conv.weight",
        "encoder.mid_block.resnets.1.weight",
    ]
    assert list(keys.rename("vae", [f"decoder.up_blocks.{i}.x" for i in range(4)], to="diffusers").values()) == [
        "decoder.mid_block.x",
        "decoder.up_blocks.0.upsamplers.0.x",
        "decoder.up_blocks.0.x",
        "decoder.up_blocks.1.upsamplers.0.x",
    ]


@pytest.mark.parametrize(
    "original, diffusers",
    [
        (
            "decoder.last_time_embedder.timestep_embedder.linear_1.weight",
            "decoder.time_embedder.timestep_embedder.linear_1.weight",
        ),
        ("decoder.last_scale_shift_table", "decoder.scale_shift_table"),
        ("decoder.timestep_scale_multiplier", "decoder.timestep_scale_multiplier"),
        (
            "decoder.up_blocks.0.time_embedder.timestep_embedder.linear_1.bias",
            "decoder.mid_block.time_embedder.timestep_embedder.linear_1.bias",
        ),
        ("decoder.up_blocks.2.res_blocks.0.scale_shift_table", "decoder.up_blocks.0.resnets.0.scale_shift_table"),
    ],
)
def test_names_of_a_timestep_conditioned_decoder(original, diffusers):
    assert keys.rename("vae", [original], to="diffusers") == {original: diffusers}
    assert keys.rename("vae", [diffusers], to="original") == {diffusers: original}


def test_an_unnamed_connector_is_the_video_connector():
    key = "model.diffusion_model.embeddings_connector.transformer_1d_blocks.0.attn1.to_q.weight"
    assert renamed_file([key]) == {key: ["connectors", "video_connector.transformer_blocks.0.attn1.to_q.weight"]}


def test_names_of_no_component_are_reported():
    assert keys.unclaimed_keys(
        ["duration_head.net.weight", "vae.encoder.down_blocks.0.res_blocks.0.conv1.conv.bias"]
    ) == ["duration_head.net.weight"]
    assert keys.found_components(["language_model.model.layers.0.mlp.weight"]) == []
