import torch

from ltx2_diffusers.data.masks import audio_mask, video_mask


def test_squares_are_averaged_and_frames_joined():
    pixels = torch.zeros(17, 3, 64, 96)
    # Two thirds of one square in frame 3, all of another in frame 8, and the last frame's corner.
    pixels[3, :, :32, :22] = 1
    pixels[8, :, 32:, 32:64] = 1
    pixels[16, :, 32:, 64:] = 0.6
    mask = video_mask(pixels, 3)
    assert mask.shape == (3, 2, 3)
    assert mask.nonzero().tolist() == [[0, 0, 0], [1, 1, 1], [2, 1, 2]]
    assert mask.dtype == torch.float32


def test_half_is_not_masked_and_colours_are_averaged():
    pixels = torch.zeros(1, 3, 32, 64)
    pixels[:, :, :, :16] = 1
    pixels[:, :2, :, 32:] = 1
    assert video_mask(pixels, 1).tolist() == [[[0, 1]]]


def test_a_picture_stands_for_all_frames_and_missing_frames_are_empty():
    assert video_mask(torch.ones(1, 3, 32, 32), 4).tolist() == [[[1]]] * 4
    assert video_mask(torch.ones(9, 3, 32, 32), 4).tolist() == [[[1]], [[1]], [[0]], [[0]]]


def test_sound_is_masked_by_its_nearest_sample():
    assert audio_mask(torch.tensor([0.0, 1.0, 0.5, 0.51]), 4).tolist() == [0, 1, 0, 1]
    assert audio_mask(torch.tensor([0.0, 1.0]), 6).tolist() == [0, 0, 0, 1, 1, 1]
    assert audio_mask(torch.arange(100.0) / 100, 5).tolist() == [0, 0, 0, 1, 1]
