"""Phases end by their score, save themselves, and go on where they stopped."""

import json

import pytest
import torch

from examples.mini_world.stages import Ahead, Phase, train
from ltx2_diffusers.training.components import FitOptions
from tests.training.components.test_fit import POINTS, Line


def phases(batches=lambda _: POINTS, **changes) -> list[Phase]:
    first = {"steps": 40, "learning_rate": 0.1, "every": 5, "enough": -0.5}
    return [
        Phase("learn", batches, **first | changes),
        Phase("settle", batches, 6, 0.1, FitOptions(schedule="linear"), every=3),
    ]


def closeness(step):
    return lambda: {"close": -abs(step.weight.item() - 2)}


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_phase_ends_by_its_score_and_a_falling_rate_makes_all_its_steps(tmp_path):
    step = Line()
    train(tmp_path, step, phases(), closeness(step), "close")
    lines = logged(tmp_path)
    ends = [line for line in lines if line["phase"] == "learn"]
    assert [line["steps"] for line in ends] == list(range(5, 5 * len(ends) + 1, 5)) and len(ends) < 8
    assert [line["close"] >= -0.5 for line in ends] == [False] * (len(ends) - 1) + [True]
    assert [(line["phase"], line["steps"]) for line in lines[len(ends) :]] == [("settle", 6)]
    assert not list(tmp_path.glob("*.pt.*")) and not (tmp_path / "learn.pt").exists()


def test_batches_are_made_ahead_by_their_numbers_alone():
    made = []

    def batch(number):
        made.append(number)
        return {"number": number}

    ahead = Ahead(batch)
    assert [ahead(number)["number"] for number in (0, 1, 2, 7, 8, 3)] == [0, 1, 2, 7, 8, 3]
    assert made[:5] == [0, 1, 2, 3, 7]


def test_a_phase_without_a_score_makes_all_its_steps(tmp_path):
    step = Line()
    train(tmp_path, step, phases(steps=12, enough=float("inf"))[:1], closeness(step), "close")
    assert [line["steps"] for line in logged(tmp_path)] == [5, 10, 12]


@pytest.mark.parametrize("stop_at", [7, 12, 18])
def test_a_stopped_training_goes_on_to_the_same_end(tmp_path, stop_at):
    whole = Line()
    train(tmp_path / "whole", whole, phases(), closeness(whole), "close")
    calls = iter(range(10**6))

    def stopping(_: int):
        if next(calls) == stop_at:
            raise KeyboardInterrupt
        return POINTS

    step = Line()
    try:
        train(tmp_path / "parts", step, phases(stopping), closeness(step), "close")
        raise AssertionError("nothing was stopped")
    except KeyboardInterrupt:
        pass
    resumed = Line(weight=77.0)
    train(tmp_path / "parts", resumed, phases(), closeness(resumed), "close")
    assert torch.equal(resumed.weight, whole.weight)


def test_what_is_finished_is_loaded_and_not_run_again(tmp_path):
    step = Line()
    train(tmp_path, step, phases(), closeness(step), "close")

    def refused(number: int):
        raise AssertionError(number)

    again = Line()
    train(tmp_path, again, phases(refused), closeness(again), "close")
    assert torch.equal(again.weight, step.weight)
