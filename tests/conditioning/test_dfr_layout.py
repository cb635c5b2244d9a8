"""The layout of DFR passes against recorded tables, and the rules that tiles follow."""

import json

import pytest
import torch

from ltx2_diffusers.conditioning import dfr_layout
from ltx2_diffusers.conditioning.dfr_layout import DimensionInterval, LTX2DFREpilogueTile
from tests.golden_data import load_json, load_metadata, load_tensors

TABLES = load_json("dfr_hdr/layout.json")
TEMPORAL = TABLES["temporal_tile_plan"]
EPILOGUE = TABLES["epilogue_tiles"]


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(actual, expected, rtol=0, atol=1e-6)


def tile_shapes(tiles: list[LTX2DFREpilogueTile]) -> list[list[list[int]]]:
    return [[[axis.start, axis.stop] for axis in tile[:3]] for tile in tiles]


def test_canvases():
    for row in TABLES["resolve_canvas"]:
        frames, canvas, segment, positions, *ratio = row
        assert dfr_layout.resolve_canvas(frames, *ratio) == (canvas, segment, positions)
        assert dfr_layout.resolve_canvas(canvas, *ratio)[::2] == (canvas, positions)


@pytest.mark.parametrize("name", ["split_by_count", "split_canvas_at_seams"])
def test_tiles_of_an_axis(name):
    for row in TABLES[name]:
        assert getattr(dfr_layout, name)(*row["args"]) == [DimensionInterval(*one) for one in row["out"]]


@pytest.mark.parametrize("row", TEMPORAL, ids=lambda row: str(row["args"][1:]))
def test_temporal_tiles(row):
    tiles = [tile._asdict() for tile in dfr_layout.temporal_tile_plan(*row["args"])]
    assert json.loads(json.dumps(tiles)) == row["out"]


@pytest.mark.parametrize("index", range(len(EPILOGUE)))
def test_epilogue_tiles(index):
    row, profiles = EPILOGUE[index], load_tensors("dfr_hdr/epilogue_blend.safetensors")
    tiles = dfr_layout.epilogue_tiles(*row["args"])
    assert tile_shapes(tiles) == row["out"]
    for place, tile in enumerate(tiles):
        weight, known = tile.blend_weight, f"epilogue.{index}.{place}."
        assert close(weight.sum() / profiles[known + "sum"], torch.tensor(1.0))
        assert close(weight.amax((1, 2)), profiles[known + "frames"])
        assert close(weight.amax((0, 2)) / weight.max(), profiles[known + "height"])
        assert close(weight.amax((0, 1)) / weight.max(), profiles[known + "width"])
    dfr_layout.check_tiles(tiles, row["args"][0])


@pytest.mark.parametrize(("name", "arguments", "error"), TABLES["errors"])
def test_what_is_refused(name, arguments, error):
    with pytest.raises(ValueError) as caught:
        getattr(dfr_layout, name)(*arguments)
    assert type(caught.value).__name__ == error


def test_token_plans():
    tensors = load_tensors("dfr_hdr/token_plan.safetensors")
    grid = tuple(json.loads(load_metadata("dfr_hdr/token_plan.safetensors")["latent_shape"]))
    plans = dfr_layout.video_tile_plan(dfr_layout.epilogue_tiles(grid, 2, [3]), tensors["video_coords"], grid)
    total = torch.zeros(tensors["video_coords"].shape[2])
    for index, plan in enumerate(plans):
        assert torch.equal(plan.keep, tensors[f"{index}.keep"])
        assert close(plan.weights, tensors[f"{index}.weights"])
        assert close(plan.coords, tensors[f"{index}.coords"])
        total.index_add_(0, plan.keep, plan.weights)
    assert close(total, torch.ones_like(total))


def test_a_token_outside_of_every_tile_is_refused():
    coords = load_tensors("dfr_hdr/token_plan.safetensors")["video_coords"].clone()
    coords[:, 0, -1] += 100
    with pytest.raises(ValueError, match=f"1 appended tokens \\(the first is {coords.shape[2] - 1}\\)"):
        dfr_layout.video_tile_plan(dfr_layout.epilogue_tiles((7, 4, 6), 2, [3]), coords, (7, 4, 6))


def test_tiles_of_another_grid_are_refused():
    tiles = dfr_layout.epilogue_tiles((7, 4, 6), 2, [3])
    with pytest.raises(ValueError, match="reaches out of the latent grid"):
        dfr_layout.check_tiles(tiles, (7, 3, 6))
    with pytest.raises(ValueError, match="sum to 0 up to 1"):
        dfr_layout.check_tiles(tiles, (7, 4, 7))


def test_the_network_is_told_60_frames_per_second_for_fast_clips():
    assert [dfr_layout.conditioning_frame_rate(rate) for rate in (24.0, 30.0, 30.1, 48.0, 96.0)] == [
        24,
        30,
        60,
        60,
        60,
    ]


def test_audio_windows():
    tensors = load_tensors("dfr_hdr/audio_windows.safetensors")
    for index in range(3):
        start, frames, playback, source, conditioning, per_second = tensors[f"{index}.params"].tolist()
        count = round(frames / conditioning * per_second)
        window = dfr_layout.audio_window(tensors[f"{index}.in"], start, frames, playback, source, count)
        assert close(window, tensors[f"{index}.out"])


def test_a_trimmed_canvas_ends_with_the_request():
    assert dfr_layout.trim_canvas(torch.zeros(1, 2, 13, 4, 4), 81).shape == (1, 2, 11, 4, 4)
    for frames, latents in (
        (82, torch.zeros(1, 2, 13, 4, 4)),
        ("81", torch.zeros(1, 2, 13, 4, 4)),
        (81, torch.zeros(2, 13, 4, 4)),
    ):
        with pytest.raises(ValueError, match="`latents` has shape" if latents.ndim == 4 else "`num_frames` has to be"):
            dfr_layout.trim_canvas(latents, frames)
