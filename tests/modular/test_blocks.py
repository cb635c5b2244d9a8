"""Single blocks: prompts that are rewritten, conditions that states cannot hold, contexts for guiders of one's own."""

import re

import numpy as np
import PIL.Image
import pytest
import torch

import ltx2_diffusers as ours
from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.modular.denoising import GUIDER_FIELDS, LTX2LoopDenoiser
from ltx2_diffusers.modular.encoding import LTX2ConditionEncoderStep, LTX2ReferenceEncoderStep
from ltx2_diffusers.modular.preparing import LTX2AutoBuildVideoSelfAttentionMaskStep, LTX2SetTimestepsStep
from ltx2_diffusers.modular.text import LTX2AutoPromptEnhancerStep
from tests.pipelines import tiny

PICTURE = PIL.Image.effect_noise((64, 48), 60).convert("RGB")
WISH = {"enable_prompt_enhancement": True, "prompt_max_new_tokens": 4}


def enhancer():
    """The block that rewrites prompts, with the tiny language model in the place of the dedicated one."""
    pipe, given = LTX2AutoPromptEnhancerStep().init_pipeline(), tiny.ours()
    pipe.update_components(prompt_enhancer=given.text_encoder, processor=given.processor)
    return pipe


@pytest.mark.parametrize(
    ("given", "picture"),
    [
        ({}, None),
        ({"image": PICTURE}, PICTURE),
        ({"conditions": [ours.LTX2VideoCondition([PICTURE], index=1)]}, PICTURE),
        ({"conditions": []}, None),
    ],
    ids=["text", "image", "condition", "no condition"],
)
@pytest.mark.quick_cases(2)
def test_prompts_are_rewritten_as_by_the_pipelines(given, picture):
    state = enhancer()(prompt=[tiny.PROMPT, "rain"], **WISH, **given, output="prompt")
    pipe = LTX2Pipeline(**{**tiny.ours().components, "prompt_enhancer": tiny.ours().text_encoder})
    assert state == pipe.enhance_prompt([tiny.PROMPT, "rain"], max_new_tokens=4, image=picture)


def test_prompts_stay_as_they_are_unless_it_is_asked_for():
    assert enhancer()(prompt=tiny.PROMPT, output="prompt") == tiny.PROMPT
    with pytest.raises(ValueError, match="`system_prompt` is only read with"):
        enhancer()(prompt=tiny.PROMPT, system_prompt="Be brief.")


def test_a_wrong_wish_is_refused():
    with pytest.raises(ValueError, match="prompt_max_new_tokens"):
        enhancer()(prompt="a", enable_prompt_enhancement=True, prompt_max_new_tokens=0)


@pytest.mark.parametrize(
    ("block", "given", "message"),
    [
        (LTX2ConditionEncoderStep, {"conditions": PICTURE}, "`conditions` has to hold conditions"),
        (
            LTX2ConditionEncoderStep,
            {"conditions": ours.LTX2ReferenceCondition([PICTURE])},
            "`conditions` of these blocks holds LTX2VideoCondition but is given LTX2ReferenceCondition",
        ),
        (
            LTX2ConditionEncoderStep,
            {"conditions": ours.LTX2VideoCondition(PICTURE, index=1, mode="replace")},
            "replaced at the start and appended at a later latent frame",
        ),
        (LTX2ReferenceEncoderStep, {"reference_conditions": []}, "`reference_conditions` is empty"),
    ],
)
def test_conditions_that_are_refused(block, given, message):
    pipe = block().init_pipeline()
    pipe.update_components(**{name: getattr(tiny.ours(), name) for name in pipe.null_component_names})
    with pytest.raises(ValueError, match=re.escape(message)):
        pipe(**given, height=64, width=64, num_frames=9)


@pytest.mark.parametrize(
    ("own", "strength", "expected"),
    [({}, 1.0, None), ({}, 0.5, "attention_mask"), ({"attention_strength": 0.2}, 1.0, "attention_mask")],
)
def test_a_mask_is_built_where_attention_is_not_full(own, strength, expected):
    reference = ours.LTX2ReferenceCondition(np.zeros((1, 64, 64, 3), np.uint8), **own)
    given = {"conditioning_attention_strength": strength, "conditioning_attention_mask": None}
    chosen = LTX2AutoBuildVideoSelfAttentionMaskStep().select_block(reference_conditions=[reference], **given)
    assert chosen == expected


def test_levels_of_any_scheduler_are_followed_by_its_steps():
    scheduler = ours.LTX2Scheduler()
    pipe = LTX2SetTimestepsStep().init_pipeline()
    pipe.update_components(scheduler=scheduler)
    state = pipe(height=64, width=64, num_frames=9, timesteps=[900.0, 300.0])
    assert state.get("num_inference_steps") == 2
    torch.testing.assert_close(state.get("timesteps"), torch.tensor([900.0, 300.0]))
    for one in (scheduler, state.get("audio_scheduler")):
        sample = torch.ones(1)
        for timestep in state.get("timesteps"):
            sample = one.step(torch.ones(1), timestep, sample, return_dict=False)[0]
        torch.testing.assert_close(sample, torch.tensor([0.1]))


def test_fields_of_guiders_are_read_by_name():
    fields = GUIDER_FIELDS | {"encoder_hidden_states": ("mine", "theirs", "mine", "mine")}
    block = LTX2LoopDenoiser(fields)
    assert {"mine", "theirs"} <= {one.name for one in block.inputs if one.required}
    assert "negative_connector_prompt_embeds" not in block.input_names
    with pytest.raises(ValueError, match="has to be a dict"):
        LTX2LoopDenoiser(["mine"])
