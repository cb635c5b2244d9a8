"""Calls of the pipeline: parity with diffusers where it is right, passes and their networks, and what is refused."""

import copy
import inspect

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline
from diffusers.hooks import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition as DiffusersCondition
from diffusers.utils import logging

from ltx2_diffusers.families.ltx_video.conditions import LTXVideoCondition
from ltx2_diffusers.families.ltx_video.long import LTXVideoLongPipeline
from ltx2_diffusers.families.ltx_video.media import canvas_of, margins
from ltx2_diffusers.families.ltx_video.passes import first_sides
from ltx2_diffusers.families.ltx_video.pipeline import LTXVideoPipeline
from ltx2_diffusers.families.ltx_video.presets import PassSettings, all_presets, of_depth
from ltx2_diffusers.media.reading import read_video
from tests.families.ltx_video.runs import tiny_pipeline
from tests.families.ltx_video.tiny import networks
from tests.golden_data import load_json, load_tensors

PRESETS = all_presets()
TEXT = {
    key: value
    for key, value in load_tensors("ltx_video/runs/extend_and_keyframe.safetensors").items()
    if key.endswith(("_embeds", "_mask"))
}
SIZE = {"height": 64, "width": 96, "num_frames": 17, "frame_rate": 25.0}
CALL = {**TEXT, **SIZE, "output_type": "latent", "image_crf": 0, "image_blur": False}
ONE_PASS = {**CALL, "multi_scale": False}
PICTURE = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
CLIP = torch.randint(0, 256, (17, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def theirs():
    parts = {name: model for name, model in networks().items() if name != "latent_upsampler"}
    made = LTXConditionPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), text_encoder=None, tokenizer=None, **parts
    )
    made.set_progress_bar_config(disable=True)
    return made


def as_pil(pixels):
    import PIL.Image

    return PIL.Image.fromarray(pixels.movedim(0, -1).numpy())


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize(
    "conditions", [[], [("image", 0, 1.0)], [("image", 0, 0.6), ("image", 12, 0.9), ("clip", 8, 0.7)]]
)
def test_a_pass_is_that_of_diffusers_where_it_is_right(pipeline, theirs, guidance_scale, conditions):
    ours, others = [], []
    for kind, frame, strength in conditions:
        frames = {"image": as_pil(PICTURE)} if kind == "image" else {"video": [as_pil(one) for one in CLIP[:9]]}
        ours.append(LTXVideoCondition(**frames, frame_index=frame, strength=strength))
        others.append(DiffusersCondition(**frames, frame_index=frame, strength=strength))
    shared = {**TEXT, **SIZE, "num_inference_steps": 4, "guidance_scale": guidance_scale, "output_type": "latent"}
    shared |= {"image_cond_noise_scale": 0.15}
    rest = {"multi_scale": False, "image_crf": 0, "image_blur": False, "conditions": ours or None}
    made = pipeline(**shared, **rest, generator=seeded()).frames
    expected = theirs(**shared, conditions=others or None, generator=seeded()).frames
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


def test_a_second_pass_is_that_of_diffusers(pipeline, theirs):
    start = torch.randn(1, 8, 3, 2, 3, generator=seeded(3))
    levels = [909.4, 725.0, 421.9]
    shared = {**TEXT, **SIZE, "guidance_scale": 1.0, "latents": start, "output_type": "latent"}
    made = pipeline(**shared, timesteps=levels, multi_scale=False, generator=seeded()).frames
    expected = theirs(**shared, timesteps=[1000.0, *levels], denoise_strength=0.999, generator=seeded()).frames
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


def test_arguments_of_diffusers_stand_in_its_order():
    own = list(inspect.signature(LTXVideoPipeline.__call__).parameters)
    known = list(inspect.signature(LTXConditionPipeline.__call__).parameters)
    assert own[: len(known)] == known


