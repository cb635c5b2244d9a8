"""Losses by hand, and in float32 under autocast."""

import math

import pytest
import torch
from torch.testing import assert_close

from ltx2_diffusers.models.mel import log_mel_spectrogram
from ltx2_diffusers.training.components.losses import (
    haar_bands,
    kl_divergence,
    l1,
    mel_loss,
    relative_error,
    squares,
    stft_loss,
    wavelet_loss,
)
from tests.training.components.made import sound, video


def test_unequal_shapes_are_not_broadcast():
    with pytest.raises(ValueError, match=r"one shape, got \[1, 2\] and \[2\]"):
        l1(torch.zeros(1, 2), torch.zeros(2))


def test_l1_is_the_mean_difference():
    assert_close(l1(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0])), torch.tensor(2.0))


def test_squares_are_the_mean_of_squared_differences():
    assert squares(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])) == 2.5


def test_kl_of_the_standard_normal_is_zero_and_grows_by_hand():
    zeros = torch.zeros(1, 2, 1, 1, 1)
    assert kl_divergence(zeros, zeros) == 0
    # (mean² + variance - 1 - log variance) / 2 with mean 2 and variance 1/4.
    expected = 0.5 * (4 + 0.25 - 1 - math.log(0.25))
    assert_close(kl_divergence(zeros + 2, zeros + math.log(0.25)), torch.tensor(expected))


def test_bands_of_one_cube_by_hand():
    cube = torch.zeros(1, 1, 2, 2, 2)
    cube[..., 0] = 1.0
    low, details = haar_bands(cube)
    # Columns 1 and 0: sum and difference are 1, and rows and frames add two of them each, all over the root of 8.
    assert_close(low.flatten(), torch.tensor([4 / 8**0.5]))
    assert sorted(details.flatten().tolist()) == pytest.approx([0.0] * 6 + [4 / 8**0.5])


def test_the_transform_keeps_energy_and_constants_have_no_details():
    pixels = torch.randn(2, 3, 4, 8, 8)
    low, details = haar_bands(pixels)
    assert_close(low.square().sum() + details.square().sum(), pixels.square().sum())
    assert not haar_bands(torch.ones(1, 3, 5, 8, 8))[1].any()


def test_wavelet_loss_by_hand():
    made = torch.zeros(1, 1, 1, 2, 2)
    real = torch.tensor([[1.0, -1.0], [1.0, -1.0]])[None, None, None]
    # The only frame counts twice: eight values of the checked columns give one band of 8 / root of 8 in seven.
    assert_close(wavelet_loss(made, real, levels=1), torch.tensor(8 / 8**0.5 / 7))


def test_wavelet_loss_sees_blur_more_than_a_change_of_light():
    clip = video()
    blurred = torch.nn.functional.avg_pool3d(clip, (1, 3, 3), stride=1, padding=(0, 1, 1), count_include_pad=False)
    lighter = clip + l1(blurred, clip)
    assert wavelet_loss(lighter, clip) < 1e-6 < 1e-3 < wavelet_loss(blurred, clip)


def test_stft_loss_of_half_the_loudness_by_hand():
    waveform = sound(1)
    assert stft_loss(waveform, waveform) == 0
    # All magnitudes are halved: convergence is 1/2, and their logarithms differ by log 2.
    resolutions = ((1024, 256),)
    assert_close(stft_loss(0.5 * waveform, waveform, resolutions), torch.tensor(0.5 + math.log(2)), atol=1e-3, rtol=0)


def test_sound_shorter_than_half_a_window_is_refused():
    with pytest.raises(ValueError, match="at least 1025 samples, half the longest window, got 1000"):
        stft_loss(torch.zeros(1, 1, 1000), torch.zeros(1, 1, 1000))


def test_silence_has_finite_losses_and_gradients():
    waveform = torch.zeros(1, 2, 4000, requires_grad=True)
    (stft_loss(waveform, sound(1)) + stft_loss(sound(1), waveform) + mel_loss(waveform, sound(1), 16000)).backward()
    assert waveform.grad is not None
    assert waveform.grad.isfinite().all()


def test_mel_loss_is_the_difference_of_spectrograms():
    made, real = sound(1, seed=1), sound(1, seed=2)
    spectra = [log_mel_spectrogram(waveform, 16000, 80, 256) for waveform in (made, real)]
    assert_close(mel_loss(made, real, 16000), (spectra[0] - spectra[1]).abs().mean())


@pytest.mark.parametrize("loss", [stft_loss, lambda made, real: mel_loss(made, real, 16000)])
def test_losses_are_the_same_under_autocast(loss):
    made, real = sound(1, seed=1), sound(1, seed=2)
    plain = loss(made, real)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(made, real) == plain


def test_relative_error_by_hand():
    # Root mean squares of 0.5 and 0, each plus the softest 0.1; differences of 0.3 and 0.02.
    real = torch.stack([torch.full((2, 4), 0.5), torch.zeros(2, 4)])
    made = real + torch.tensor([0.3, 0.02])[:, None, None]
    assert_close(relative_error(made, real, softest=0.1), torch.tensor((0.3 / 0.6 + 0.02 / 0.1) / 2))
