"""What happens during a call: passes, batches, callbacks, interruption, offloading, output types."""

import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers import LTX2Pipeline, LTX2PipelineOutput, LTX2Scheduler
from tests.golden_data import EQUAL_PIPELINES
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
)
from tests.tiny_checkpoints import tiny_checkpoint

CALL = {**EXPLICIT, **CFG, "prompt": PROMPT}
STEPS = EXPLICIT["num_inference_steps"]


def predictions_per_step(pipe: LTX2Pipeline, at_the_end: int = 0, **kwargs) -> float:
    """How many predictions the transformer makes in a step of one call, counted at its door, without some at the end."""
    counted = []

    def count(_module, _args, inputs):
        masks = inputs.get("perturbation_keep_masks")
        # Passes that share their text go in together, one mask each.
        counted.append(len(inputs["hidden_states"]) * (len(masks) if isinstance(masks, list) else 1))

    hook = pipe.transformer.register_forward_pre_hook(count, with_kwargs=True)
    try:
        output = pipe(**{**EXPLICIT, "prompt": PROMPT, "generator": seeded(1), **kwargs})
    finally:
        hook.remove()
    per_step = (sum(counted) - at_the_end) / (len(output.info["sigmas"]) - 1)
    assert output.info["forwards_per_step"] == per_step
    return per_step


# --- which passes run ---


@pytest.mark.parametrize(
    ("guidance", "expected"),
    [
        (NO_GUIDANCE, 1),
        ({"guidance_scale": 1.0}, 1),
        (CFG, 2),
        (NO_GUIDANCE | {"audio_guidance_scale": 2.0}, 2),
        (NO_GUIDANCE | {"stg_scale": 1.0}, 2),
        (NO_GUIDANCE | {"modality_scale": 2.0}, 2),
        (NO_GUIDANCE | {"guidance_rescale": 0.7}, 1),
        (ALL_GUIDANCE, 4),
        ({}, 4),
    ],
    ids=["all neutral", "scale 1 alone", "cfg", "audio cfg", "stg", "modality", "rescale", "all", "preset"],
)
def test_a_neutral_term_costs_no_pass(guidance, expected):
    assert predictions_per_step(ours("2.3"), **guidance) == expected


def test_scale_one_with_another_term_keeps_the_other_presets():
    scales = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0, "stg_scale": 1.0, "audio_stg_scale": 0.0}
    assert predictions_per_step(ours(), **scales) == 3
    assert ours().modality_scale == 3.0


def test_second_order_steps_predict_twice_and_once_more_at_the_end():
    assert predictions_per_step(ours(), **CFG, sampler="res_2s", at_the_end=2) == 2 * 2


def test_an_audio_scale_of_zero_means_zero():
    zero, half = (
        ours("2.3")(**CALL | {"stg_scale": 1.0, "audio_stg_scale": scale}, generator=seeded(1)) for scale in (0.0, 0.5)
    )
    assert max_difference(zero, half) > 1e-3
    assert torch.is_tensor(zero.audio)
    assert ours("2.3").audio_stg_scale == 0.5
    ours("2.3")(**CALL | {"audio_guidance_scale": 0.0}, generator=seeded(1))
    assert ours("2.3").audio_guidance_scale == 0.0


def test_an_audio_scale_of_none_follows_the_video():
    ours()(**CALL | {"guidance_scale": 5.0, "audio_guidance_scale": None})
    assert ours().guidance_scale == ours().audio_guidance_scale == 5.0
    assert ours().do_classifier_free_guidance


@pytest.mark.parametrize(("name", "version", "steps", "block"), [("2.0", "2.0", 40, 29), ("2.3", "2.3", 30, 28)])
def test_presets_follow_the_version(name, version, steps, block):
    preset = ours(name).preset
    assert (preset.version, preset.kind, preset.num_inference_steps) == (version, "dev", steps)
    assert preset.stg_blocks(48) == [block]


def test_a_distilled_checkpoint_runs_its_eight_steps_unguided():
    pipe = LTX2Pipeline(
        **ours().components | {"scheduler": LTX2Scheduler(use_dynamic_shifting=False, shift_terminal=None)}
    )
    pipe.set_progress_bar_config(disable=True)
    assert predictions_per_step(pipe, num_inference_steps=None) == 1
    assert pipe.num_timesteps == 8
    assert pipe.preset.kind == "distilled"


# --- batches ---


@pytest.mark.parametrize("name", ["2.0", "2.3"])
def test_a_row_of_a_batch_equals_its_single_run(name):
    prompts = [PROMPT, "Waves."]
    kwargs = {**EXPLICIT, **ALL_GUIDANCE, "negative_prompt": NEGATIVE}
    batch = ours(name)(**kwargs, prompt=prompts, generator=seeded(3, 4))
    for row, (prompt, seed) in enumerate(zip(prompts, (3, 4))):
        single = ours(name)(**kwargs, prompt=prompt, generator=seeded(seed))
        assert max_difference(LTX2PipelineOutput(batch.frames[[row]], batch.audio[[row]]), single) <= EQUAL_PIPELINES