def test_two_scales_have_the_sizes_of_the_original(pipeline):
    for height, width, factor, h1, w1, h2, w2 in load_json("ltx_video/scalars.json")[
        "multiscale__[H,W,factor,h1,w1,h2,w2]"
    ]:
        sides = first_sides(height, width, factor, 32)
        assert (*sides, 2 * sides[0], 2 * sides[1]) == (h1, w1, h2, w2)
    assert pipeline(**CALL, generator=seeded()).frames.shape == (1, 8, 3, 2, 2)


def test_the_noise_of_the_original_is_drawn_in_the_order_of_tokens(pipeline):
    made = [pipeline(**ONE_PASS, packed_noise=packed, generator=seeded()).frames for packed in (False, True)]
    assert not torch.allclose(*made, atol=1e-2)


def test_a_checkpoint_runs_by_its_preset():
    for name, preset in PRESETS.items():
        pipeline = tiny_pipeline(preset=name)
        assert pipeline.settings == of_depth(preset, pipeline.transformer.config.num_layers)
        assert pipeline.sizes.causal == preset.causal_temporal_positioning
        assert pipeline.codec.denormalize_latents(torch.zeros(1, 8, 1, 1, 1)).shape == (1, 8, 1, 1, 1)
    distilled = tiny_pipeline()
    info = distilled(**CALL, generator=seeded()).info
    assert [len(levels) - 1 for levels in info["sigmas"]] == [7, 3]
    assert info["forwards_per_step"] == [1, 1]
    alone = distilled(**ONE_PASS, generator=seeded()).info
    assert alone["sigmas"][:-1] == pytest.approx(distilled.settings.allowed_inference_steps)
    assert tiny_pipeline(preset="ltxv-2b-0.9.6-distilled")(**CALL, generator=seeded()).info["sampler"] == "stochastic"


def test_a_shifted_schedule_follows_the_tokens_of_the_pass():
    """Whatever the scheduler would make of the levels once more."""
    shifting = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.2)
    early = tiny_pipeline(preset="ltxv-2b-0.9.1", scheduler=shifting)
    wish = {"num_inference_steps": 4, "stg_scale": 0.0, "generator": seeded()}
    small = early(**ONE_PASS, **wish).info["sigmas"]
    large = early(**{**ONE_PASS, "num_frames": 9}, **wish).info["sigmas"]
    assert small[-2] == large[-2] == pytest.approx(0.1)
    assert small[1] != large[1]


def test_a_second_transformer_refines(pipeline):
    other = copy.deepcopy(networks()["transformer"])
    with torch.no_grad():
        other.proj_out.weight.mul_(0.5)
    seen = {"transformer": [], "stage_2_transformer": []}
    hybrid = tiny_pipeline(stage_2_transformer=other)
    for name, calls in seen.items():
        getattr(hybrid, name).register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
    made = hybrid(**CALL, generator=seeded()).frames
    assert (len(seen["transformer"]), len(seen["stage_2_transformer"])) == (7, 3)
    assert not torch.allclose(made, pipeline(**CALL, generator=seeded()).frames, atol=1e-3)


MIX = {
    "first_pass": PassSettings(timesteps=(1.0, 0.9984, 0.9606), guidance_scale=3.0, end_timestep=0.9513),
    "continued_pass": PassSettings(timesteps=(0.95, 0.725, 0.4219)),
}


