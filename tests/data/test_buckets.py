import warnings

import pytest
import torch

from ltx2_diffusers.data.buckets import (
    Bucket,
    choose_bucket,
    crop_to,
    fitted,
    parse_buckets,
    reference_frames,
    scaled_buckets,
)
from tests.golden_data import load_json
from tests.media.clips import gradient_clip

GOLDEN = load_json("training/buckets.json")


def parsed(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return parse_buckets(text)


@pytest.mark.parametrize("case", GOLDEN["parse"], ids=lambda case: case["text"])
def test_sizes_are_read(case):
    if "error" in case:
        with pytest.raises(ValueError, match="resolution bucket"):
            parsed(case["text"])
    else:
        sizes = [[bucket.frames, bucket.height, bucket.width] for bucket in parsed(case["text"])]
        assert sizes == case["parsed_frames_height_width"]


def test_impossible_sizes_name_the_nearest():
    with pytest.raises(
        ValueError, match="bucket '770x768x25': `width` has to be divisible by 32 but is 770; use 768 or 800"
    ):
        parse_buckets("770x768x25")
    with pytest.raises(
        ValueError, match=r"bucket '768x768x24': `frames` has to be 8 \* k \+ 1 but is 24; use 17 or 25"
    ):
        parse_buckets("768x768x24")
    with pytest.raises(ValueError, match="`height` has to be divisible by 32 but is 0; use 32"):
        parse_buckets("768x0x25")
    with pytest.raises(ValueError, match="divisible by 64"):
        parse_buckets("768x800x25", spatial=64)


def test_several_sizes_need_no_warning():
    """Training joins samples of one size to batches."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(parse_buckets("768x768x25;512x512x49")) == 2


def test_every_clip_gets_the_bucket_of_the_reference():
    for case in GOLDEN["choices"]:
        video = case["video"]
        bucket = choose_bucket(parsed(case["buckets"]), **video)
        if not case["kept"]:
            assert bucket is None, case
            continue
        assert bucket is not None, case
        assert bucket._asdict() == case["bucket"], case
        crop = crop_to(video["width"], video["height"], bucket)
        assert [crop.width, crop.height] == case["resized"], case
        assert (crop.left, crop.top) == (case["crop_left"], case["crop_top"]), case


@pytest.mark.parametrize("case", GOLDEN["scaled_reference_buckets"], ids=lambda c: f"{c['buckets']}/{c['factor']}")
def test_references_are_smaller(case):
    if "error" in case:
        with pytest.raises(ValueError, match="must be a multiple of"):
            scaled_buckets(parsed(case["buckets"]), case["factor"])
    else:
        assert [b._asdict() for b in scaled_buckets(parsed(case["buckets"]), case["factor"])] == case["result"]


@pytest.mark.parametrize(
    "case", GOLDEN["temporal_subsample_indices_newest"], ids=lambda c: f"{c['frames']}/{c['factor']}"
)
def test_references_have_a_coarser_time(case):
    assert reference_frames(case["frames"], case["factor"]) == case["indices"]


def test_factors_have_to_fit():
    with pytest.raises(ValueError, match=r"its height must be a multiple of 64 .* 2; use 512 or 576"):
        scaled_buckets([Bucket(960, 544, 49)], 2)
    with pytest.raises(ValueError, match="reference_downscale_factor must be at least 1, got 0"):
        scaled_buckets([Bucket(960, 544, 49)], 0)
    with pytest.raises(
        ValueError, match=r"buckets of 25 frames .* 2, which needs a multiple of 16 plus 1; use 17 or 33"
    ):
        reference_frames(25, 2)
    with pytest.raises(ValueError, match="reference_temporal_scale_factor must be at least 1, got 0"):
        reference_frames(25, 0)


def test_a_clip_is_scaled_and_cropped():
    clip = (gradient_clip(9, 48, 100) * 255).round().to(torch.uint8).movedim(1, -1)
    bucket = Bucket(64, 32, 9)
    crop = crop_to(100, 48, bucket)
    assert crop == (66, 32, 1, 0)
    pixels = fitted(clip, bucket, crop)
    assert pixels.shape == (1, 3, 9, 32, 64)
    assert pixels.abs().max() <= 1
    # The picture is smooth, so that its middle stays what it was.
    middle = clip[:, 23:25, 49:51].float().mean((1, 2)) / 127.5 - 1
    assert torch.allclose(pixels[0, :, :, 15:17, 31:33].mean((2, 3)).T, middle, atol=0.01)


def test_a_clip_of_the_right_size_keeps_its_pixels():
    clip = torch.randint(256, (3, 32, 64, 3), dtype=torch.uint8)
    bucket = Bucket(64, 32, 1)
    pixels = fitted(clip, bucket, crop_to(64, 32, bucket))
    assert torch.equal(((pixels[0] + 1) * 127.5).round().to(torch.uint8), clip[:1].movedim(-1, 0))


def test_long_clips_are_scaled_a_few_frames_at_a_time(monkeypatch):
    clip = torch.randint(256, (17, 40, 70, 3), dtype=torch.uint8)
    bucket = Bucket(64, 32, 17)
    whole = fitted(clip, bucket, crop_to(70, 40, bucket))
    monkeypatch.setattr("ltx2_diffusers.data.buckets._SCRATCH_VALUES", 40 * 70 * 3 * 4)
    assert torch.equal(fitted(clip, bucket, crop_to(70, 40, bucket)), whole)


def test_random_crops_lie_in_the_picture_and_repeat():
    bucket = Bucket(32, 32, 1)
    crops = {crop_to(40, 32, bucket, "random", torch.Generator().manual_seed(seed)) for seed in range(60)}
    assert {crop.left for crop in crops} == set(range(9))
    assert {crop.top for crop in crops} == {0}
    again = [crop_to(40, 32, bucket, "random", torch.Generator().manual_seed(3)) for _ in range(2)]
    assert again[0] == again[1]
    with pytest.raises(ValueError, match="reshape_mode"):
        crop_to(40, 32, bucket, "left")


def test_pictures_are_resized_as_in_the_references_validation():
    for case in load_json("training/validation_resize.json"):
        (width, height), target = case["image"], Bucket(*case["target"], 1)
        crop = crop_to(width, height, target)
        assert [crop.width, crop.height] == case["resized"]
        assert (crop.left, crop.top) == (case["crop_left"], case["crop_top"])