def test_videos_of_a_prompt_follow_each_other():
    seeds = (5, 6, 7, 8)
    batch = ours()(**CALL | {"prompt": [PROMPT, "Waves."]}, num_videos_per_prompt=2, generator=seeded(*seeds))
    for row, (prompt, seed) in enumerate(zip((PROMPT, PROMPT, "Waves.", "Waves."), seeds)):
        single = ours()(**CALL | {"prompt": prompt}, generator=seeded(seed))
        assert max_difference(LTX2PipelineOutput(batch.frames[[row]], batch.audio[[row]]), single) <= EQUAL_PIPELINES


def test_equal_seeds_give_equal_results_and_leave_the_global_state_alone():
    state = torch.get_rng_state()
    first, second = (ours()(**CALL, generator=seeded(9)) for _ in range(2))
    assert max_difference(first, second) == 0
    assert torch.equal(torch.get_rng_state(), state)


# --- latents ---


def test_latents_of_a_run_start_another_one():
    first = ours()(**CALL, generator=seeded(1))
    again = ours()(
        PROMPT,
        latents=first.frames,
        audio_latents=first.audio,
        noise_scale=0.5,
        sigmas=[0.5, 0.2],
        output_type="latent",
        generator=seeded(2),
    )
    assert again.frames.shape == first.frames.shape
    assert again.audio.shape == first.audio.shape
    assert max_difference(first, again) > 0


def test_given_latents_are_not_changed():
    first = ours()(**CALL, generator=seeded(1))
    copies = first.frames.clone(), first.audio.clone()
    ours()(**CALL, latents=first.frames, audio_latents=first.audio, generator=seeded(2))
    assert torch.equal(first.frames, copies[0])
    assert torch.equal(first.audio, copies[1])


def test_latents_stay_float32_whatever_the_models_are():
    pipe = LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"), dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(**CALL, generator=seeded(1))
    assert (output.frames.dtype, output.audio.dtype) == (torch.float32, torch.float32)
    assert not torch.equal(output.frames, output.frames.bfloat16().float())


# --- callbacks ---


