"""How states, conditions and perturbations are used with a transformer, without any pipeline."""

from dataclasses import replace

import pytest
import torch

from ltx2_diffusers import LTX2AVTransformer3DModel
from ltx2_diffusers.conditioning import (
    AudioLatentShape,
    AudioLatentTools,
    AudioPatchifier,
    ConditionByWholeLatent,
    GaussianNoiser,
    LatentState,
    Modality,
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
from ltx2_diffusers.models.modality_front import LTX2ModalityModel

from .tiny import randn

PIXELS = VideoPixelShape(batch=1, frames=17, height=64, width=96, fps=24.0)
VIDEO = VideoLatentTools(
    VideoLatentPatchifier(), VideoLatentShape.from_pixel_shape(PIXELS, latent_channels=4), fps=24.0
)
AUDIO = AudioLatentTools(
    AudioPatchifier(), AudioLatentShape.from_duration(1, PIXELS.duration_s, channels=2, mel_bins=4)
)
SIGMAS = torch.tensor([1.0, 0.7, 0.3, 0.0])


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


def euler_step(state: LatentState, velocity: torch.Tensor, step: int) -> LatentState:
    """Each token moves by its own share of the noise level, so that tokens with mask 0 stay."""
    return replace(state, latent=state.latent + (SIGMAS[step + 1] - SIGMAS[step]) * state.denoise_mask * velocity)


def noised(tools: VideoLatentTools | AudioLatentTools, *items: object) -> LatentState:
    state = tools.create_initial_state()
    for item in items:
        state = item.apply_to(state, tools)
    return GaussianNoiser(torch.Generator().manual_seed(1))(state)


def test_text_to_video(model):
    state = noised(VIDEO)
    for step, sigma in enumerate(SIGMAS[:-1]):
        velocity, silence = model(modality(state, sigma), None)
        state = euler_step(state, velocity, step)
    assert silence is None
    latent = VIDEO.unpatchify(state).latent
    assert latent.shape == VIDEO.target_shape and latent.isfinite().all()


def test_image_to_video_keeps_the_image(model):
    image = randn(1, 4, 1, 2, 3)
    state = noised(VIDEO, VideoConditionByLatentIndex(latent=image, strength=1.0, latent_idx=0))
    start = state.latent
    for step, sigma in enumerate(SIGMAS[:-1]):
        state = euler_step(state, model(modality(state, sigma), None)[0], step)
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
        video, audio = (euler_step(state, v, step) for state, v in zip((video, audio), both))
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
        assert torch.equal(AUDIO.unpatchify(euler_step(audio, va, 0)).latent, sound)
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


def test_classifier_free_guidance_moves_away_from_the_negative_prompt(model):
    video = modality(noised(VIDEO))
    cond = model(video, None)[0]
    uncond = model(replace(video, context=-video.context), None)[0]
    guided = cond + CFGGuider(3.0).delta(cond, uncond)
    torch.testing.assert_close(guided - uncond, 3 * (cond - uncond), rtol=1e-4, atol=1e-5)
