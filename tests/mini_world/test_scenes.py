"""The world: splits that share nothing, captions that are true, and frames that show what scenes say."""

import random
from collections import Counter

import pytest
import torch

from examples.mini_world.drawing import DISTANCES, draw, path, radii, track
from examples.mini_world.scenes import (
    COLOURS,
    DIRECTIONS,
    MOTIONS,
    NEW_SHAPE,
    SHAPES,
    Scene,
    caption,
    outlined,
    prompts,
    random_scene,
    triples,
)

SPLITS = ("train", "validation", "held_out")


def scene(**changes) -> Scene:
    return Scene(
        **{
            "shape": "square",
            "colour": "red",
            "background": "blue",
            "motion": "stays",
            "radius": 0.25,
            "place": (0.5, 0.5),
        }
        | changes
    )


def test_splits_share_no_combination_and_leave_none_out():
    parts = [set(triples(split)) for split in SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(SHAPES) * len(COLOURS) * (len(COLOURS) - 1)
    assert [len(part) for part in parts] == [112, 28, 28]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("place", range(3))
def test_every_name_is_in_every_split(split, place):
    counts = Counter(triple[place] for triple in triples(split))
    assert set(counts) == set(SHAPES if place == 0 else COLOURS)
    assert max(counts.values()) <= 2 * min(counts.values())


def test_prompts_follow_from_their_seed_and_keep_to_their_split():
    first, again, other = (list(prompts("held_out", 40, seed)) for seed in (1, 1, 2))
    assert first == again != other
    held_out = triples("held_out")
    assert all((one.shape, one.colour, one.background) in held_out for _, one in first)
    assert {one.motion for _, one in prompts("train", 300, 0)} == set(MOTIONS)


def test_captions_name_what_is_seen():
    draw_from = random.Random(0)
    for _ in range(300):
        one = random_scene(draw_from)
        text = caption(one, draw_from).lower()
        assert f"{one.colour} {one.shape}" in text and f"{one.background} background" in text
        # What changes its size has none to name; else nothing said means big.
        assert ("a small " in text) == (one.radius < 0.24 and one.motion not in ("grows", "shrinks"))
        assert ("a big " in text) <= (one.radius > 0.24)
        assert (
            (one.new_colour in text) and one.new_colour not in (one.colour, one.background) if one.new_colour else True
        )
        for direction in DIRECTIONS:
            assert (f" {direction}" in text) == (one.motion == direction)


def test_a_plain_caption():
    assert caption(scene(shape="circle", motion="bounces"), random.Random(0), plain=True) == (
        "a red circle bounces on a blue background"
    )


def test_circles_do_not_turn_and_shapes_stay_in_the_picture():
    draw_from = random.Random(0)
    for aspect in (1.0, 1.5):
        for _ in range(200):
            one = random_scene(draw_from, aspect=aspect, spread=1)
            assert (one.shape, one.motion) != ("circle", "turns")
            part = torch.linspace(0, 1, 25)
            x, y = path(one, part, 2.0).T
            edge = 0.8 * radii(one, part)
            assert (x - edge > -0.01).all() and (x + edge < aspect + 0.01).all()
            assert (y - edge > -0.01).all() and (y + edge < 1.01).all()


def test_spread_is_the_part_of_the_room_that_places_are_drawn_from():
    wide, narrow, none = (
        [random_scene(random.Random(seed), aspect=1.5, spread=spread).place for seed in range(20)]
        for spread in (1.0, 0.25, 0.0)
    )
    assert set(none) == {(0.75, 0.5)}
    for (x, y), (near_x, near_y) in zip(wide, narrow):
        assert (near_x - 0.75, near_y - 0.5) == (pytest.approx((x - 0.75) / 4), pytest.approx((y - 0.5) / 4))


@pytest.mark.parametrize("shape", [*SHAPES, NEW_SHAPE])
def test_shapes_cover_about_the_area_of_the_circle(shape):
    video = draw([scene(shape=shape, colour="white", background="black")], 1, 128, 128)
    covered = (video[0, 0, 0] / 2 + 0.5).mean().item()
    assert covered == pytest.approx(3.1416 * 0.25**2, rel=0.12)


def test_distances_are_those_to_the_outline():
    radius = torch.tensor(0.25)
    point = torch.tensor
    assert DISTANCES["circle"](point(0.4), point(0.3), radius).item() == pytest.approx(0.25)
    assert DISTANCES["square"](point(0.0), point(0.0), radius).item() == pytest.approx(-0.886 * 0.25)
    # The tip of a star is as far out as its formula says.
    assert DISTANCES["star"](point(0.0), point(-1.45 * 0.25), radius).item() == pytest.approx(0, abs=1e-6)
    assert DISTANCES["triangle"](point(0.0), point(0.74 * 0.25), radius).item() == pytest.approx(0, abs=1e-6)
    assert DISTANCES["cross"](point(1.19 * 0.25), point(0.0), radius).item() == pytest.approx(0, abs=1e-6)


def test_colours_are_those_of_the_scene_and_change_in_the_middle():
    video = draw([scene(motion="changes", new_colour="white")], 17, 64, 64)[0] / 2 + 0.5
    assert torch.allclose(video[:, 0, 32, 32], torch.tensor(COLOURS["red"]))
    assert torch.allclose(video[:, -1, 32, 32], torch.tensor(COLOURS["white"]))
    assert torch.allclose(video[:, :, 0, 0], torch.tensor(COLOURS["blue"])[:, None].expand(3, 17))
    assert torch.equal(video[:, 6, 32, 32], video[:, 0, 32, 32]) and torch.equal(
        video[:, 10, 32, 32], video[:, -1, 32, 32]
    )


@pytest.mark.parametrize("motion", DIRECTIONS)
def test_moves_go_where_they_say(motion):
    tracked = track(scene(motion=motion, reach=0.3), 17)
    assert torch.allclose(tracked[-1] - tracked[0], 0.3 * torch.tensor(DIRECTIONS[motion]), atol=1e-6)
    assert torch.allclose(tracked.mean(0), torch.tensor([0.5, 0.5]), atol=1e-6)


def test_bounces_are_where_the_track_is_lowest():
    one = scene(motion="bounces", reach=0.4, period_s=0.75, first_bounce_s=0.25)
    assert one.bounces_s(1.5) == [0.25, 1.0]
    assert one.bounces_s(0.2) == [] == scene().bounces_s(2.0)
    tracked = track(one, 37)[:, 1]
    assert tracked[[6, 24]].tolist() == pytest.approx([0.7, 0.7])
    assert tracked.min().item() >= 0.3 - 1e-6


def test_an_outline_is_the_scene_drawn_white_on_black():
    drawn = draw([outlined(scene())], 1, 64, 64)[0, :, 0]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    assert drawn[0, 32, 32] == -1 and drawn[0, 0, 0] == -1
    assert drawn[0, 32, round(32 + 0.886 * 0.25 * 64)] == 1
