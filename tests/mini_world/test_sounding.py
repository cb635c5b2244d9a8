"""Sound of the miniature world, measured."""

import random
from dataclasses import replace

import pytest
import torch

from examples.mini_world.scenes import NEW_SHAPE, PITCHES_HZ, SHAPES, SIZES, Scene, random_scene
from examples.mini_world.sounding import CLICK_S, FADE_S, clicks, sound

RATE = 24000
STILL = Scene("circle", "red", "blue", "stays", SIZES["big"], (0.5, 0.5))


def level(waveform: torch.Tensor) -> torch.Tensor:
    """Root mean square of waveforms."""
    return waveform.square().mean(-1).sqrt()


def inner(waveform: torch.Tensor, rate: int = RATE) -> torch.Tensor:
    """A waveform without its fades."""
    fade = round(FADE_S * rate)
    return waveform[..., fade:-fade]


@pytest.mark.parametrize("shape", [*SHAPES, NEW_SHAPE])
def test_the_shape_decides_the_pitch(shape):
    spectrum = torch.fft.rfft(sound([replace(STILL, shape=shape)], 24, RATE)).abs()[0]
    # One second: bins of 1 Hz.
    assert spectrum.argmax(-1).tolist() == [PITCHES_HZ[shape]] * 2
    second, third = (spectrum[0, round(number * PITCHES_HZ[shape])] / spectrum[0].max() for number in (2, 3))
    assert second.item() == pytest.approx(2 / 7, abs=0.01) and third.item() == pytest.approx(1 / 7, abs=0.01)


def test_a_big_shape_is_three_times_as_loud_as_a_small_one():
    big, small = inner(sound([STILL, replace(STILL, radius=SIZES["small"])], 24, RATE))
    assert torch.allclose(level(big), 3 * level(small), rtol=1e-3)
    # The root mean square of 0.45 x (0.7, 0.2, 0.1), half of it on each side.
    assert level(big)[0].item() == pytest.approx(0.45 * 0.54**0.5 / 2, rel=0.01)


@pytest.mark.parametrize("motion", ["grows", "shrinks"])
def test_loudness_follows_what_grows(motion):
    thirds = level(inner(sound([replace(STILL, motion=motion)], 24, RATE))[0, 0].unflatten(0, (3, -1)))
    ratios = thirds[1:] / thirds[:-1] if motion == "grows" else thirds[:-1] / thirds[1:]
    assert (ratios > 1.8).all()


@pytest.mark.parametrize("aspect", [1.0, 1.5])
def test_the_place_decides_the_side(aspect):
    places = [replace(STILL, place=(part * aspect, 0.5)) for part in (0.5, 0.2, 0.8)]
    levels = level(inner(sound(places, 24, RATE, aspect)))
    assert torch.allclose(levels[0, 0], levels[0, 1])
    assert levels[1, 0] > 3 * levels[1, 1] and torch.allclose(levels[1], levels[2].flip(0))
    assert torch.allclose(levels.square().sum(1), levels.square().sum(1)[:1].expand(3))


def test_sound_wanders_with_the_shape():
    left, right = (
        sound([replace(STILL, motion="right", reach=0.4)], 25, RATE)[0].unflatten(1, (5, -1)).square().mean(-1)
    )
    assert (right / left).diff().min() > 0.1


def test_clicks_begin_at_the_bounces():
    still = replace(STILL, reach=0.4, period_s=0.7, first_bounce_s=0.25)
    bounces = replace(still, motion="bounces")
    click = (sound([bounces], 41, RATE) - sound([still], 41, RATE))[0]
    heard = click.abs().amax(0) > 1e-4
    starts = [
        number for number in heard.nonzero().flatten().tolist() if not heard[max(0, number - 100) : number].any()
    ]
    assert starts == [round(time_s * RATE) for time_s in (0.25, 0.95, 1.65)]
    burst = click[0, starts[0] : starts[0] + round(0.01 * RATE)]
    tone = sound([still], 41, RATE)[0, 0, starts[0] : starts[0] + len(burst)]
    assert level(burst) > 1.3 * level(tone)
    assert not heard[starts[0] + round(CLICK_S * RATE) : starts[1]].any()


def test_a_click_at_the_end_is_cut():
    assert clicks([0.99], 1000, 1000).shape == (1000,) and clicks([0.99], 1000, 1000)[-1] != 0


@pytest.mark.parametrize(("num_frames", "rate", "samples"), [(17, 24000, 17000), (49, 16000, 32667), (1, 24000, 1000)])
def test_sound_lasts_as_long_as_the_clip(num_frames, rate, samples):
    waveform = sound([STILL, STILL], num_frames, rate)
    assert waveform.shape == (2, 2, samples) and waveform.dtype == torch.float32


def test_sound_is_a_function_of_the_scene():
    scenes = [random_scene(random.Random(seed), motion="bounces") for seed in range(20)]
    first = sound(scenes, 33, RATE)
    assert torch.equal(first, sound(scenes, 33, RATE))
    assert torch.equal(first[7:8], sound(scenes[7:8], 33, RATE))
    assert first.abs().max() <= 1 and (first.abs() == 1).float().mean() < 1e-4
    assert (first[..., [0, -1]].abs() < 0.02).all()
