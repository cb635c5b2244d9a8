import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf

from ltx2_diffusers.media import preprocess
from ltx2_diffusers.media.preprocess import (
    fit_cover,
    fitted_frames,
    h264_round_trip,
    normalize_pixels,
    subsampled_frames,
)
from tests.golden_data import assert_within, load_tensors

from .clips import gradient_clip


def golden_fits(file, group):
    tensors = load_tensors(f"sampling/{file}.safetensors")
    outputs = [key for key in tensors if key.startswith(group) and "/out_" in key]
    assert outputs
    for key in outputs:
        name, size = key.split("/out_")
        yield tensors[f"{name}/in"], [int(side) for side in size.split("x")], tensors[key]


def test_cover_and_crop_match_the_reference():
    for pixels, (height, width), expected in golden_fits("resize_crop", "crop/"):
        assert_within(fit_cover(pixels, height, width), expected, "sampling")


@pytest.mark.parametrize("size", [(20, 30), (48, 64), (96, 100)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_frames_fitted_a_few_at_a_time_are_those_fitted_at_once(monkeypatch, size, dtype):
    pixels = (gradient_clip(9).movedim(1, -1) * 255).to(dtype)
    shown = [0, 1, 3, 4, 8, 8, 8]
    expected = normalize_pixels(fit_cover(pixels[shown], *size))
    for values in (2**24, 2 * 96 * 100 * 3, 1):
        monkeypatch.setattr(preprocess, "_SCRATCH_VALUES", values)
        assert torch.equal(fitted_frames(pixels, shown, *size), expected)


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_temporal_subsampling_matches_the_reference(stride):
    expected = load_tensors("sampling/reference_prep_newest.safetensors")[f"temporal_subsample/{stride}"]
    frames = subsampled_frames(int(expected[-1]) + 1, stride)
    assert frames == expected.int().tolist()


@pytest.mark.parametrize("crf", [18, 33])
def test_h264_round_trip_gives_the_bytes_of_the_upstream_one(crf):
    image = (gradient_clip(1, 47, 65)[0].movedim(0, -1) * 255).to(torch.uint8)
    image += torch.randint(0, 20, image.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    result = h264_round_trip(image, crf)
    assert result.shape == (46, 64, 3)
    assert np.array_equal(result.numpy(), apply_image_conditioning_crf(image.numpy(), crf))
    assert not torch.equal(result, image[:46, :64])


def test_h264_round_trip_is_skipped_for_crf_0_and_slivers():
    image = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8)
    assert torch.equal(h264_round_trip(image, 0), image)
    assert torch.equal(h264_round_trip(image[:1], 33), image[:1])
    with pytest.raises(ValueError, match="use 33"):
        h264_round_trip(image, 60)
    with pytest.raises(ValueError, match="uint8"):
        h264_round_trip(image.float(), 33)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"height": 0}, "must be positive"), ({"pixels": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, r"\[F, H, W, 3\]")],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {"pixels": torch.zeros(4, 8, 8, 3, dtype=torch.uint8), "height": 64, "width": 64} | change
    with pytest.raises(ValueError, match=message):
        fit_cover(**arguments)


def test_a_stride_below_1_is_refused():
    with pytest.raises(ValueError, match="stride must be at least 1"):
        subsampled_frames(4, 0)


def test_white_is_1_and_black_is_minus_1():
    assert normalize_pixels(torch.tensor([0.0, 127.5, 255.0])).tolist() == [-1, 0, 1]


@pytest.mark.parametrize("turned", [False, True])
def test_h264_round_trip_of_a_picture_wider_than_x264_encodes_scales_it_down(turned):
    column = torch.linspace(0, 255, 17000).byte()
    panorama = column[None, :, None].expand(16, -1, 3).contiguous()
    result = h264_round_trip(panorama.transpose(0, 1).contiguous() if turned else panorama, 33)
    result = result.transpose(0, 1) if turned else result
    assert result.shape == (14, 16384, 3)
    expected = torch.linspace(0, 255, 16384)
    assert (result.float().mean(dim=(0, 2)) - expected).abs().mean() < 4
