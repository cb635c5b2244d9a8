"""The settings of every published checkpoint, and which of them a checkpoint takes."""

from dataclasses import asdict, fields

import pytest

from ltx2_diffusers.families.ltx_video.presets import (
    LTXVideoPreset,
    PassSettings,
    all_presets,
    choose_preset,
    ltx_video_preset,
)
from tests.golden_data import load_json

PRESETS = all_presets()
RECORDED = load_json("ltx_video/presets.json")
PASS = {field.name for field in fields(PassSettings)}
# What concerns other programs, and what every file says alike.
ELSEWHERE = {"precision", "sampler", "text_encoder_model_name_or_path", "pipeline_type"}
RENAMED = {"checkpoint_path": "checkpoint", "spatial_upscaler_model_path": "spatial_upscaler"}


def as_lists(value):
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


def recorded_pass(settings):
    return {name: as_lists(value) for name, value in asdict(settings).items()}


@pytest.mark.parametrize("name", RECORDED)
def test_presets_hold_every_value_of_the_original_files(name):
    """FP8 files have the settings of the others."""
    entry, preset = RECORDED[name], PRESETS[name.removesuffix("-fp8")]
    assert (preset.second_pass is not None) == (entry["pipeline_type"] == "multi-scale")
    for key, value in entry.items():
        if key in ELSEWHERE or key.startswith("prompt_enhance"):
            continue
        if key in ("first_pass", "second_pass"):
            found = recorded_pass(getattr(preset, key))
            assert {name: found[name] for name in value} == value
            # What a file does not say is the default.
            assert PassSettings(**{k: v for k, v in found.items() if k not in value}) == PassSettings()
        elif key in PASS:
            assert recorded_pass(preset.first_pass)[key] == value
        else:
            own = getattr(preset, RENAMED.get(key, key))
            assert own == (value.replace("-fp8", "") if key == "checkpoint_path" else value)


def test_every_recorded_preset_is_there_and_the_hosted_mix():
    assert set(PRESETS) == {name.removesuffix("-fp8") for name in RECORDED} | {"ltxv-13b-0.9.8-mix"}
    mix = PRESETS["ltxv-13b-0.9.8-mix"]
    assert mix.kind == "mix"
    assert (mix.first_pass.end_timestep, mix.continued_pass.timesteps[0]) == (0.9513, 0.95)


def test_guidance_lists_have_one_value_for_each_noise_level():
    for preset in PRESETS.values():
        for settings in (preset.first_pass, preset.second_pass):
            values = vars(settings or PassSettings())
            lists = [values[name] for name in ("guidance_scale", "stg_scale", "rescaling_scale")]
            lengths = {len(value) for value in lists if isinstance(value, tuple)}
            assert lengths <= {len(values["guidance_timesteps"] or ())}


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"layout": "v090", "num_layers": 28}, "ltxv-2b-0.9"),
        ({"layout": "v091", "num_layers": 28}, "ltxv-2b-0.9.1"),
        ({"layout": "v095", "num_layers": 28, "name": "ltx-video-2b-v0.9.5.safetensors"}, "ltxv-2b-0.9.5"),
        ({"layout": "v095", "num_layers": 28}, "ltxv-2b-0.9.6-dev"),
        ({"layout": "v095", "num_layers": 28, "is_stochastic": True}, "ltxv-2b-0.9.6-distilled"),
        (
            {"layout": "v095", "num_layers": 28, "name": PRESETS["ltxv-2b-0.9.6-distilled"].checkpoint},
            "ltxv-2b-0.9.6-distilled",
        ),
        ({"layout": "v095", "num_layers": 28, "is_distilled": True}, "ltxv-2b-0.9.8-distilled"),
        ({"layout": "v095", "num_layers": 48}, "ltxv-13b-0.9.8-dev"),
        ({"layout": "v095", "num_layers": 48, "name": "Lightricks/LTX-Video-0.9.7-dev"}, "ltxv-13b-0.9.7-dev"),
        ({"layout": "v095", "num_layers": 48, "name": "LTX-Video-0.9.8-13B-distilled"}, "ltxv-13b-0.9.8-distilled"),
        # What the file says goes before its name.
        ({"layout": "v095", "num_layers": 48, "is_distilled": True, "name": "0.9.7-dev"}, "ltxv-13b-0.9.7-distilled"),
        ({"layout": "v095", "num_layers": 48, "is_distilled": False, "name": "distilled"}, "ltxv-13b-0.9.8-dev"),
    ],
)
def test_a_checkpoint_has_the_preset_of_what_it_says_of_its_shape_and_of_its_name(facts, name):
    assert choose_preset(**facts) == PRESETS[name]


def test_smaller_models_perturb_blocks_that_they_have():
    small = choose_preset("v095", 3, is_distilled=False)
    assert (small.name, small.first_pass.skip_block_list) == ("ltxv-2b-0.9.6-dev", (2,))


def test_unknown_names_are_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"ltxv-2b-0\.9\.6-distilled"):
        ltx_video_preset("ltxv-2b-0.9.6")
    with pytest.raises(ValueError, match="v091"):
        choose_preset("v092", 28)


def test_presets_cannot_be_changed():
    with pytest.raises(AttributeError):
        PRESETS["ltxv-2b-0.9"].stg_mode = "residual"
    assert isinstance(PRESETS["ltxv-2b-0.9"], LTXVideoPreset)
