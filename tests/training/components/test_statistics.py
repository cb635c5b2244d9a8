"""Statistics of latents: by hand, and what normalised latents are afterwards."""

import pytest
import torch
from torch.testing import assert_close

from ltx2_diffusers.conditioning.patchifiers import AudioPatchifier
from ltx2_diffusers.models.audio_vae import AutoencoderKLLTX2Audio
from ltx2_diffusers.models.video_vae import AutoencoderKLLTX2Video
from ltx2_diffusers.training.components import calibrate_audio_latents, calibrate_video_latents, spectrogram
from ltx2_diffusers.training.components.statistics import feature_statistics
from tests.training.components.made import AUDIO_VAE, audio_vae, sound, video, video_vae


def test_statistics_by_hand_over_batches_of_unequal_size():
    batches = [torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 1.0], [4.0, 4.0]])]
    mean, std = feature_statistics(batches)
    assert_close(mean, torch.tensor([2.0, 2.0]))
    assert_close(std, torch.tensor([(8 / 3) ** 0.5, 2.0**0.5]))


def test_a_constant_feature_and_no_data_are_refused():
    with pytest.raises(ValueError, match="feature 1 of the latents is the same everywhere"):
        feature_statistics([torch.tensor([[0.0, 3.0], [1.0, 3.0]])])
    with pytest.raises(ValueError, match="at least one batch"):
        feature_statistics([])


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_normalised_video_latents_have_mean_0_and_deviation_1(factor, tmp_path):
    vae = video_vae(scaling_factor=factor)
    batches = [video(2), video(1, seed=1)]
    calibrate_video_latents(vae, batches)
    with torch.no_grad():
        latents = [vae.normalize_latents(vae.encode(batch).latent_dist.mode()) for batch in batches]
    rows = torch.cat([part.movedim(1, -1).flatten(0, -2) for part in latents])
    assert_close(rows.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    assert_close(rows.std(0, correction=0), torch.ones(4), atol=1e-4, rtol=0)
    vae.save_pretrained(tmp_path)
    again = AutoencoderKLLTX2Video.from_pretrained(tmp_path)
    assert torch.equal(again.latents_mean, vae.latents_mean)
    assert torch.equal(again.latents_std, vae.latents_std)


def test_normalised_audio_latents_have_mean_0_and_deviation_1_in_every_feature_of_a_token():
    vae = audio_vae()
    mel = spectrogram(vae, sound(2), 16000)
    calibrate_audio_latents(vae, [mel])
    with torch.no_grad():
        latents = vae.normalize_latents(vae.encode(mel).latent_dist.mode())
    rows = AudioPatchifier().patchify(latents).flatten(0, 1)
    assert rows.shape[1] == 16
    assert_close(rows.mean(0), torch.zeros(16), atol=1e-3, rtol=0)
    assert_close(rows.std(0, correction=0), torch.ones(16), atol=1e-3, rtol=0)


def test_an_audio_vae_whose_statistics_cannot_fit_is_named():
    vae = AutoencoderKLLTX2Audio(**AUDIO_VAE | {"base_channels": 8})
    with pytest.raises(ValueError, match="base_channels=8; build it with base_channels=16"):
        calibrate_audio_latents(vae, [spectrogram(vae, sound(1), 16000)])
