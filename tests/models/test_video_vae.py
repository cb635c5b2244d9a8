"""The video VAE gives diffusers' numbers, keys and files, does what diffusers fails at, and refuses bad input."""

import diffusers
import pytest
import torch
from diffusers.utils import logging

from ltx2_diffusers.models.video_vae import AutoencoderKLLTX2Video
from ltx2_diffusers.models.video_vae_blocks import (
    CausalConv3d,
    Upsampler,
    depth_to_space,
    patchify,
    space_to_depth,
    unpatchify,
)
from tests.golden_data import EQUAL_MODELS, assert_within
from tests.models.video_vae_tools import SMALLEST, TINY, TINY_23, TINY_CONDITIONED, max_difference, pair, published_23

STRUCTURES = {"2.0": TINY, "2.3": TINY_23, "conditioned": TINY_CONDITIONED}


def _latents(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _video(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("gradients", [False, True])
def test_encode_and_decode_as_diffusers(structure, gradients):
    ours, theirs = pair(STRUCTURES[structure])
    video, latents, temb = _video(2, 3, 9, 64, 96), _latents(2, 4, 2, 2, 3), torch.tensor([0.05, 0.4])
    with torch.set_grad_enabled(gradients):
        expected = theirs.encode(video).latent_dist
        posterior = ours.encode(video).latent_dist
        assert max_difference(posterior.parameters, expected.parameters) <= EQUAL_MODELS
        for causal in (None, True):
            torch.manual_seed(3)
            expected = theirs.decode(latents, temb, causal=causal).sample
            torch.manual_seed(3)
            assert max_difference(ours.decode(latents, temb, causal=causal).sample, expected) <= EQUAL_MODELS


@torch.no_grad()
def test_injected_noise_may_come_from_a_generator_and_leaves_the_global_one_alone():
    ours, theirs = pair(TINY_CONDITIONED)
    latents, temb = _latents(2, 4, 2, 2, 3), torch.tensor([0.05, 0.4])
    torch.manual_seed(3)
    expected = theirs.decode(latents, temb).sample
    state = torch.get_rng_state()
    video = ours.decode(latents, temb, generator=torch.Generator().manual_seed(3)).sample
    assert torch.equal(torch.get_rng_state(), state)
    assert max_difference(video, expected) <= EQUAL_MODELS
    other = ours.decode(latents, temb, generator=torch.Generator().manual_seed(4)).sample
    assert max_difference(video, other) > 1e-3


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("causal", [False, True])
def test_every_padding_is_the_same_with_and_without_gradients(mode, causal):
    conv = CausalConv3d(2, 3, mode)
    x = _latents(1, 2, 3, 4, 2)
    expected = conv(x, causal)
    with torch.no_grad():
        assert_within(conv(x, causal), expected, "equal layers")
        before = x.clone()
        conv.activate(x, causal)
        assert torch.equal(x, before)


@torch.no_grad()
def test_forward_as_diffusers():
    ours, theirs = pair(TINY)
    video = _video(1, 3, 9, 64, 64)
    assert max_difference(ours(video).sample, theirs(video).sample) <= EQUAL_MODELS
    sampled = [
        vae(video, sample_posterior=True, generator=torch.Generator().manual_seed(4), return_dict=False)[0]
        for vae in (ours, theirs)
    ]
    assert max_difference(*sampled) <= EQUAL_MODELS


@torch.no_grad()
def test_causal_false_switches_a_causal_configuration_off():
    causal, _ = pair(TINY | {"decoder_causal": True})
    plain, _ = pair(TINY)
    latents = _latents(1, 4, 3, 2, 2)
    assert torch.equal(causal.decode(latents, causal=False).sample, plain.decode(latents).sample)
    assert max_difference(causal.decode(latents).sample, plain.decode(latents).sample) > 1e-3


@torch.no_grad()
def test_causal_encoder_does_not_see_the_future():
    ours, _ = pair(TINY)
    video = _video(1, 3, 17, 64, 64)
    changed = video.clone()
    changed[:, :, 9:] = 0
    first, second = (ours.encode(v).latent_dist.mode() for v in (video, changed))
    assert torch.equal(first[:, :, :2], second[:, :, :2])
    assert not torch.equal(first[:, :, 2], second[:, :, 2])


@pytest.mark.parametrize("config", [TINY, TINY_CONDITIONED | {"decoder_inject_noise": False}])
@torch.no_grad()
def test_slices_equal_the_batch(config):
    ours, _ = pair(config)
    latents, temb = _latents(2, 4, 1, 2, 2), torch.tensor([0.05, 0.4])
    video = _video(2, 3, 1, 64, 64)
    whole = ours.decode(latents, temb).sample
    moments = ours.encode(video).latent_dist.parameters
    ours.enable_slicing()
    assert max_difference(ours.decode(latents, temb).sample, whole) <= EQUAL_MODELS
    assert max_difference(ours.encode(video).latent_dist.parameters, moments) <= EQUAL_MODELS
    assert max_difference(ours.decode(latents, temb[:1]).sample[:1], whole[:1]) <= EQUAL_MODELS


@torch.no_grad()
def test_one_timestep_serves_the_batch():
    ours, _ = pair(TINY_CONDITIONED | {"decoder_inject_noise": False})
    latents = _latents(2, 4, 1, 2, 2)
    one, two = (ours.decode(latents, torch.full((n,), 0.3)).sample for n in (1, 2))
    assert torch.equal(one, two)
    assert max_difference(ours.decode(latents, torch.tensor([0.9])).sample, one) > 1e-3


@torch.no_grad()
def test_bfloat16_stays_bfloat16_and_near():
    ours, _ = pair(TINY_23)
    latents = _latents(1, 4, 2, 2, 2)
    expected = ours.decode(latents).sample
    half = ours.to(torch.bfloat16).decode(latents.bfloat16()).sample
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() / expected.norm() < 0.05


def test_gradient_checkpointing_gives_the_same_gradients():
    ours, _ = pair(TINY)
    video = _video(1, 3, 9, 64, 64)

    def gradients() -> list[torch.Tensor]:
        ours.zero_grad()
        ours(video).sample.square().mean().backward()
        return [parameter.grad.clone() for parameter in ours.parameters()]

    expected = gradients()
    ours.enable_gradient_checkpointing()
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(gradients(), expected))


def test_checkpointed_noise_refuses_a_generator_it_cannot_replay():
    ours, _ = pair(TINY_CONDITIONED)
    ours.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match="manual_seed"):
        ours.decode(_latents(1, 4, 1, 2, 2), torch.tensor([0.1]), generator=torch.Generator())


