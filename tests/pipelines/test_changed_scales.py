"""Guidance scales that a step callback sets in the middle of a call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ltx2_diffusers import GuidanceOptions, LTX2Pipeline, LTX2TextToAudioPipeline, MultiModalGuiderParams
from tests.golden_data import EQUAL_PIPELINES
from tests.pipelines import recipes
from tests.pipelines.tiny import CFG, EXPLICIT, NO_GUIDANCE, PROMPT, load, max_difference, ours, seeded

CALL = {**EXPLICIT, **CFG, "prompt": PROMPT, "num_inference_steps": 4}


def setting(at: int = 0, **scales: float) -> Callable[..., None]:
    """A callback that sets scales after a step."""

    def callback(pipe: LTX2Pipeline, step: int, _timestep: torch.Tensor, _tensors: dict[str, Any]) -> None:
        if step == at:
            for name, value in scales.items():
                setattr(pipe, f"_{name}", value)

    return callback


def run(callback: Callable[..., None] | None = None, **changes: Any) -> Any:
    return ours()(**CALL | changes, callback_on_step_end=callback, generator=seeded(1))


@pytest.fixture
def passes(request: pytest.FixtureRequest) -> list[int]:
    """Predictions of each call of the transformer."""
    seen = []

    def note(_module: Any, _args: Any, inputs: dict[str, Any]) -> None:
        masks = inputs.get("perturbation_keep_masks")
        seen.append(len(masks) if isinstance(masks, list) else 1)

    request.addfinalizer(ours().transformer.register_forward_pre_hook(note, with_kwargs=True).remove)
    return seen


def test_the_steps_that_follow_take_the_new_scale():
    first = []
    run(lambda _pipe, step, _timestep, tensors: first.append(tensors["latents"]) if step == 0 else None)
    changed = []

    def change(pipe: LTX2Pipeline, _step: int, _timestep: torch.Tensor, tensors: dict[str, Any]) -> None:
        changed.append(tensors["latents"])
        pipe._guidance_scale = 9.0

    output = run(change)
    assert torch.equal(first[0], changed[0])
    assert ours().guidance_scale == 9.0
    assert max_difference(output, run()) > 1e-3
    assert ours().guidance_scale == CFG["guidance_scale"]


def test_the_same_value_changes_nothing():
    assert max_difference(run(setting(guidance_scale=3.0)), run()) == 0


def test_guidance_that_is_turned_off_costs_nothing_more(passes):
    neutral = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}
    output = run(setting(1, **neutral))
    assert passes == [1, 1] * 2 + [1] * 2
    assert output.info["forwards_per_step"] == 2
    assert not ours().do_classifier_free_guidance


def test_passes_that_are_turned_on_are_made_and_counted(passes):
    output = run(setting(1, stg_scale=1.0, audio_modality_scale=2.0))
    assert passes == [1, 1] * 2 + [3, 1] * 2
    assert output.info["forwards_per_step"] == 4
    assert ours().do_spatio_temporal_guidance and ours().do_modality_isolation_guidance


def test_guidance_cannot_begin_when_the_negative_prompt_was_not_read():
    with pytest.raises(ValueError, match=r"\(2.0, 1.0\).*has not read the negative prompt; begin with"):
        run(setting(guidance_scale=2.0), **NO_GUIDANCE)
    options = GuidanceOptions(nag_scale=5.0)
    # Normalized attention guidance has read it.
    assert run(setting(guidance_scale=2.0), **NO_GUIDANCE, guidance_options=options).frames.isfinite().all()


def test_scales_by_noise_level_cannot_be_changed():
    bins = {1.0: MultiModalGuiderParams(3.0)}
    scales = dict.fromkeys(["guidance_scale", "stg_scale", "modality_scale", "guidance_rescale"])
    with pytest.raises(ValueError, match=r"of the video, but this call takes the scales of its video from"):
        run(setting(guidance_scale=2.0), **scales, guidance_options=GuidanceOptions(bins=bins))


def test_a_sampler_that_needs_the_negative_pass_refuses_its_end():
    neutral = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}
    with pytest.raises(ValueError, match="euler_cfg_pp"):
        run(setting(**neutral), sampler="euler_cfg_pp")
    assert run(setting(guidance_scale=2.0), sampler="euler_cfg_pp").frames.isfinite().all()


def test_momentum_and_skipped_steps_go_on():
    options = GuidanceOptions(cfg_method="apg_momentum", apg_momentum=-0.5, skip_step=1)
    near = run(setting(1, guidance_scale=3.000001), guidance_options=options)
    assert max_difference(near, run(guidance_options=options)) <= EQUAL_PIPELINES


def test_a_wrong_scale_is_refused():
    with pytest.raises(ValueError, match="rescale_scale"):
        run(setting(guidance_rescale=2.0))


def test_every_stage_shows_its_own_scales():
    seen = []

    def watch(pipe: LTX2Pipeline, _step: int, _timestep: torch.Tensor, _tensors: dict[str, Any]) -> None:
        seen.append((pipe.guidance_scale, pipe.do_classifier_free_guidance))

    recipes.staged()(**recipes.CALL, **recipes.TWO_STAGES, **CFG, callback_on_step_end=watch)
    assert seen == [(3.0, True)] * 2 + [(1.0, False)] * 2


def test_a_stream_that_is_not_made_has_no_scale_to_change():
    pipe = recipes.recipe(LTX2TextToAudioPipeline)
    call = {
        "prompt": PROMPT,
        "duration_s": 0.2,
        "num_inference_steps": 2,
        "max_sequence_length": 64,
        "guidance_scale": 3.0,
    }
    assert pipe(**call, callback_on_step_end=setting(audio_guidance_scale=4.0)).audio.isfinite().all()
    with pytest.raises(ValueError, match="makes no video"):
        pipe(**call, callback_on_step_end=setting(guidance_scale=4.0))
    # Without a video there is nothing to isolate the sound from.
    assert pipe(**call, callback_on_step_end=setting(audio_modality_scale=4.0)).audio.isfinite().all()


def test_public_names_stay_read_only():
    with pytest.raises(AttributeError):
        load().guidance_scale = 2.0
