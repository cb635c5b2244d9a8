import warnings

import numpy as np
import PIL.Image
import pytest

from ltx2_diffusers.media.frames import one_picture, read_frames
from ltx2_diffusers.media.writing import write_video

from .clips import gradient_clip


@pytest.fixture
def moving(tmp_path):
    """Names of three clips of 4 frames, whose first is black."""
    levels = [PIL.Image.new("RGB", (32, 32), (60 * n, 60 * n, 60 * n)) for n in range(4)]
    for suffix in ("gif", "png"):
        levels[0].save(tmp_path / f"clip.{suffix}", save_all=True, append_images=levels[1:], duration=40)
    write_video(tmp_path / "clip.mp4", levels, 24)
    return [tmp_path / f"clip.{suffix}" for suffix in ("gif", "png", "mp4")]


def test_moving_pictures_are_clips(moving):
    for path in moving:
        assert read_frames(path).shape == (4, 32, 32, 3)
        assert read_frames(path, max_frames=2).shape == (2, 32, 32, 3)
        # A list of files is a list of what they hold.
        assert read_frames([path, path]).shape == (8, 32, 32, 3)


def test_first_frame_is_taken_with_a_warning_where_a_picture_is_wanted(moving):
    for path in moving:
        with pytest.warns(
            UserWarning, match=rf"{path.name}' is a clip where a picture is wanted; its first frame is taken"
        ):
            picture = one_picture(path)
        assert np.asarray(picture).max() <= 2


def test_files_of_one_picture_are_taken_silently(tmp_path):
    PIL.Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / "one.gif")
    write_video(tmp_path / "one.mp4", gradient_clip(1), 24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert one_picture(tmp_path / "one.gif").size == (32, 32)
        assert one_picture(tmp_path / "one.mp4").size == (64, 48)
