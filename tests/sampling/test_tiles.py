"""A transformer that runs tile by tile."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig

from ltx2_diffusers.conditioning import LTX2DFREpilogueTile, epilogue_tiles, video_tile_plan
from ltx2_diffusers.sampling import TiledTransformer
from tests.models.transformer_tools import FRAMES, HEIGHT, WIDTH, tiny_inputs, tiny_transformer

GRID = (FRAMES, HEIGHT, WIDTH)
WHOLE = [LTX2DFREpilogueTile(slice(0, FRAMES), slice(0, HEIGHT), slice(0, WIDTH), torch.ones(GRID))]


@pytest.fixture(scope="module")
def model():
    return tiny_transformer("2.5")


@pytest.fixture(scope="module")
def inputs(model):
    given = tiny_inputs(model)
    coords = model.rope.prepare_video_coords(1, *GRID, device="cpu", fps=24.0)
    marks = torch.zeros(1, FRAMES * HEIGHT * WIDTH, 1)
    marks[:, : HEIGHT * WIDTH] = 1
    layout = {"video_coords": coords, "video_keyframes_mask": marks, "perturbation_keep_masks": [None]}
    return {**given, **layout, "return_dict": False}


@torch.no_grad()
def test_one_tile_of_everything_is_the_transformer(model, inputs):
    tiled = TiledTransformer(model, video_tile_plan(WHOLE, inputs["video_coords"], GRID))
    for one, other in zip(tiled(**inputs)[0], model(**inputs)[0]):
        torch.testing.assert_close(one, other)
    assert tiled.config is model.config


@torch.no_grad()
def test_tiles_see_their_own_window_and_blend(model, inputs):
    """Four tiles, each the transformer on its tokens alone; the audio is their mean."""
    plan = video_tile_plan(epilogue_tiles(GRID, 1, []), inputs["video_coords"], GRID)
    video, audio = TiledTransformer(model, plan)(**inputs)[0]
    expected, sounds = torch.zeros_like(video), []
    for tile in plan:
        own = {name: inputs[name][:, tile.keep] for name in ("hidden_states", "video_keyframes_mask")}
        made, sound = model(**{**inputs, **own, "video_coords": tile.coords})[0]
        expected[:, tile.keep] += made * tile.weights[:, None]
        sounds.append(sound)
    assert len(plan) == 4
    torch.testing.assert_close(video, expected)
    torch.testing.assert_close(audio, torch.stack(sounds).mean(0))


def test_a_cache_that_cannot_tell_tiles_apart_is_refused():
    cached = tiny_transformer("2.5")
    cached.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="disable_cache"):
        TiledTransformer(cached, [])
