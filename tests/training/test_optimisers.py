"""Optimisers and learning-rate schedules."""

import sys
from types import SimpleNamespace

import pytest
import torch

from ltx2_diffusers.training.optimisers import learning_rate, make_optimizer, make_schedule
from tests.golden_data import load_json

DEFAULTS = {
    "learning_rate": 1e-3,
    "steps": 20,
    "optimizer_type": "adamw",
    "optimizer_params": {},
    "scheduler_type": "linear",
    "scheduler_params": {},
    "warmup_steps": 0,
}


def section(**values) -> SimpleNamespace:
    return SimpleNamespace(**DEFAULTS | values)


def rates(options: SimpleNamespace, count: int) -> list[float]:
    """The rates of the first steps, read from the optimiser."""
    optimizer = make_optimizer(options, [torch.nn.Parameter(torch.zeros(1))])
    schedule, found = make_schedule(optimizer, options), []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    "case", load_json("training/lr_schedules.json"), ids=lambda c: f"{c['scheduler_type']} {c['scheduler_params']}"
)
def test_schedules_are_those_of_the_reference(case):
    expected = case.pop("lr_after_k_steps")
    assert rates(section(**case), len(expected)) == pytest.approx(expected, abs=1e-9, rel=0)


def test_a_warm_up_stands_in_front_of_the_schedule():
    options = section(warmup_steps=4, steps=14)
    found = rates(options, 15)
    assert found[:4] == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4])
    # Ten steps remain, over which the rate falls to a tenth.
    assert found[4:] == pytest.approx([1e-3 * (1 - 0.09 * k) for k in range(11)])


def test_a_schedule_goes_on_where_it_was():
    options = section(scheduler_type="cosine_with_restarts", warmup_steps=2)
    optimizer = make_optimizer(options, [torch.nn.Parameter(torch.zeros(1))])
    schedule = make_schedule(optimizer, options)
    for _ in range(7):
        optimizer.step()
        schedule.step()
    again = make_optimizer(options, [torch.nn.Parameter(torch.zeros(1))])
    later = make_schedule(again, options)
    again.load_state_dict(optimizer.state_dict())
    later.load_state_dict(schedule.state_dict())
    assert later.get_last_lr() == schedule.get_last_lr() == [1e-3 * learning_rate(options, 7)]


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"scheduler_params": {"end_facto": 0.1}},
            "'end_facto', which 'linear' does not take: it takes start_factor, end_factor; did you mean 'end_factor'",
        ),
        ({"scheduler_type": "constant", "scheduler_params": {"power": 1}}, "'constant' does not take: it takes none"),
        ({"scheduler_type": "cosin"}, "is 'cosin', which is none; use 'cosine'"),
        (
            {"scheduler_type": "step", "scheduler_params": {"step_size": 0}},
            "step_size` has to be a whole number from 1 on but is 0",
        ),
        ({"scheduler_params": {"end_factor": "much"}}, "end_factor` has to be a number from 0 on but is 'much'"),
        ({"warmup_steps": 20}, "warmup_steps` has to be from 0 to below the 20 steps but is 20; use 2"),
    ],
)
def test_impossible_schedules_are_refused(values, message):
    options = section(**values)
    with pytest.raises(ValueError, match=message):
        make_schedule(make_optimizer(options, [torch.nn.Parameter(torch.zeros(1))]), options)


def test_an_optimiser_has_the_defaults_of_its_library():
    group = make_optimizer(section(), [torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-3, (0.9, 0.999), 1e-8, 0.01)
    given = section(optimizer_params={"weight_decay": 0.5, "betas": [0.8, 0.9]})
    group = make_optimizer(given, [torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.9), 0.5)


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"optimizer_params": {"weigth_decay": 0.1}},
            "'weigth_decay', which 'adamw' does not take.*did you mean 'weight_decay'",
        ),
        ({"optimizer_params": {"lr": 0.1}}, "'lr', which 'adamw' does not take"),
        ({"optimizer_type": "adam8bit"}, "use 'adamw8bit'"),
    ],
)
def test_unknown_optimisers_and_options_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(section(**values), [torch.nn.Parameter(torch.zeros(1))])


def test_something_has_to_be_trained():
    with pytest.raises(ValueError, match="nothing is trained"):
        make_optimizer(section(), [torch.nn.Parameter(torch.zeros(1), requires_grad=False)])


def test_eight_bit_moments_train_as_well():
    """The moments are quantised in blocks of a large parameter, and the parameter follows the exact optimiser."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    goal, ends = torch.randn(64, 128), []
    for kind in ("adamw", "adamw8bit"):
        weight = torch.nn.Parameter(torch.zeros(64, 128))
        optimizer = make_optimizer(section(optimizer_type=kind, learning_rate=0.05), [weight])
        for _ in range(20):
            optimizer.zero_grad()
            (weight - goal).square().sum().backward()
            optimizer.step()
        ends.append(weight.detach().clone())
    assert optimizer.state[weight]["state1"].dtype == torch.uint8
    assert (ends[1] - ends[0]).abs().mean() < 0.03 * ends[0].abs().mean()
    assert (ends[0] - goal).abs().mean() < goal.abs().mean() / 2


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ImportError, match="needs bitsandbytes; install it"):
        make_optimizer(section(optimizer_type="adamw8bit"), [torch.nn.Parameter(torch.zeros(1))])
