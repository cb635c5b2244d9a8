"""Guidance options in calls: free when neutral, and each doing what it says."""

from functools import cache

import pytest
import torch

from ltx2_diffusers import LTX2DistilledPipeline, LTX2TextToAudioPipeline, LTX2TwoStagePipeline
from ltx2_diffusers.guidance import GuidanceOptions, MultiModalGuiderParams
from ltx2_diffusers.pipelines import engine
from ltx2_diffusers.sampling.samplers import SAMPLERS
from tests.golden_data import EQUAL_MODELS, EQUAL_PIPELINES
from tests.pipelines.tiny import (
    ALL_GUIDANCE,
    CFG,
    EXPLICIT,
    NEGATIVE,
    NO_GUIDANCE,
    PROMPT,
    load,
    max_difference,
    ours,
    seeded,
    sibling,
    theirs,
)
from tests.pipelines.watching import encoded_texts

CALL = {**EXPLICIT, "prompt": PROMPT, "negative_prompt": NEGATIVE}
# Two stages halve the size of the first one.
STAGED = {"height": 128, "width": 128, "num_frames": 9, "max_sequence_length": 64, "output_type": "latent"}
NAG = GuidanceOptions(nag_scale=5.0)
MODELS = ("2.0", "2.3")


def run(options=None, name="2.0", pipeline=None, **call):
    pipeline = ours(name) if pipeline is None else pipeline
    return pipeline(**{**CALL, **call}, guidance_options=options, generator=seeded(0))


@pytest.fixture
def calls():
    """Whether each forward of the 2.0 transformer was given a negative text."""
    found = []
    handle = ours("2.0").transformer.register_forward_pre_hook(
        lambda _module, _args, kwargs: found.append(kwargs.get("negative_text") is not None), with_kwargs=True
    )
    yield found
    handle.remove()


@cache
def staged(name="2.0", pipeline_class=LTX2DistilledPipeline):
    shared = {part: model for part, model in ours(name).components.items() if model is not None}
    return load(name, pipeline_class, **shared)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("guidance", [NO_GUIDANCE, ALL_GUIDANCE], ids=["none", "all"])
def test_neutral_options_change_nothing(name, guidance):
    assert max_difference(run(GuidanceOptions(), name, **guidance), run(None, name, **guidance)) == 0


def test_neutral_options_read_no_negative_prompt(monkeypatch):
    texts = encoded_texts(monkeypatch)
    run(GuidanceOptions(nag_tau=3.0), **NO_GUIDANCE)
    run(NAG, **NO_GUIDANCE)
    assert texts == [PROMPT, PROMPT, NEGATIVE]


@pytest.mark.parametrize("skip_step", [1, 2])
def test_skipped_steps_make_no_forward(skip_step, calls):
    call = {**NO_GUIDANCE, "num_inference_steps": 5}
    skipped = run(GuidanceOptions(skip_step=skip_step, audio_skip_step=skip_step), **call)
    assert len(calls) == len([step for step in range(5) if step % (skip_step + 1) == 0])
    assert max_difference(skipped, run(**call)) > 1e-3


def test_a_stream_skips_steps_alone(calls):
    call = {**NO_GUIDANCE, "num_inference_steps": 4}
    plain, skipped = run(**call), run(GuidanceOptions(audio_skip_step=1), **call)
    assert len(calls) == 8
    # The video only notices what the audio that it hears has become.
    assert 0 < (plain.frames - skipped.frames).abs().max() < (plain.audio - skipped.audio).abs().max()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_follows_skipped_steps(sampler):
    options = GuidanceOptions(skip_step=2, audio_skip_step=1)
    result = run(options, sampler=sampler, **{**CFG, "num_inference_steps": 3})
    assert result.frames.isfinite().all() and result.audio.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_formulas_differ_and_equal_cfg_where_they_should(name):
    plain = run(None, name, **CFG)
    for options in (
        GuidanceOptions(cfg_method="cfg_star"),
        GuidanceOptions(cfg_method="apg"),
        GuidanceOptions(cfg_method="apg_momentum", apg_eta=1.0, apg_momentum=-0.5),
    ):
        assert max_difference(run(options, name, **CFG), plain) > 1e-3
    whole = GuidanceOptions(cfg_method="apg", apg_eta=1.0)
    assert max_difference(run(whole, name, **CFG), plain) <= EQUAL_PIPELINES


