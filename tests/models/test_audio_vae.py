"""The audio VAE: golden vectors, parity with diffusers, statistics, waveform encoding, checkpoints and refusals."""

import diffusers
import pytest
import torch
from diffusers.pipelines.ltx2.pipeline_ltx2 import LTX2Pipeline as DiffusersPipeline
from torch.testing import assert_close

from ltx2_diffusers.conditioning.patchifiers import AudioPatchifier
from ltx2_diffusers.conditioning.shapes import AudioLatentShape
from ltx2_diffusers.conditioning.tools import AudioLatentTools
from ltx2_diffusers.models.audio_vae import AutoencoderKLLTX2Audio, conform_latent_length
from ltx2_diffusers.models.mel import waveform_to_mel
from tests.golden_data import assert_within, load_json, load_tensors

# Two levels of statistics: 2 latent channels x 4 bins = 8 base channels.
TINY = {"base_channels": 8, "latent_channels": 2, "mel_bins": 16, "ch_mult": (1, 2, 3), "num_res_blocks": 1}
# What the reference was found equal to diffusers with; `tests/checkpoints` compares with its recorded numbers.
RECORDED = {**TINY, "base_channels": 16, "latent_channels": 4}


def tiny(cls: type = AutoencoderKLLTX2Audio, **overrides: object) -> torch.nn.Module:
    """A small audio VAE with non-trivial statistics."""
    torch.manual_seed(0)
    model = cls(**{**TINY, **overrides}).eval()
    model.latents_mean.normal_()
    model.latents_std.uniform_(0.5, 2.0)
    return model


def recorded_pair() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Our model and diffusers' with equal weights and statistics."""
    ours, theirs = tiny(**RECORDED), tiny(diffusers.AutoencoderKLLTX2Audio, **RECORDED)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (1, 17), (2, 20), (1, 22)])
@torch.no_grad()
def test_encoding_and_its_statistics_equal_diffusers(batch: int, frames: int) -> None:
    (ours, theirs), mel = recorded_pair(), torch.randn(batch, 2, frames, 16)
    posterior, expected = ours.encode(mel).latent_dist, theirs.encode(mel).latent_dist
    assert_within(posterior.parameters, expected.parameters, "equal models")
    packed = DiffusersPipeline._pack_audio_latents(expected.mode())
    normalized = DiffusersPipeline._normalize_audio_latents(packed, theirs.latents_mean, theirs.latents_std)
    assert_within(AudioPatchifier().patchify(ours.normalize_latents(posterior.mode())), normalized, "equal models")


@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (1, 5), (2, 7)])
@torch.no_grad()
def test_decoding_and_its_statistics_equal_diffusers(batch: int, steps: int) -> None:
    (ours, theirs), normalized = recorded_pair(), torch.randn(batch, 4, steps, 4)
    tokens = DiffusersPipeline._pack_audio_latents(normalized)
    assert_within(AudioPatchifier().patchify(normalized), tokens, "exact")
    packed = DiffusersPipeline._denormalize_audio_latents(tokens, theirs.latents_mean, theirs.latents_std)
    assert_within(ours.denormalize_latents(tokens), packed, "equal models")
    latent = DiffusersPipeline._unpack_audio_latents(packed, steps, num_mel_bins=4)
    assert_within(ours.denormalize_latents(normalized), latent, "equal models")
    assert_within(ours.decode(latent).sample, theirs.decode(latent).sample, "equal models")


def test_golden_latent_layout() -> None:
    """The statistics' feature order and the transformer's token layout and times are those of the reference."""
    tensors = load_tensors("audio_vae/cases/patchifier.safetensors")
    latent, tokens = tensors["latent"], tensors["tokens"]
    shape = AudioLatentShape.from_torch_shape(latent.shape)
    assert_within(AudioPatchifier().patchify(latent), tokens, "exact")
    assert_within(AudioPatchifier().unpatchify(tokens, shape), latent, "exact")
    times = AudioLatentTools(AudioPatchifier(), shape).positions()
    assert_within(times, tensors["time_bounds_seconds"], "sampling")


@pytest.mark.parametrize("case", load_json("audio_vae/cases/latent_lengths.json"), ids=str)
def test_golden_latent_length_of_a_video(case: dict) -> None:
    shape = AudioLatentShape.from_duration(1, case["frames"] / case["fps"])
    assert shape.frames == case["latent_length"]


