"""The mel front-end: golden vectors, hand-computed mixes and filters, and refusals."""

import json
import math

import pytest
import torch
from torch.testing import assert_close

from ltx2_diffusers.models.mel import conform_to_stereo, log_mel_spectrogram, mel_filterbank, resample, waveform_to_mel
from tests.golden_data import assert_within, golden_cases, load_metadata, load_tensors

WAVEFORMS = [path for path in golden_cases("audio_vae/cases", "mel_*.safetensors") if path.stem != "mel_filterbank"]
FLOOR = math.log(1e-5)


def test_golden_filterbank() -> None:
    tensors = load_tensors("audio_vae/cases/mel_filterbank.safetensors")
    assert_within(mel_filterbank(), tensors["filterbank"], "mel filters and resampling")


@pytest.mark.parametrize("path", WAVEFORMS, ids=lambda path: path.stem)
def test_golden_front_end(path) -> None:
    tensors = load_tensors(path)
    rate = json.loads(load_metadata(path)["params"])["sample_rate"]
    resampled = resample(tensors["waveform"], rate, 16000)
    assert_within(resampled, tensors["waveform_16k"], "mel filters and resampling")
    assert_within(log_mel_spectrogram(resampled).exp(), tensors["mel"].exp(), "mel energies")
    stereo = tensors["mel"].expand(-1, 2, -1, -1)
    assert_within(waveform_to_mel(tensors["waveform"], rate).exp(), stereo.exp(), "mel energies")


def test_stereo_passes_and_mono_is_duplicated() -> None:
    waveform = torch.randn(2, 2, 10)
    assert conform_to_stereo(waveform) is waveform
    assert_close(conform_to_stereo(waveform[:, :1]), waveform[:, [0, 0]], atol=0, rtol=0)


@pytest.mark.parametrize(
    "channels, left, right",
    [
        (6, [1, 0, 0.707, 0, 0.707, 0], [0, 1, 0.707, 0, 0, 0.707]),
        (8, [1, 0, 0.707, 0, 0.707, 0, 0.707, 0], [0, 1, 0.707, 0, 0, 0.707, 0, 0.707]),
    ],
)
def test_surround_downmix(channels: int, left: list, right: list) -> None:
    waveform = torch.randn(1, channels, 10)
    divisor = {6: 2.414, 8: 3.121}[channels]
    expected = torch.tensor([left, right]) @ waveform / divisor
    assert_close(conform_to_stereo(waveform), expected)
    assert conform_to_stereo(torch.ones(1, channels, 4)).max() <= 1 + 1e-6


def test_unknown_layout_becomes_its_mean_with_a_warning(monkeypatch) -> None:
    warnings = []
    monkeypatch.setattr("ltx2_diffusers.models.mel.logger.warning", warnings.append)
    waveform = torch.randn(1, 4, 10)
    assert_close(conform_to_stereo(waveform), waveform.mean(1, keepdim=True).expand(-1, 2, -1))
    assert "4 channels" in warnings[0]


@pytest.mark.parametrize("source, target", [(48000, 16000), (44100, 16000), (8000, 16000), (44101, 16000)])
def test_resampling_keeps_a_tone(source: int, target: int) -> None:
    seconds = 0.05
    time = torch.arange(round(source * seconds), dtype=torch.float64) / source
    tone = torch.sin(2 * math.pi * 440 * time).float()[None, None]
    out = resample(tone, source, target)
    assert out.shape[-1] == math.ceil(tone.shape[-1] * target / source)
    expected = torch.sin(2 * math.pi * 440 * torch.arange(out.shape[-1], dtype=torch.float64) / target).float()
    # Away from the ends, where the filter sees silence before and after the tone.
    assert_close(out[0, 0, 50:-50], expected[50:-50], atol=2e-3, rtol=0)


def test_resampling_removes_what_the_target_cannot_hold() -> None:
    time = torch.arange(4800) / 48000
    tone = torch.sin(2 * math.pi * 12000 * time)[None, None]
    assert resample(tone, 48000, 16000)[..., 50:-50].abs().max() < 1e-2


def test_equal_rates_return_the_waveform_and_dtypes_stay() -> None:
    waveform = torch.randn(1, 2, 100)
    assert resample(waveform, 16000, 16000) is waveform
    assert resample(waveform.bfloat16(), 8000, 16000).dtype == torch.bfloat16
    assert waveform_to_mel(torch.randn(1, 2, 800).bfloat16(), 16000).dtype == torch.float32


def test_filterbank_by_hand() -> None:
    filters = mel_filterbank(mel_bins=2, sample_rate=1200, n_fft=12)
    # 600 Hz is mel 9 on the linear part: edges 0, 200, 400, 600 Hz on bins of 100 Hz, height 2 / 400 Hz.
    first = torch.tensor([0, 0.5, 1, 0.5, 0, 0, 0]) / 200
    assert_close(filters, torch.stack([first, first.roll(2)], dim=1))


def test_a_tone_lands_in_its_mel_bin_and_silence_on_the_floor() -> None:
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(3200) / 16000)[None, None]
    mel = log_mel_spectrogram(tone)
    # 1 kHz is mel 15 of 45.245 at 8 kHz; band m peaks at (m + 1) * 45.245 / 65.
    assert mel[0, 0, 10].argmax().item() in (20, 21)
    assert mel.shape == (1, 1, 21, 64)
    assert_close(log_mel_spectrogram(torch.zeros(1, 1, 600)), torch.full((1, 1, 4, 64), FLOOR))


def test_front_end_sizes_are_arguments() -> None:
    mel = waveform_to_mel(torch.randn(1, 1, 800), 16000, 8000, mel_bins=20, mel_hop_length=100, n_fft=256)
    assert mel.shape == (1, 2, 5, 20)


@pytest.mark.parametrize(
    "waveform, message",
    [
        (torch.zeros(2, 600), r"\[batch, channels, samples\], got \[2, 600\]"),
        (torch.zeros(1, 0, 600), "batch, channels, samples"),
        (torch.zeros(1, 2, 600, dtype=torch.int16), "divide integer PCM by its full scale"),
        (torch.zeros(1, 2, 512), "pad it with silence to at least 513"),
    ],
)
def test_unusable_waveforms_are_refused(waveform: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        waveform_to_mel(waveform, 16000)


@pytest.mark.parametrize("rate", [0, -1, 16000.0])
def test_unusable_rates_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="source_rate must be a positive whole number"):
        resample(torch.zeros(1, 2, 600), rate, 16000)
