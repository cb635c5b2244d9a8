"""Storyboards: how shots become segments, and what is wrong with them."""

import itertools
import re

import PIL.Image
import pytest

from ltx2_diffusers import Keyframe, Shot, Storyboard, read_storyboard
from ltx2_diffusers.application.storyboard.board import parse_storyboard
from ltx2_diffusers.application.storyboard.plan import plan_storyboard
from ltx2_diffusers.media.writing import write_audio, write_video
from tests.media.clips import gradient_clip, tone
from tests.media.test_joining import RATE

FILE = """
seed: 7
width: 64
height: 96
num_frames: 17
overlap_frames: 9
num_inference_steps: 2
guidance_options: {cfg_method: apg}
audio: sounds/tone.wav
shots:
  - prompt: a fox
    duration_s: 1
    keyframes:
      - {image: first.png}
      - {image: first.png, at_s: 0.9, strength: 0.5, crf: 0}
  - {prompt: waves, duration_s: 0.5, negative_prompt: blurry, seed: 3, adapters: {style: 0.5}}
"""


@pytest.fixture
def folder(tmp_path):
    """A storyboard with the files that it names."""
    PIL.Image.new("RGB", (64, 96), "red").save(tmp_path / "first.png")
    (tmp_path / "sounds").mkdir()
    write_audio(tmp_path / "sounds" / "tone.wav", tone(2.0, RATE), RATE)
    write_video(tmp_path / "clip.mp4", gradient_clip(), 24.0)
    (tmp_path / "film.yaml").write_text(FILE)
    return tmp_path


def board(*durations: float, **fields) -> Storyboard:
    shots = [Shot(f"shot {index}", seconds) for index, seconds in enumerate(durations)]
    return Storyboard(**{"shots": shots, "num_frames": 33, "overlap_frames": 9, **fields})


# --- files ---


