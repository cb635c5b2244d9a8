"""Latent upsampler: golden vectors of every variant, parity with diffusers, files and refused configs."""

import json

import pytest
import torch
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel as DiffusersUpsampler

from ltx2_diffusers.models.latent_upsampler import (
    BlurDownsample,
    LTX2LatentUpsamplerModel,
    PixelShuffle,
    fold_frames,
    unfold_frames,
)
from tests.golden_data import GOLDEN_DIR, assert_within, golden_cases, load_json, load_tensors

CASES = [
    path.relative_to(GOLDEN_DIR)
    for path in golden_cases("latent_upsampler", "*/cases/*.safetensors")
    if (path.parent.parent / "config.json").exists()
]
TINY = {"in_channels": 4, "mid_channels": 32, "num_blocks_per_stage": 1}


def golden_model(folder) -> LTX2LatentUpsamplerModel:
    model = LTX2LatentUpsamplerModel.from_config(load_json(folder / "config.json"))
    model.load_state_dict(load_tensors(folder / "original.safetensors"))
    return model


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parts[1]}-{path.stem}")
@torch.no_grad()
def test_golden_vectors(case):
    data = load_tensors(case)
    model = golden_model(case.parent.parent)
    upsampled = model(data["latent"])
    assert_within(upsampled, data["upsampled"], "latent upsampler")
    mean, std = data["latents_mean"].view(-1, 1, 1, 1), data["latents_std"].view(-1, 1, 1, 1)
    if "upsampled_normalized" in data:
        normalized = (model(data["latent_normalized"] * std + mean) - mean) / std
        assert_within(normalized, data["upsampled_normalized"], "latent upsampler")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rational_resampler": False},
        {"rational_spatial_scale": 1.5},
        {"rational_spatial_scale": 0.75, "dims": 2},
        {"rational_spatial_scale": 1.5, "dims": 2},
        {"rational_spatial_scale": 4.0},
        {"temporal_upsample": True},
        {"temporal_upsample": True, "spatial_upsample": False},
        {"use_rational_resampler": False, "dims": 2},
    ],
)
@torch.no_grad()
def test_diffusers_folders_load_both_ways_with_equal_results(tmp_path, options):
    torch.manual_seed(0)
    theirs = DiffusersUpsampler(**TINY, **options)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = LTX2LatentUpsamplerModel.from_pretrained(tmp_path / "theirs")
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert {key: ours.config[key] for key in theirs.config if not key.startswith("_")} == {
        key: value for key, value in theirs.config.items() if not key.startswith("_")
    }
    latent = torch.randn(2, 4, 3, 5, 4)
    assert_within(ours(latent), theirs(latent), "equal models")
    ours.save_pretrained(tmp_path / "ours")
    assert json.loads((tmp_path / "ours/config.json").read_text())["_class_name"] == "LTX2LatentUpsamplerModel"
    again = DiffusersUpsampler.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(again(latent), theirs(latent), rtol=0, atol=0)


def test_defaults_are_those_of_diffusers():
    with torch.device("meta"):
        ours, theirs = LTX2LatentUpsamplerModel(), DiffusersUpsampler()
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert {key: value for key, value in ours.config.items() if key != "_use_default_values"} == {
        key: value for key, value in theirs.config.items() if key != "_use_default_values"
    }


@torch.no_grad()
def test_batch_equals_singles():
    torch.manual_seed(0)
    model = LTX2LatentUpsamplerModel(**TINY)
    latents = torch.randn(3, 4, 2, 4, 5)
    singles = torch.cat([model(latent[None]) for latent in latents])
    assert_within(model(latents), singles, "equal models")


def test_kernel_is_the_fifth_binomial_row_and_may_be_absent_from_a_file():
    blur = BlurDownsample(stride=2)
    torch.testing.assert_close(blur.kernel[0, 0].sum(0), torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16)
    model = LTX2LatentUpsamplerModel(**TINY, rational_spatial_scale=1.5)
    state = {key: value for key, value in model.state_dict().items() if not key.endswith("kernel")}
    model.load_state_dict(state)
    torch.testing.assert_close(model.upsampler.blur_down.kernel, blur.kernel)


def test_pixel_shuffle_orders_channels_like_torch_and_interleaves_time():
    x = torch.randn(2, 8, 3, 5)
    assert torch.equal(PixelShuffle(2, 2)(x), torch.nn.functional.pixel_shuffle(x, 2))
    frames = torch.arange(6.0).reshape(1, 2, 3, 1, 1)
    assert PixelShuffle(2, 1, 1)(frames).flatten().tolist() == [0, 3, 1, 4, 2, 5]


def test_folding_frames_has_an_inverse():
    x = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(unfold_frames(fold_frames(x), 2), x)
    assert torch.equal(fold_frames(x)[5], x[1, :, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 4}, "dims must be 2 or 3"),
        ({"spatial_upsample": False}, "at least one"),
        ({"temporal_upsample": True, "dims": 2}, "needs dims=3"),
        ({"mid_channels": 50}, "use 64"),
        ({"rational_spatial_scale": 1.6}, "use 1.5"),
    ],
)
def test_impossible_configs_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LTX2LatentUpsamplerModel(**{**TINY, **options})


def test_wrong_shapes_are_refused():
    model = LTX2LatentUpsamplerModel(**TINY)
    for shape in [(1, 4, 5, 5), (1, 3, 2, 5, 5)]:
        with pytest.raises(ValueError, match=r"\[B, 4, F, h, w\]"):
            model(torch.zeros(shape))
