"""`LTX2Scheduler`: parity with diffusers' FlowMatchEuler, its own options, files and steps."""

import json

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ltx2_diffusers.schedulers.from_config import shifted
from ltx2_diffusers.schedulers.scheduling_ltx2 import LTX2Scheduler, is_ltx2_scheduler_config
from ltx2_diffusers.schedulers.sigmas import DISTILLED_SIGMAS, beta_sigmas, linear_quadratic_sigmas, ltx2_sigmas
from tests.golden_data import assert_within, load_tensors

FULL = {
    "use_dynamic_shifting": True,
    "base_shift": 0.95,
    "max_shift": 2.05,
    "base_image_seq_len": 1024,
    "max_image_seq_len": 4096,
    "shift_terminal": 0.1,
}
DISTILLED = {**FULL, "use_dynamic_shifting": False, "shift_terminal": None}
CONFIGS = {
    "full": FULL,
    "distilled": DISTILLED,
    "no_terminal": {**FULL, "shift_terminal": None},
    "static_shift": {**DISTILLED, "shift": 3.0},
    "static_terminal": {**DISTILLED, "shift": 3.0, "shift_terminal": 0.05},
    "linear": {**FULL, "time_shift_type": "linear"},
    "karras": {**FULL, "use_karras_sigmas": True},
    "exponential": {**FULL, "use_exponential_sigmas": True},
    "beta": {**FULL, "use_beta_sigmas": True},
    "defaults": {},
}


def upstream_sigmas(scheduler: FlowMatchEulerDiscreteScheduler, steps: int, tokens: int) -> torch.Tensor:
    """What diffusers' LTX-2 pipelines make of a scheduler: an even list, shifted by the token count."""
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = slope * tokens + config.base_shift - slope * config.base_image_seq_len
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return scheduler.sigmas


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("tokens", [1536, 6144])
def test_actual_tokens_give_the_sigmas_of_diffusers(name, tokens):
    upstream = FlowMatchEulerDiscreteScheduler(**CONFIGS[name])
    ours = LTX2Scheduler.from_config(upstream.config, shift_tokens="actual")
    expected = upstream_sigmas(upstream, 12, tokens)
    ours.set_timesteps(12, num_tokens=tokens)
    torch.testing.assert_close(ours.sigmas, expected, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(ours.timesteps, upstream.timesteps, rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_sigmas_with_mu_are_shifted_like_in_diffusers(name):
    upstream = FlowMatchEulerDiscreteScheduler(**CONFIGS[name])
    ours = LTX2Scheduler.from_config(upstream.config)
    for scheduler in (upstream, ours):
        scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.3], mu=1.4)
    torch.testing.assert_close(ours.sigmas, upstream.sigmas, rtol=1e-5, atol=2e-6)


def test_default_is_the_fixed_anchor_at_every_size():
    scheduler = LTX2Scheduler()
    for tokens in (None, 1536, 24576):
        scheduler.set_timesteps(8, num_tokens=tokens)
        expected = load_tensors("sampling/schedules.safetensors")["ltx2/default/steps8"]
        assert_within(scheduler.sigmas, expected, "sampling")


@pytest.mark.parametrize(("shift_tokens", "num_tokens"), [("actual", 6144), (6144, 1536), (6144, None)])
def test_shift_tokens_choose_the_count(shift_tokens, num_tokens):
    scheduler = LTX2Scheduler(shift_tokens=shift_tokens)
    scheduler.set_timesteps(8, num_tokens=num_tokens)
    torch.testing.assert_close(scheduler.sigmas, ltx2_sigmas(8, 6144))


def test_other_schedules_are_chosen_by_config():
    quadratic = LTX2Scheduler(schedule="linear_quadratic", threshold_noise=0.05, linear_steps=3)
    quadratic.set_timesteps(9, num_tokens=100)
    assert torch.equal(quadratic.sigmas, linear_quadratic_sigmas(9, 0.05, 3))
    beta = LTX2Scheduler(schedule="beta", beta_alpha=0.8, beta_beta=0.5)
    beta.set_timesteps(9)
    assert torch.equal(beta.sigmas, beta_sigmas(9, 0.8, 0.5))