def test_a_file_holds_fields_and_settings_side_by_side(folder):
    read = read_storyboard(folder / "film.yaml")
    assert (read.seed, read.height, read.width, read.audio) == (7, 96, 64, folder / "sounds" / "tone.wav")
    assert read.settings == {"num_inference_steps": 2, "guidance_options": {"cfg_method": "apg"}}
    first, second = read.shots
    assert [(one.image, one.at_s, one.strength, one.crf) for one in first.keyframes] == [
        (folder / "first.png", 0.0, 1.0, None),
        (folder / "first.png", 0.9, 0.5, 0),
    ]
    assert (second.negative_prompt, second.seed, second.adapters) == ("blurry", 3, {"style": 0.5})
    assert parse_storyboard(read.as_mapping()) == read


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("seed: 7", "sede: 7", "unknown key `sede`; did you mean `seed`?"),
        ("num_inference_steps: 2", "num_inference_step: 2", "did you mean `num_inference_steps`?"),
        ("seed: 7", "seed: seven", "`seed` has to be a whole number but is 'seven'"),
        ("width: 64", "width: 65", "`width` has to be divisible by 32 but is 65; use 64 or 96"),
        ("num_frames: 17", "num_frames: 16", r"`num_frames` has to be 8 \* k \+ 1 but is 16; use 9 or 17"),
        ("seed: 7", "frame_rate: 0", "`?frame_rate`? .* 0"),
        ("seed: 7", "drift_control: 2", "`drift_control` .* 2.*; use 1"),
        ("seed: 7", "audio_fit: stretch", "`audio_fit` has to be one of 'crop', 'pad' but is 'stretch'"),
        ("sounds/tone.wav", "no.wav", "`audio`: there is no file '.*no.wav'"),
        ("num_inference_steps: 2", "num_inference_steps: 0", "`num_inference_steps` .* 0; use 1"),
        ("cfg_method: apg", "cfg_mode: apg", "guidance_options: unknown key `cfg_mode`; did you mean `cfg_method`?"),
        ("audio: sounds/tone.wav", "audio_start_s: 1.5", "`audio_start_s` is 1.5, but there is no `audio`"),
        ("seed: 7", "prompt: a film", "`prompt` is 'a film', which only the director reads"),
        ("seed: 7", "director: true", "`director` needs the idea of the whole as `prompt`"),
        ("seed: 7", "generate_audio: false", "`audio` is given, but `generate_audio` is False"),
        ("seed: 7", "latents: 3", "unknown key `latents`"),
        ("duration_s: 1\n", "duration_s: one\n", "shot 1: `duration_s` has to be a finite number but is 'one'"),
        ("duration_s: 1\n", "duration_s: -1\n", "shot 1: `duration_s` has to be greater than 0 but is -1"),
        ("    duration_s: 1\n", "", "shot 1: `duration_s` is missing"),
        ("at_s: 0.9", "at_s: 1.5", "shot 1: keyframe 2: `at_s` 1.5 lies outside the shot of 1 seconds; use 1"),
        ("strength: 0.5", "strength: 5", "shot 1: keyframe 2: `strength` .* 5.*; use 1"),
        ("strength: 0.5", "strenght: 0.5", "shot 1: keyframe 2: unknown key `strenght`; did you mean `strength`?"),
        ("strength: 0.5", "mode: insert", "keyframe 2: `mode` has to be one of 'auto', 'append', 'replace' but is"),
        ("{image: first.png}", "{image: no.png}", "shot 1: keyframe 1: `image`: there is no file '.*no.png'"),
        ("{image: first.png}", "{image: clip.mp4}", "shot 1: keyframe 1: `image` '.*clip.mp4' is a clip; give a pic"),
        (
            "{image: first.png}",
            "first.png",
            "shot 1: keyframe 1: has to be a mapping with image, .* but is 'first.png'",
        ),
        ("prompt: waves", "prompt: ''", "shot 2: `prompt` has to be a text"),
        ("adapters: {style: 0.5}", "adapters: style", "shot 2: `adapters` has to be a mapping of `str` to finite"),
        (FILE[FILE.index("shots:") :], "shots: 3", "`shots` has to be a list of shots but is 3"),
        (FILE[FILE.index("shots:") :], "shots: [waves]", "shot 1: has to be a mapping with prompt, .* but is 'waves'"),
        (FILE[FILE.index("shots:") :], "", "`shots` is empty"),
        (FILE, "shots: [", "film.yaml, line 1: is no YAML"),
        (FILE, "[1, 2]", "film.yaml, line 1: has to hold keys such as `shots:` but holds"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(folder, before, after, message):
    assert before in FILE
    (folder / "film.yaml").write_text(FILE.replace(before, after))
    with pytest.raises(ValueError, match=message):
        read_storyboard(folder / "film.yaml")


def test_all_that_is_wrong_is_said_at_once(folder):
    (folder / "film.yaml").write_text(
        FILE.replace("width: 64", "width: 65").replace("at_s: 0.9", "at_s: 2").replace("seed: 3", "seed: 1e3")
    )
    with pytest.raises(ValueError) as error:
        read_storyboard(folder / "film.yaml")
    # What has another type is found first, and alone.
    assert [line.partition(":")[0] for line in str(error.value).splitlines()] == ["shot 2"]
    (folder / "film.yaml").write_text(FILE.replace("width: 64", "width: 65").replace("at_s: 0.9", "at_s: 2"))
    with pytest.raises(ValueError) as error:
        read_storyboard(folder / "film.yaml")
    assert len(str(error.value).splitlines()) == 2
    with pytest.raises(FileNotFoundError, match=r"there is no storyboard '.*none.yaml'"):
        read_storyboard(folder / "none.yaml")


# --- segments ---


@pytest.mark.parametrize("rate", [24.0, 24000 / 1001, 25.0, 50.0])
@pytest.mark.parametrize("most", [17, 33, 121])
@pytest.mark.parametrize("durations", [(0.7,), (2.0, 1.3, 5.0), (10.0, 0.5, 0.5, 0.5, 7.77), (1.1,) * 20])
def test_segments_make_the_shots_together(rate, most, durations):
    one = board(*durations, num_frames=most, frame_rate=rate)
    planned = plan_storyboard(one)
    assert (planned[0].start, planned[0].shared) == (0, 0)
    for before, after in itertools.pairwise(planned):
        assert (after.start, after.shared) == (before.end - 9, 9)
    assert all(segment.num_frames % 8 == 1 and segment.shared < segment.num_frames <= most for segment in planned)
    for index, seconds in enumerate(itertools.accumulate(durations)):
        of_shot = [segment for segment in planned if segment.shot == index]
        # To four frames, however many shots there were.
        assert abs(of_shot[-1].end - seconds * rate) <= 4.5
        lengths = [segment.num_frames for segment in of_shot]
        assert max(lengths) - min(lengths) <= 8
        fewest = -(-(sum(lengths) - 9 * len(lengths)) // (most - 9))
        assert len(of_shot) == fewest
    assert [segment.seed for segment in planned] == list(range(10, 10 + len(planned)))


def test_a_shot_has_its_own_seed_prompts_and_negative_prompt():
    shots = [Shot("one", 1.0), Shot(["two", "three"], 2.0, seed=5, negative_prompt="blurry"), Shot("four", 1.0)]
    planned = plan_storyboard(board(shots=shots, negative_prompt="dark"))
    assert [segment.prompt for segment in planned] == ["one", "two", "three", "four"]
    assert [segment.negative_prompt for segment in planned] == ["dark", "blurry", "blurry", "dark"]
    assert [segment.seed for segment in planned] == [10, 5, 6, 13]


def test_a_picture_that_replaces_begins_a_latent_frame():
    shown = [Keyframe("a", at_s, mode="replace") for at_s in (0.0, 0.3, 0.9, 1.9)]
    planned = plan_storyboard(board(shots=[Shot("one", 1.05, shown[:1]), Shot("two", 2.0, shown)]))
    frames = [[segment.start + frame for frame, _ in segment.keyframes] for segment in planned]
    # 25, 32, 47 and 71 lie in the latent frames that begin here.
    assert frames == [[0], [25, 25, 41], [65]]
    assert all(frame % 8 == 1 for segment in planned[1:] for frame, _ in segment.keyframes)


def test_pictures_lie_in_the_segment_that_makes_their_frame():
    shots = [Shot("one", 1.05), Shot("two", 2.0, keyframes=[Keyframe("a", at_s) for at_s in (0.0, 0.9, 1.0, 2.0)])]
    planned = plan_storyboard(board(shots=shots))
    assert [(one.start, one.end) for one in planned] == [(0, 25), (16, 49), (40, 73)]
    frames = [[segment.start + frame for frame, _ in segment.keyframes] for segment in planned]
    # A picture at the end of a shot is its last frame.
    assert frames == [[], [25, 47], [49, 72]]
    assert all(segment.shared <= frame < segment.num_frames for segment in planned for frame, _ in segment.keyframes)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: board(1.0, 0.1), "shot 2: `duration_s` 0.1 is too short for 8 frames at 24 per second.*; use 0.37"),
        (lambda: board(0.2, 1.0), "shot 1: `duration_s` 0.2 is too short for 9 frames"),
        (lambda: board(1.0, overlap_frames=33), "`overlap_frames` .* 33; use 25"),
        (lambda: board(shots=[Shot(["one", "two"], 1.0)]), "shot 1: `prompt` has 2 texts, .* of 1 segments"),
        (lambda: board(9999.0), "has 10000 segments, more than 1000|segments, more than 1000"),
    ],
)
def test_shots_that_make_no_segments_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        plan_storyboard(made())


def test_the_shortest_shot_that_is_named_is_long_enough():
    with pytest.raises(ValueError) as error:
        plan_storyboard(board(1.0, 0.1))
    least = float(re.search(r"use ([\d.]+)", str(error.value))[1])
    assert plan_storyboard(board(1.0, least))[-1].num_frames == 17


def test_a_setting_that_is_a_field_of_the_storyboard_is_sent_there():
    with pytest.raises(ValueError, match="`num_frames` belongs to the storyboard itself"):
        Storyboard([Shot("a", 1.0)], settings={"num_frames": 9}).check()
