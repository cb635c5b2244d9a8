"""Duration head: golden vectors in both layouts, parity with diffusers, seconds to frames, refused inputs."""

import json
import logging
import math

import pytest
import torch
from diffusers.pipelines.ltx2 import LTX2DurationHead as DiffusersHead
from safetensors.torch import load_file

from ltx2_diffusers import LTX2DurationHead
from ltx2_diffusers.checkpoints.convert import convert_to_diffusers, convert_to_original, differences
from ltx2_diffusers.checkpoints.original import OriginalCheckpoint
from ltx2_diffusers.models.duration_head import frames_within
from tests.golden_data import GOLDEN_DIR, assert_within, load_json, load_metadata, load_tensors

FOLDER = "ltx25/duration_head"
ORIGINAL = GOLDEN_DIR / FOLDER / "original.safetensors"
CONFIG = load_json(f"{FOLDER}/config.json")
SIZES = {name: value for name, value in CONFIG.items() if not name.startswith("_")}
ROWS = load_json(f"{FOLDER}/frames.json")


@pytest.fixture(scope="module")
def head() -> LTX2DurationHead:
    return LTX2DurationHead.from_single_file(ORIGINAL)


@pytest.fixture(scope="module")
def cases() -> dict[str, torch.Tensor]:
    return load_tensors(f"{FOLDER}/cases.safetensors")


@pytest.mark.parametrize("given", [("video",), ("audio",), ("video", "audio")], ids="+".join)
@torch.no_grad()
def test_golden_vectors(head, cases, given):
    seconds = head(**{f"{name}_tokens": cases[f"{name}_tokens"] for name in given})
    which = "both" if len(given) == 2 else f"{given[0]}_only"
    assert_within(seconds, cases[f"seconds_{which}"], "duration head")


def test_a_changed_weight_is_seen(cases):
    with torch.no_grad():
        head = LTX2DurationHead.from_single_file(ORIGINAL)
        head.attention_pooler.to_k.weight[0, 0] += 0.1
        seconds = head(cases["video_tokens"], cases["audio_tokens"])
    with pytest.raises(AssertionError):
        assert_within(seconds, cases["seconds_both"], "duration head")


def test_golden_numbers_of_frames():
    for row in ROWS:
        frames = frames_within(
            row["seconds"], *(row[key] for key in ("frame_rate", "ratio", "min_seconds", "max_seconds"))
        )
        assert frames == row["num_frames"], row


def test_the_prediction_is_what_becomes_frames(cases):
    """Of a head that always predicts the same time."""
    head = LTX2DurationHead(**SIZES)
    torch.nn.init.zeros_(head.mlp_out.weight)
    torch.nn.init.constant_(head.mlp_out.bias, math.log(3.1))
    assert head.predict_num_frames(cases["video_tokens"][:1], frame_rate=24.0, temporal_compression_ratio=8) == 73


@pytest.mark.parametrize(("seconds", "frames"), [(0.0, 25), (1.0, 25), (5.04, 121), (20.0, 473), (float("inf"), 473)])
def test_frames_by_hand(seconds, frames):
    assert frames_within(seconds, 24.0, 8) == frames


def test_bounds_without_a_valid_number_take_the_nearest_and_say_so(caplog):
    logging.getLogger("diffusers").propagate = True
    assert frames_within(1.0, 24.0, 8, 1.0, 1.02) == 25
    assert "hold no 8 k + 1 frames" in caplog.text


@torch.no_grad()
def test_diffusers_folders_load_both_ways_with_equal_results(tmp_path, cases):
    torch.manual_seed(0)
    theirs = DiffusersHead(**SIZES)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = LTX2DurationHead.from_pretrained(tmp_path / "theirs")
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    given = (cases["video_tokens"], cases["audio_tokens"])
    assert_within(ours(*given), theirs(*given), "equal models")
    how = {"frame_rate": 24.0, "temporal_compression_ratio": 8}
    one = [part[:1] for part in given]
    assert ours.predict_num_frames(*one, **how) == theirs.predict_num_frames(*one, **how)
    ours.save_pretrained(tmp_path / "ours")
    again = DiffusersHead.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(again(*given), theirs(*given), rtol=0, atol=0)


