"""Single sampler steps: golden vectors, hand-computed values and refused input."""

import math
import re

import pytest
import torch

from ltx2_diffusers.sampling import steppers
from tests.golden_data import assert_within, load_json, load_tensors

STEPS = load_tensors("sampling/steps.safetensors")
NEWEST = load_tensors("sampling/steps_newest.safetensors")
COEFFICIENTS = next(iter(load_json("sampling/res2s_coefficients.json").values()))
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def close(result: torch.Tensor, expected: torch.Tensor) -> None:
    assert_within(result, expected, "sampling")


def number(key: str, name: str, default: float | None = None) -> float | None:
    found = re.search(rf"{name}(\d+(?:\.\d+)?)", key)
    return float(found.group(1)) if found else default


def levels(table: dict[str, torch.Tensor], key: str) -> list[float]:
    index = int(number(key, "/step"))
    return table["sigmas"][index : index + 2].tolist()


@pytest.mark.parametrize("key", [key for key in STEPS if key.startswith("euler/")])
def test_euler_steps_match_bit_for_bit(key):
    dtype = DTYPES[key.split("/")[1]]
    result = steppers.euler_step(STEPS["sample"].to(dtype), STEPS["denoised"].to(dtype), *levels(STEPS, key))
    assert result.dtype == dtype
    assert torch.equal(result.float(), STEPS[key])


@pytest.mark.parametrize("suffix", ["", "_bf16"])
def test_velocities_and_blends_match_bit_for_bit(suffix):
    dtype = DTYPES[suffix.strip("_") or "f32"]
    sample, denoised, clean = (STEPS[name].to(dtype) for name in ("sample", "denoised", "clean"))
    velocity = steppers.to_velocity(sample, 0.7, denoised)
    assert torch.equal(velocity.float(), STEPS[f"to_velocity/sigma0.7{suffix}"])
    blend = steppers.post_process(denoised, STEPS["mask"], clean)
    assert torch.equal(blend.float(), STEPS[f"post_process{suffix}"])


def test_clean_samples_from_velocities():
    sample, velocity = STEPS["sample"], STEPS["velocity"]
    close(steppers.to_denoised(sample, velocity, 0.7), STEPS["to_denoised/sigma0.7"])
    per_token = STEPS["per_token_timesteps"]
    close(steppers.to_denoised(sample, velocity, per_token), STEPS["to_denoised/per_token"])
    close(steppers.to_denoised(sample, steppers.to_velocity(sample, 0.3, velocity), 0.3), velocity)


@pytest.mark.parametrize("key", [key for key in NEWEST if key.startswith("euler_ancestral/")])
def test_ancestral_steps_match_the_golden_vectors(key):
    options = {"eta": number(key, "eta"), "s_noise": number(key, "snoise", 1.0)}
    result = steppers.euler_ancestral_step(
        NEWEST["sample"], NEWEST["denoised"], *levels(NEWEST, key), NEWEST["noise"], **options
    )
    close(result, NEWEST[key])


@pytest.mark.parametrize("key", [key for key in NEWEST if key.startswith("euler_cfg_pp/")])
def test_cfg_pp_steps_match_the_golden_vectors(key):
    predictions = NEWEST["denoised"], NEWEST["uncond_denoised"]
    result = steppers.euler_cfg_pp_step(
        NEWEST["sample"], *predictions, *levels(NEWEST, key), NEWEST["noise"], eta=number(key, "eta")
    )
    close(result, NEWEST[key])


@pytest.mark.parametrize("key", [key for key in NEWEST if key.startswith("res2s_step/")])
def test_sde_steps_match_the_golden_vectors(key):
    anchor, target, noise = (NEWEST[name].double() for name in ("sample", "denoised", "noise"))
    close(steppers.sde_step(anchor, target, *levels(NEWEST, key), number(key, "eta"), noise), NEWEST[key])


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.5, 1.0])
def test_sde_coefficients_match_the_golden_vectors(eta):
    result = steppers.sde_coefficients(NEWEST["sigmas"][1:].double(), eta)
    for name, value in zip(("alpha_ratio", "sigma_down", "sigma_up"), result):
        close(value, NEWEST[f"sde_coeff/eta{eta}/{name}"])


