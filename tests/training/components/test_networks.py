"""Every network learns from nothing on a batch: its loss falls, and gradients reach all that they should."""

import pytest
import torch
from torch.testing import assert_close

from ltx2_diffusers.models.latent_upsampler import LTX2LatentUpsamplerModel
from ltx2_diffusers.models.mel import waveform_to_mel
from ltx2_diffusers.models.video_vae import AutoencoderKLLTX2Video
from ltx2_diffusers.models.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from ltx2_diffusers.training.components import (
    AudioVaeStep,
    PairCritic,
    TextEncoderStep,
    UpsamplerStep,
    UpsamplerWeights,
    VideoVaeStep,
    VideoVaeWeights,
    VocoderStep,
    VocoderWeights,
    WaveCritics,
    calibrate_video_latents,
    centre_output,
    fit,
    latent_pair,
    set_spectrum_filters,
    spectrogram,
    spread_latents,
    tokenized,
    weighted,
)
from ltx2_diffusers.training.components.text_encoder import next_token_loss
from tests.models.video_vae_tools import SMALLEST, TINY_23, TINY_CONDITIONED
from tests.tiny_checkpoints.configs import component_configs
from tests.tiny_checkpoints.text_model import build_text_encoder, build_tokenizer
from tests.training.components.made import QUIET, audio_vae, ratio, sound, video, video_vae, without_gradient

SMALL_STACKS = {"resnet_kernel_sizes": [3], "resnet_dilations": [[1, 3]]}


def test_a_loss_is_the_weighted_sum_and_needs_a_weight():
    losses = weighted({"a": torch.tensor(2.0), "b": torch.tensor(3.0)}, {"a": 0.5, "b": 10.0, "unused": 1.0})
    assert list(losses) == ["loss", "a", "b"]
    assert losses["loss"] == 31.0
    with pytest.raises(ValueError, match="no weight is given for the loss 'b'"):
        weighted({"b": torch.tensor(1.0)}, {"a": 1.0})


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("config", [{}, TINY_23, TINY_CONDITIONED], ids=["2.0", "2.3", "conditioned"])
def test_video_vaes_learn(config):
    step, batch = VideoVaeStep(video_vae(**config)), {"pixels": video()}
    assert without_gradient(step, batch) == set()
    assert ratio(step, batch, 25) < 0.5


def test_a_video_vae_learns_with_a_critic():
    step = VideoVaeStep(video_vae(), VideoVaeWeights(adversarial=0.1), PairCritic(channels=4))
    records = fit(step, step.vae.parameters(), [{"pixels": video()}], 20, 3e-3, QUIET)
    assert list(records[0]) == ["loss", "pixels", "wavelets", "squares", "kl", "adversarial", "critic"]
    assert records[-1]["pixels"] < 0.6 * records[0]["pixels"]
    last = records[-1]
    parts = last["pixels"] + 0.1 * last["wavelets"] + 1e-6 * last["kl"] + 0.1 * last["adversarial"]
    assert last["loss"] == pytest.approx(parts, rel=1e-5)


def test_steps_without_a_critic_say_so():
    with pytest.raises(ValueError, match="VideoVaeStep has no critic"):
        VideoVaeStep(video_vae()).critic_losses()


def with_mean_latents(vae: AutoencoderKLLTX2Video) -> AutoencoderKLLTX2Video:
    """The VAE, whose latents are all 3, the mean, with next to no noise of their own, and whose deviation is 2."""
    vae.encoder.conv_out.conv.weight.zero_()
    vae.encoder.conv_out.conv.bias.copy_(torch.tensor([3.0, 3.0, 3.0, 3.0, -30.0]))
    vae.latents_mean.fill_(3.0)
    vae.latents_std.fill_(2.0)
    return vae


@torch.no_grad()
def test_noise_of_a_conditioned_decoder_is_mixed_into_normalised_latents(monkeypatch):
    vae = with_mean_latents(video_vae(**TINY_CONDITIONED))
    seen, decode = [], vae.decode
    monkeypatch.setattr(vae, "decode", lambda z, temb: seen.append((z, temb)) or decode(z, temb))
    VideoVaeStep(vae, max_decode_timestep=0.5)({"pixels": video(4, 17, 128)})
    latents, timesteps = seen[0]
    assert 0 <= timesteps.min() < timesteps.max() <= 0.5
    # The share of noise is the timestep, and a normalised latent of 1 is one of 2.
    assert_close((latents - 3).flatten(1).std(1), 2 * timesteps, rtol=0.15, atol=1e-3)


