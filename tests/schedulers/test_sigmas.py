"""Sigma schedules: hand-computed values, golden vectors and refused input."""

import re

import numpy as np
import pytest
import torch

from ltx2_diffusers.schedulers import sigmas as schedules
from tests.golden_data import assert_within, load_tensors

GOLDEN = load_tensors("sampling/schedules.safetensors")
LEGACY = load_tensors("sampling/legacy_ltx_video.safetensors")


def number(key: str, name: str, kind: type = float, default: float | None = None) -> float | None:
    found = re.search(rf"{name}(\d+(?:\.\d+)?)", key)
    return kind(found.group(1)) if found else default


def row_of(key: str) -> str:
    return "schedule of more than 8000 tokens" if number(key, "tokens", int, 0) > 8000 else "sampling"


def schedule_of_key(key: str) -> torch.Tensor:
    steps = number(key, "steps", int)
    if key.startswith("distilled"):
        return torch.tensor(
            {"distilled/stage1": schedules.DISTILLED_SIGMAS}.get(key, schedules.STAGE_2_DISTILLED_SIGMAS)
        )
    if key.startswith("beta"):
        return schedules.beta_sigmas(steps, number(key, "_a"), number(key, "_b"))
    if key.startswith("linear_quadratic"):
        threshold = number(key, "threshold", default=0.025)
        return schedules.linear_quadratic_sigmas(steps, threshold, number(key, "_linear", int))
    own_shift = "shift0.5_1.5" in key
    return schedules.ltx2_sigmas(
        steps,
        num_tokens=number(key, "tokens", int, 4096),
        max_shift=1.5 if own_shift else 2.05,
        base_shift=0.5 if own_shift else 0.95,
        stretch="nostretch" not in key,
        terminal=number(key, "terminal", default=0.1),
    )


@pytest.mark.parametrize("key", sorted(GOLDEN))
def test_schedules_match_the_golden_vectors(key):
    assert_within(schedule_of_key(key), GOLDEN[key], row_of(key))


@pytest.mark.parametrize("key", sorted(key for key in LEGACY if key.startswith(("linear_quadratic", "uniform_sd3"))))
def test_schedules_match_those_of_ltx_video(key):
    steps = number(key, "steps", int)
    if key.startswith("linear_quadratic"):
        sigmas = schedules.linear_quadratic_sigmas(steps)
    else:
        sigmas = schedules.ltx2_sigmas(steps, number(key, "tokens", int), stretch="noterminal" not in key)
    assert_within(sigmas[:-1], LEGACY[key], row_of(key))


def test_eight_linear_quadratic_steps_are_the_distilled_schedule_bit_for_bit():
    assert torch.equal(schedules.linear_quadratic_sigmas(8), torch.tensor(schedules.DISTILLED_SIGMAS))


def test_shift_is_a_line_through_both_anchors():
    assert schedules.shift_for_tokens(1024) == pytest.approx(0.95)
    assert schedules.shift_for_tokens(4096) == pytest.approx(2.05)
    assert schedules.shift_for_tokens(6144) == pytest.approx(2.7833333)
    assert schedules.shift_for_tokens(24576) == pytest.approx(9.3833333)


def test_time_shift_by_hand():
    half = np.array([1.0, 0.5])
    np.testing.assert_allclose(schedules.time_shift(half, np.log(3.0)), [1.0, 0.75])
    np.testing.assert_allclose(schedules.time_shift(half, 3.0, "linear"), [1.0, 0.75])


def test_stretch_by_hand():
    np.testing.assert_allclose(schedules.stretch_to_terminal(np.array([1.0, 0.8, 0.6]), 0.2), [1.0, 0.6, 0.2])


def test_one_step_goes_from_one_to_zero():
    expected = torch.tensor([1.0, 0.0])
    assert torch.equal(schedules.ltx2_sigmas(1), expected)
    assert torch.equal(schedules.linear_quadratic_sigmas(1), expected)
    assert torch.equal(schedules.beta_sigmas(1), expected)


@pytest.mark.parametrize("tokens", [16, 4096, 24576, 60000])
def test_schedules_fall_strictly_at_every_size(tokens):
    sigmas = schedules.ltx2_sigmas(50, tokens)
    assert sigmas[0] == 1.0 and sigmas[-1] == 0.0
    assert (sigmas.diff() < 0).all()


def test_respacings_keep_length_and_end_points():
    sigmas = np.array([1.0, 0.9, 0.7, 0.1])
    for respace in (schedules.respace_karras, schedules.respace_exponential, schedules.respace_beta):
        respaced = respace(sigmas)
        np.testing.assert_allclose(respaced[[0, -1]], [1.0, 0.1])
        assert len(respaced) == 4 and (np.diff(respaced) < 0).all()
    np.testing.assert_allclose(schedules.respace_exponential(np.array([1.0, 0.5, 0.01])), [1.0, 0.1, 0.01])


@pytest.mark.parametrize("given", [[1.0, 0.5], [1.0, 0.5, 0.0], (1.0, 0.5), torch.tensor([1.0, 0.5, 0.0])])
def test_explicit_lists_lose_only_their_trailing_zero(given):
    np.testing.assert_array_equal(schedules.check_sigmas(given), [1.0, 0.5])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0, 0.5, 0.5], "fall strictly, got 0.5 then 0.5 at position 2"),
        ([0.5, 1.0], "fall strictly"),
        ([1000.0, 500.0], "values up to 1000 are timesteps"),
        ([1.0, 0.0, 0.5], "got 0 at position 1"),
        ([1.0, float("nan")], "got nan at position 1"),
        ([0.0], "at least one value above 0"),
        ([], "at least one value above 0"),
        ([[1.0, 0.5]], "flat list"),
    ],
)
def test_explicit_lists_are_refused_with_the_reason(given, message):
    with pytest.raises(ValueError, match=message):
        schedules.check_sigmas(given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.ltx2_sigmas(0), "at least 1"),
        (lambda: schedules.ltx2_sigmas(2.5), "whole number"),
        (lambda: schedules.ltx2_sigmas(4, num_tokens=0), "num_tokens"),
        (lambda: schedules.ltx2_sigmas(4, terminal=1.0), "terminal"),
        (lambda: schedules.linear_quadratic_sigmas(4, linear_steps=5), "use 4"),
        (lambda: schedules.linear_quadratic_sigmas(4, threshold_noise=0.0), "threshold_noise"),
        (lambda: schedules.beta_sigmas(4, alpha=0.0), "alpha"),
    ],
)
def test_impossible_schedules_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
