"""Clips put one behind the other by their packets, with one sound over all."""

import itertools
from fractions import Fraction

import pytest
import torch

from ltx2_diffusers.media.muxing import join_clips
from ltx2_diffusers.media.reading import probe, read_audio, read_video
from ltx2_diffusers.media.streaming import ClipWriter
from ltx2_diffusers.media.writing import write_video
from tests.media.clips import gradient_clip, tone
from tests.pipelines.watching import packets

RATE = 24000
LENGTHS = (9, 16, 2, 8)


def parts_of(folder, rate=24.0):
    """Files of pieces of one clip, and the samples of each."""
    frames = (gradient_clip(sum(LENGTHS), 48, 64) * 255).to(torch.uint8).split(LENGTHS)
    sound = tone(sum(LENGTHS) / rate, RATE)
    bounds = [round(sum(LENGTHS[:index]) / rate * RATE) for index in range(len(LENGTHS) + 1)]
    pieces = [sound[:, start:end] for start, end in itertools.pairwise(bounds)]
    files = [folder / f"{index}.mp4" for index in range(len(LENGTHS))]
    for file, part, piece in zip(files, frames, pieces):
        with ClipWriter(file, rate, RATE) as writer:
            writer.write(part, piece)
    return files, pieces


@pytest.mark.parametrize("rate", [24.0, 24000 / 1001, 23.9, 50.0])
def test_frames_and_times_stay_and_the_sound_is_one(tmp_path, rate):
    files, pieces = parts_of(tmp_path, rate)
    path = join_clips(files, tmp_path / "new" / "whole.mp4", iter(pieces), RATE)
    frames = torch.cat([read_video(file) for file in files])
    assert torch.equal(read_video(path), frames)
    info = probe(path)
    assert (info.num_frames, info.constant_rate) == (sum(LENGTHS), True)
    assert abs(info.frame_rate - Fraction(rate)) < 1e-6
    write_video(tmp_path / "at_once.mp4", frames, rate, torch.cat(pieces, dim=1), RATE)
    assert packets(path, "audio") == packets(tmp_path / "at_once.mp4", "audio")


def test_sound_is_cut_or_filled_to_the_length_of_the_video(tmp_path):
    files, pieces = parts_of(tmp_path)
    whole = read_audio(join_clips(files, tmp_path / "whole.mp4", pieces, RATE))[0]
    longer = read_audio(join_clips(files, tmp_path / "longer.mp4", [*pieces[:-1], pieces[-1].repeat(1, 3)], RATE))[0]
    shorter = read_audio(join_clips(files, tmp_path / "shorter.mp4", pieces[:-1], RATE))[0]
    assert whole.shape == longer.shape == shorter.shape
    assert shorter[..., -1024:].abs().max() < 1e-3 < whole[..., -2048:-1024].abs().max()


def test_packets_of_a_sound_are_copied_up_to_the_end_of_the_video(tmp_path):
    files, _ = parts_of(tmp_path)
    write_video(tmp_path / "song.mp4", gradient_clip(48), 24.0, tone(2.0, RATE), RATE)
    path = join_clips(files, tmp_path / "whole.mp4", audio_source=tmp_path / "song.mp4")
    kept, given = packets(path, "audio"), packets(tmp_path / "song.mp4", "audio")
    assert 0 < len(kept) < len(given)
    assert kept == given[: len(kept)]


def test_a_clip_may_be_silent(tmp_path):
    files, _ = parts_of(tmp_path)
    assert probe(join_clips(files, tmp_path / "whole.mp4")).sampling_rate is None


def test_what_cannot_be_joined_is_refused_and_nothing_is_left(tmp_path):
    files, pieces = parts_of(tmp_path)
    write_video(tmp_path / "other.mp4", gradient_clip(9, 64, 64), 24.0)
    with pytest.raises(ValueError, match=r"'.*other.mp4' cannot be put behind another clip"):
        join_clips([*files, tmp_path / "other.mp4"], tmp_path / "whole.mp4", pieces, RATE)
    write_video(tmp_path / "lone.mp4", gradient_clip(1), 24.0)
    with pytest.raises(ValueError, match=r"'.*lone.mp4' has a single picture"):
        join_clips([*files, tmp_path / "lone.mp4"], tmp_path / "whole.mp4", pieces, RATE)
    with pytest.raises(ValueError, match="no clips to join"):
        join_clips([], tmp_path / "whole.mp4")
    given = [*(file.name for file in files), "other.mp4", "lone.mp4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(given)