def test_a_pass_goes_on_with_what_the_one_before_leaves_noisy(pipeline):
    """The dev and the distilled model work on the same latents; with one model it is one pass but for the seam."""
    mixed = pipeline(**ONE_PASS, **MIX, generator=seeded())
    assert [levels[-1] for levels in mixed.info["sigmas"]] == [pytest.approx(0.9513), 0.0]
    assert mixed.info["forwards_per_step"] == [2, 1]
    unguided = {**MIX, "first_pass": PassSettings(timesteps=(1.0, 0.9984, 0.9606), end_timestep=0.95)}
    parts = pipeline(**ONE_PASS, **unguided, generator=seeded()).frames
    whole = pipeline(**ONE_PASS, timesteps=[1000, 998.4, 960.6, 950, 725, 421.9], generator=seeded()).frames
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_conditions_hold_on_across_the_seam(pipeline, strength):
    condition = {"image": PICTURE, "strength": strength, "image_cond_noise_scale": 0.0}
    unguided = {**MIX, "first_pass": PassSettings(timesteps=(1.0, 0.9984, 0.9606), end_timestep=0.95)}
    parts = pipeline(**ONE_PASS, **unguided, **condition, generator=seeded()).frames
    levels = [1000, 998.4, 960.6, 950, 725, 421.9]
    whole = pipeline(**ONE_PASS, timesteps=levels, **condition, generator=seeded()).frames
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_a_reference_is_followed_in_the_first_pass_alone(pipeline):
    lengths, network = [], networks()["transformer"]
    handle = network.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(kwargs["hidden_states"].shape[1]), with_kwargs=True
    )
    try:
        followed = pipeline(**CALL, reference_conditions=LTXVideoCondition(video=CLIP), generator=seeded()).frames
    finally:
        handle.remove()
    assert lengths == [2 * 3] * 7 + [3 * 2 * 2] * 3
    assert not torch.allclose(followed, pipeline(**CALL, generator=seeded()).frames, atol=1e-3)


def test_a_clip_is_made_anew_at_both_scales(pipeline):
    wish = {"media_items": CLIP, "denoise_strength": 0.3}
    made = pipeline(**CALL, **wish, generator=seeded())
    assert [len(levels) - 1 for levels in made.info["sigmas"]] == [2, 3]
    other = pipeline(**CALL, **{**wish, "media_items": CLIP.flip(0)}, generator=seeded())
    assert not torch.allclose(made.frames, other.frames, atol=1e-3)


def test_a_size_that_is_no_multiple_is_cut_out_of_a_larger_one(pipeline):
    """Of what a whole size gives for pictures with a grey border."""
    for name, rule in (("padded__[h,w,frames,H,W,F]", canvas_of), ("padding__[h,w,H,W,left,right,top,bottom]", None)):
        for row in load_json("ltx_video/scalars.json")[name]:
            if rule is not None:
                assert [*rule(*row[:3])] == row[3:]
            else:
                assert margins(row[:2], row[2:4]) == row[4:]
    border = torch.full((3, 64, 96), 127.5)
    border[:, 4:60, 3:92] = picture = PICTURE[:, :56, :89].float()
    whole = {**CALL, "output_type": "pt"}
    odd = {**whole, "height": 56, "width": 89, "num_frames": 14}
    made = pipeline(**odd, image=picture, generator=seeded()).frames
    expected = pipeline(**whole, image=border, generator=seeded()).frames
    torch.testing.assert_close(made, expected[:, :14, :, 4:60, 3:92], rtol=0, atol=1e-5)
    assert pipeline(**{**odd, "output_type": "latent"}, image=picture).frames.shape == (1, 8, 3, 2, 2)


def test_a_clip_to_start_from_has_the_border_too(pipeline):
    border = torch.full((17, 3, 64, 96), 127.5)
    clip = CLIP[:15, :, :56, :92]
    border[:, :, 4:60, 2:94] = clip[[*range(15), 14, 14]].float()
    wish = {**CALL, "output_type": "pt", "denoise_strength": 0.3}
    call = {**wish, "height": 56, "width": 92, "num_frames": 15, "media_items": clip}
    made = pipeline(**call, generator=seeded()).frames
    expected = pipeline(**wish, media_items=border, generator=seeded()).frames
    assert (made - expected[:, :15, :, 4:60, 2:94]).abs().max() < 2e-2


def test_a_batch_gives_what_its_videos_give_alone(pipeline):
    wish = {**ONE_PASS, "image": PICTURE, "num_inference_steps": 2}
    both = pipeline(**wish, num_videos_per_prompt=2, generator=[seeded(1), seeded(2)]).frames
    alone = [pipeline(**wish, generator=[seeded(seed)]).frames for seed in (1, 2)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=1e-5)