@pytest.mark.parametrize(
    "config",
    [
        {"causality_axis": "height"},
        {"causality_axis": "width"},
        {"causality_axis": "width-compatibility"},
        {"causality_axis": "none"},
        {"causality_axis": "none", "norm_type": "group", "base_channels": 32, "ch_mult": (1, 1, 2)},
        {"attn_resolutions": (128,), "mid_block_add_attention": True, "num_res_blocks": 2},
        {"attn_resolutions": (32,), "mid_block_add_attention": True, "ch_mult": (1, 1, 1), "resolution": 64},
        {"ch_mult": (1,), "mel_bins": 8},
        {"in_channels": 1, "output_channels": 3, "mel_bins": None},
    ],
    ids=str,
)
@torch.no_grad()
def test_equals_diffusers(config: dict) -> None:
    theirs = tiny(diffusers.AutoencoderKLLTX2Audio, **config)
    ours = tiny(**config)
    ours.load_state_dict(theirs.state_dict())
    mel = torch.randn(2, ours.config.in_channels, 22, 16)
    assert_within(ours.encode(mel).latent_dist.parameters, theirs.encode(mel).latent_dist.parameters, "equal models")
    latents = torch.randn(2, 2, 5, 4)
    assert_within(ours.decode(latents).sample, theirs.decode(latents).sample, "equal models")
    assert_within(ours.decode(latents, return_dict=False)[0], theirs.decode(latents).sample, "equal models")
    if config == {"causality_axis": "height"}:
        draws = [
            model(mel, sample_posterior=True, generator=torch.Generator().manual_seed(1)).sample
            for model in (ours, theirs)
        ]
        assert_within(*draws, "equal models")
        assert_within(ours(mel, return_dict=False)[0], theirs(mel).sample, "equal models")


def test_full_size_keys_and_defaults_are_those_of_diffusers() -> None:
    with torch.device("meta"):
        ours, theirs = AutoencoderKLLTX2Audio(), diffusers.AutoencoderKLLTX2Audio()
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1] and len(shapes[0]) == 102
    assert dict(ours.config) == dict(theirs.config)
    for name in ("temporal_compression_ratio", "mel_compression_ratio", "use_slicing"):
        assert getattr(ours, name) == getattr(theirs, name)


# Without residual blocks the coarsest level of an encoder has no tensors.
@pytest.mark.parametrize("config", [{}, {"num_res_blocks": 0, "ch_mult": (1, 1, 1)}], ids=str)
@torch.no_grad()
def test_folders_move_between_diffusers_and_us(tmp_path, config) -> None:
    theirs, latents = tiny(diffusers.AutoencoderKLLTX2Audio, **config), torch.randn(1, 2, 3, 4)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = AutoencoderKLLTX2Audio.from_pretrained(tmp_path / "theirs")
    assert_within(ours.decode(latents).sample, theirs.decode(latents).sample, "equal models")
    ours.save_pretrained(tmp_path / "ours")
    for cls in (AutoencoderKLLTX2Audio, diffusers.AutoencoderKLLTX2Audio):
        again = cls.from_pretrained(tmp_path / "ours")
        assert_close(again.latents_std, theirs.latents_std, atol=0, rtol=0)
        assert_within(again.decode(latents).sample, theirs.decode(latents).sample, "equal models")


@pytest.mark.parametrize("frames", [1, 4, 5, 8, 9])
@torch.no_grad()
def test_lengths(frames: int) -> None:
    vae, steps = tiny(), -(-frames // 4)
    latents = vae.encode(torch.randn(1, 2, frames, 16)).latent_dist.mode()
    assert latents.shape == (1, 2, steps, 4)
    assert vae.decode(latents).sample.shape == (1, 2, 4 * steps - 3, 16)


@torch.no_grad()
def test_no_mel_frame_sees_a_later_one() -> None:
    vae, mel = tiny(), torch.randn(1, 2, 21, 16)
    late = mel.clone()
    late[:, :, 17:] += 1
    latents, changed = (vae.encode(each).latent_dist.mode() for each in (mel, late))
    assert_within(changed[:, :, :5], latents[:, :, :5], "equal models")
    assert not torch.allclose(changed[:, :, 5:], latents[:, :, 5:])
    assert_within(vae.decode(latents[:, :, :3]).sample, vae.decode(latents).sample[:, :, :9], "equal models")


@torch.no_grad()
def test_slicing_changes_nothing() -> None:
    vae, mel = tiny(), torch.randn(3, 2, 9, 16)
    whole = vae(mel).sample
    vae.enable_slicing()
    assert_within(vae(mel).sample, whole, "equal models")


def test_statistics_act_on_channel_major_features() -> None:
    vae = tiny()
    vae.latents_mean.copy_(torch.arange(8.0))
    vae.latents_std.fill_(2.0)
    normalized = vae.normalize_latents(torch.zeros(1, 2, 3, 4))
    # Feature 6 is channel 1, bin 2: (0 - 6) / 2.
    assert normalized[0, 1, 2, 2] == -3
    assert_close(vae.normalize_latents(torch.zeros(1, 3, 8))[0, 1], torch.arange(8.0) / -2)


@pytest.mark.parametrize("shape", [(2, 2, 5, 4), (2, 5, 8)], ids=["latents", "tokens"])
def test_normalization_inverts(shape: tuple) -> None:
    vae, latents = tiny(), torch.randn(shape)
    assert_within(vae.denormalize_latents(vae.normalize_latents(latents)), latents, "equal models")
    assert vae.normalize_latents(latents.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(1, 5, 7), (1, 3, 5, 4), (5, 8)], ids=str)