def test_explicit_sigmas_are_exact_and_differ_from_diffusers():
    scheduler = LTX2Scheduler.from_config(FlowMatchEulerDiscreteScheduler(**FULL).config)
    for given in (DISTILLED_SIGMAS, DISTILLED_SIGMAS[:-1]):
        scheduler.set_timesteps(sigmas=given)
        assert torch.equal(scheduler.sigmas, torch.tensor(DISTILLED_SIGMAS))
        assert torch.equal(scheduler.timesteps, torch.tensor(DISTILLED_SIGMAS[:-1]) * 1000)
        assert scheduler.num_inference_steps == 8
    upstream = FlowMatchEulerDiscreteScheduler(**FULL)
    upstream.set_timesteps(sigmas=list(DISTILLED_SIGMAS[:-1]), mu=2.05)
    assert (upstream.sigmas - scheduler.sigmas).abs().max() > 0.1


def test_explicit_timesteps_are_exact():
    scheduler = LTX2Scheduler()
    scheduler.set_timesteps(timesteps=[1000.0, 500.0, 250.0])
    assert scheduler.sigmas.tolist() == [1.0, 0.5, 0.25, 0.0]
    scheduler.set_timesteps(timesteps=[1000.0, 600.0], sigmas=[1.0, 0.5])
    assert scheduler.sigmas.tolist() == [1.0, 0.5, 0.0]
    assert scheduler.timesteps.tolist() == [1000.0, 600.0]


def test_one_step_has_no_nan():
    scheduler = LTX2Scheduler()
    scheduler.set_timesteps(1)
    assert scheduler.sigmas.tolist() == [1.0, 0.0]
    scheduler.set_timesteps(sigmas=[1.0], mu=2.05)
    assert scheduler.sigmas.tolist() == [1.0, 0.0]


def test_config_keys_missing_in_a_flow_match_file_take_its_defaults(tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"}))
    ours = LTX2Scheduler.from_pretrained(tmp_path)
    upstream = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    for key in ("use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len", "shift_terminal"):
        assert ours.config[key] == upstream.config[key]
    assert not is_ltx2_scheduler_config(upstream.config) and is_ltx2_scheduler_config(ours.config)


def test_saved_scheduler_is_read_by_diffusers_and_restored_by_us(tmp_path):
    LTX2Scheduler(shift_tokens=9000, schedule="beta", beta_alpha=0.7).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == "FlowMatchEulerDiscreteScheduler" and is_ltx2_scheduler_config(saved)
    upstream = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    assert upstream.config.use_dynamic_shifting and upstream.config.shift_terminal == 0.1
    upstream.save_pretrained(tmp_path / "again")
    for folder in (tmp_path, tmp_path / "again"):
        restored = LTX2Scheduler.from_pretrained(folder)
        assert restored.config.shift_tokens == 9000 and restored.config.beta_alpha == 0.7
        assert restored.config.schedule == "beta"


def test_in_memory_configs_travel_both_ways():
    ours = LTX2Scheduler(shift_tokens="actual")
    assert LTX2Scheduler.from_config(ours.config).config.shift_tokens == "actual"
    upstream = FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    torch.testing.assert_close(upstream_sigmas(upstream, 8, 2048), ltx2_sigmas(8, 2048))


def test_steps_match_diffusers_and_reach_the_prediction():
    torch.manual_seed(0)
    sample, clean = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    upstream = FlowMatchEulerDiscreteScheduler(**DISTILLED)
    ours = LTX2Scheduler()
    upstream.set_timesteps(sigmas=[0.9, 0.6, 0.2])
    ours.set_timesteps(sigmas=[0.9, 0.6, 0.2])
    states = [sample, sample]
    for timestep in ours.timesteps:
        velocities = [(state - clean) / (timestep / 1000) for state in states]
        pairs = zip((upstream, ours), velocities, states)
        states = [scheduler.step(velocity, timestep, state)[0] for scheduler, velocity, state in pairs]
        torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(states[1], clean, rtol=0, atol=1e-6)


def test_steps_match_those_of_ltx_video():
    golden = load_tensors("sampling/legacy_ltx_video.safetensors")
    scheduler = LTX2Scheduler()
    scheduler.set_timesteps(sigmas=golden["step/timesteps"])
    timestep = scheduler.timesteps[int((golden["step/timesteps"] - 0.975).abs().argmin())]
    stepped = scheduler.step(golden["step/velocity"], timestep, golden["step/sample"]).prev_sample
    assert_within(stepped, golden["step/global_t0.975"], "sampling")


def test_step_computes_in_float32_and_returns_the_dtype_of_the_velocity():
    scheduler = LTX2Scheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.75])
    sample, velocity = torch.randn(3, 4).bfloat16(), torch.randn(3, 4).bfloat16()
    stepped = scheduler.step(velocity, scheduler.timesteps[0], sample).prev_sample
    assert stepped.dtype == torch.bfloat16
    assert torch.equal(stepped, (sample.float() - 0.25 * velocity.float()).bfloat16())