def test_latents_go_out_as_they_come_in(pipeline):
    latents = torch.randn(1, 8, 3, 2, 3, generator=seeded(1))
    made = pipeline(
        **{**ONE_PASS, "height": None, "width": None, "num_frames": None}, latents=latents, denoise_strength=0.2
    )
    assert made.frames.shape == latents.shape
    assert (made.frames - latents).abs().mean() < latents.abs().mean()


def test_an_interrupt_in_the_first_pass_hands_over_frames_of_the_asked_size(pipeline):
    def stop(pipe, step, level, values):  # noqa: ARG001
        pipe._interrupt = True
        return values

    made = pipeline(**{**CALL, "height": 64, "width": 64, "output_type": "pt"}, callback_on_step_end=stop)
    assert made.frames.shape == (1, 17, 3, 64, 64)


def test_a_list_of_frames_is_one_clip(pipeline):
    clip = [as_pil(one) for one in CLIP[:9]]
    first, second, third = (
        pipeline(*shown, **ONE_PASS, **short, generator=seeded()).frames
        for shown, short in (((), {"video": clip}), ((), {"video": [clip]}), ((LTXVideoCondition(video=clip),), {}))
    )
    assert torch.equal(first, third) and torch.equal(second, third)


def test_settings_go_with_the_components():
    first = tiny_pipeline(preset="ltxv-2b-0.9.6-distilled")
    second = LTXVideoLongPipeline.from_pipe(first)
    assert LTXVideoPipeline.from_pipe(second).settings == second.settings == first.settings
    other = LTXVideoPipeline.from_pipe(first, transformer=first.transformer)
    assert other.config.preset is None
    assert LTXVideoPipeline.from_pipe(first, preset="ltxv-2b-0.9.8-distilled").settings.version == "0.9.8"


def test_a_preset_of_another_depth_names_blocks_that_there_are():
    made = tiny_pipeline(preset="ltxv-2b-0.9.5")(**CALL, num_inference_steps=2, generator=seeded())
    assert (made.info["preset"], made.info["forwards_per_step"]) == ("0.9.5 dev", 3)


def test_a_tuple_holds_the_frames_alone(pipeline):
    made = pipeline(**ONE_PASS, num_inference_steps=1, return_dict=False, generator=seeded())
    assert [type(part) for part in made] == [torch.Tensor]