@torch.no_grad()
def test_a_decoder_may_learn_to_forgive_noise_on_latents(monkeypatch):
    vae = with_mean_latents(video_vae())
    seen, decode = [], vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: seen.append(z) or decode(z))
    for most in (0.0, 0.5):
        torch.manual_seed(0)
        VideoVaeStep(vae, latent_noise=most)({"pixels": video(4, 17, 128)})
    exact, noisy = ((latents - 3).flatten(1).std(1) for latents in seen)
    # Every clip has a share of its own, up to half of the deviation of 2.
    assert exact.max() < 1e-3
    assert 0 < noisy.min() < noisy.max() < 1.1 and len(set(noisy.tolist())) == 4
    with pytest.raises(ValueError, match="latent_noise"):
        VideoVaeStep(vae, latent_noise=-0.1)


def test_an_audio_vae_learns_and_begins_at_the_mean_of_the_data():
    vae = audio_vae()
    mel = spectrogram(vae, sound(2), 16000)
    far = AudioVaeStep(vae)({"mel": mel})["mel"].item()
    centre_output(vae, mel)
    step = AudioVaeStep(vae)
    assert step({"mel": mel})["mel"] < 0.5 * far
    assert without_gradient(step, {"mel": mel}) == set()
    assert ratio(step, {"mel": mel}, 25) < 0.8


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_spread_latents_tell_clips_apart(kind):
    vae = video_vae() if kind == "video" else audio_vae()
    data = video(4) if kind == "video" else spectrogram(vae, sound(4), 16000)
    spread_latents(vae, data, log_variance=-4.0)
    with torch.no_grad():
        posterior = vae.encode(data).latent_dist
    means = posterior.mean.transpose(0, 1).flatten(1)
    assert_close(means.mean(1), torch.zeros(len(means)), atol=1e-4, rtol=0)
    assert_close(means.std(1), torch.ones(len(means)), atol=1e-4, rtol=0)
    assert_close(posterior.logvar, torch.full_like(posterior.logvar, -4.0))


def clips_of_one_colour(number: int) -> dict[str, torch.Tensor]:
    colours = torch.rand(12, 3, 1, 1, 1, generator=torch.Generator().manual_seed(number)) * 2 - 1
    return {"pixels": colours.expand(-1, -1, 1, 8, 8).clone()}


@pytest.mark.quick_cases(0)
def test_with_spread_latents_a_video_vae_hands_on_colours_sooner():
    # Whoever says the same of all clips is wrong by a half on average.
    errors = []
    for spreads in (True, False):
        torch.manual_seed(0)
        vae = AutoencoderKLLTX2Video(**SMALLEST | {"upsample_type": ("spatial",)})
        if spreads:
            spread_latents(vae, clips_of_one_colour(10**6)["pixels"])
        records = fit(VideoVaeStep(vae), vae.parameters(), clips_of_one_colour, 100, 1e-3, QUIET)
        errors.append(sum(record["pixels"] for record in records[-20:]) / 20)
    assert errors[0] < 0.25 < 0.3 < errors[1] < 0.5


def test_frames_that_no_latent_holds_are_not_compared():
    vae = audio_vae()
    mel = spectrogram(vae, sound(1), 16000)
    assert mel.shape[2] % 4 == 2
    vae.encoder.requires_grad_(False)
    vae.decoder.conv_out.conv.weight.data.zero_()
    vae.decoder.conv_out.conv.bias.data.zero_()
    assert_close(AudioVaeStep(vae)({"mel": mel})["mel"], mel[:, :, :-1].abs().mean())


@pytest.mark.parametrize(("act_fn", "bound"), [("leaky_relu", 0.6), ("snakebeta", 0.85)])
def test_vocoders_learn(act_fn, bound):
    torch.manual_seed(0)
    vocoder = LTX2Vocoder(hidden_channels=64, act_fn=act_fn, **SMALL_STACKS)
    waveform = sound(1, 4800, 24000)
    step, batch = VocoderStep(vocoder), {"mel": waveform_to_mel(waveform, 24000), "waveform": waveform}
    assert without_gradient(step, batch) == set()
    # A fresh network with snakes happens to begin as loud as the sound, one with ReLUs nearly silent.
    assert ratio(step, batch, 40, 2e-3) < bound


def test_a_vocoder_learns_with_critics():
    torch.manual_seed(0)
    vocoder, waveform = LTX2Vocoder(hidden_channels=32, **SMALL_STACKS), sound(1, 4800, 24000)
    step = VocoderStep(vocoder, critic=WaveCritics(channels=4))
    batch = {"mel": waveform_to_mel(waveform, 24000), "waveform": waveform}
    records = fit(step, vocoder.parameters(), [batch], 15, 2e-3, QUIET)
    assert list(records[0]) == ["loss", "stft", "mel", "adversarial", "features", "critic"]
    assert records[-1]["stft"] < 0.7 * records[0]["stft"]


def test_a_vocoder_learns_the_phases_of_a_tone_that_repeats_with_the_frames():
    torch.manual_seed(0)
    vocoder = LTX2Vocoder(hidden_channels=32, **SMALL_STACKS)
    waveform = 0.3 * torch.sin(torch.arange(4800) * (2 * torch.pi * 400 / 24000)).expand(1, 2, -1)
    step = VocoderStep(vocoder, VocoderWeights(stft=0, mel=0, samples=1))
    batch = {"mel": waveform_to_mel(waveform, 24000), "waveform": waveform}
    records = fit(step, vocoder.parameters(), [batch], 60, 3e-3, QUIET)
    # Nothing but the samples counts.
    assert records[0]["loss"] == records[0]["samples"] and records[-1]["samples"] < 0.5 * records[0]["samples"]


