"""How the building blocks are used with a transformer, without any pipeline, as the LTX-Core guide uses its own."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from ltx2_diffusers import LTX2AVTransformer3DModel, LTX2ModalityModel, LTX2Scheduler
from ltx2_diffusers.conditioning import (
    AudioLatentShape,
    AudioLatentTools,
    AudioPatchifier,
    ConditionByWholeLatent,
    GaussianNoiser,
    LatentState,
    Modality,
    VideoConditionByKeyframeIndex,
    VideoConditionByLatentIndex,
    VideoConditionByReferenceLatent,
    VideoLatentPatchifier,
    VideoLatentShape,
    VideoLatentTools,
    VideoPixelShape,
)
from ltx2_diffusers.guidance import (
    BatchedPerturbationConfig,
    CFGGuider,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
    STGGuider,
)
from ltx2_diffusers.sampling import euler_step, post_process, to_denoised

from .tiny import randn

PIXELS = VideoPixelShape(batch=1, frames=17, height=64, width=96, fps=24.0)
VIDEO = VideoLatentTools(
    VideoLatentPatchifier(), VideoLatentShape.from_pixel_shape(PIXELS, latent_channels=4), fps=24.0
)
AUDIO = AudioLatentTools(
    AudioPatchifier(), AudioLatentShape.from_duration(1, PIXELS.duration_s, channels=2, mel_bins=4)
)
SIGMAS = LTX2Scheduler().execute(steps=3)


@pytest.fixture(scope="module")
def model() -> LTX2ModalityModel:
    torch.manual_seed(0)
    transformer = LTX2AVTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        caption_channels=12,
        num_layers=2,
        rope_type="split",
    )
    return LTX2ModalityModel(transformer.eval().requires_grad_(False))


def modality(state: LatentState, sigma: torch.Tensor | float = 1.0) -> Modality:
    return Modality(
        enabled=True,
        latent=state.latent,
        timesteps=sigma * state.denoise_mask,
        positions=state.positions,
        context=torch.linspace(-1, 1, 5 * 12).view(1, 5, 12),
        attention_mask=state.attention_mask,
    )


def tensors_of(stream: Modality) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(stream).items() if isinstance(value, torch.Tensor)}


def stepped(state: LatentState, velocity: torch.Tensor, step: int) -> LatentState:
    """One step down; each token has its own noise level, and those with mask 0 stay."""
    sigma, sigma_next = SIGMAS[step : step + 2]
    denoised = to_denoised(state.latent, velocity, sigma * state.denoise_mask)
    denoised = post_process(denoised, state.denoise_mask, state.clean_latent)
    return replace(state, latent=euler_step(state.latent, denoised, sigma, sigma_next))


def noised(tools: VideoLatentTools | AudioLatentTools, *items: object) -> LatentState:
    state = tools.create_initial_state()
    for item in items:
        state = item.apply_to(state, tools)
    return GaussianNoiser(torch.Generator().manual_seed(1))(state)


def test_text_to_video(model):
    state = noised(VIDEO)
    for step, sigma in enumerate(SIGMAS[:-1]):
        velocity, silence = model(modality(state, sigma), None)
        state = stepped(state, velocity, step)
    assert silence is None
    latent = VIDEO.unpatchify(state).latent
    assert latent.shape == VIDEO.target_shape and latent.isfinite().all()


def test_a_state_of_the_sizes_in_the_guide():
    pixels = VideoPixelShape(batch=1, frames=49, height=512, width=768, fps=25.0)
    tools = VideoLatentTools(
        patchifier=VideoLatentPatchifier(patch_size=1),
        target_shape=VideoLatentShape.from_pixel_shape(shape=pixels),
        fps=25.0,
    )
    state = tools.create_initial_state(device="cpu", dtype=torch.bfloat16)
    assert (state.latent.shape, state.latent.dtype) == ((1, 7 * 16 * 24, 128), torch.bfloat16)
    assert state.denoise_mask.shape == (1, 7 * 16 * 24, 1) and (state.denoise_mask == 1).all()
    assert state.positions.shape == (1, 3, 7 * 16 * 24, 2)
    shape = AudioLatentShape.from_duration(batch=1, duration=2.0, channels=8, mel_bins=16)
    tools = AudioLatentTools(patchifier=AudioPatchifier(patch_size=1), target_shape=shape)
    state = tools.create_initial_state("cpu", torch.float32)
    assert state.latent.shape == (1, 50, 128) and state.positions.shape == (1, 1, 50, 2)


def test_a_modality_is_replaced_and_never_edited():
    video = modality(noised(VIDEO))
    with pytest.raises(FrozenInstanceError):
        video.latent = video.latent
    assert replace(video, latent=2 * video.latent, timesteps=video.timesteps / 2).positions is video.positions


def test_a_stream_that_is_switched_off_is_seen_and_left_alone(model):
    video, audio = modality(noised(VIDEO)), modality(noised(AUDIO))
    off = replace(audio, enabled=False)
    seen = model(video=video, audio=off, perturbations=None)[0]
    unseen = model(video=video, audio=None, perturbations=None)[0]
    assert (seen - unseen).abs().max() > 1e-4
    assert torch.equal(seen, model(video=video, audio=off)[0])


def test_a_keyframe_is_appended_and_kept(model):
    image = randn(1, 4, 1, 2, 3)
    state = noised(VIDEO, VideoConditionByKeyframeIndex(keyframes=image, frame_idx=8, strength=1.0))
    start = state.latent
    for step, sigma in enumerate(SIGMAS[:-1]):
        state = stepped(state, model(modality(state, sigma), None)[0], step)
    tokens, count = VIDEO.patchifier.patchify(image), VIDEO.num_tokens
    assert torch.equal(state.latent[:, count:], tokens) and (state.latent[:, :count] != start[:, :count]).all()
    assert VIDEO.unpatchify(VIDEO.clear_conditioning(state)).latent.shape == VIDEO.target_shape


def test_image_to_video_keeps_the_image(model):
    image = randn(1, 4, 1, 2, 3)
    state = noised(VIDEO, VideoConditionByLatentIndex(latent=image, strength=1.0, latent_idx=0))
    start = state.latent
    for step, sigma in enumerate(SIGMAS[:-1]):
        state = stepped(state, model(modality(state, sigma), None)[0], step)
    assert torch.equal(VIDEO.unpatchify(state).latent[:, :, :1], image)
    assert (state.latent[:, 6:] != start[:, 6:]).all()


def test_reference_by_hand_equals_the_item(model):
    """References may stand before the target or after it: only positions and timesteps count."""
    reference = randn(1, 4, 3, 2, 3)
    state = noised(VIDEO, VideoConditionByReferenceLatent(reference))
    tokens, count = VIDEO.patchifier.patchify(reference), VIDEO.num_tokens
    target = VIDEO.clear_conditioning(state)
    by_hand = LatentState(
        latent=torch.cat([tokens, target.latent], dim=1),
        denoise_mask=torch.cat([torch.zeros(1, count, 1), target.denoise_mask], dim=1),
        positions=torch.cat([target.positions, target.positions], dim=2),
        clean_latent=torch.cat([tokens, target.clean_latent], dim=1),
    )
    appended = model(modality(state, 0.7), None)[0][:, :count]
    prepended = model(modality(by_hand, 0.7), None)[0][:, count:]
    torch.testing.assert_close(appended, prepended, rtol=1e-5, atol=1e-5)
    alone = model(modality(target, 0.7), None)[0]
    assert (appended - alone).abs().max() > 1e-3


def test_a_loop_may_move_the_target_alone_behind_a_reference(model):
    reference = randn(1, 4, 3, 2, 3)
    tokens, count = VIDEO.patchifier.patchify(reference), VIDEO.num_tokens
    target = noised(VIDEO)
    video = replace(
        modality(target),
        latent=torch.cat([tokens, target.latent], dim=1),
        positions=torch.cat([target.positions, target.positions], dim=2),
    )
    for step, sigma in enumerate(SIGMAS[:-1]):
        timesteps = torch.cat([torch.zeros(1, count, 1), sigma * target.denoise_mask], dim=1)
        velocity, _ = model(video=replace(video, timesteps=timesteps), audio=None, perturbations=None)
        target = stepped(target, velocity[:, count:], step)
        video = replace(video, latent=torch.cat([tokens, target.latent], dim=1))
    by_item = noised(VIDEO, VideoConditionByReferenceLatent(reference))
    by_item = replace(by_item, latent=torch.cat([noised(VIDEO).latent, tokens], dim=1))
    for step, sigma in enumerate(SIGMAS[:-1]):
        by_item = stepped(by_item, model(modality(by_item, sigma), None)[0], step)
    torch.testing.assert_close(target.latent, by_item.latent[:, :count], rtol=1e-4, atol=1e-4)


def test_blocked_reference_is_not_seen(model):
    state = noised(VIDEO, VideoConditionByReferenceLatent(randn(1, 4, 3, 2, 3), attention_strength=0.0))
    video = modality(state, 0.7)
    both = model.transformer(
        hidden_states=video.latent,
        audio_hidden_states=None,
        encoder_hidden_states=video.context,
        audio_encoder_hidden_states=None,
        timestep=video.timesteps.squeeze(-1) * 1000,
        video_coords=video.positions,
        video_self_attention_mask=state.attention_mask,
    ).sample
    alone = model(modality(VIDEO.clear_conditioning(state), 0.7), None)[0]
    torch.testing.assert_close(both[:, : VIDEO.num_tokens], alone, rtol=1e-5, atol=1e-5)


def test_audio_and_video_together(model):
    video, audio = noised(VIDEO), noised(AUDIO)
    for step, sigma in enumerate(SIGMAS[:-1]):
        both = model(modality(video, sigma), modality(audio, sigma))
        video, audio = (stepped(state, v, step) for state, v in zip((video, audio), both))
    assert VIDEO.unpatchify(video).latent.shape == VIDEO.target_shape
    assert AUDIO.unpatchify(audio).latent.shape == AUDIO.target_shape


def test_given_audio_steers_the_video_and_stays(model):
    video = noised(VIDEO)
    sounds = [randn(AUDIO.target_shape.to_torch_shape()) for _ in range(2)]
    results = []
    for sound in sounds:
        audio = noised(AUDIO, ConditionByWholeLatent(sound))
        vv, va = model(modality(video, 1.0), modality(audio, 1.0))
        results.append(vv)
        assert torch.equal(AUDIO.unpatchify(stepped(audio, va, 0)).latent, sound)
    assert (results[0] - results[1]).abs().max() > 1e-4


def test_spatio_temporal_guidance(model):
    video, audio = modality(noised(VIDEO)), modality(noised(AUDIO))
    plain = model(video, audio)[0]
    empty = model(video, audio, BatchedPerturbationConfig.empty(1))[0]
    assert torch.equal(plain, empty)
    skip = Perturbation(PerturbationType.SKIP_VIDEO_SELF_ATTN, [1])
    config = BatchedPerturbationConfig([PerturbationConfig([skip])])
    perturbed = model(video, audio, config)[0]
    guided = plain + STGGuider(scale=1.0).delta(plain, perturbed)
    assert (guided - plain).abs().max() > 1e-3
    torch.testing.assert_close(guided, 2 * plain - perturbed)


def test_each_sample_has_its_own_perturbation(model):
    both = [modality(noised(tools)) for tools in (VIDEO, AUDIO)]
    twice = [
        replace(stream, **{name: torch.cat([tensor, tensor]) for name, tensor in tensors_of(stream).items()})
        for stream in both
    ]
    deaf = PerturbationConfig(perturbations=[Perturbation(type=PerturbationType.SKIP_A2V_CROSS_ATTN, blocks=[0, 1])])
    config = BatchedPerturbationConfig([deaf, PerturbationConfig()])
    video = model(*twice, perturbations=config)[0]
    everywhere = Perturbation(PerturbationType.SKIP_A2V_CROSS_ATTN, blocks=None)
    alone = model(*both, perturbations=BatchedPerturbationConfig([PerturbationConfig([everywhere])]))[0]
    torch.testing.assert_close(video[:1], alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(video[1:], model(*both, perturbations=None)[0], rtol=1e-5, atol=1e-5)
    assert (video[0] - video[1]).abs().max() > 1e-4


def test_classifier_free_guidance_moves_away_from_the_negative_prompt(model):
    video = modality(noised(VIDEO))
    cond = model(video, None)[0]
    uncond = model(replace(video, context=-video.context), None)[0]
    guided = cond + CFGGuider(3.0).delta(cond, uncond)
    torch.testing.assert_close(guided - uncond, 3 * (cond - uncond), rtol=1e-4, atol=1e-5)
