"""Guidance formulas: the reference's numbers, hand-computed ones, per-sample statistics and neutral terms."""

import json
import re
from functools import partial

import pytest
import torch

from ltx2_diffusers.guidance import (
    CFGGuider,
    CFGStarRescalingGuider,
    LtxAPGGuider,
    MultiModalGuider,
    MultiModalGuiderParams,
    StatefulAPGGuider,
    STGGuider,
    params_at_sigma,
)
from ltx2_diffusers.guidance.guiders import projection_coefficient

from ..golden_data import assert_within, load_json, load_metadata, load_tensors

randn = partial(torch.randn, generator=torch.Generator().manual_seed(0))
FILE = "sampling/guiders.safetensors"
GOLDEN = load_tensors(FILE)
COND, UNCOND, PERTURBED, ISOLATED = (GOLDEN[name] for name in ("cond", "uncond", "perturbed", "isolated"))


def keys(pattern: str) -> list[str]:
    return sorted(key for key in GOLDEN if re.match(pattern, key))


def numbers(key: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", key)]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert_within(actual, expected, "sampling")


@pytest.mark.parametrize("key", keys("(cfg|cfg_star|stg)_delta/"))
def test_simple_deltas(key: str):
    guider = {"cfg_delta": CFGGuider, "cfg_star_delta": CFGStarRescalingGuider, "stg_delta": STGGuider}[
        key.split("/")[0]
    ](*numbers(key))
    close(guider.delta(COND, PERTURBED if "stg" in key else UNCOND), GOLDEN[key])


@pytest.mark.parametrize("key", keys("apg_delta/"))
def test_apg_delta(key: str):
    close(LtxAPGGuider(*numbers(key)).delta(COND, UNCOND), GOLDEN[key])


@pytest.mark.parametrize("name", sorted({key.rsplit("/", 1)[0] for key in keys("stateful_apg/")}))
def test_stateful_apg_delta(name: str):
    momentum, threshold = numbers(name)
    guider = StatefulAPGGuider(2.0, eta=0.5, norm_threshold=threshold, momentum=momentum)
    for call in range(3):
        close(guider.delta(COND * (1 + 0.2 * call), UNCOND - 0.1 * call), GOLDEN[f"{name}/call{call}"])


def test_projection_coefficient():
    found = projection_coefficient(COND, UNCOND)
    assert found.shape == (1, 1, 1)
    close(found.flatten(), GOLDEN["projection_coef/cond_on_uncond"].flatten())


@pytest.mark.parametrize("name", [key.split("/")[1] for key in keys("multimodal/.*params_")])
def test_multimodal(name: str):
    cfg, stg, rescale, modality = GOLDEN[f"multimodal/{name}/params_cfg_stg_rescale_modality"].tolist()
    guider = MultiModalGuider(
        MultiModalGuiderParams(cfg, stg, rescale_scale=round(rescale, 6), modality_scale=modality)
    )
    close(guider.calculate(COND, UNCOND, PERTURBED, ISOLATED), GOLDEN[f"multimodal/{name}/out"])
    needed = (
        UNCOND if guider.do_unconditional_generation() else None,
        PERTURBED if guider.do_perturbed_generation() else None,
        ISOLATED if guider.do_isolated_modality_generation() else None,
    )
    close(guider.calculate(COND, *needed), GOLDEN[f"multimodal/{name}/out"])


def test_multimodal_sum_before_its_statistics_are_split_per_sample():
    """The reference takes one standard deviation over the batch; undoing its factor leaves the sum we both form."""
    inputs = [GOLDEN[f"multimodal/batch2_joint_std/{name}"] for name in ("cond", "uncond", "perturbed", "isolated")]
    params = MultiModalGuiderParams(3.0, 1.0, modality_scale=3.0)
    pred = MultiModalGuider(params).calculate(*inputs)
    factor = 0.7 * inputs[0].std() / pred.std() + 0.3
    close(pred * factor, GOLDEN["multimodal/batch2_joint_std/out"])


GUIDERS = {
    "cfg": lambda c, u: CFGGuider(3.0).delta(c, u),
    "cfg_star": lambda c, u: CFGStarRescalingGuider(3.0).delta(c, u),
    "apg": lambda c, u: LtxAPGGuider(3.0, 0.3, 2.0).delta(c, u),
    "stateful_apg": lambda c, u: StatefulAPGGuider(3.0, 0.3, 2.0, 0.5).delta(c, u),
    "multimodal": lambda c, u: MultiModalGuider(MultiModalGuiderParams(3.0, rescale_scale=0.7)).calculate(c, u),
}


@pytest.mark.parametrize("name", GUIDERS)
def test_rows_of_a_batch_equal_single_runs(name: str):
    cond, uncond = randn(2, 5, 4) * torch.tensor([1.0, 30.0]).view(2, 1, 1), randn(2, 5, 4)
    together = GUIDERS[name](cond, uncond)
    alone = [GUIDERS[name](cond[row : row + 1], uncond[row : row + 1]) for row in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-6, atol=1e-6)


def test_guidance_by_hand():
    cond, uncond = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert CFGGuider(3.0).delta(cond, uncond).tolist() == [[4.0, -2.0]]
    close(CFGStarRescalingGuider(3.0).delta(cond, uncond), torch.tensor([[3.0, -3.0]]))
    # Guidance (2, -1): the first axis is parallel to cond, the second orthogonal; its norm is sqrt(5).
    close(LtxAPGGuider(2.0, eta=0.25).delta(cond, uncond), torch.tensor([[0.5, -1.0]]))
    close(LtxAPGGuider(2.0, norm_threshold=1.0).delta(cond, uncond), torch.tensor([[2.0, -1.0]]) / 5**0.5)


def test_guidance_is_float32():
    cond, uncond = randn(1, 4, 2), randn(1, 4, 2)
    half = MultiModalGuider(MultiModalGuiderParams(3.0, rescale_scale=0.5)).calculate(cond.half(), uncond.half())
    full = MultiModalGuider(MultiModalGuiderParams(3.0, rescale_scale=0.5)).calculate(
        cond.half().float(), uncond.half().float()
    )
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


def test_neutral_terms_ask_for_no_pass():
    assert not any(guider.enabled() for guider in (CFGGuider(1.0), CFGStarRescalingGuider(1.0), LtxAPGGuider(1.0)))
    assert not any(guider.enabled() for guider in (STGGuider(0.0), StatefulAPGGuider(0.0)))
    assert all(guider.enabled() for guider in (CFGGuider(0.5), STGGuider(-0.5), LtxAPGGuider(0.0)))
    guider = MultiModalGuider(MultiModalGuiderParams())
    assert not guider.do_unconditional_generation()
    assert not guider.do_perturbed_generation()
    assert not guider.do_isolated_modality_generation()
    assert torch.equal(guider.calculate(COND), COND)


def test_skipped_steps():
    table = json.loads(load_metadata(FILE)["skip_step_table"])
    for skip_step, expected in table.items():
        guider = MultiModalGuider(MultiModalGuiderParams(skip_step=int(skip_step)))
        assert [guider.should_skip_step(step) for step in range(len(expected))] == expected


def test_params_by_sigma():
    bins = {bound: MultiModalGuiderParams(cfg) for bound, cfg in ((1.0, 1.0), (0.9, 9.0), (0.5, 5.0))}
    table = load_json("sampling/scalars_newest.json")["sigma_binned_guider__keys_1.0:1_0.9:9_0.5:5__[sigma,cfg_scale]"]
    for sigma, cfg_scale in table:
        assert params_at_sigma(bins, sigma).cfg_scale == cfg_scale


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="uncond is missing although its scale is 3"):
        MultiModalGuider(MultiModalGuiderParams(3.0)).calculate(COND)
    with pytest.raises(ValueError, match=r"rescale_scale must lie in \[0, 1\], got 7"):
        MultiModalGuiderParams(rescale_scale=7)
    with pytest.raises(ValueError, match="skip_step must not be negative, got -1"):
        MultiModalGuiderParams(skip_step=-1)
    with pytest.raises(ValueError, match="at least one upper bound"):
        params_at_sigma({}, 0.5)
