"""The vocoders: golden vectors, parity with diffusers, first-stage clamp, precision, checkpoints and refusals."""

import diffusers.pipelines.ltx2.vocoder as upstream
import pytest
import torch
from torch.testing import assert_close

from ltx2_diffusers.models.antialias import (
    AntiAliasedActivation,
    LowPass,
    SnakeBeta,
    hann_sinc_filter,
    kaiser_sinc_filter,
    resample_up,
)
from ltx2_diffusers.models.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from tests.golden_data import assert_within, golden_cases, load_json, load_tensors

BWE = "vocoder with bandwidth extension"
SEGMENTS = {
    "conv_pre": "conv_in",
    "ups": "upsamplers",
    "resblocks": "resnets",
    "conv_post": "conv_out",
    "act_post": "act_out",
}
STACKS = {"resnet_kernel_sizes": [3, 5], "resnet_dilations": [[1, 3], [1, 2]]}
TINY = {
    "in_channels": 16,
    "hidden_channels": 16,
    "upsample_kernel_sizes": [5, 4],
    "upsample_factors": [3, 2],
    **STACKS,
}
# 10 samples per mel frame at 16 kHz, hop 4, then x12 = hop x 3.
TINY_BWE = {
    **TINY,
    "upsample_kernel_sizes": [11, 4],
    "upsample_factors": [5, 2],
    "bwe_in_channels": 16,
    "bwe_hidden_channels": 16,
    "bwe_upsample_kernel_sizes": [7, 8],
    "bwe_upsample_factors": [3, 4],
    **{f"bwe_{key}": value for key, value in STACKS.items()},
    "filter_length": 16,
    "hop_length": 4,
    "window_length": 16,
    "num_mel_channels": 8,
}


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter and every empty buffer a value; the filters stay."""
    torch.manual_seed(0)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if "filter" not in name:
            value.data.normal_(std=0.2)
            if name.endswith("mel_basis"):
                value.data.abs_()
    return model.eval()


def diffusers_numbers(model: LTX2VocoderWithBWE) -> LTX2VocoderWithBWE:
    """The same model computing as diffusers does."""
    model.clamp_first_stage = model.run_in_float32 = False
    return model


@pytest.fixture
def golden_bwe() -> LTX2VocoderWithBWE:
    """The golden vocoder, from its original weights."""
    weights = {}
    for key, value in load_tensors("vocoder/bwe/original.safetensors").items():
        name = key.removeprefix("vocoder.").replace("downsample.lowpass.filter", "downsample.filter")
        weights[".".join(SEGMENTS.get(part, part) for part in name.split("."))] = value
    model = LTX2VocoderWithBWE.from_config(load_json("vocoder/bwe/config.json")).eval()
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("path", golden_cases("vocoder/bwe/cases", "waveform_*"), ids=lambda path: path.stem)
@torch.no_grad()
def test_golden_bandwidth_extension(path, golden_bwe: LTX2VocoderWithBWE) -> None:
    tensors = load_tensors(path)
    mel = tensors["mel"]
    assert_within(golden_bwe(mel), tensors["waveform_reference"], BWE)
    first = golden_bwe.vocoder(mel)
    assert_within(first, tensors["stage1_diffusers"], BWE)
    clamped = first.clamp(-1, 1)
    assert_within(clamped, tensors["stage1_reference"], BWE)
    padded = torch.nn.functional.pad(clamped, (0, -clamped.shape[-1] % golden_bwe.config.hop_length))
    log_mel = golden_bwe.mel_stft(padded)
    assert_within(log_mel.exp(), tensors["bwe_log_mel_reference"].exp(), "mel energies")
    assert_within(resample_up(padded, 3), tensors["skip_reference"], BWE)
    assert_within(diffusers_numbers(golden_bwe)(mel), tensors["waveform_diffusers"], BWE)


@torch.no_grad()
def test_golden_blocks(golden_bwe: LTX2VocoderWithBWE) -> None:
    tensors = load_tensors("vocoder/bwe/cases/blocks.safetensors")
    assert_within(hann_sinc_filter(3), tensors["resampler_filter"].flatten(), "mel filters and resampling")
    assert_within(resample_up(tensors["resampler_input"], 3), tensors["resampler_output"], "vocoder")
    assert_within(kaiser_sinc_filter(2, 12), tensors["kaiser_filter"].flatten(), "mel filters and resampling")
    act = AntiAliasedActivation(SnakeBeta(4), ratio=2, kernel_size=12)
    act.act.load_state_dict({"alpha": tensors["act_alpha"], "beta": tensors["act_beta"]})
    assert_within(act(tensors["act_input"]), tensors["act_output"], "vocoder")
    assert_within(golden_bwe.mel_stft.stft_fn(tensors["stft_input"]), tensors["stft_magnitude"], BWE)


@torch.no_grad()
def test_clamp_in_the_config_equals_the_default(golden_bwe: LTX2VocoderWithBWE) -> None:
    tensors = load_tensors("vocoder/bwe/cases/waveform_overdriven.safetensors")
    clamping = LTX2VocoderWithBWE.from_config(golden_bwe.config, final_act_fn="clamp").eval()
    clamping.load_state_dict(golden_bwe.state_dict())
    clamping.clamp_first_stage = False
    assert_within(clamping(tensors["mel"]), tensors["waveform_reference"], BWE)
    golden_bwe.clamp_first_stage = False
    assert (golden_bwe(tensors["mel"]) - tensors["waveform_reference"]).abs().max() > 0.1


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"act_fn": "snakebeta", "antialias": True},
        {"act_fn": "snake", "antialias": True, "final_act_fn": "clamp"},
        {"act_fn": "snakebeta", "final_act_fn": None, "final_bias": False},
        {"act_fn": "snake", "antialias": True, "antialias_ratio": 3, "antialias_kernel_size": 13},
        {"leaky_relu_negative_slope": 0.3, "upsample_kernel_sizes": [6, 4]},
        {"in_channels": 8, "out_channels": 1},
    ],
    ids=str,
)
@torch.no_grad()
def test_equals_diffusers(config: dict) -> None:
    theirs = randomize(upstream.LTX2Vocoder(**{**TINY, **config}))
    ours = LTX2Vocoder(**{**TINY, **config}).eval()
    ours.load_state_dict(theirs.state_dict())
    mel = torch.randn(2, 2, 7, ours.config.in_channels // 2)
    assert_within(ours(mel), theirs(mel), "equal models")


@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 9), (2, 13)])
@torch.no_grad()
def test_real_rates_and_kernels_equal_diffusers(batch: int, frames: int) -> None:
    """The reference was found equal to diffusers with these; `tests/checkpoints` compares with its recorded numbers."""
    torch.manual_seed(0)
    theirs, ours = (cls(hidden_channels=64).eval() for cls in (upstream.LTX2Vocoder, LTX2Vocoder))
    ours.load_state_dict(theirs.state_dict())
    mel = torch.randn(batch, 2, frames, 64)
    expected = theirs(mel)
    assert expected.shape == (batch, 2, 240 * frames) and 0.05 < expected.std() < 0.5
    assert_within(ours(mel), expected, "equal models")
    assert_within(ours(mel.transpose(2, 3), time_last=True), expected, "equal models")


@pytest.mark.parametrize("frames", [4, 7], ids=["aligned", "padded"])
@torch.no_grad()
def test_bandwidth_extension_equals_diffusers(frames: int) -> None:
    theirs = randomize(upstream.LTX2VocoderWithBWE(**TINY_BWE))
    # Upstream's branch for a rest of samples reads the hop from an attribute that it does not set.
    theirs.hop_length = theirs.config.hop_length
    ours = diffusers_numbers(LTX2VocoderWithBWE(**TINY_BWE)).eval()
    ours.load_state_dict(theirs.state_dict())
    mel = torch.randn(2, 2, frames, 8)
    assert_within(ours(mel), theirs(mel), "equal models")
    assert ours(mel).shape == (2, 2, 30 * frames)


@pytest.mark.parametrize("name, entries", [("LTX2Vocoder", 194), ("LTX2VocoderWithBWE", 1227)])
def test_full_size_keys_and_defaults_are_those_of_diffusers(name: str, entries: int) -> None:
    with torch.device("meta"):
        ours, theirs = globals()[name](), getattr(upstream, name)()
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1] and len(shapes[0]) == entries

    def as_lists(value: object) -> object:
        return [as_lists(item) for item in value] if isinstance(value, list | tuple) else value

    configs = [{key: as_lists(value) for key, value in model.config.items()} for model in (ours, theirs)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("name, config", [("LTX2Vocoder", TINY), ("LTX2VocoderWithBWE", TINY_BWE)])
@torch.no_grad()
def test_folders_move_between_diffusers_and_us(name: str, config: dict, tmp_path) -> None:
    cls, theirs = globals()[name], randomize(getattr(upstream, name)(**config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = cls.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    mel = torch.randn(1, 2, 4, 8)
    for model in (ours, cls.from_pretrained(tmp_path / "ours")):
        model = diffusers_numbers(model) if name.endswith("BWE") else model
        assert_within(model(mel), theirs(mel), "equal models")
    assert_within(getattr(upstream, name).from_pretrained(tmp_path / "ours")(mel), theirs(mel), "equal models")


@torch.no_grad()
def test_filters_come_from_the_checkpoint() -> None:
    stored = randomize(LTX2VocoderWithBWE(**TINY_BWE))
    mel = torch.randn(1, 2, 4, 8)
    before = stored(mel)
    stored.vocoder.act_out.upsample.filter.mul_(0.5)
    assert not torch.allclose(stored(mel), before)


@torch.no_grad()
def test_bandwidth_extension_runs_in_float32_by_default() -> None:
    stored = randomize(LTX2VocoderWithBWE(**TINY_BWE)).bfloat16()
    exact = LTX2VocoderWithBWE(**TINY_BWE).eval()
    exact.load_state_dict({key: value.float() for key, value in stored.state_dict().items()})
    mel = torch.randn(1, 2, 4, 8).bfloat16()
    expected = exact(mel.float())
    waveform = stored(mel)
    assert waveform.dtype == torch.bfloat16 and stored.dtype == torch.bfloat16
    assert_close(waveform, expected.bfloat16(), atol=0, rtol=0)
    assert_close(stored(mel.float()), expected, atol=0, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(stored(mel.float()), expected, atol=0, rtol=0)
    stored.run_in_float32 = False
    assert not torch.equal(stored(mel), waveform)


@torch.no_grad()
def test_mixed_dtypes_compute_in_the_wider_one() -> None:
    vocoder = randomize(LTX2Vocoder(**TINY)).bfloat16()
    assert vocoder(torch.randn(1, 2, 4, 8)).dtype == torch.float32
    assert vocoder(torch.randn(1, 2, 4, 8).bfloat16()).dtype == torch.bfloat16


@torch.no_grad()
def test_bandwidth_extension_is_causal_between_the_stages() -> None:
    stft = randomize(LTX2VocoderWithBWE(**TINY_BWE)).mel_stft
    waveform = torch.randn(1, 2, 40)
    late = waveform.clone()
    late[..., 20:] += 1
    assert_within(stft(late)[..., :5], stft(waveform)[..., :5], "equal models")


def test_snake_by_hand() -> None:
    snake = SnakeBeta(1)
    snake.alpha.data.fill_(torch.tensor(2.0).log())
    snake.beta.data.fill_(torch.tensor(4.0).log())
    x = torch.tensor([[[0.3, -1.0]]])
    assert_close(snake(x), x + torch.sin(2 * x) ** 2 / 4)


def test_low_pass_filters_keep_a_constant() -> None:
    assert_close(kaiser_sinc_filter(2, 12).sum(), torch.tensor(1.0))
    constant = torch.full((1, 2, 20), 0.7)
    assert_close(AntiAliasedActivation(torch.nn.Identity(), 2, 12)(constant), constant, atol=5e-3, rtol=0)
    assert_close(resample_up(constant, 3), torch.full((1, 2, 60), 0.7), atol=5e-3, rtol=0)


def test_filters_are_exact_wherever_they_are_made_first() -> None:
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            assert LowPass(5, 14).filter.is_meta
    finally:
        torch.set_default_dtype(before)
    assert_close(LowPass(5, 14).filter.flatten(), kaiser_sinc_filter(5, 14), atol=0, rtol=0)


@pytest.mark.parametrize("ratio, taps, beta", [(2, 12, 4.664), (2, 6, 1.365), (2, 4, 0.0), (4, 12, 2.042)])
def test_kaiser_window(ratio: int, taps: int, beta: float) -> None:
    half = torch.arange(taps) - taps / 2 + 0.5
    expected = torch.kaiser_window(taps, periodic=False, beta=beta) * torch.sinc(half / ratio)
    assert_close(kaiser_sinc_filter(ratio, taps), expected / expected.sum(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "config, message",
    [
        (
            {"upsample_factors": [3]},
            "upsample_kernel_sizes and upsample_factors must have the same length, got 2 and 1",
        ),
        ({"resnet_dilations": [[1]]}, "resnet_kernel_sizes and resnet_dilations must have the same length"),
        ({"act_fn": "relu"}, "act_fn must be one of"),
        ({"final_act_fn": "sigmoid"}, "final_act_fn must be one of"),
        ({"antialias": True}, "antialias must be False"),
        ({"act_fn": "snake", "antialias_kernel_size": 1}, "antialias_kernel_size must be at least"),
        ({"upsample_factors": [6, 2]}, "upsample_kernel_sizes must reach upsample_factors, got 5 for 6"),
    ],
)
def test_unknown_configs_are_refused(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LTX2Vocoder(**{**TINY, **config})


@pytest.mark.parametrize(
    "config, message",
    [
        ({"output_sampling_rate": 44100}, "multiple of input_sampling_rate = 16000, got 44100; use 32000"),
        ({"window_length": 8}, "window_length must be 16"),
        ({"bwe_in_channels": 8}, "bwe_in_channels must be 16"),
        ({"bwe_out_channels": 1}, "bwe_out_channels must be 2"),
        ({"bwe_upsample_factors": [3, 3]}, r"multiply to hop_length \* rate ratio = 12"),
        ({"bwe_upsample_kernel_sizes": [7, 7]}, "by even numbers, got 7 for 4; use 8"),
    ],
)
def test_stages_that_do_not_fit_are_refused(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LTX2VocoderWithBWE(**{**TINY_BWE, **config})


@pytest.mark.parametrize("shape, time_last", [((1, 2, 5, 9), False), ((1, 2, 5, 8), True), ((2, 5, 8), False)])
def test_unusable_spectrograms_are_refused(shape: tuple, time_last: bool) -> None:
    with pytest.raises(ValueError, match=r"channels \* mel bins = 16"):
        LTX2Vocoder(**TINY)(torch.zeros(shape), time_last=time_last)