def test_defaults_are_those_of_diffusers():
    with torch.device("meta"):
        ours, theirs = LTX2DurationHead(), DiffusersHead()
    assert [dict(model.config) for model in (ours,)] == [dict(theirs.config)]
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_an_original_file_becomes_a_folder_and_the_same_file_again(tmp_path):
    convert_to_diffusers(ORIGINAL, tmp_path / "folder")
    assert json.loads((tmp_path / "folder/config.json").read_text())["_class_name"] == "LTX2DurationHead"
    assert differences(ORIGINAL, tmp_path / "folder") == []
    convert_to_original(tmp_path / "folder", tmp_path / "again.safetensors")
    back, first = load_file(tmp_path / "again.safetensors"), load_file(ORIGINAL)
    assert back.keys() == first.keys() and all(torch.equal(back[name], first[name]) for name in first)
    assert json.loads(load_metadata(tmp_path / "again.safetensors")["config"])["duration_head"] == {
        "pooler_hidden_dim": 16,
        "num_queries": 3,
        "num_pooler_heads": 4,
        "mlp_hidden": 20,
    }


def test_sizes_come_from_the_tensors_where_there_are_no_metadata():
    bare = {name.removeprefix("duration_head."): tensor for name, tensor in load_file(ORIGINAL).items()}
    checkpoint = OriginalCheckpoint(bare)
    assert checkpoint.components() == ["duration_head"]
    assert checkpoint.config("duration_head") == SIZES


def test_metadata_of_another_head_are_refused():
    config = {"duration_head": {"mlp_hidden": 21}}
    with pytest.raises(ValueError, match=r"`mlp_hidden_dim` is 21, but mlp_hidden\.weight of the weights has 20"):
        LTX2DurationHead.from_single_file(ORIGINAL, original_config=config)


HOW = {"frame_rate": 24.0, "temporal_compression_ratio": 8}


@pytest.mark.parametrize(
    ("given", "how", "message"),
    [
        ({}, {}, "at least one of them"),
        ({"video_tokens": torch.zeros(1, 7, 23)}, {}, r"`video_tokens` has shape \(1, 7, 23\).*\[B, T, 24\]"),
        ({"video_tokens": torch.zeros(2, 7, 24)}, {}, "lengths of 2 prompts"),
        ({"video_tokens": torch.full((1, 7, 24), torch.nan)}, {}, "is not a number"),
        ({"video_tokens": torch.zeros(1, 7, 24)}, {"min_seconds": 20.0}, "`min_seconds` has to be less than"),
        ({"video_tokens": torch.zeros(1, 7, 24)}, {"frame_rate": 0.0}, "`frame_rate` has to be greater than 0"),
    ],
)
def test_refused_inputs(head, given, how, message):
    with pytest.raises(ValueError, match=message):
        head.predict_num_frames(**given, **HOW | how)


def test_heads_have_to_divide_the_width():
    with pytest.raises(
        ValueError, match="`pooler_hidden_dim` has to be divisible by `num_pooler_heads` 4 but is 18; use 16"
    ):
        LTX2DurationHead(**SIZES | {"pooler_hidden_dim": 18})


@pytest.mark.gpu
@torch.no_grad()
def test_in_half_precision_on_a_gpu(cases):
    moved = LTX2DurationHead.from_single_file(ORIGINAL).to("cuda", torch.bfloat16)
    seconds = moved(cases["video_tokens"].cuda(), cases["audio_tokens"].cuda())
    assert_within(seconds.float(), cases["seconds_both"].cuda(), "bfloat16")