def test_momentum_does_not_survive_a_call():
    options = GuidanceOptions(cfg_method="apg_momentum", apg_momentum=-0.5)
    assert max_difference(run(options, **CFG), run(options, **CFG)) == 0


def test_bins_guide_where_they_say_and_cost_nothing_elsewhere(calls):
    sigmas = {"timesteps": [1000.0, 700.0, 400.0], "num_inference_steps": None}
    scales = {k: v for k, v in CALL.items() if k != "num_inference_steps"} | sigmas
    interval = {0.5: MultiModalGuiderParams(), 1.0: MultiModalGuiderParams(3.0)}
    part = run(GuidanceOptions(bins=interval, audio_bins=interval), **scales)
    # Two steps with the negative pass and one without.
    assert len(calls) == 5
    assert part.info["forwards_per_step"] == 2 and ours("2.0").guidance_scale == 3.0
    everywhere = {1.0: MultiModalGuiderParams(3.0)}
    binned = run(GuidanceOptions(bins=everywhere, audio_bins=everywhere), **scales)
    whole = NO_GUIDANCE | {"guidance_scale": 3.0, "audio_guidance_scale": 3.0}
    assert max_difference(binned, run(**scales, **whole)) == 0
    assert max_difference(binned, part) > 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_a_negative_prompt_acts_without_classifier_free_guidance(name):
    plain = run(None, name, **NO_GUIDANCE)
    guided = run(NAG, name, **NO_GUIDANCE)
    assert guided.info["forwards_per_step"] == 1
    assert max_difference(guided, plain) > 1e-2
    assert max_difference(guided, run(NAG, name, **NO_GUIDANCE, **{"negative_prompt": "sunny"})) > 1e-2
    # A prompt cannot be pushed away from itself.
    assert max_difference(run(NAG, name, **NO_GUIDANCE, **{"negative_prompt": PROMPT}), plain) <= EQUAL_PIPELINES


@pytest.mark.parametrize("name", MODELS)
def test_attention_guidance_of_a_batch_equals_single_runs(name):
    prompts, negatives = [PROMPT, "Rain."], [NEGATIVE, "dark and loud"]
    call = {**CALL, **NO_GUIDANCE, "guidance_options": NAG}
    both = ours(name)(**{**call, "prompt": prompts, "negative_prompt": negatives}, generator=seeded(1, 2))
    for row, (prompt, negative) in enumerate(zip(prompts, negatives)):
        single = ours(name)(**{**call, "prompt": prompt, "negative_prompt": negative}, generator=seeded(row + 1))
        torch.testing.assert_close(both.frames[row : row + 1], single.frames, atol=EQUAL_MODELS, rtol=0)
        torch.testing.assert_close(both.audio[row : row + 1], single.audio, atol=EQUAL_MODELS, rtol=0)


def test_attention_guidance_goes_with_all_other_guidance(calls):
    guided = run(NAG, **ALL_GUIDANCE)
    # One call for all passes that read the prompt, one without it for the negative prompt.
    assert calls == [True, False] * 2
    assert max_difference(guided, run(**ALL_GUIDANCE)) > 1e-2


@pytest.mark.parametrize("name", MODELS)
def test_distilled_runs_take_a_negative_prompt_in_both_stages(name):
    pipeline = staged(name)
    call = {"prompt": PROMPT, **STAGED, "sigmas": [1.0, 0.7], "stage_2_sigmas": [0.6]}
    plain = pipeline(**call, generator=seeded(0))
    guided = pipeline(**call, negative_prompt=NEGATIVE, guidance_options=NAG, generator=seeded(0))
    assert guided.info["forwards_per_step"] == [1, 1]
    assert max_difference(guided, plain) > 1e-2
    neutral = pipeline(**call, guidance_options=GuidanceOptions(), generator=seeded(0))
    assert max_difference(neutral, plain) == 0


