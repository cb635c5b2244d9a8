"""The two-stage recipe: what each stage does, LoRAs that come and go, free lists of stages, conditions that combine."""

import pytest
import torch
from diffusers import LTX2Pipeline as DiffusersPipeline
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel as DiffusersUpsampler
from diffusers.schedulers import FlowMatchEulerDiscreteScheduler

from ltx2_diffusers import LTX2PipelineOutput
from ltx2_diffusers.pipelines.conditions.pictures import LTX2ReferenceCondition, LTX2VideoCondition
from ltx2_diffusers.pipelines.recipes.two_stage import LTX2TwoStagePipeline
from tests.golden_data import EQUAL_PIPELINES
from tests.pipelines.recipes import (
    CALL,
    CLIP,
    OTHER,
    PICTURE,
    RATE,
    SOUND,
    STAGE_2,
    TWO_STAGES,
    add_lora,
    assert_tokens,
    encoded,
    encoded_sound,
    no_computation,
    staged,
    strengths,
    watched,
)
from tests.pipelines.tiny import ALL_GUIDANCE, NO_GUIDANCE, load, max_difference, seeded, theirs
from tests.tiny_checkpoints import tiny_checkpoint

QUICK = {**CALL, **TWO_STAGES, **NO_GUIDANCE}
STAGE_2_LEVELS = [0.909375, 0.725, 0.421875, 0.0]
REFERENCE = LTX2ReferenceCondition(torch.from_numpy(CLIP[:9]).movedim(-1, 1))


@pytest.fixture(scope="module")
def pipe() -> LTX2TwoStagePipeline:
    return staged()


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> LTX2TwoStagePipeline:
    """A pipeline with a distilled LoRA and another one, both active at strength 0.7."""
    pipe = load("2.0", LTX2TwoStagePipeline)
    folder = tmp_path_factory.mktemp("loras")
    for seed, name in enumerate(("distilled", "style")):
        add_lora(pipe, folder, name, seed)
    pipe.set_adapters(["distilled", "style"], [0.7, 0.7])
    return pipe


def generate(pipe, **kwargs):
    return pipe(**{**QUICK, "generator": seeded(1), **kwargs})


# --- what the stages do ---