def test_normalization_refuses_other_features(shape: tuple) -> None:
    with pytest.raises(ValueError, match=r"tokens \[batch, steps, 8\]"):
        tiny().normalize_latents(torch.zeros(shape))


@torch.no_grad()
def test_encode_waveform_is_front_end_then_encoder() -> None:
    vae, waveform = tiny(), 0.1 * torch.randn(1, 1, 4800)
    latents = vae.encode_waveform(waveform, 48000)
    mel = waveform_to_mel(waveform, 48000, mel_bins=16)
    assert_within(latents, vae.encode(mel).latent_dist.mode(), "equal models")
    # 1600 samples at 16 kHz: 11 mel frames, 3 latent steps.
    assert latents.shape == (1, 2, 3, 4)


@torch.no_grad()
def test_encoder_runs_in_float32_on_bfloat16_weights() -> None:
    exact, stored, waveform = tiny(), tiny(), 0.1 * torch.randn(1, 2, 4000)
    stored.bfloat16()
    exact.load_state_dict({key: value.float() for key, value in stored.state_dict().items()})
    latents = stored.encode_waveform(waveform.bfloat16(), 16000)
    assert latents.dtype == torch.float32
    assert_within(latents, exact.encode_waveform(waveform.bfloat16(), 16000), "equal models")
    assert stored.decode(latents.bfloat16()).sample.dtype == torch.bfloat16
    assert stored.dtype == torch.bfloat16


def test_group_norm_runs_in_the_wider_dtype() -> None:
    vae = tiny(causality_axis="none", norm_type="group", base_channels=32, ch_mult=(1, 1, 1)).bfloat16()
    assert vae.encode(torch.randn(1, 2, 8, 16)).latent_dist.mode().dtype == torch.float32


@pytest.mark.parametrize("shape, axis", [((1, 2, 5, 4), 2), ((1, 5, 8), 1)], ids=["latents", "tokens"])
def test_conform_latent_length(shape: tuple, axis: int) -> None:
    latents = torch.randn(shape)
    assert_close(conform_latent_length(latents, 3), latents.narrow(axis, 0, 3), atol=0, rtol=0)
    longer = conform_latent_length(latents, 7)
    assert_close(longer.narrow(axis, 0, 5), latents, atol=0, rtol=0)
    assert longer.shape[axis] == 7 and not longer.narrow(axis, 5, 2).any()
    assert_close(conform_latent_length(latents, 5), latents, atol=0, rtol=0)


@pytest.mark.parametrize(
    "shape, length, message", [((1, 4, 2, 4), 0, "length must be"), ((5, 8), 3, "latents must be")]
)
def test_conform_latent_length_refuses(shape: tuple, length: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conform_latent_length(torch.zeros(shape), length)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"causality_axis": "depth"}, "causality_axis must be one of"),
        ({"causality_axis": None}, "`causality_axis` has to be a text but is None"),
        ({"norm_type": "layer"}, "norm_type must be one of"),
        ({"norm_type": "group"}, "cannot go with causality_axis 'height'"),
        ({"double_z": False}, "double_z must be True"),
    ],
)
def test_unknown_configs_are_refused(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**config)


def test_wrong_inputs_are_refused() -> None:
    vae = tiny()
    with pytest.raises(ValueError, match="mono spectrogram has to be duplicated"):
        vae.encode(torch.zeros(1, 1, 8, 16))
    with pytest.raises(ValueError, match="z must have shape"):
        vae.decode(torch.zeros(1, 3, 8))
    with pytest.raises(ValueError, match="mel_bins of the config is None"):
        tiny(mel_bins=None).encode_waveform(torch.zeros(1, 2, 1600), 16000)
