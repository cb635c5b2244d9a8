"""Pictures and clips as they are prepared for LTX-Video, against the original's numbers."""

import pytest
import torch

from ltx2_diffusers.families.ltx_video.media import cropped, degraded, fitted
from tests.golden_data import load_tensors

RECORDED = load_tensors("ltx_video/image_preparation.safetensors")
CASES = [(0, 64, 64), (1, 32, 64)]


@pytest.mark.parametrize(("case", "height", "width"), CASES)
def test_pictures_are_cropped_to_the_shape_of_the_clip_and_blurred(case, height, width):
    picture = RECORDED[f"{case}/image_u8"][None]
    found = degraded(cropped(picture, height, width), 0, True)
    torch.testing.assert_close(found, RECORDED[f"{case}/cropped_{height}x{width}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("case", "height", "width"), CASES)
def test_clips_to_start_from_are_scaled_too(case, height, width):
    found = degraded(fitted(RECORDED[f"{case}/image_u8"][None], height, width), 0, True)
    torch.testing.assert_close(found, RECORDED[f"{case}/resized_{height}x{width}"], rtol=0, atol=1e-5)


def test_without_blur_and_codec_nothing_but_the_range_changes():
    pixels = torch.randint(0, 256, (2, 5, 7, 3), generator=torch.Generator().manual_seed(0))
    found = degraded(pixels, 0, False)
    assert found.shape == (1, 3, 2, 5, 7)
    torch.testing.assert_close(found[0].permute(1, 2, 3, 0), pixels / 127.5 - 1)


def test_the_codec_cuts_odd_sides_and_loses_detail_as_the_quality_falls():
    rows, columns = torch.arange(49.0)[:, None], torch.arange(90.0)
    picture = (128 + 60 * (rows / 5).sin() * (columns / 7).cos()).expand(3, -1, -1).permute(1, 2, 0)[None]
    exact = degraded(picture, 0, False)[..., :48, :90]
    errors = [(degraded(picture, crf, False) - exact).abs().mean().item() for crf in (1, 29, 51)]
    assert errors == sorted(errors)
    assert errors[0] < errors[1] / 2


def test_a_side_of_one_pixel_is_neither_cropped_away_nor_blurred():
    line = torch.full((1, 1, 90, 3), 128)
    assert cropped(line, 64, 64).shape == (1, 1, 1, 3)
    torch.testing.assert_close(degraded(line, 0, True), line.permute(3, 0, 1, 2)[None] / 127.5 - 1)