def test_the_call_is_the_recipe_of_diffusers(pipe):
    """Stage 1 at half size, un-normalised latents through the upsampler, both streams renoised and refined."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=False, shift_terminal=None)
    base = DiffusersPipeline.from_pipe(theirs(), scheduler=scheduler)
    base.set_progress_bar_config(disable=True)
    upsampler = DiffusersUpsampler.from_config(dict(pipe.latent_upsampler.config))
    upsampler.load_state_dict(pipe.latent_upsampler.state_dict())
    size = {"num_frames": 9, "frame_rate": 24.0, "max_sequence_length": 64, "output_type": "latent"}
    common = {**size, "prompt": CALL["prompt"], "use_cross_timestep": False}
    guidance = {**ALL_GUIDANCE, "stg_scale": 0.0, "audio_stg_scale": 0.0}

    generator = seeded(3)
    first = base(**common, **guidance, height=64, width=96, sigmas=[1.0, 0.6], generator=generator)
    with torch.no_grad():
        enlarged = upsampler(first.frames)
    second = base(
        **common,
        **NO_GUIDANCE,
        height=128,
        width=192,
        sigmas=STAGE_2,
        noise_scale=STAGE_2[0],
        latents=enlarged,
        audio_latents=first.audio,
        generator=generator,
    )
    ours = pipe(
        **common,
        **guidance,
        height=128,
        width=192,
        sigmas=[1.0, 0.6],
        stage_2_sigmas=STAGE_2,
        stage_2_adapters={},
        generator=seeded(3),
    )
    assert max_difference(ours, second) <= EQUAL_PIPELINES


def test_the_first_stage_is_guided_at_half_size_and_the_second_refines_unguided(pipe):
    seen = watched(pipe, **CALL | {"height": 128, "width": 64}, stage_2_adapters={})
    assert seen.output.info["forwards_per_step"] == [4, 1]
    assert [levels[-4:] for levels in seen.output.info["sigmas"]][1] == pytest.approx(STAGE_2_LEVELS)
    assert [steps[0]["latents"].shape[1] for steps in seen.stages()] == [2 * 2 * 1, 2 * 4 * 2]


def test_the_sound_of_either_stage_can_be_returned(pipe):
    first, refined, default = (generate(pipe, **kwargs) for kwargs in ({"audio_stage": 0}, {"audio_stage": 1}, {}))
    alone = generate(pipe, two_stage=False, height=32, width=32, stage_2_sigmas=None, stage_2_adapters=None)
    assert torch.equal(refined.audio, default.audio)
    assert torch.equal(first.audio, alone.audio)
    assert not torch.equal(first.audio, refined.audio)
    assert torch.equal(first.frames, refined.frames)


@pytest.mark.parametrize("sampler", ["res_2s", "euler_ancestral", "euler_cfg_pp"])
def test_any_sampler_runs_both_stages(pipe, sampler):
    guidance = {"guidance_scale": 3.0} if sampler == "euler_cfg_pp" else {}
    output = generate(pipe, sampler=sampler, **guidance)
    assert output.frames.isfinite().all()
    assert max_difference(output, generate(pipe, **guidance)) > 0


def test_a_row_of_a_batch_equals_its_single_run(pipe):
    prompts = [CALL["prompt"], "Waves."]
    batch = generate(pipe, prompt=prompts, conditions=LTX2VideoCondition(PICTURE), generator=seeded(3, 4))
    for row, (prompt, seed) in enumerate(zip(prompts, (3, 4))):
        single = generate(pipe, prompt=prompt, conditions=LTX2VideoCondition(PICTURE), generator=seeded(seed))
        assert max_difference(LTX2PipelineOutput(batch.frames[[row]], batch.audio[[row]]), single) <= EQUAL_PIPELINES


def test_a_stopped_first_stage_hands_over_what_it_has(pipe):
    def stop(pipe, *_):
        pipe._interrupt = True

    output = generate(pipe, callback_on_step_end=stop, output_type="np", height=128, width=128)
    assert output.frames.shape == (1, 9, 64, 64, 3)
    assert (output.frame_rate, output.audio.shape[0]) == (24.0, 1)
    assert generate(pipe).frames.shape == (1, 128, 2, 2, 2)


@pytest.mark.parametrize(
    ("name", "dtype", "preset"), [("2.0", torch.bfloat16, "2.0 dev"), ("2.3", torch.float32, "2.3 dev")]
)
def test_other_checkpoints_and_data_types(name, dtype, preset):
    pipe = LTX2TwoStagePipeline.from_pretrained(tiny_checkpoint(name), dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    output = pipe(**CALL, stage_2_adapters={}, image=PICTURE, generator=seeded(1))
    assert (output.info["preset"], output.info["forwards_per_step"]) == (preset, [4, 1])
    assert output.frames.dtype == output.audio.dtype == torch.float32
    assert output.frames.isfinite().all()
    assert output.audio.isfinite().all()


def test_image_is_short_for_a_condition(pipe):
    short, long = generate(pipe, image=PICTURE), generate(pipe, conditions=LTX2VideoCondition(PICTURE))
    assert max_difference(short, long) == 0


# --- adapters ---


def test_the_refining_stage_of_a_dev_checkpoint_runs_with_its_distilled_lora(adapted):
    seen = watched(adapted, **CALL | NO_GUIDANCE, stage_2_sigmas=STAGE_2)
    assert seen.adapters == [{"style": 0.7}] * 2 + [{"style": 0.7, "distilled": 1.0}] * 2


def test_stages_choose_their_adapters(adapted):
    seen = watched(
        adapted,
        **QUICK | {"stage_1_adapters": {"distilled": 0.25, "style": 0.0}, "stage_2_adapters": {"distilled": 0.5}},
    )
    assert seen.adapters == [{"distilled": 0.25}] * 2 + [{"style": 0.7, "distilled": 0.5}] * 2


@pytest.mark.parametrize("stop_at", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, "interrupt"])
def test_adapters_come_back_whatever_ends_the_call(adapted, kind, stop_at):
    before, parameters = strengths(adapted), [p.requires_grad for p in adapted.transformer.parameters()]
    seen = []

    def stop(pipe, *_):
        seen.append(strengths(pipe))
        if len(seen) <= stop_at:
            return
        if kind == "interrupt":
            pipe._interrupt = True
        else:
            raise kind

    call = {**CALL, **NO_GUIDANCE, "stage_2_sigmas": STAGE_2, "callback_on_step_end": stop}
    if kind == "interrupt":
        adapted(**call)
    else:
        with pytest.raises(kind):
            adapted(**call)
    assert len(seen) == stop_at + 1
    assert all(inside != before for inside in seen)
    assert strengths(adapted) == before
    assert [p.requires_grad for p in adapted.transformer.parameters()] == parameters


@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0])
def test_a_scale_for_the_adapters_leaves_their_strengths(adapted, scale):
    before = strengths(adapted)
    plain = generate(adapted)
    scaled = generate(adapted, attention_kwargs={"scale": scale})
    assert strengths(adapted) == before
    assert max_difference(scaled, plain) > 0
    assert max_difference(generate(adapted), plain) == 0
    both = adapted(**CALL, **NO_GUIDANCE, stage_2_sigmas=STAGE_2, attention_kwargs={"scale": scale})
    assert both.frames.isfinite().all()
    assert strengths(adapted) == before


def test_a_scale_of_zero_is_the_bare_model(adapted):
    scaled = generate(adapted, attention_kwargs={"scale": 0.0})
    assert max_difference(scaled, generate(staged())) == 0


def test_another_transformer_refines(pipe):
    other = type(pipe.transformer).from_config(dict(pipe.transformer.config)).eval()
    second = LTX2TwoStagePipeline.from_pipe(pipe, stage_2_transformer=other)
    second.set_progress_bar_config(disable=True)
    used = []
    hooks = [
        model.register_forward_pre_hook(lambda *_, name=name: used.append(name))
        for name, model in (("first", pipe.transformer), ("second", other))
    ]
    output = second(**CALL, **NO_GUIDANCE, stage_2_sigmas=STAGE_2)
    for hook in hooks:
        hook.remove()
    assert used == ["first"] * 2 + ["second"] * 2
    assert output.frames.shape == (1, 128, 2, 2, 2)
    with pytest.raises(ValueError, match=r"`stage_2_adapters` \{'distilled': 1\.0\} belong to `transformer`"):
        second(**CALL, stage_2_adapters={"distilled": 1.0})


def test_an_ic_lora_that_a_stage_turns_on_says_how_references_are_scaled(tmp_path):
    pipe = load("2.0", LTX2TwoStagePipeline)
    add_lora(pipe, tmp_path, "ic", reference_downscale_factor="2")
    pipe.set_adapters([])
    seen = watched(
        pipe,
        **QUICK | {"height": 128, "width": 128, "reference_conditions": REFERENCE, "stage_1_adapters": {"ic": 1.0}},
    )
    assert seen.adapters == [{"ic": 1.0}] * 2 + [{}] * 2
    # A quarter of the tokens of the first stage, whose frames have 2 x 2 latents.
    assert seen.video_tokens == [2 * 4 + 2] * 2 + [2 * 16] * 2
    contradiction = LTX2ReferenceCondition(REFERENCE.frames, downscale_factor=1)
    with no_computation(pipe), pytest.raises(ValueError, match=r"`downscale_factor` is 1, .* trained with 2"):
        generate(pipe, height=128, width=128, reference_conditions=contradiction, stage_1_adapters={"ic": 1.0})


# --- everything at once ---


def test_first_and_last_frame_own_sound_and_a_reference_are_one_call(tmp_path):
    pipe = load("2.0", LTX2TwoStagePipeline)
    for seed, (name, factor) in enumerate((("distilled", "1"), ("ic", "2"))):
        add_lora(pipe, tmp_path, name, seed, reference_downscale_factor=factor)
    pipe.set_adapters(["ic"])
    seen = watched(
        pipe,
        **{**CALL, "height": 128, "width": 128, "num_frames": 17},
        conditions=[LTX2VideoCondition(PICTURE, crf=0), LTX2VideoCondition(OTHER, frame=-1, crf=0)],
        reference_conditions=LTX2ReferenceCondition(torch.from_numpy(CLIP).movedim(-1, 1)),
        audio=SOUND,
        sampling_rate=RATE,
        stage_2_adapters={"distilled": 1.0, "ic": 0.0},
        stage_2_sigmas=STAGE_2,
        generator=seeded(0),
    )
    first, second = seen.stages()
    sound = encoded_sound(pipe, 17)
    for step in first:
        picture, other = (encoded(pipe, frame, 64, 64) for frame in (PICTURE, OTHER))
        assert_tokens(step["latents"], 0, [picture])
        assert_tokens(step["latents"], 3 * 4, [other, encoded(pipe, CLIP, 32, 32)])
        assert step["latents"].shape[1] == 3 * 4 + 4 + 3
    for step in second:
        picture, other = (encoded(pipe, frame, 128, 128) for frame in (PICTURE, OTHER))
        assert_tokens(step["latents"], 0, [picture])
        assert_tokens(step["latents"], 3 * 16, [other])
        assert step["latents"].shape[1] == 3 * 16 + 16
    for step in seen.steps:
        assert_tokens(step["audio_latents"], 0, [sound])
    assert seen.output.info["forwards_per_step"] == [4, 1]
    assert {frozenset(a) for a in seen.adapters[:4]} == {frozenset({"ic"})}
    assert {frozenset(a) for a in seen.adapters[4:]} == {frozenset({"distilled"})}
    assert seen.output.frames.shape == (1, 128, 3, 4, 4)
    assert torch.equal(seen.output.audio, pipe.audio_vae.denormalize_latents(sound))