def test_begin_index_and_noise_scaling_follow_diffusers():
    torch.manual_seed(0)
    sample, noise = torch.randn(2, 3), torch.randn(2, 3)
    upstream, ours = FlowMatchEulerDiscreteScheduler(**DISTILLED), LTX2Scheduler()
    for scheduler in (upstream, ours):
        scheduler.set_timesteps(sigmas=[0.8, 0.5, 0.25])
    at = ours.timesteps[[2, 1]]
    torch.testing.assert_close(ours.scale_noise(sample, at, noise), upstream.scale_noise(sample, at, noise))
    torch.testing.assert_close(ours.add_noise(sample, noise, at), upstream.scale_noise(sample, at, noise))
    for scheduler in (upstream, ours):
        scheduler.set_begin_index(1)
    torch.testing.assert_close(ours.scale_noise(sample, at, noise), upstream.scale_noise(sample, at, noise))
    stepped = [s.step(noise, s.timesteps[1], sample, return_dict=False)[0] for s in (upstream, ours)]
    torch.testing.assert_close(stepped[1], stepped[0])
    torch.testing.assert_close(ours.scale_noise(sample, at, noise), upstream.scale_noise(sample, at, noise))


def test_execute_has_the_meaning_of_ltx_core():
    latent = torch.zeros(1, 128, 16, 16, 24)
    torch.testing.assert_close(LTX2Scheduler().execute(20, latent), ltx2_sigmas(20, 6144))
    torch.testing.assert_close(LTX2Scheduler().execute(20), ltx2_sigmas(20, 4096))
    torch.testing.assert_close(LTX2Scheduler.execute(20, stretch=False), ltx2_sigmas(20, stretch=False))
    with pytest.raises(ValueError, match=r"\[B, C, F, h, w\]"):
        LTX2Scheduler.execute(20, torch.zeros(1, 6144, 128))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"invert_sigmas": True}, "invert_sigmas"),
        ({"stochastic_sampling": True}, "euler_ancestral"),
        ({"time_shift_type": "cubic"}, "time_shift_type"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "At most one"),
        ({"schedule": "cosine"}, "linear_quadratic"),
        ({"shift_tokens": "real"}, "shift_tokens"),
        ({"shift_tokens": 0}, "shift_tokens"),
    ],
)
def test_unsupported_configs_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        LTX2Scheduler(**config)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        ({}, {}, "num_inference_steps, sigmas or timesteps"),
        ({}, {"num_inference_steps": 3, "sigmas": [1.0, 0.5]}, "has 2 steps"),
        ({}, {"sigmas": [1.0, 0.5], "timesteps": [1000.0]}, "equal length"),
        ({}, {"timesteps": [2000.0, 1000.0]}, "timesteps / 1000 must lie"),
        ({"shift_tokens": "actual"}, {"num_inference_steps": 3}, "num_tokens"),
        ({"schedule": "beta"}, {"num_inference_steps": 3, "mu": 1.0}, "has no shift"),
    ],
)
def test_unusable_requests_are_refused(config, arguments, message):
    with pytest.raises(ValueError, match=message):
        LTX2Scheduler(**config).set_timesteps(**arguments)


def test_wrong_timesteps_in_step_are_refused():
    scheduler = LTX2Scheduler()
    scheduler.set_timesteps(sigmas=[1.0, 0.5])
    x = torch.zeros(1)
    with pytest.raises(ValueError, match="integer 1"):
        scheduler.step(x, 1, x)
    with pytest.raises(ValueError, match="nearest is 500"):
        scheduler.step(x, 499.0, x)
    for timestep in scheduler.timesteps:
        scheduler.step(x, timestep, x)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(x, scheduler.timesteps[0], x)


def test_shifted_is_a_pure_function_of_the_config():
    given = np.array([1.0, 0.5])
    shifted(LTX2Scheduler().config, given, 2.05)
    np.testing.assert_array_equal(given, [1.0, 0.5])
