"""Scenes are read right from clean and from spoilt clips, and what is wrong in a clip is found."""

import random
from dataclasses import replace
from statistics import mean

import pytest
import torch
import torch.nn.functional as F

from examples.mini_world.drawing import DISTANCES, FRAME_RATE, draw, fills, path, radii
from examples.mini_world.reading import coverage_of, hear, judge, judged_picture, see
from examples.mini_world.scenes import COLOURS, MOTIONS, NEW_SHAPE, SHAPES, Scene, random_scene
from examples.mini_world.sounding import sound

pytestmark = pytest.mark.slow

RATE = 16_000
CLIPS = [(17, 64, 64), (25, 64, 96), (49, 128, 128)]
ALL_SHAPES = (*SHAPES, NEW_SHAPE)


def frames_of(scene: Scene, num_frames: int = 17, height: int = 64, width: int = 64) -> torch.Tensor:
    """`[F, 3, H, W]` in [0, 1]."""
    return draw([scene], num_frames, height, width)[0].movedim(0, 1) / 2 + 0.5


def spoilt(frames: torch.Tensor, generator: torch.Generator, psnr: float = 22.0) -> torch.Tensor:
    """The same with detail below 4 pixels gone, a cast, less contrast, and noise."""
    blocks = F.interpolate(F.avg_pool2d(frames, 4), scale_factor=4, mode="bilinear")
    cast = torch.randn(3, 1, 1, generator=generator) * 0.03
    noise = torch.randn(blocks.shape, generator=generator) * 10 ** (-psnr / 20)
    return (0.5 + 0.95 * (blocks - 0.5) + cast + noise).clamp(0, 1)


def scenes_of(count: int, seed: int, aspect: float = 1.0, **options) -> list[Scene]:
    """Scenes of all motions in turn."""
    chance = random.Random(seed)
    motions = [MOTIONS[number % len(MOTIONS)] for number in range(count)]
    return [random_scene(chance, "train", aspect, motion=m, shapes=ALL_SHAPES, **options) for m in motions]


def clip_of(scene: Scene, num_frames: int = 25) -> tuple[torch.Tensor, torch.Tensor]:
    return frames_of(scene, num_frames), sound([scene], num_frames, RATE)[0]


def a_scene(**changes) -> Scene:
    return replace(Scene("square", "red", "white", "stays", 0.17, (0.5, 0.5), 0.35), **changes)


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize(("is_spoilt", "least"), [(False, 0.99), (True, 0.95)])
def test_pictures_are_read_right(clip, is_spoilt, least):
    generator, verdicts = torch.Generator().manual_seed(0), []
    for scene in scenes_of(40 if clip[1] == 64 else 10, seed=1, aspect=clip[2] / clip[1]):
        frames = frames_of(scene, *clip)
        verdicts.append(judged_picture(scene, see(spoilt(frames, generator) if is_spoilt else frames)))
    for name in ("shape", "colour", "background", "direction", "size"):
        assert mean(v[name] for v in verdicts if v[name] is not None) >= least, name