def test_frames_have_the_asked_size_at_two_scales(pipeline, tmp_path):
    call = {**CALL, "output_type": "uint8", "num_frames": 9}
    saved = read_video(pipeline(**call, generator=seeded(), save_path=tmp_path / "clip.mp4").info["path"])
    assert saved.shape == (9, 64, 96, 3)
    made = pipeline(**call, generator=seeded())
    assert made.frames.shape == (1, 9, 64, 96, 3)
    assert (made.audio, made.frame_rate) == (None, 25.0)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"height": 0}, "`height`.*use 1"),
        ({"width": 20000}, "`width`.*use 16384"),
        ({"num_frames": 0}, "`num_frames`.*use 1"),
        (
            {"height": 65, "output_type": "pt", "save_path": "clip.mp4"},
            r"`height` and `width` have to be even.*use .66, 96",
        ),
        ({"height": 65, "conditions": LTXVideoCondition(PICTURE, position="centre")}, r"use \(96, 96\)"),
        ({"num_frames": 16, "image": PICTURE, "frame_index": 16}, "use 15"),
        ({"height": 32}, "use at least 64, or multi_scale=False"),
        ({"num_inference_steps": 4, "timesteps": [1000.0]}, "leave one out"),
        ({"denoise_strength": 0.0, "media_items": CLIP}, "`denoise_strength` 0.0 leaves no step"),
        ({"denoise_strength": 0.5}, "nothing to begin with"),
        ({"media_items": CLIP}, "denoise_strength=0.8"),
        ({"media_items": CLIP[:9], "denoise_strength": 0.5}, "use num_frames=9"),
        ({"media_items": CLIP[:11], "num_frames": 12, "denoise_strength": 0.5}, "use num_frames=11"),
        (
            {"media_items": CLIP, "latents": torch.zeros(1, 8, 3, 1, 2), "denoise_strength": 0.5},
            "leave one of them out",
        ),
        ({"conditions": LTXVideoCondition(PICTURE), "image": PICTURE}, "put these into the conditions"),
        ({"conditions": PICTURE}, "LTXVideoCondition"),
        ({"image": PICTURE, "frame_index": [0, 8]}, "`frame_index` has 2 values for 1"),
        ({"image": PICTURE, "frame_index": 17}, "use 16"),
        ({"reference_conditions": LTXVideoCondition(PICTURE, frame_index=8)}, "lie at frame 0"),
        ({"guidance_scale": [1.0, 3.0]}, "`guidance_scale` is a list"),
        ({"multi_scale": False, "second_pass": PassSettings(2)}, "leave one of them out"),
        ({"first_pass": PassSettings(4, end_timestep=0.5)}, "latents are enlarged between them"),
        (
            {**MIX, "first_pass": PassSettings(4, end_timestep=0.9), "multi_scale": False},
            "`end_sigma` of a stage is 0.9",
        ),
        ({"tone_map_compression_ratio": 2.0}, "`tone_map_compression_ratio`"),
        (
            {"second_pass": PassSettings(2, tone_map_compression_ratio=6.0)},
            "`tone_map_compression_ratio` has to be .*; use 1.0",
        ),
        ({"adain_factor": 2.0}, "`adain_factor`"),
        ({"stg_mode": "values"}, "stg_mode"),
        ({"stg_scale": 1.0, "skip_block_list": []}, "names no blocks"),
        ({"strength": 0.5}, "neither `image` nor `video`"),
        ({"multi_scale": False, "adain_factor": 0.5}, "the call has one scale"),
        ({"multi_scale": False, "stage_2_adapters": {"style": 1.0}}, "the call has one pass"),
        ({"image": []}, "`image` is an empty list"),
        ({"video": []}, "`video` is an empty list"),
        ({"image_crf": 99}, "`image_crf` has to be between 0 .*use 51"),
        ({"image_crf": 30}, "`image_crf` is given .30., but there is neither picture nor clip"),
        ({"image_blur": False, "image_crf": 12}, "neither picture nor clip"),
        ({"image_cond_noise_scale": 0.1}, "there is no condition"),
        ({"media_items": CLIP, "denoise_strength": 0.5, "image_cond_noise_scale": 0.1}, "there is no condition"),
        ({"stg_scale": -1.0, "skip_block_list": [1]}, "`stg_scale` has to be at least 0.*use 0"),
        ({"guidance_scale": 0.5}, "`guidance_scale` has to be at least 1.*use 1"),
        ({"cfg_star_rescale": True}, "no classifier-free guidance"),
        ({"rescaling_scale": 0.5}, "no spatio-temporal guidance"),
        ({"skip_block_list": [1]}, "no spatio-temporal guidance"),
        ({"stg_mode": "stg_t"}, "no spatio-temporal guidance"),
        ({"guidance_timesteps": [1.0, 0.9]}, "`guidance_timesteps` is given"),
        ({"guidance_lookup": "ceil"}, "`guidance_lookup` is given"),
        ({"tone_map_compression_ratio": 0.5}, "latents are not decoded"),
        ({"stage_1_adapters": {"style": 1.0}}, "no LoRA adapter 'style'"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_computed(pipeline, wish, message):
    def computed(*_):
        raise AssertionError("something was computed")

    handles = [model.register_forward_pre_hook(computed) for model in networks().values()]
    handles.append(networks()["vae"].encoder.register_forward_pre_hook(computed))
    try:
        with pytest.raises(ValueError, match=message):
            pipeline(**{**CALL, **wish}, generator=seeded())
    finally:
        for handle in handles:
            handle.remove()


def test_two_scales_need_the_upsampler():
    with pytest.raises(ValueError, match=r"`latent_upsampler`.*multi_scale=False"):
        tiny_pipeline(latent_upsampler=None)(**CALL)


def test_a_step_callback_sees_and_changes_the_guidance(pipeline):
    seen = []

    def note(pipe, step, *_):
        seen.append(pipe.guidance_scale)
        if step == 0:
            pipe._guidance_scale = 5.0

    wish = {**ONE_PASS, "num_inference_steps": 3, "guidance_scale": 2.0, "cfg_star_rescale": False}
    changed = pipeline(**wish, callback_on_step_end=note, generator=seeded()).frames
    assert seen == [2.0, 5.0, 5.0]
    assert not torch.allclose(changed, pipeline(**wish, generator=seeded()).frames, atol=1e-4)


def test_what_only_ltx2_can_do_is_refused(pipeline):
    with pytest.raises(ValueError, match="one process"):
        pipeline.enable_parallelism()
    with pytest.raises(ValueError, match="compile_repeated_blocks"):
        pipeline.compile()
    with pytest.raises(ValueError, match="audio_vae"):
        pipeline.encode_audio(torch.zeros(1, 2, 16000), 16000)


def test_levels_that_a_distilled_model_has_not_seen_are_told(pipeline, caplog):
    logging.enable_propagation()
    try:
        for steps, told in ((8, False), (3, True)):
            caplog.clear()
            pipeline(**ONE_PASS, num_inference_steps=steps, generator=seeded())
            assert ("was distilled for the noise levels" in caplog.text) is told
    finally:
        logging.disable_propagation()


@pytest.mark.gpu
def test_a_call_on_a_gpu_is_that_on_a_cpu(pipeline):
    parts = {name: copy.deepcopy(model).cuda() for name, model in networks().items()}
    wish = {
        **CALL,
        "conditions": [LTXVideoCondition(PICTURE), LTXVideoCondition(PICTURE, frame_index=12, strength=0.7)],
    }
    wish |= {"reference_conditions": LTXVideoCondition(video=CLIP), "stg_scale": 1.0, "skip_block_list": [1]}
    wish |= {"guidance_scale": 3.0, "output_type": "pt"}
    made = tiny_pipeline(**parts)(**wish, generator=seeded()).frames
    torch.testing.assert_close(made.cpu(), pipeline(**wish, generator=seeded()).frames, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    "config",
    [FirstBlockCacheConfig(1e9), MagCacheConfig(num_inference_steps=8, mag_ratios=[1.0] * 8, max_skip_steps=1)],
    ids=lambda one: type(one).__name__,
)
def test_what_a_cache_leaves_out_is_counted(config):
    network, made = copy.deepcopy(networks()["transformer"]), []
    network.enable_cache(config)
    network.transformer_blocks[-1].ff.register_forward_hook(lambda *_: made.append(1))
    wish = {"guidance_scale": 3.0, "stg_scale": 1.0, "skip_block_list": [1], "generator": seeded()}
    passes = tiny_pipeline(transformer=network)(**ONE_PASS, **wish).info["passes"]
    assert sum(one["forwards"] for one in passes.values()) == len(made) < 24
    assert {one["skip_ratio"] for one in passes.values()} == {1 - len(made) / 24}
    assert len(passes) == 3


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        (TaylorSeerCacheConfig(), "attention_values"),
        (
            PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
            ),
            "attention_values",
        ),
        (FirstBlockCacheConfig(), "stg_t"),
    ],
)
def test_a_cache_that_mixes_passes_up_is_refused(config, mode):
    network = copy.deepcopy(networks()["transformer"])
    network.enable_cache(config)
    with pytest.raises(
        ValueError, match=f"{type(config).__name__}, with stg_mode='{mode}'; use FirstBlockCacheConfig"
    ):
        tiny_pipeline(transformer=network)(**ONE_PASS, stg_mode=mode, stg_scale=1.0, skip_block_list=[1])