def bandwidth_extension() -> LTX2VocoderWithBWE:
    torch.manual_seed(0)
    stacks = {"resnet_dilations": [[1]], "bwe_resnet_dilations": [[1]]}
    return LTX2VocoderWithBWE(**component_configs("2.3")["vocoder"] | stacks)


def test_a_vocoder_with_bandwidth_extension_learns_in_both_stages():
    vocoder, waveform = bandwidth_extension(), sound(1, 4800, 48000)
    with pytest.raises(ValueError, match="set_spectrum_filters"):
        VocoderStep(vocoder)
    set_spectrum_filters(vocoder)
    step, batch = VocoderStep(vocoder), {"mel": waveform_to_mel(waveform, 48000), "waveform": waveform}
    assert without_gradient(step, batch) == set()
    assert list(step(batch)) == ["loss", "stft", "mel", "low_band"]
    assert ratio(step, batch, 25, 2e-3) < 0.8
    assert not vocoder.vocoder._forward_hooks


def test_gradients_of_silence_are_finite():
    vocoder = bandwidth_extension()
    set_spectrum_filters(vocoder)
    waveform = torch.zeros(1, 2, 4800)
    step = VocoderStep(vocoder)
    step({"mel": waveform_to_mel(waveform, 48000), "waveform": waveform})["loss"].backward()
    assert all(parameter.grad.isfinite().all() for parameter in vocoder.parameters())


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({}, (2, 4, 2, 4, 4)),
        ({"use_rational_resampler": False}, (2, 4, 2, 4, 4)),
        ({"spatial_upsample": False, "temporal_upsample": True}, (2, 4, 3, 4, 4)),
        ({"temporal_upsample": True}, (2, 4, 3, 4, 4)),
    ],
    ids=["rational", "plain", "temporal", "both"],
)
def test_upsamplers_learn(config, shape):
    vae = video_vae()
    clips = video(2, 17 if config.get("temporal_upsample") else 9, 128)
    calibrate_video_latents(vae, [clips])
    upsampler = LTX2LatentUpsamplerModel(in_channels=4, mid_channels=32, num_blocks_per_stage=1, **config)
    batch = latent_pair(vae, upsampler, clips)
    assert batch["large"].shape == shape
    step = UpsamplerStep(upsampler, vae)
    frozen = {f"vae.{name}" for name, _ in vae.named_parameters()}
    assert without_gradient(step, batch) == frozen
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    assert ratio(step, batch, 25) < 0.5
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_an_upsampler_is_compared_in_normalised_latents_and_in_pixels():
    vae, clips = video_vae(), video(1, 9, 128)
    vae.latents_std.fill_(2.0)
    upsampler = LTX2LatentUpsamplerModel(in_channels=4, mid_channels=32, num_blocks_per_stage=1)
    batch = latent_pair(vae, upsampler, clips)
    losses = UpsamplerStep(upsampler, vae, UpsamplerWeights(pixels=1.0))(batch | {"pixels": clips})
    with torch.no_grad():
        made = upsampler(batch["small"])
        assert_close(losses["latents"], (made - batch["large"]).abs().mean() / 2)
        assert_close(losses["pixels"], (vae.decode(made).sample - clips).abs().mean())


def test_clips_that_cannot_be_made_smaller_are_refused():
    vae, upsampler = video_vae(), LTX2LatentUpsamplerModel(in_channels=4, mid_channels=32, temporal_upsample=True)
    with pytest.raises(ValueError, match=r"use 2 \* k \+ 1 frames"):
        latent_pair(vae, upsampler, torch.zeros(1, 3, 10, 128, 128))


def test_a_text_encoder_learns_the_next_token():
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    step = TextEncoderStep(build_text_encoder(len(tokenizer)))
    batch = tokenized(tokenizer, ["A woman walks along the beach.", "A chef cuts vegetables.", "x"])
    assert ratio(step, batch, 30, 5e-3) < 0.5
    # Text does not reach the vision tower.
    named = without_gradient(step, batch)
    assert {name.split(".")[2] for name in named} == {"vision_tower", "multi_modal_projector"}


def test_next_tokens_by_hand():
    ids, mask = torch.tensor([[0, 0, 2, 1]]), torch.tensor([[0, 0, 1, 1]])
    logits = torch.zeros(1, 4, 3)
    logits[0, 2] = torch.tensor([0.0, 1.0, 0.0])
    # Only the last token has one before it.
    expected = -torch.log_softmax(logits[0, 2], 0)[1]
    assert_close(next_token_loss(logits, ids, mask), expected)
