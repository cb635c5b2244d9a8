import statistics

import pytest
import torch

from ltx2_diffusers.training.objective.noise_levels import LEVELS, RowDraws, TorchDraws, noise_levels, shifted_mean
from tests.golden_data import load_json
from tests.training.drawing import GlobalDraws

GOLDEN = load_json("training/timestep_samplers.json")
FORMS = {"reference_2_0": "shifted_logit_normal_2_0", "newest": "shifted_logit_normal_newest"}


def golden_levels(form: str, case: dict):
    mode = "uniform" if case.get("sampler") == "uniform" else FORMS[form]
    return LEVELS[mode](**case.get("params", {}))


@pytest.mark.parametrize("form", FORMS)
def test_the_mean_follows_the_number_of_tokens(form):
    for tokens, mean in GOLDEN[form]["shift"].items():
        assert shifted_mean(int(tokens)) == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_levels_are_those_of_the_reference(form):
    for case in GOLDEN[form]["exact"]:
        torch.manual_seed(case["seed"])
        levels = golden_levels(form, case).sample(case["batch_size"], case["seq_length"], GlobalDraws())
        torch.testing.assert_close(levels, torch.tensor(case["values"]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_levels_are_distributed_as_in_the_reference(form):
    for case in GOLDEN[form]["stats"]:
        torch.manual_seed(case["seed"])
        levels = golden_levels(form, case).sample(case["n"], case["seq_length"], GlobalDraws())
        ordered = levels.sort().values
        assert levels.double().mean().item() == pytest.approx(case["mean"], abs=1e-4)
        assert levels.double().std().item() == pytest.approx(case["std"], abs=1e-4)
        for share, value in case["quantiles"].items():
            assert ordered[int(float(share) * case["n"])].item() == pytest.approx(value, abs=1e-4)
        counts = torch.histc(levels, 10, 0, 1)
        assert (counts - torch.tensor(case["hist10"])).abs().max() <= 20


def test_rows_draw_alone_what_they_draw_together():
    together = RowDraws(7, 3, [0, 1, 2])
    alone = [RowDraws(7, 3, [row]) for row in (0, 1, 2)]
    assert torch.equal(together.normal((3, 5)), torch.cat([draws.normal((1, 5)) for draws in alone]))
    assert torch.equal(together.uniform((3,)), torch.cat([draws.uniform((1,)) for draws in alone]))
    assert {together.once()} == {draws.once() for draws in alone}


def test_steps_rows_and_seeds_draw_other_numbers():
    drawn = [RowDraws(*place).normal((1, 4)) for place in [(7, 3, [0]), (7, 3, [1]), (7, 4, [0]), (8, 3, [0])]]
    assert len({tuple(row.flatten().tolist()) for row in drawn}) == 4


def test_draws_are_normal_and_uniform():
    draws = RowDraws(0, 0, [0])
    normal, uniform = draws.normal((1, 20000)), draws.uniform((1, 20000))
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1) < 0.03
    assert abs(uniform.mean() - 0.5) < 0.01
    assert uniform.min() >= 0
    assert uniform.max() < 1


def test_the_form_follows_the_generation():
    assert noise_levels("shifted_logit_normal", {}, "2.0") == LEVELS["shifted_logit_normal_2_0"]()
    assert noise_levels("shifted_logit_normal", {"eps": 0.01}, "2.3").eps == 0.01
    assert noise_levels("uniform", {"min_value": 0.5}, "2.0").min_value == 0.5


@pytest.mark.parametrize(
    "mode, params, message",
    [
        ("cosine", {}, "timestep_sampling_mode"),
        ("uniform", {"std": 1.0}, "min_value, max_value, not 'std'"),
        ("uniform", {"min_value": 0.5, "max_value": 0.5}, "min_value and max_value"),
        ("shifted_logit_normal", {"std": 0.0}, "std has to be positive"),
        ("shifted_logit_normal_newest", {"uniform_prob": 1.5}, "uniform_prob"),
    ],
)
def test_impossible_settings_are_refused(mode, params, message):
    with pytest.raises(ValueError, match=message):
        noise_levels(mode, params, "2.0")


def test_uniform_levels_have_the_mean_of_their_bounds():
    levels = LEVELS["uniform"](0.2, 0.6).sample(4000, 1, GlobalDraws())
    assert statistics.fmean(levels.tolist()) == pytest.approx(0.4, abs=0.02)
    assert levels.min() >= 0.2
    assert levels.max() <= 0.6


def test_global_numbers_follow_from_torchs_seed():
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        draws = TorchDraws()
        drawn.append([draws.normal((2, 3)), draws.uniform((2,)), torch.tensor(draws.once())])
    assert all(torch.equal(one, other) for one, other in zip(*drawn))
    assert drawn[0][0].shape == (2, 3) and ((drawn[0][1] >= 0) & (drawn[0][1] < 1)).all()