@pytest.mark.parametrize("shape", ALL_SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_every_shape_is_told_in_every_colour(shape, colour):
    for background in set(COLOURS) - {colour}:
        seen = see(frames_of(a_scene(shape=shape, colour=colour, background=background), 1))
        assert (seen.shape, seen.colour, seen.background) == (shape, colour, background)
        assert min(seen.errors, key=seen.errors.get) == shape


@pytest.mark.parametrize("clip", CLIPS, ids=str)
def test_track_and_size_are_measured(clip):
    num_frames, height, width = clip
    for scene in scenes_of(10, seed=2, aspect=width / height):
        seen, part = see(frames_of(scene, *clip)), torch.linspace(0, 1, num_frames)
        track = path(scene, part, (num_frames - 1) / FRAME_RATE)
        assert (seen.centres - track).abs().max() < 0.02
        # Shapes cover about the area of the circle; the triangle least.
        assert (seen.radii / radii(scene, part)).log().abs().max() < 0.1


def test_coverage_is_where_the_shape_is():
    scene = a_scene()
    frames = frames_of(scene, 2)
    coverage = coverage_of(frames, torch.tensor(COLOURS["white"]), torch.tensor(COLOURS["red"]).expand(2, 3))
    distance = DISTANCES["square"](
        *torch.meshgrid(*[torch.arange(64) / 64 - 63 / 128] * 2, indexing="xy"), torch.tensor(0.17)
    )
    assert (coverage[0] - (0.5 - distance * 64).clamp(0, 1)).abs().max() < 1e-5
    # What is seen takes the colour from the picture, edges included.
    assert (see(frames).coverage - coverage).abs().max() < 0.03


def test_a_change_of_colour_is_read_at_both_ends():
    scene = a_scene(motion="changes", new_colour="blue")
    seen = see(frames_of(scene))
    assert (seen.colour, seen.new_colour, seen.motion) == ("red", "blue", "changes")
    assert (fills(scene, torch.tensor([0.0, 1.0])) == torch.tensor([COLOURS["red"], COLOURS["blue"]])).all()
    verdict = judged_picture(replace(scene, new_colour="green"), seen)
    assert verdict["direction"] and not verdict["colour"]


def test_turns_are_measured():
    for shape in (*SHAPES[1:], NEW_SHAPE):
        assert abs(see(frames_of(a_scene(shape=shape, motion="turns"))).turn) == pytest.approx(0.25, abs=0.05)
        assert abs(see(frames_of(a_scene(shape=shape))).turn) < 0.05


def test_bounces_are_timed_between_frames():
    generator = torch.Generator().manual_seed(0)
    for scene in [scene for scene in scenes_of(60, seed=3) if scene.motion == "bounces"]:
        truth = [time for time in scene.bounces_s(48 / FRAME_RATE) if time < 46 / FRAME_RATE]
        frames = frames_of(scene, 49)
        assert see(frames).bounces_s == pytest.approx(truth, abs=0.003)
        assert see(spoilt(frames, generator)).bounces_s == pytest.approx(truth, abs=0.01)


def test_frames_may_end_with_channels():
    frames = frames_of(a_scene())
    assert judged_picture(a_scene(), see(frames)) == judged_picture(a_scene(), see(frames.movedim(1, -1)))


def test_an_empty_picture_shows_nothing():
    seen = see(torch.full((17, 3, 64, 64), 1.0))
    assert (seen.background, seen.colour, seen.shape, seen.motion, seen.bounces_s) == ("white", "", "", "", [])
    verdict = judged_picture(a_scene(), seen)
    assert not verdict["shape"] and not verdict["colour"] and not verdict["direction"]


def test_stains_have_no_shape():
    generator, seen = torch.Generator().manual_seed(0), []
    for _ in range(20):
        coarse = torch.rand(1, 3, 3, 3, 3, generator=generator)
        frames = F.interpolate(coarse, size=(17, 64, 64), mode="trilinear")[0].movedim(0, 1)
        seen.append(see(frames).shape)
    assert seen.count("") > 15


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("rate", [16_000, 24_000, 48_000])
@pytest.mark.parametrize("num_frames", [17, 49])
def test_sound_is_heard_right(num_frames, rate, noise):
    generator = torch.Generator().manual_seed(0)
    for scene in scenes_of(20, seed=4):
        audio = sound([scene], num_frames, rate)[0]
        heard = hear(audio + noise * torch.randn(audio.shape, generator=generator), rate)
        assert heard.shape == scene.shape
        # A bounce in the last moments is cut off.
        last_s = (num_frames - 1) / FRAME_RATE
        bounces_s = scene.bounces_s(last_s)
        assert heard.clicks_s == pytest.approx(bounces_s, abs=0.004)
        x = path(scene, (heard.pan_s / last_s).clamp(max=1), last_s)[:, 0]
        assert (heard.pan - x).abs().mean() < 0.02


def test_silence_and_noise_have_no_pitch():
    noise = torch.randn(2, RATE, generator=torch.Generator().manual_seed(0)) * 0.1
    for audio in (torch.zeros(2, RATE), noise):
        heard = hear(audio, RATE)
        assert (heard.pitch_hz, heard.shape, heard.clicks_s) == (0.0, "", [])


def test_one_channel_comes_from_the_middle():
    heard = hear(sound([a_scene()], 17, RATE)[0].mean(0), RATE)
    assert heard.pan.mean() == pytest.approx(0.5, abs=1e-3)


def test_a_right_clip_passes_every_judge():
    for scene in scenes_of(20, seed=5):
        verdict = judge(scene, *clip_of(scene), RATE)
        assert all(value for value in verdict.values() if isinstance(value, bool)), (scene, verdict)
        assert verdict["pan_error"] < 0.02
        assert verdict["pan_correlation"] is None or verdict["pan_correlation"] > 0.99
        assert verdict["bounce_offset_ms"] is None or verdict["bounce_offset_ms"] < 5


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("shape", {"shape": "circle"}),
        ("shape", {"shape": "star"}),
        ("colour", {"colour": "purple"}),
        ("background", {"background": "yellow"}),
        ("size", {"radius": 0.28}),
        *(("direction", {"motion": motion}) for motion in MOTIONS if motion not in ("stays", "changes")),
        ("direction", {"motion": "changes", "new_colour": "green"}),
    ],
    ids=str,
)
def test_a_wrong_picture_fails_that_judge_alone(name, changes):
    asked, shown = a_scene(), a_scene(**changes)
    verdict = judged_picture(asked, see(frames_of(shown)))
    assert [judge for judge, is_right in verdict.items() if is_right is False] == [name]


def test_wrong_sound_fails_its_judges():
    scene = a_scene(motion="bounces")
    frames, audio = clip_of(scene)
    other = judge(scene, frames, clip_of(a_scene(shape="cross"))[1], RATE)
    assert not other["pitch"] and not other["clicks"] and other["bounce_offset_ms"] == float("inf")
    assert not judge(a_scene(), frames, audio, RATE)["clicks"]
    assert not judge(scene, frames, clip_of(a_scene(radius=0.28))[1], RATE)["loudness"]
    late = torch.cat([torch.zeros(2, RATE // 10), audio], dim=1)
    assert judge(scene, frames, late, RATE)["bounce_offset_ms"] == pytest.approx(100, abs=5)
    moving = a_scene(motion="left")
    swapped = judge(moving, frames_of(moving), clip_of(moving, 17)[1].flip(0), RATE)
    assert swapped["pan_correlation"] < -0.9 and swapped["pan_error"] > 0.05
    assert judge(moving, frames_of(moving), clip_of(a_scene(), 17)[1], RATE)["pan_correlation"] < 0.5
