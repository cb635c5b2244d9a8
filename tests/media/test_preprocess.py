import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf

from ltx2_diffusers.media.preprocess import (
    fit_cover,
    fit_long_side,
    fit_pad,
    h264_round_trip,
    normalize_pixels,
    prepare_image,
    prepare_reference_video,
    subsampled_frames,
)
from ltx2_diffusers.media.writing import write_video
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


def test_pad_matches_the_reference():
    for pixels, (height, width), expected in golden_fits("reference_prep_newest", "reflect_pad/"):
        assert_within(fit_pad(pixels, height, width), expected, "sampling")


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_temporal_subsampling_matches_the_reference(stride):
    expected = load_tensors("sampling/reference_prep_newest.safetensors")[f"temporal_subsample/{stride}"]
    frames = subsampled_frames(int(expected[-1]) + 1, stride)
    assert frames == expected.int().tolist()


def test_long_side_keeps_the_shape_of_the_picture():
    assert fit_long_side(torch.zeros(50, 100, 3), 64).shape == (1, 3, 1, 32, 64)
    assert fit_long_side(torch.zeros(2, 100, 30, 3), 64).shape == (1, 3, 2, 64, 19)


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


def test_image_is_compressed_before_it_is_resized():
    pixels = (gradient_clip(1, 60, 80)[0].movedim(0, -1) * 255).round().to(torch.uint8)
    image = PIL.Image.fromarray(pixels.numpy())
    expected = fit_cover(h264_round_trip(pixels, 33), 32, 64) / 127.5 - 1
    assert torch.equal(prepare_image(image, 32, 64), expected)
    assert torch.equal(prepare_image(image, 32, 64, crf=0), normalize_pixels(fit_cover(pixels, 32, 64)))
    assert prepare_image(image, 32, 64).abs().max() <= 1


def test_reference_video_is_capped_fitted_and_subsampled(tmp_path):
    clip = gradient_clip(12)
    path = write_video(tmp_path / "reference.mp4", clip, 24, crf=1)
    whole = prepare_reference_video(path, 64, 64)
    assert whole.shape == (1, 3, 12, 64, 64)
    assert prepare_reference_video(path, 64, 64, num_frames=9, downscale_factor=2).shape == (1, 3, 9, 32, 32)
    assert torch.equal(prepare_reference_video(path, 64, 64, temporal_stride=4), whole[:, :, [0, 1, 5, 9]])
    padded = prepare_reference_video(path, 64, 96, fit="pad")
    frames = (clip.movedim(1, -1) * 255).round().to(torch.uint8)
    assert padded.shape == (1, 3, 12, 64, 96)
    assert (padded - prepare_reference_video(frames, 64, 96, fit="pad")).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": "stretch"}, "fit must be one of cover, pad"),
        ({"downscale_factor": 3}, "must divide height and width"),
        ({"temporal_stride": 0}, "temporal_stride must be at least 1"),
        ({"height": 0}, "must be positive"),
        ({"video": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, r"\[F, H, W, 3\]"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {"video": torch.zeros(4, 8, 8, 3, dtype=torch.uint8), "height": 64, "width": 64} | change
    with pytest.raises(ValueError, match=message):
        prepare_reference_video(**arguments)
