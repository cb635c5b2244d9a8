"""Long videos are cut where the picture changes, and every scene becomes a clip of its own."""

import csv
import json
from fractions import Fraction

import numpy as np
import pytest
import torch

from ltx2_diffusers.data import scenes as scenes_module
from ltx2_diffusers.data.scenes import DETECTORS, Scene, SceneOptions, find_scenes, frames_of, split_video
from ltx2_diffusers.media.reading import probe, read_audio, read_video
from ltx2_diffusers.media.writing import write_video
from tests.media.clips import write_frames

RATE = Fraction(24000, 1001)
LENGTHS = (20, 30, 17, 24)
CUTS = [Scene(0, 20), Scene(20, 50), Scene(50, 67), Scene(67, 91)]
SOUND_RATE = 24000
ANY = SceneOptions(min_scene_length="5")


def shots(height: int = 48, width: int = 64) -> np.ndarray:
    """Four shots, each a bar that moves over another colour; `[F, H, W, 3]`."""
    colours = ((200, 30, 30), (20, 60, 200), (240, 240, 90), (10, 10, 10))
    frames = np.zeros((sum(LENGTHS), height, width, 3), np.uint8)
    number = 0
    for colour, length in zip(colours, LENGTHS):
        for _ in range(length):
            frames[number] = colour
            frames[number, :, number % 48 : number % 48 + 8] = (120, 200, 120)
            number += 1
    return frames


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A clip of four shots with a tone whose loudness rises with time."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    seconds = torch.arange(round(sum(LENGTHS) / RATE * SOUND_RATE)) / SOUND_RATE
    sound = torch.sin(seconds * 440 * 2 * torch.pi) * seconds / seconds.max() * 0.8
    return write_video(path, shots(), RATE, torch.stack([sound, sound]), SOUND_RATE, crf=1)


@pytest.fixture(scope="module")
def fades(tmp_path_factory):
    """Light, dark from frame 20 up to 30, light up to 50."""
    frames = np.full((50, 32, 32, 3), 180, np.uint8)
    frames[20:30] = 0
    return write_video(tmp_path_factory.mktemp("fades") / "fades.mp4", frames, 25.0, crf=1)


# --- times ---


@pytest.mark.parametrize(
    ("text", "rate", "frames"),
    [
        ("123", 24, 123),
        ("12.5s", 24, 300),
        ("2s", RATE, 48),
        ("00:00:10", 24, 240),
        # 60.5 s times 24000 / 1001 are 1450.5.
        ("00:01:00.5", RATE, 1451),
        ("1:00:00", RATE, 86314),
    ],
)
def test_times(text, rate, frames):
    assert frames_of(text, Fraction(rate)) == frames


@pytest.mark.parametrize("text", ["-1", "12.5", "5 min", "00:61:00", "00:00:61", "1e3s", "", "٣"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match=r"`skip_start` has to be a number of frames like 123, seconds like 12.5s"):
        SceneOptions(skip_start=text)


# --- cuts ---


@pytest.mark.parametrize("detector", ["content", "adaptive", "histogram", "hist"])
def test_cuts_are_found_to_the_frame(film, detector):
    scenes, dropped = find_scenes(film, SceneOptions(detector, min_scene_length="5"))
    assert (scenes, dropped) == (CUTS, 0)


@pytest.mark.parametrize(("bias", "cut"), [(None, 25), (-1.0, 20), (1.0, 30)])
def test_fades_are_cut_in_the_dark(fades, bias, cut):
    scenes, _ = find_scenes(fades, SceneOptions("threshold", fade_bias=bias))
    assert scenes == [Scene(0, cut), Scene(cut, 50)]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"threshold": 250.0}, [Scene(0, 91)]),
        ({"min_scene_length": "25"}, [Scene(0, 50), Scene(50, 91)]),
        ({"filter_shorter_than": "18"}, [CUTS[0], CUTS[1], CUTS[3]]),
        ({"filter_shorter_than": "1s"}, [CUTS[1], CUTS[3]]),
        ({"max_scenes": 2}, CUTS[:2]),
        ({"skip_start": "10"}, [Scene(10, 20), *CUTS[1:]]),
        ({"skip_end": "10"}, [*CUTS[:3], Scene(67, 81)]),
        ({"skip_end": "00:00:01"}, [*CUTS[:3]]),
        ({"duration": "60"}, [*CUTS[:2], Scene(50, 60)]),
        ({"skip_start": "0.5s", "duration": "30"}, [Scene(12, 20), Scene(20, 42)]),
        ({"downscale": 4}, CUTS),
        # Red and blue are equally bright.
        ({"luma_only": True}, [Scene(0, 50), *CUTS[2:]]),
        ({"frame_skip": 1}, [Scene(0, 20), Scene(20, 50), Scene(50, 68), Scene(68, 91)]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_every_option_changes_the_scenes(film, changed, expected):
    scenes, _ = find_scenes(film, SceneOptions(**{"min_scene_length": "5", **changed}))
    assert scenes == expected


def test_the_window_of_the_adaptive_detector(film, tmp_path):
    stats = {}
    for window in (2, 8):
        find_scenes(film, SceneOptions("adaptive", adaptive_window=window), tmp_path / "stats.csv")
        stats[window] = (tmp_path / "stats.csv").read_text()
    assert stats[2] != stats[8]


def test_left_out_scenes_are_counted(film):
    assert find_scenes(film, SceneOptions(min_scene_length="5", filter_shorter_than="18", max_scenes=1))[1] == 3


def test_measurements_are_written(film, tmp_path):
    find_scenes(film, ANY, tmp_path / "stats.csv")
    with (tmp_path / "stats.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = {int(row["Frame Number"]): float(row["content_val"]) for row in rows if row["content_val"]}
    assert {number - 1 for number, score in scores.items() if score > 27} == {20, 50, 67}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "hist", "luma_only": True}, "`luma_only` means nothing for the detector 'histogram'"),
        ({"detector": "content", "adaptive_window": 3}, "leave it out, or use 'adaptive'"),
        ({"detector": "adaptive", "fade_bias": 0.1}, "leave it out, or use 'threshold'"),
        ({"detector": "threshold", "fade_bias": 2.0}, "`fade_bias` has to be from -1 to 1 but is 2.0"),
        ({"detector": "eyes"}, "`detector` has to be one of 'content', 'adaptive', 'threshold', 'histogram', 'hist'"),
        ({"max_scenes": 0}, "`max_scenes` has to be a whole number of at least 1"),
        ({"frame_skip": -1}, "`frame_skip` has to be at least 0"),
    ],
)
def test_an_option_that_is_not_read_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SceneOptions(**options)


