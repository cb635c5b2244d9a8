"""What the vocoder of the miniature world learns from, and how one side of it becomes two."""

import pytest
import torch

from examples.mini_world import train_sound
from examples.mini_world.networks import AUDIO_VAE, VOCODER_SIDE
from examples.mini_world.train_sound import HOP_HZ, RATE, STRETCH, Voiced, doubled
from ltx2_diffusers import AutoencoderKLLTX2Audio, LTX2Vocoder
from ltx2_diffusers.training.components import spectrogram


@torch.no_grad()
def test_a_doubled_side_makes_each_side_of_its_own_spectrogram():
    torch.manual_seed(0)
    side = LTX2Vocoder(**VOCODER_SIDE).eval()
    mel = torch.randn(2, 2, 6, 64)
    apart = torch.cat([side(mel[:, :1]), side(mel[:, 1:])], dim=1)
    assert torch.allclose(doubled(side)(mel), apart, atol=1e-6)
    assert not torch.allclose(apart[:, 0], apart[:, 1], atol=1e-3)


@pytest.fixture
def voiced(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(train_sound, "GROUPS", 2)
    return Voiced(AutoencoderKLLTX2Audio(**AUDIO_VAE).eval())


def test_a_stretch_of_spectrogram_belongs_to_its_stretch_of_sound(voiced):
    batch = voiced(0)
    samples = STRETCH * RATE // HOP_HZ
    assert batch["mel"].shape == (16, 1, STRETCH, 64) and batch["waveform"].shape == (16, 1, samples)
    # The second pair of sides did not go through the audio VAE. At its ends a stretch lacks what lies beyond.
    pair = batch["waveform"][2:4].transpose(0, 1)
    again = spectrogram(voiced.vae, pair, RATE)[0]
    assert torch.allclose(again[:, 4 : STRETCH - 4], batch["mel"][2:4, 0, 4:-4], atol=1e-4)


def test_batches_of_sound_follow_from_their_number(voiced):
    first, again, other = voiced(0), voiced(0), voiced(2)
    assert torch.equal(first["waveform"], again["waveform"])
    assert not torch.equal(first["waveform"], other["waveform"])