def test_only_attention_guidance_reaches_the_refining_stage(monkeypatch):
    pipeline = staged(pipeline_class=LTX2TwoStagePipeline)
    seen, run_stage = [], engine.run_stage
    monkeypatch.setattr(engine, "run_stage", lambda pipe, run, *rest: seen.append(run) or run_stage(pipe, run, *rest))
    options = GuidanceOptions(skip_step=1, cfg_method="cfg_star", nag_scale=3.0)
    call = {"num_inference_steps": 2, "stage_2_sigmas": [0.6], "stage_2_adapters": {}, **CFG}
    pipeline(PROMPT, NEGATIVE, **STAGED, **call, guidance_options=options, generator=seeded(0))
    assert [run.stage.guidance_options for run in seen] == [options, GuidanceOptions(nag_scale=3.0)]


BINS = {1.0: MultiModalGuiderParams(3.0)}
WRONG = {
    "type": ({}, {"nag_scale": 5.0}, "has to be a GuidanceOptions but is {'nag_scale': 5.0}"),
    "formula without cfg": (NO_GUIDANCE, GuidanceOptions(cfg_method="apg"), "makes no classifier-free guidance"),
    "bins and scales": (CFG, GuidanceOptions(bins=BINS), "`bins` .* take the place of the guidance arguments"),
    "audio bins": (CFG, GuidanceOptions(audio_bins=BINS), "`audio_bins` .* take the place"),
    "blocks of a bin": (
        {},
        GuidanceOptions(bins={1.0: MultiModalGuiderParams(stg_scale=1.0, stg_blocks=[7])}),
        r"contains \[7\].* blocks 0 to 1",
    ),
    "cfg++ in part of the steps": (
        {"sampler": "euler_cfg_pp"},
        GuidanceOptions(bins={0.97: MultiModalGuiderParams(), **BINS}, audio_bins={1.0: MultiModalGuiderParams()}),
        "euler_cfg_pp",
    ),
    "cfg++ without guidance": ({**NO_GUIDANCE, "sampler": "euler_cfg_pp"}, None, "euler_cfg_pp"),
}


@pytest.mark.parametrize("case", WRONG)
def test_options_that_cannot_be_honoured_are_refused(case):
    call, options, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        run(options, **call)


def test_options_of_a_stream_that_is_not_generated_are_refused():
    sound = sibling("2.0", LTX2TextToAudioPipeline)
    with pytest.raises(ValueError, match=r"`skip_step` or `bins` .* generates no video"):
        sound(PROMPT, guidance_options=GuidanceOptions(skip_step=1))
    with pytest.raises(ValueError, match=r"`audio_bins` .* take the place of the guidance arguments"):
        sound(PROMPT, guidance_scale=3.0, guidance_options=GuidanceOptions(audio_bins=BINS))
    given = torch.zeros(2, 40_000)
    with pytest.raises(ValueError, match=r"`audio_skip_step` or `audio_bins` .* generates no audio"):
        staged()(
            PROMPT, **STAGED, audio=given, sampling_rate=48_000, guidance_options=GuidanceOptions(audio_skip_step=1)
        )


def test_a_distilled_run_refuses_a_negative_prompt_that_nothing_reads():
    for options in (None, GuidanceOptions(skip_step=1)):
        with pytest.raises(ValueError, match=r"`negative_prompt` is given, but .*nag_scale=5\.0"):
            staged()(PROMPT, **STAGED, negative_prompt=NEGATIVE, guidance_options=options)


def test_stg_on_2_0_weights_acts_here_and_not_in_diffusers():
    """diffusers spends a pass on it whose result is the unperturbed one; the reference drops the self-attention."""
    call = {**CALL, **NO_GUIDANCE, "spatio_temporal_guidance_blocks": [1]}
    stg = {"stg_scale": 1.0, "audio_stg_scale": 1.0}

    def effect(pipeline) -> float:
        return max_difference(
            pipeline(**call | stg, generator=seeded(0)), pipeline(**call | NO_GUIDANCE, generator=seeded(0))
        )

    assert effect(theirs("2.0")) <= EQUAL_MODELS
    assert effect(ours("2.0")) > 1e-2