@pytest.mark.parametrize("options", [{"skip_start": "91"}, {"skip_end": "5s"}, {"duration": "0"}])
def test_nothing_left_to_look_at(film, options):
    with pytest.raises(ValueError, match="is left to look at: it has 91 frames"):
        find_scenes(film, SceneOptions(**options))


def test_detectors_have_names():
    assert DETECTORS == ("content", "adaptive", "threshold", "histogram", "hist")


# --- clips ---


def test_scenes_are_clips_with_their_own_frames_and_sound(film, tmp_path):
    split = split_video(film, tmp_path, ANY, crf=1)
    assert [file.name for file in split.files] == [f"film-scene-{number:03d}.mp4" for number in (1, 2, 3, 4)]
    whole, (sound, rate) = read_video(film), read_audio(film)
    for file, scene in zip(split.files, CUTS):
        info = probe(file)
        assert (info.num_frames, info.frame_rate, info.sampling_rate) == (scene.length, RATE, SOUND_RATE)
        difference = read_video(file).float() - whole[scene.start : scene.end].float()
        assert difference.abs().mean() < 2
        own, _ = read_audio(file)
        start = round(scene.start / RATE * rate)
        # The last frame of AAC is longer than the sound.
        length = round(scene.length / RATE * rate)
        assert (own[..., :length] - sound[..., start : start + length])[..., 2048:-2048].abs().max() < 0.05
        assert length <= own.shape[-1] < length + 2048
    listed = json.loads((tmp_path / "film-scenes.json").read_text())
    assert [(entry["start_frame"], entry["end_frame"]) for entry in listed["scenes"]] == [
        (scene.start, scene.end) for scene in CUTS
    ]


def test_what_was_left_out_is_not_in_the_clips(film, tmp_path):
    split = split_video(film, tmp_path, SceneOptions(min_scene_length="5", filter_shorter_than="1s"), crf=1)
    whole = read_video(film).float()
    assert [probe(file).num_frames for file in split.files] == [30, 24]
    assert split.dropped == 2
    for file, scene in zip(split.files, (CUTS[1], CUTS[3])):
        assert (read_video(file).float() - whole[scene.start : scene.end]).abs().mean() < 2


def test_a_silent_video_with_odd_sides(tmp_path):
    path = write_frames(tmp_path / "odd.mkv", list(shots(47, 63)))
    split = split_video(path, tmp_path / "out", ANY)
    info = probe(split.files[0])
    assert (info.height, info.width, info.sampling_rate, len(split.files)) == (46, 62, None, 4)


def test_pictures_and_a_page_show_the_scenes(film, tmp_path):
    split_video(film, tmp_path / "scenes", ANY, save_images=2)
    assert len(list((tmp_path / "scenes-previews").glob("film-scene-*-0[12].jpg"))) == 8
    page = (tmp_path / "scenes-previews" / "film-scenes.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8
    assert "4 scenes of film" in page


def test_a_split_video_is_left_alone_until_it_is_to_be_split_anew(film, tmp_path):
    split_video(film, tmp_path, ANY)
    written = (tmp_path / "film-scene-001.mp4").stat().st_mtime_ns
    assert split_video(film, tmp_path, ANY) is None
    assert (tmp_path / "film-scene-001.mp4").stat().st_mtime_ns == written
    coarse = SceneOptions(threshold=250.0)
    with pytest.raises(ValueError, match=r"was split with other options, says .*film-scenes.json"):
        split_video(film, tmp_path, coarse)
    split_video(film, tmp_path, coarse, override=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film-scene-001.mp4", "film-scenes.json"]


def test_nothing_is_listed_of_a_split_that_was_broken_off(film, tmp_path, monkeypatch):
    def broken(*_arguments, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scenes_module, "write_video", broken)
        with pytest.raises(KeyboardInterrupt):
            split_video(film, tmp_path, ANY)
    assert list(tmp_path.iterdir()) == []
    assert len(split_video(film, tmp_path, ANY).files) == 4


def test_bad_videos_are_named(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad.mp4"):
        split_video(tmp_path / "bad.mp4", tmp_path / "out", ANY)
    with pytest.raises(FileNotFoundError):
        split_video(tmp_path / "none.mp4", tmp_path / "out", ANY)
    assert not (tmp_path / "out").exists()


def test_no_scene_is_long_enough(film, tmp_path):
    with pytest.raises(ValueError, match="has no scene that is long enough"):
        split_video(film, tmp_path / "out", SceneOptions(filter_shorter_than="10s"))
