from fractions import Fraction

import pytest

from ltx2_diffusers.atomic import complete_file
from ltx2_diffusers.media.files import check_suffix, exact_frame_rate


@pytest.mark.parametrize(
    ("decimal", "exact"),
    [
        (24, Fraction(24)),
        (24.0, Fraction(24)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (24000 / 1001, Fraction(24000, 1001)),
        (12.5, Fraction(25, 2)),
        (Fraction(2997, 125), Fraction(2997, 125)),
    ],
)
def test_decimals_stand_for_exact_rates(decimal, exact):
    assert exact_frame_rate(decimal) == exact


@pytest.mark.parametrize("rate", [0, -24.0, float("nan"), float("inf")])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(ValueError, match="frame_rate must be a positive"):
        exact_frame_rate(rate)


def test_file_appears_only_when_complete(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    with complete_file(path) as partial:
        partial.write_bytes(b"new")
        assert not path.exists()
        assert partial.parent == path.parent
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_older_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), complete_file(path) as partial:
        partial.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_suffix_names_the_right_one():
    with pytest.raises(ValueError, match=r"clip\.mp4"):
        check_suffix("clip.avi", (".mp4", ".mov"), "video")
