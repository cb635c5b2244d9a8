"""Guidance on velocities, its lists over time, and what is refused."""

import re

import pytest
import torch

from ltx2_diffusers.families.ltx_video.guidance import pass_guiders
from ltx2_diffusers.families.ltx_video.presets import PassSettings, all_presets
from tests.golden_data import load_json, load_tensors

PRESETS = all_presets()
GOLDEN = load_tensors("ltx_video/guidance.safetensors")
SCHEDULES = load_json("ltx_video/guidance_schedules.json")["presets"]
ROWS = [(name, part) for name, passes in SCHEDULES.items() for part in passes if name.removesuffix("-fp8") in PRESETS]


@pytest.mark.parametrize("key", sorted(key for key in GOLDEN if key.startswith("cfg")))
def test_terms_are_those_of_velocities(key):
    cfg, stg, rescale, star = re.fullmatch(r"cfg(.+)_stg(.+)_rescale(.+)_star(.)", key).groups()
    settings = PassSettings(8, None, float(cfg), float(stg), float(rescale), (0,), cfg_star_rescale=star == "1")
    guider = pass_guiders(settings, "attention_values", 3).video
    assert guider.on_velocities
    out = guider.calculate(GOLDEN["cond"], GOLDEN["uncond"], GOLDEN["perturbed"])
    torch.testing.assert_close(out, GOLDEN[key], rtol=0, atol=5e-6)


@pytest.mark.parametrize(("name", "part"), ROWS)
def test_every_step_of_a_preset_takes_its_values(name, part):
    settings = getattr(PRESETS[name.removesuffix("-fp8")], part.replace("single", "first_pass"))
    guider = pass_guiders(settings, "attention_values", 48).video
    for level, _, cfg, stg, rescale, blocks in SCHEDULES[name][part]:
        params = guider.at_sigma(torch.tensor(level).item()).params
        assert params.cfg_scale == max(cfg, 1)
        assert params.stg_scale == (stg if blocks else 0)
        if params.stg_scale:
            assert (list(params.stg_blocks), params.rescale_scale) == (blocks, 0 if rescale == 1 else rescale)


def test_the_other_lookup_takes_the_values_from_above():
    settings = PassSettings(8, None, (1, 6, 8), guidance_timesteps=(1.0, 0.99, 0.9), guidance_lookup="ceil")
    guider = pass_guiders(settings, "attention_values", 3).video
    assert [guider.at_sigma(level).params.cfg_scale for level in (1.0, 0.995, 0.99, 0.95, 0.5)] == [1, 1, 6, 6, 8]


def test_the_mode_that_has_no_effect_makes_no_pass():
    guider = pass_guiders(PassSettings(8, None, 1, 1, 0.7, (1,)), "stg_r", 3).video
    assert not guider.is_guided


def test_a_rescale_of_diffusers_acts_on_classifier_free_guidance():
    guider = pass_guiders(PassSettings(8, None, 3), "attention_values", 3, guidance_rescale=0.7).video
    cond, uncond = GOLDEN["cond"], GOLDEN["uncond"]
    guided = uncond + 3 * (cond - uncond)
    ratio = cond.std(dim=(1, 2), keepdim=True) / guided.std(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(guider.calculate(cond, uncond), guided * (0.7 * ratio + 0.3))


@pytest.mark.parametrize(
    ("settings", "mode", "message"),
    [
        (PassSettings(8, None, (1, 6)), "stg_av", "`guidance_scale` is a list, which needs `guidance_timesteps`"),
        (PassSettings(8, None, 1, (1, 2), guidance_timesteps=(1.0, 0.9, 0.5)), "stg_av", "2 values for 3"),
        (PassSettings(8, guidance_timesteps=(0.5, 0.9)), "stg_av", "have to fall"),
        (
            PassSettings(8, None, (3, 1), guidance_timesteps=(1000.0, 500.0)),
            "stg_av",
            "`guidance_timesteps` .*; use 1.0",
        ),
        (PassSettings(8, None, 1, 1, 1, (3,)), "stg_av", r"`skip_block_list` contains \[3\].*use 2"),
        (PassSettings(8, None, 1, 1, 1, ((1,), (2,))), "stg_av", "`skip_block_list` is a list"),
        (PassSettings(8), "attention", "stg_mode"),
        (PassSettings(8, guidance_lookup="round"), "stg_av", "guidance_lookup"),
        (PassSettings(8, None, 1, 1, 1.5, (0,)), "stg_av", "rescaling_scale"),
        (PassSettings(8, stg_scale=1), "stg_av", "names no blocks"),
        (PassSettings(8, guidance_scale="3"), "stg_av", "`guidance_scale` has to be a finite number"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, mode, message):
    with pytest.raises(ValueError, match=message):
        pass_guiders(settings, mode, 3)


@pytest.mark.parametrize("blocks", [1, "a", [1.5], ["a"], [True], [[0], 1.5]])
def test_blocks_that_are_no_whole_numbers_are_named(blocks):
    with pytest.raises(ValueError, match="`skip_block_list` has to be a list of whole numbers"):
        pass_guiders(PassSettings(stg_scale=1.0, skip_block_list=blocks), "attention_values", 3)


def test_blocks_that_are_not_perturbed_need_not_be_there():
    assert not pass_guiders(PRESETS["ltxv-2b-0.9.8-distilled"].first_pass, "attention_values", 28).video.is_guided
