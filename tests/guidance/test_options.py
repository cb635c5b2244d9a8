"""Guidance options: what each formula adds, which values are refused, and that nothing is done by default."""

import pytest
import torch

from ltx2_diffusers.guidance import BinnedGuider, GuidanceOptions, MultiModalGuider, MultiModalGuiderParams, NagWeights
from ltx2_diffusers.guidance.options import completed_bins

# The guidance (2, -1) has the share (2, 0) along the prediction; its length is sqrt(5).
COND, UNCOND = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 1.0]])
BINS = {0.5: MultiModalGuiderParams(), 1.0: MultiModalGuiderParams(3.0, modality_scale=2.0)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [4.0, -2.0]),
        ({"cfg_method": "cfg_star"}, [3.0, -3.0]),
        ({"cfg_method": "apg"}, [0.0, -2.0]),
        ({"cfg_method": "apg", "apg_eta": 0.25}, [1.0, -2.0]),
        ({"cfg_method": "apg", "apg_eta": 1.0, "apg_norm_threshold": 1.0}, [4.0 / 5**0.5, -2.0 / 5**0.5]),
        ({"cfg_method": "apg_momentum", "apg_momentum": 0.5, "apg_eta": 1.0}, [4.0, -2.0]),
    ],
)
def test_formulas_at_scale_3(options: dict, expected: list[float]):
    guider = GuidanceOptions(**options).cfg_guider(3.0)
    torch.testing.assert_close(guider.delta(COND, UNCOND), torch.tensor([expected]))


def test_momentum_adds_earlier_guidance_and_starts_anew_with_each_guider():
    options = GuidanceOptions(cfg_method="apg_momentum", apg_momentum=-0.5, apg_eta=1.0)
    guider = options.cfg_guider(2.0)
    first = guider.delta(COND, UNCOND)
    torch.testing.assert_close(guider.delta(COND, UNCOND), 0.5 * first)
    torch.testing.assert_close(options.cfg_guider(2.0).delta(COND, UNCOND), first)


def test_the_formula_changes_the_term_against_the_negative_prompt_alone():
    params = MultiModalGuiderParams(3.0, stg_scale=1.0, modality_scale=2.0)
    others = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    plain = MultiModalGuider(params).calculate(COND, UNCOND, *others)
    for options in (GuidanceOptions(cfg_method="cfg_star"), GuidanceOptions(cfg_method="apg")):
        guider = options.cfg_guider(3.0)
        changed = MultiModalGuider(params, guider).calculate(COND, UNCOND, *others)
        expected = guider.delta(COND, UNCOND) - 2.0 * (COND - UNCOND)
        torch.testing.assert_close(changed - plain, expected)


def test_bins_choose_the_guider_by_sigma():
    binned = BinnedGuider({bound: MultiModalGuider(params) for bound, params in BINS.items()})
    assert [binned.at_sigma(sigma).params.cfg_scale for sigma in (1.0, 0.51, 0.5, 0.1)] == [3.0, 3.0, 1.0, 1.0]
    assert binned.do_unconditional_generation()
    plain = MultiModalGuider(BINS[1.0])
    assert plain.at_sigma(0.1) is plain and plain.parts() == [plain]


def test_bins_take_blocks_and_skipped_steps_of_the_call_where_they_have_none():
    bins = {
        1.0: MultiModalGuiderParams(),
        0.5: MultiModalGuiderParams(stg_blocks=[3], skip_step=2, modality_scale=3.0),
    }
    completed = completed_bins(bins, [1], 4, is_alone=True)
    assert [params.stg_blocks for params in completed.values()] == [[1], [3]]
    assert [params.skip_step for params in completed.values()] == [4, 2]
    assert [params.modality_scale for params in completed.values()] == [1.0, 1.0]
    assert completed_bins(bins, [1], 4, is_alone=False)[0.5].modality_scale == 3.0


def test_attention_guidance_is_off_where_it_is_neutral():
    assert GuidanceOptions().nag is None
    assert GuidanceOptions(nag_scale=5.0, nag_alpha=0.0).nag is None
    options = GuidanceOptions(2, 1, "cfg_star", bins=BINS, nag_scale=5.0, nag_tau=2.0)
    assert options.nag == NagWeights(5.0, 2.0, 0.25)
    assert options.refining() == GuidanceOptions(nag_scale=5.0, nag_tau=2.0)


def test_who_reads_the_negative_prompt():
    assert not GuidanceOptions(skip_step=1).reads_negative
    assert GuidanceOptions(nag_scale=2.0).reads_negative
    assert GuidanceOptions(audio_bins=BINS).reads_negative
    assert not GuidanceOptions(bins={1.0: MultiModalGuiderParams()}).reads_negative


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"skip_step": -1}, "`skip_step` has to be a whole number of at least 0 but is -1; use 0"),
        ({"audio_skip_step": 0.5}, r"`audio_skip_step` .* 0\.5; use 0"),
        ({"cfg_method": "cfg++"}, r"`cfg_method` has to be one of 'cfg', .* but is 'cfg\+\+'"),
        ({"apg_eta": 0.5}, r"cfg_method='cfg' does not read \['apg_eta'\]"),
        ({"cfg_method": "apg", "apg_momentum": -0.5}, r"'apg' does not read \['apg_momentum'\].*use 'apg_momentum'"),
        ({"cfg_method": "apg_momentum"}, r"`apg_momentum` is 0\.0, which is cfg_method='apg'"),
        ({"cfg_method": "apg", "apg_norm_threshold": -1.0}, r"`apg_norm_threshold` .* -1\.0; use 0\.0"),
        ({"bins": {}}, "`bins` has to map upper bounds of sigma"),
        ({"audio_bins": {1.0: 3.0}}, r"`audio_bins` has to be a mapping .* but is \{1\.0: 3\.0\}"),
        ({"bins": {2.0: MultiModalGuiderParams()}}, r"bounds of `bins` .* \[2\.0\] are not; use 1\.0"),
        ({"nag_scale": 0.5}, r"`nag_scale` is 0\.5, which is out of range; use 1\.0"),
        ({"nag_tau": 0.0}, r"`nag_tau` is 0\.0"),
        ({"nag_alpha": 1.5}, r"`nag_alpha` is 1\.5, which is out of range; use 1\.0"),
    ],
)
def test_wrong_options_are_refused(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        GuidanceOptions(**wrong)