@torch.no_grad()
def test_saves_for_diffusers_and_loads_from_it(tmp_path):
    ours, theirs = pair(TINY_23)
    latents = _latents(1, 4, 1, 2, 2)
    expected = theirs.decode(latents).sample
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    for cls, folder in (
        (AutoencoderKLLTX2Video, "theirs"),
        (AutoencoderKLLTX2Video, "ours"),
        (diffusers.AutoencoderKLLTX2Video, "ours"),
    ):
        loaded = cls.from_pretrained(tmp_path / folder)
        assert max_difference(loaded.decode(latents).sample, expected) <= EQUAL_MODELS


@pytest.mark.parametrize(("config", "entries"), [({}, 184), (published_23(), 170)])
def test_published_structures_have_diffusers_keys_and_shapes(config, entries):
    with torch.device("meta"):
        ours, theirs = AutoencoderKLLTX2Video(**config), diffusers.AutoencoderKLLTX2Video(**config)
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert len(shapes) == entries
    assert {k: v for k, v in ours.config.items() if k[0] != "_"} == {
        k: v for k, v in theirs.config.items() if k[0] != "_"
    }


@torch.no_grad()
def test_unusual_structures_as_diffusers():
    """Width-changing stages, the strided downsampler, stages that do not resample, one-stage configurations."""
    unusual = {
        "latent_channels": 4,
        "patch_size": 2,
        "block_out_channels": (4, 16),
        "layers_per_block": (1, 1, 1),
        "downsample_type": ("conv", "spatial"),
        "down_block_types": ("LTX2VideoDownBlock3D",) * 2,
        "spatio_temporal_scaling": True,
        "decoder_block_out_channels": (16, 16, 24),
        "decoder_layers_per_block": (1, 1, 1, 1),
        "decoder_spatio_temporal_scaling": (True, False, True),
        "decoder_inject_noise": False,
        "upsample_factor": (2, 1, 1),
        "upsample_residual": (True, True, False),
        "decoder_causal": False,
        "temporal_compression_ratio": 4,
    }
    for config in (unusual, SMALLEST):
        ours, theirs = pair(config)
        video, latents = _video(1, 3, 5, 16, 16), _latents(1, 4, 3, 4, 4)
        expected = theirs.encode(video).latent_dist.parameters
        assert max_difference(ours.encode(video).latent_dist.parameters, expected) <= EQUAL_MODELS
        assert max_difference(ours.decode(latents).sample, theirs.decode(latents).sample) <= EQUAL_MODELS
        assert ours.temporal_compression_ratio == theirs.temporal_compression_ratio


