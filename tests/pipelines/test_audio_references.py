"""Reference sounds stand beside the generated sound, are never decoded, and change it."""

import pytest
import torch

from ltx2_diffusers import LTX2AudioReferenceCondition, LTX2InContextPipeline, LTX2TwoStagePipeline
from ltx2_diffusers.pipelines.conditions.sounds import AudioCondition
from tests.pipelines.recipes import CALL, RATE, SOUND, TWO_STAGES, no_computation, recipe, watched
from tests.pipelines.tiny import NO_GUIDANCE, seeded

QUICK = {**CALL, **NO_GUIDANCE}


def run(pipe, **call):
    return pipe(**QUICK, **call, generator=seeded(1))


@pytest.mark.parametrize("length_s", [0.2, 5.0])
def test_a_reference_of_any_length_changes_the_sound_but_not_its_length(length_s):
    pipe = recipe(LTX2InContextPipeline)
    plain = run(pipe)
    sound = torch.sin(torch.arange(round(length_s * RATE)) / 9).expand(2, -1)
    output = run(pipe, reference_conditions=LTX2AudioReferenceCondition(sound, RATE))
    assert output.audio.shape == plain.audio.shape
    assert (output.audio - plain.audio).abs().max() > 1e-4


def test_a_reference_takes_part_in_the_first_stage_only():
    pipe = recipe(LTX2TwoStagePipeline)
    lengths = []

    def remember(_module, _args, call):
        lengths.append(call["audio_hidden_states"].shape[1])

    handle = pipe.transformer.register_forward_pre_hook(remember, with_kwargs=True)
    try:
        reference = LTX2AudioReferenceCondition(SOUND, RATE)
        seen = watched(pipe, **{**QUICK, **TWO_STAGES}, reference_conditions=reference)
    finally:
        handle.remove()
    target = seen.output.audio.shape[2]
    stages = [len(steps) for steps in seen.stages()]
    assert lengths == [2 * target] * stages[0] + [target] * stages[1]


@pytest.mark.parametrize(
    ("condition", "call", "message"),
    [
        (LTX2AudioReferenceCondition(SOUND, RATE, strength=1.5), {}, "`strength` has to be between 0 and 1"),
        (LTX2AudioReferenceCondition(SOUND), {}, "needs its `sampling_rate`"),
        (LTX2AudioReferenceCondition("absent.wav"), {}, "absent.wav"),
        (LTX2AudioReferenceCondition(SOUND, RATE, start_s=-1.0), {}, "`start_s` has to be at least 0"),
        (LTX2AudioReferenceCondition(SOUND, RATE), {"generate_audio": False}, "makes no sound"),
        (AudioCondition(SOUND, RATE), {"generate_audio": False}, "makes no sound"),
    ],
)
def test_wrong_references_are_refused_before_any_computation(condition, call, message):
    pipe = recipe(LTX2TwoStagePipeline)
    with no_computation(pipe), pytest.raises((ValueError, OSError), match=message):
        run(pipe, two_stage=False, conditions=condition, **call)