def test_a_callback_sees_every_step():
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, round(timestep.item(), 3), sorted(tensors)))
        assert tensors["latents"].shape == (1, 2 * 2 * 3, pipe.transformer.config.in_channels)
        assert tensors["prompt_embeds"].shape[:2] == tensors["negative_prompt_embeds"].shape[:2]
        return {}

    names = ["latents", "audio_latents", "prompt_embeds", "negative_prompt_embeds"]
    output = ours()(**CALL, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    levels = [round(sigma * 1000, 3) for sigma in output.info["sigmas"][:-1]]
    assert seen == [(i, level, sorted(names)) for i, level in enumerate(levels)]


@pytest.mark.parametrize("name", ["latents", "audio_latents"])
def test_a_callback_replaces_latents(name):
    def callback(_pipe, _step, _timestep, tensors):
        return {name: torch.zeros_like(tensors[name])}

    output = ours()(**CALL, callback_on_step_end=callback, callback_on_step_end_tensor_inputs=[name])
    zeros = torch.zeros_like(output.frames if name == "latents" else output.audio)
    if name == "latents":
        torch.testing.assert_close(output.frames, ours().vae.denormalize_latents(zeros))
    else:
        tokens = zeros.transpose(1, 2).flatten(2)
        torch.testing.assert_close(
            output.audio.transpose(1, 2).flatten(2), ours().audio_vae.denormalize_latents(tokens)
        )


def test_a_callback_sees_the_prediction_of_each_step():
    seen = []
    output = ours()(
        **CALL,
        callback_on_step_end=lambda _pipe, _step, _timestep, tensors: seen.append(tensors["denoised"]),
        callback_on_step_end_tensor_inputs=["denoised"],
        generator=seeded(1),
    )
    assert len(seen) == len(output.info["sigmas"]) - 1
    # An Euler step to noise level 0 lands on the prediction.
    torch.testing.assert_close(ours().vae.denormalize_latents(seen[-1]), output.frames)
    assert (seen[0] - seen[-1]).abs().max() > 1e-3


def test_a_callback_may_return_nothing():
    output = ours()(**CALL, callback_on_step_end=lambda *_: None, generator=seeded(1))
    assert max_difference(output, ours()(**CALL, generator=seeded(1))) == 0


def test_a_callback_may_return_all_it_saw_but_not_replace_prompts():
    names = ["latents", "prompt_embeds"]
    returned = ours()(
        **CALL,
        callback_on_step_end=lambda _pipe, _step, _timestep, tensors: tensors,
        callback_on_step_end_tensor_inputs=names,
        generator=seeded(1),
    )
    assert max_difference(returned, ours()(**CALL, generator=seeded(1))) == 0
    with pytest.raises(ValueError, match=r"returned \['prompt_embeds'\]"):
        ours()(
            **CALL, callback_on_step_end=lambda _pipe, _step, _timestep, tensors: {"prompt_embeds": tensors["latents"]}
        )


def test_an_interrupt_leaves_out_the_remaining_steps():
    steps = []

    def callback(pipe, step, _timestep, _tensors):
        steps.append(step)
        pipe._interrupt = step == 1
        return {}

    output = ours()(**CALL | {"num_inference_steps": 5}, callback_on_step_end=callback, generator=seeded(1))
    assert steps == [0, 1]
    assert ours().interrupt
    assert output.frames.shape[0] == 1
    assert predictions_per_step(ours(), **CFG) == 2  # the next call starts afresh


def test_the_pipeline_shows_its_state():
    seen = []

    def callback(pipe, _step, timestep, _tensors):
        seen.append((pipe.num_timesteps, pipe.current_timestep.item() == timestep.item(), pipe.attention_kwargs))
        return {}

    ours()(**CALL, callback_on_step_end=callback, attention_kwargs={"scale": 1.0})
    assert seen == [(STEPS, True, {"scale": 1.0})] * STEPS
    assert ours().current_timestep is None


def test_the_progress_bar_counts_steps(capsys):
    pipe = LTX2Pipeline(**ours().components)
    pipe(**CALL | {"num_inference_steps": 3})
    assert "3/3" in capsys.readouterr().err


# --- output ---


def test_output_types():
    results = {
        kind: ours()(**CALL | {"output_type": kind}, generator=seeded(1)) for kind in ("pil", "np", "pt", "uint8")
    }
    frames = {kind: result.frames for kind, result in results.items()}
    assert isinstance(frames["pil"][0][0], PIL.Image.Image)
    assert (len(frames["pil"]), len(frames["pil"][0]), frames["pil"][0][0].size) == (1, 9, (96, 64))
    assert (frames["np"].shape, frames["np"].dtype) == ((1, 9, 64, 96, 3), np.float32)
    assert frames["pt"].shape == (1, 9, 3, 64, 96)
    assert (frames["uint8"].shape, frames["uint8"].dtype) == ((1, 9, 64, 96, 3), torch.uint8)
    np.testing.assert_array_equal(frames["uint8"].numpy(), np.rint(frames["np"] * 255).astype(np.uint8))
    np.testing.assert_array_equal(frames["pt"].permute(0, 1, 3, 4, 2).numpy(), frames["np"])
    for result in results.values():
        assert torch.equal(result.audio, results["np"].audio)
        assert (result.frame_rate, result.sampling_rate) == (24.0, 24000)


def test_a_tuple_instead_of_an_output():
    frames, audio = ours()(**CALL, return_dict=False, generator=seeded(1))
    expected = ours()(**CALL, generator=seeded(1))
    assert torch.equal(frames, expected.frames)
    assert torch.equal(audio, expected.audio)


@pytest.mark.parametrize("name", ["2.0", "2.3"])
def test_the_sound_lasts_as_long_as_the_picture(name):
    output = ours(name)(**CALL | {"output_type": "pt", "num_frames": 25})
    assert abs(output.audio.shape[-1] / output.sampling_rate - 25 / 24) < 0.04


# --- devices ---


def test_a_scheduler_is_left_as_it_was():
    pipe = ours()
    before = dict(vars(pipe.scheduler))
    pipe(**CALL | {"num_inference_steps": 4})
    assert all(value is vars(pipe.scheduler)[name] for name, value in before.items())


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloaded_components_give_the_same_result(mode):
    expected = load().to("cuda")(**CALL, generator=seeded(1))
    pipe = load()
    getattr(pipe, mode)()
    output = pipe(**CALL | {"negative_prompt": NEGATIVE, "output_type": "pt"}, generator=seeded(1))
    assert output.frames.isfinite().all()
    output = pipe(**CALL, generator=seeded(1))
    assert (
        max_difference(
            LTX2PipelineOutput(output.frames.cpu(), output.audio.cpu()),
            LTX2PipelineOutput(expected.frames.cpu(), expected.audio.cpu()),
        )
        <= EQUAL_PIPELINES
    )
    assert all(p.device.type in ("cpu", "meta") for p in pipe.transformer.parameters())


def test_offload_order_names_existing_components():
    order = LTX2Pipeline.model_cpu_offload_seq.split("->")
    assert set(order) <= set(ours().components)
    models = {name for name, part in ours().components.items() if isinstance(part, torch.nn.Module)}
    assert models <= set(order)