def test_compression_ratios_follow_the_stages():
    for config in (TINY, TINY_23):
        derived = config | {"spatial_compression_ratio": None, "temporal_compression_ratio": None}
        vae = AutoencoderKLLTX2Video(**derived)
        assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio) == (32, 8)
        assert vae.config.spatial_compression_ratio is None


@torch.no_grad()
def test_statistics_are_those_of_the_pipelines():
    ours, _ = pair(TINY | {"scaling_factor": 2.0})
    ours.latents_mean.copy_(_latents(4))
    ours.latents_std.copy_(_latents(4).abs() + 0.5)
    latents = _latents(2, 4, 2, 2, 2)
    statistics = ours.latents_mean, ours.latents_std, ours.config.scaling_factor
    pipeline = diffusers.LTX2ImageToVideoPipeline
    assert torch.equal(ours.normalize_latents(latents), pipeline._normalize_latents(latents, *statistics))
    assert torch.equal(ours.denormalize_latents(latents), pipeline._denormalize_latents(latents, *statistics))
    assert max_difference(ours.denormalize_latents(ours.normalize_latents(latents)), latents) <= EQUAL_MODELS
    assert ours.normalize_latents(latents.bfloat16()).dtype == torch.bfloat16


def test_patch_and_depth_orders_by_hand():
    video = torch.arange(4.0).view(1, 1, 1, 2, 2)
    # Rows [0, 1], [2, 3]: the column offset is slower than the row offset.
    assert patchify(video, 2).flatten().tolist() == [0, 2, 1, 3]
    assert torch.equal(unpatchify(patchify(video, 2), 2), video)
    assert space_to_depth(video, (1, 2, 2)).flatten().tolist() == [0, 1, 2, 3]
    frames = _latents(1, 3, 4, 4, 6)
    for stride in ((1, 2, 2), (2, 1, 1), (2, 2, 2)):
        assert torch.equal(depth_to_space(space_to_depth(frames, stride), stride), frames)


def test_upsampler_adds_its_input_with_repeated_channels():
    upsampler = Upsampler(8, 4, (2, 2, 2), residual=True, padding_mode="zeros")
    torch.nn.init.zeros_(upsampler.conv.conv.weight)
    torch.nn.init.zeros_(upsampler.conv.conv.bias)
    x = _latents(1, 8, 2, 2, 2)
    result = upsampler(x)
    assert result.shape == (1, 4, 3, 4, 4)
    assert torch.equal(result, depth_to_space(x, (2, 2, 2))[:, :, 1:].repeat(1, 4, 1, 1, 1))