def test_sde_coefficients_keep_the_signal_and_the_variance():
    alpha, down, up = steppers.sde_coefficients(0.6, 0.5)
    assert float(alpha * (1 - down)) == pytest.approx(0.4)
    assert float((alpha * down) ** 2 + up**2) == pytest.approx(0.36)


@pytest.mark.parametrize("row", COEFFICIENTS, ids=lambda row: f"h{row[0]}")
def test_res2s_coefficients_match_the_golden_values(row):
    h = row[0]
    assert [*steppers.res2s_coefficients(h), steppers.phi1(-h), steppers.phi2(-h)] == pytest.approx(row[1:], abs=1e-9)


def test_res2s_weights_add_up_to_a_first_order_step():
    for h in (0.01, 0.5, 3.0):
        _, b1, b2 = steppers.res2s_coefficients(h)
        assert h * (b1 + b2) == pytest.approx(1.0 - math.exp(-h))


def test_noise_normalisation_matches_the_golden_vector():
    noise = load_tensors("sampling/res2s_noise.safetensors")
    close(steppers.normalize_noise(noise["raw"]), noise["normalized"])


def test_gradient_estimation_by_hand():
    sample, denoised, previous = torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([0.25])
    # velocity (1 - 0.5) / 0.5 = 1, extrapolated 2 * (1 - 0.25) + 0.25 = 1.75, step of -0.2
    moved, velocity = steppers.gradient_estimating_step(sample, denoised, 0.5, 0.3, previous)
    torch.testing.assert_close(moved, torch.tensor([0.65]))
    torch.testing.assert_close(velocity, torch.tensor([1.0]))
    plain, _ = steppers.gradient_estimating_step(sample, denoised, 0.5, 0.3)
    torch.testing.assert_close(plain, steppers.euler_step(sample, denoised, 0.5, 0.3))
    last, velocity = steppers.gradient_estimating_step(sample, denoised, 0.5, 0.0, previous)
    assert torch.equal(last, denoised) and velocity is None


def test_ancestral_step_without_eta_is_euler():
    sample, denoised = STEPS["sample"], STEPS["denoised"]
    close(
        steppers.euler_ancestral_step(sample, denoised, 0.8, 0.5, eta=0.0),
        steppers.euler_step(sample, denoised, 0.8, 0.5),
    )


def test_cfg_pp_with_equal_predictions_and_without_eta_is_euler():
    sample, denoised = STEPS["sample"], STEPS["denoised"]
    close(
        steppers.euler_cfg_pp_step(sample, denoised, denoised, 0.8, 0.5, eta=0.0),
        steppers.euler_step(sample, denoised, 0.8, 0.5),
    )


def test_sde_step_leaves_a_stream_with_a_given_token_alone():
    anchor, target, noise = torch.randn(3, 1, 4, 2).double()
    mask = torch.tensor([0.0, 1.0, 1.0, 1.0]).view(1, 4, 1).double()
    assert steppers.sde_step(anchor, target, mask * 0.8, mask * 0.5, 0.5, noise) is target
    assert steppers.sde_step(anchor, target, 0.8, 0.5, 0.0, noise) is target


def test_impossible_steps_are_refused():
    x = torch.zeros(1)
    with pytest.raises(ValueError, match="sigma is 0"):
        steppers.to_velocity(x, 0.0, x)
    with pytest.raises(ValueError, match="needs noise"):
        steppers.euler_ancestral_step(x, x, 0.8, 0.5)
    with pytest.raises(ValueError, match="needs noise"):
        steppers.euler_cfg_pp_step(x, x, x, 0.8, 0.5)
