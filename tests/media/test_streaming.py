"""A clip written in pieces is the clip written at once, and a file appears only when it is complete."""

import pytest
import torch

from ltx2_diffusers.media.reading import probe, read_audio
from ltx2_diffusers.media.streaming import ClipWriter
from ltx2_diffusers.media.writing import write_video
from tests.media.clips import gradient_clip, tone
from tests.pipelines.watching import packets

CLIP = gradient_clip(24)
SOUND = tone(1.0)


def pieces(*lengths: int):
    """The clip in pieces of so many frames, each with its sound."""
    frames, samples = CLIP.split(lengths), SOUND.split([length * 1000 for length in lengths], dim=1)
    return zip(frames, samples)


@pytest.mark.parametrize("lengths", [(24,), (1, 23), (9, 8, 7)])
def test_pieces_make_the_file_that_the_whole_makes(tmp_path, lengths):
    with ClipWriter(tmp_path / "new" / "pieces.mp4", 24, 24000, crf=23) as writer:
        for frames, samples in pieces(*lengths):
            writer.write(frames, samples)
        assert writer.num_frames == 24
    write_video(tmp_path / "whole.mp4", CLIP, 24, SOUND, 24000, crf=23)
    for kind in ("video", "audio"):
        assert packets(tmp_path / "new" / "pieces.mp4", kind) == packets(tmp_path / "whole.mp4", kind)


@pytest.mark.parametrize(("given", "expected"), [(0.5, 1.0), (1.5, 1.0)], ids=["shorter", "longer"])
def test_sound_is_as_long_as_the_frames(tmp_path, given, expected):
    with ClipWriter(tmp_path / "clip.mp4", 24, 24000) as writer:
        writer.write(CLIP[:12], tone(given))
        writer.write(CLIP[12:])
    sound, rate = read_audio(tmp_path / "clip.mp4")
    assert 0 <= sound.shape[-1] - expected * rate < 1024


def test_a_silent_file(tmp_path):
    with ClipWriter(tmp_path / "clip.mov", 23.976) as writer:
        writer.write(CLIP)
        with pytest.raises(ValueError, match="audio is given, but the file was opened without `sampling_rate`"):
            writer.write(CLIP, SOUND)
    info = probe(tmp_path / "clip.mov")
    assert (str(info.frame_rate), info.num_frames, info.sampling_rate) == ("24000/1001", 24, None)


def test_an_error_leaves_the_older_file(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"older")
    with pytest.raises(KeyboardInterrupt), ClipWriter(path, 24, 24000) as writer:
        writer.write(CLIP, SOUND)
        raise KeyboardInterrupt
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"nothing was written to .*clip\.mp4"), ClipWriter(tmp_path / "clip.mp4", 24):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frames", [CLIP[:0], []], ids=["tensor", "list"])
@pytest.mark.parametrize("before", [0, 4])
def test_an_empty_piece_adds_nothing(tmp_path, frames, before):
    with ClipWriter(tmp_path / "clip.mp4", 24, 24000) as writer:
        if before:
            writer.write(CLIP[:before], SOUND)
        writer.write(frames)
        assert writer.num_frames == before
        writer.write(CLIP)
        assert writer.num_frames == before + 24


@pytest.mark.parametrize(
    ("frames", "message"), [(CLIP[..., :63], "needs even sides"), (torch.zeros(2, 4, 8, 8), "must have shape")]
)
def test_frames_that_no_file_can_hold(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message), ClipWriter(tmp_path / "clip.mp4", 24) as writer:
        writer.write(frames)
    assert list(tmp_path.iterdir()) == []


def test_all_pieces_have_one_size(tmp_path):
    with (
        pytest.raises(ValueError, match="all frames must have one size"),
        ClipWriter(tmp_path / "a.mp4", 24) as writer,
    ):
        writer.write(CLIP)
        writer.write(CLIP[..., :32])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "clip.gif"}, r"clip\.mp4"),
        ({"frame_rate": 0}, "frame_rate"),
        ({"sampling_rate": 12345}, "use the vocoder's rate, or resample to 12000"),
        ({"crf": 52}, "use 51"),
        ({"preset": "quick"}, "preset must be one of"),
    ],
)
def test_arguments_are_checked_before_a_file_is_opened(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        ClipWriter(**{"path": "clip.mp4", "frame_rate": 24, **change})
    assert list(tmp_path.iterdir()) == []