@torch.no_grad()
def test_surplus_frames_are_dropped_from_the_end_with_a_warning(monkeypatch):
    ours, _ = pair(TINY)
    messages = []
    monkeypatch.setattr(logging.get_logger("ltx2_diffusers.models.video_vae"), "warning", messages.append)
    video = _video(1, 3, 14, 32, 32)
    cropped = ours.encode(video).latent_dist.mode()
    assert "14 frames" in messages[0] and "9 encoded" in messages[0]
    assert torch.equal(cropped, ours.encode(video[:, :, :9]).latent_dist.mode())
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 9, 100, 64), "height must be a multiple of 32, got 100; use 96 or 128"),
        ((1, 3, 9, 64, 20), "width must be a multiple of 32, got 20; use 32"),
        ((1, 4, 9, 64, 64), r"shape \[B, 3, F, H, W\]"),
        ((3, 9, 64, 64), r"shape \[B, 3, F, H, W\]"),
    ],
)
def test_bad_videos_are_refused(shape, message):
    ours, _ = pair(TINY)
    with pytest.raises(ValueError, match=message):
        ours.encode(torch.zeros(shape))


def test_bad_latents_are_refused():
    ours, _ = pair(TINY)
    with pytest.raises(ValueError, match="at least 2"):
        ours.decode(torch.zeros(1, 4, 1, 1, 2))
    with pytest.raises(ValueError, match=r"\[B, 4, F', H', W'\]"):
        ours.decode(torch.zeros(1, 5, 1, 2, 2))
    conditioned, _ = pair(TINY_CONDITIONED)
    with pytest.raises(ValueError, match="`temb` is None"):
        conditioned.decode(torch.zeros(1, 4, 1, 2, 2))
    with pytest.raises(ValueError, match="3 timesteps for a batch of 2"):
        conditioned.decode(torch.zeros(2, 4, 1, 2, 2), torch.zeros(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down_block_types": ("Other",) * 4}, "down_block_types.*'Other'"),
        ({"layers_per_block": (1, 1, 1, 1)}, "`layers_per_block` has 4 entries but `block_out_channels` has 4"),
        ({"decoder_layers_per_block": (1, 1)}, "`decoder_layers_per_block`.*`decoder_block_out_channels`"),
        ({"upsample_factor": (2, 2)}, "`upsample_factor`.*`decoder_block_out_channels`"),
        ({"upsample_residual": (True,) * 5}, "`upsample_residual`.*`decoder_block_out_channels`"),
        ({"downsample_type": ("spatial", "temporal")}, "`downsample_type`.*`block_out_channels`"),
        ({"upsample_type": ("spatial", "diagonal", "spatial")}, "`upsample_type`.*'diagonal'"),
        ({"spatio_temporal_scaling": (True, True)}, "`spatio_temporal_scaling`.*`block_out_channels`"),
        ({"block_out_channels": (8, 16, 32, 36)}, "multiple of 8"),
        ({"spatio_temporal_scaling": False}, "keeps it"),
        ({"decoder_block_out_channels": (8, 16, 36)}, "`upsample_factor` is 2"),
        ({"upsample_factor": (2, 2, 3), "decoder_block_out_channels": (4, 8, 24)}, "divides 8"),
        ({"decoder_spatio_temporal_scaling": (True, True, False)}, "switches off"),
        (
            {"upsample_factor": (1, 1, 1), "timestep_conditioning": True},
            "changes the width from 32 to 16 between stages",
        ),
        ({"spatial_compression_ratio": 16}, "`spatial_compression_ratio` is 16 .* give 32"),
        ({"patch_size_t": 2}, "`patch_size_t` must be 1"),
        ({"decoder_spatial_padding_mode": "mirror"}, "`decoder_spatial_padding_mode`.*'mirror'"),
    ],
)
def test_contradictory_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderKLLTX2Video(**TINY | change)
