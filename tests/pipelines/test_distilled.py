"""The distilled recipe: eight steps, three more at full size, one forward each."""

import inspect

import pytest

from ltx2_diffusers import LTX2ConditionPipeline, LTX2Pipeline, LTX2TextToAudioPipeline
from ltx2_diffusers.guidance.presets import preset
from ltx2_diffusers.pipelines.generation import LTX2GenerationPipeline
from ltx2_diffusers.pipelines.recipes.distilled import LTX2DistilledPipeline
from ltx2_diffusers.pipelines.recipes.two_stage import LTX2TwoStagePipeline
from tests.golden_data import EQUAL_MODELS
from tests.pipelines.recipes import CALL, add_lora, recipe, stage_sigmas, staged, watched
from tests.pipelines.tiny import EXPLICIT, PROMPT, load, max_difference, seeded

ARGUMENTS = {name: value for name, value in CALL.items() if name != "num_inference_steps"}
DISTILLED_LEVELS = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0]
STAGE_2_LEVELS = [0.909375, 0.725, 0.421875, 0.0]


@pytest.mark.parametrize(("two_stage", "expected"), [(True, [8, 3]), (False, [8])])
def test_distilled_runs_eight_and_three_steps_with_one_forward_each(two_stage, expected):
    pipe = recipe(LTX2DistilledPipeline)
    seen = watched(pipe, **ARGUMENTS, two_stage=two_stage)
    assert seen.predictions == [1] * sum(expected)
    assert [len(steps) for steps in seen.stages()] == expected
    assert seen.output.info["preset"] == "2.0 distilled"
    assert seen.output.info["forwards_per_step"] == ([1, 1] if two_stage else 1)
    levels = [DISTILLED_LEVELS, STAGE_2_LEVELS][: len(expected)]
    assert stage_sigmas(seen.output.info) == [pytest.approx(stage) for stage in levels]


def test_a_distilled_scheduler_makes_the_two_stage_recipe_distilled():
    scheduler = type(staged().scheduler)(use_dynamic_shifting=False, shift_terminal=None)
    pipe = recipe(LTX2TwoStagePipeline, scheduler=scheduler)
    distilled = recipe(LTX2DistilledPipeline)(**ARGUMENTS, generator=seeded(1))
    output = pipe(**ARGUMENTS, generator=seeded(1))
    assert output.info == distilled.info
    assert max_difference(output, distilled) == 0


@pytest.mark.parametrize("argument", ["guidance_scale", "num_inference_steps"])
def test_there_is_nothing_to_guide_or_to_count(argument):
    with pytest.raises(TypeError, match=argument):
        recipe(LTX2DistilledPipeline)(**ARGUMENTS, **{argument: 3})


def test_stages_choose_their_adapters(tmp_path):
    """A dev checkpoint whose distilled LoRA is active: the strength of either stage can be set."""
    pipe = load("2.0", LTX2DistilledPipeline)
    for seed, name in enumerate(("distilled", "style")):
        add_lora(pipe, tmp_path, name, seed)
    pipe.set_adapters(["distilled", "style"], [0.7, 0.7])
    quick = {**ARGUMENTS, "sigmas": [1.0, 0.5], "stage_2_sigmas": [0.5]}
    seen = watched(pipe, **quick, stage_2_adapters={"style": 0})
    assert seen.adapters == [{"distilled": 0.7, "style": 0.7}] * 2 + [{"distilled": 0.7}]
    seen = watched(pipe, **quick, stage_1_adapters={"distilled": 0.25}, stage_2_adapters={"distilled": 0.5})
    assert seen.adapters == [{"distilled": 0.25, "style": 0.7}] * 2 + [{"distilled": 0.5, "style": 0.7}]
    seen = watched(pipe, **quick, stage_2_adapters={"distilled": 0.5})
    assert seen.adapters == [{"distilled": 0.7, "style": 0.7}] * 2 + [{"distilled": 0.5, "style": 0.7}]


def test_the_preset_of_2_5_draws_fresh_noise_in_the_first_stage_only(monkeypatch):
    pipe = recipe(LTX2DistilledPipeline)
    monkeypatch.setattr(LTX2DistilledPipeline, "preset", preset("2.5", "distilled"))

    def run(**call):
        return pipe(**ARGUMENTS, **call, generator=seeded(1))

    alone = {"two_stage": False}
    assert max_difference(run(**alone), run(**alone, sampler="euler_ancestral")) <= EQUAL_MODELS
    assert max_difference(run(**alone), run(**alone, sampler="euler")) > 1e-3
    # One step to the end is the same for both samplers, so that only the first stage tells them apart.
    assert (
        max_difference(run(stage_2_sigmas=[0.9]), run(stage_2_sigmas=[0.9], sampler="euler_ancestral")) <= EQUAL_MODELS
    )
    assert max_difference(run(), run(sampler="euler_ancestral")) > 1e-3


@pytest.mark.parametrize(("is_distilled", "warned"), [(False, 1), (True, 0)])
def test_a_dev_scheduler_without_a_lora_is_worth_a_warning(is_distilled, warned, monkeypatch):
    scheduler = type(staged().scheduler)(use_dynamic_shifting=not is_distilled, shift_terminal=None)
    pipe = recipe(LTX2DistilledPipeline, scheduler=scheduler)
    warnings = []
    monkeypatch.setattr("ltx2_diffusers.pipelines.recipes.distilled.logger.warning", warnings.append)
    pipe(**ARGUMENTS, two_stage=False, sigmas=[1.0], generator=seeded(1))
    assert len(warnings) == warned


@pytest.mark.parametrize("pipeline_class", [LTX2Pipeline, LTX2ConditionPipeline, LTX2TextToAudioPipeline])
def test_the_sampler_of_the_preset_holds_in_every_pipeline(pipeline_class, monkeypatch):
    """Text to video on a distilled 2.5 checkpoint samples as the distilled recipe does in its first stage."""
    pipe = load(pipeline_class=pipeline_class)
    monkeypatch.setattr(LTX2GenerationPipeline, "preset", preset("2.5", "distilled"))
    call = {**EXPLICIT, "prompt": PROMPT, "sigmas": [1.0, 0.7, 0.4]}
    call = {name: call[name] for name in inspect.signature(pipeline_class.__call__).parameters if name in call}

    def audio(**sampler):
        return pipe(**call, **sampler, generator=seeded(1)).audio

    assert (audio() - audio(sampler="euler_ancestral")).abs().max() <= EQUAL_MODELS
    assert (audio() - audio(sampler="euler")).abs().max() > 1e-3
