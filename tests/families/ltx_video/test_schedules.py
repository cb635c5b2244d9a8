"""Noise levels of a pass against the golden vectors, and what is refused."""

import re

import pytest
import torch

from ltx2_diffusers.families.ltx_video.presets import PassSettings, ScheduleSettings
from ltx2_diffusers.families.ltx_video.schedules import pass_levels
from tests.golden_data import load_tensors

GOLDEN = load_tensors("ltx_video/schedules.safetensors")
LINEAR_QUADRATIC = ScheduleSettings("LinearQuadratic")


def settings_of(key: str) -> tuple[PassSettings, ScheduleSettings, int]:
    """What the key of a golden list stands for."""
    if key.startswith("explicit/"):
        return PassSettings(timesteps=tuple(map(float, key.split("/")[1].split("_")))), LINEAR_QUADRATIC, 1
    steps = int(re.search(r"steps(\d+)", key)[1])
    if key.startswith("skip/"):
        first, last = map(int, re.search(r"initial(\d+)_final(\d+)", key).groups())
        skipped = {"skip_initial_inference_steps": first, "skip_final_inference_steps": last}
        return PassSettings(steps, **skipped), LINEAR_QUADRATIC, 1
    sampler = (
        "LinearQuadratic" if key.startswith("linear") else "Constant" if key.startswith("constant") else "Uniform"
    )
    shifting = "SD3" if "_sd3" in key else "SimpleDiffusion" if "_simple" in key else None
    terminal = 0.1 if "terminal0.1" in key else None
    shift = 1.5 if sampler == "Constant" else None
    tokens = re.search(r"tokens(\d+)", key)
    schedule = ScheduleSettings(sampler, shifting, 1024, terminal, shift)
    return PassSettings(steps), schedule, int(tokens[1]) if tokens else 1


@pytest.mark.parametrize("key", sorted(GOLDEN))
def test_levels_are_the_originals(key):
    levels = torch.from_numpy(pass_levels(*settings_of(key))).float()
    torch.testing.assert_close(levels, GOLDEN[key], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (PassSettings(), "takes `num_inference_steps`"),
        (PassSettings(8, (1.0, 0.5)), "takes `num_inference_steps`"),
        (PassSettings(8, skip_initial_inference_steps=5, skip_final_inference_steps=3), "skip at most 7"),
        (PassSettings(8, skip_initial_inference_steps=-1), "`skip_initial_inference_steps`.*use 0"),
        (PassSettings(timesteps=(1.0, 0.5), skip_final_inference_steps=1), "shorten the list"),
        (PassSettings(timesteps=(0.5, 1.0)), "fall strictly"),
    ],
)
def test_a_pass_without_steps_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        pass_levels(settings, LINEAR_QUADRATIC, 1)
