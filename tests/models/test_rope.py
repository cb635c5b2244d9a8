"""Positions, rotary tables and their application: hand-computed values and golden vectors."""

import copy
import math
import pickle

import pytest
import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed

from ltx2_diffusers.kernels.steps import apply_rotary
from ltx2_diffusers.models import rope as rope_module
from ltx2_diffusers.models.rope import (
    ROPE_TYPES,
    RotaryPositionEmbedding,
    RotarySpec,
    prepare_audio_coords,
    prepare_video_coords,
    rotary_frequencies,
    rotary_tables,
)
from ltx2_diffusers.models.tensor_memo import TensorMemo
from tests.golden_data import load_tensors
from tests.models.transformer_tools import assert_same_rotation

PRIMITIVES = load_tensors("transformer/primitives.safetensors")
TABLES = sorted(
    key.removesuffix(".coords") for key in PRIMITIVES if key.startswith("rope.") and key.endswith("coords")
)


def test_video_coords_by_hand():
    coords = prepare_video_coords(2, 3, 1, 2, fps=24.0)
    assert coords.shape == (2, 3, 6, 2)
    seconds = coords[0, 0, ::2] * 24
    torch.testing.assert_close(seconds, torch.tensor([[0.0, 1.0], [1.0, 9.0], [9.0, 17.0]]))
    assert coords[1, 1, 0].tolist() == [0.0, 32.0]
    assert coords[1, 2, :2].tolist() == [[0.0, 32.0], [32.0, 64.0]]


def test_audio_coords_by_hand():
    coords = prepare_audio_coords(1, 3)
    torch.testing.assert_close(coords[0, 0], torch.tensor([[0.0, 0.01], [0.01, 0.05], [0.05, 0.09]]))
    assert torch.equal(prepare_audio_coords(1, 2, shift=1), coords[:, :, 1:])


def test_patches_cover_several_latents():
    coords = prepare_video_coords(1, 4, 2, 2, fps=1.0, patch_size=2, patch_size_t=2)
    assert coords[0].tolist() == [[[0, 9], [9, 25]], [[0, 64], [0, 64]], [[0, 64], [0, 64]]]


def test_coords_equal_golden_vectors():
    for key, expected in PRIMITIVES.items():
        kind, _, name = key.partition(".")
        if kind == "video_coords":
            frames, height, width, fps = name.split("_")
            grid = int(frames[1:]), int(height[1:]), int(width[1:])
            assert torch.equal(prepare_video_coords(1, *grid, fps=float(fps[3:])), expected)
        elif kind == "audio_coords":
            assert torch.equal(prepare_audio_coords(1, int(name)), expected)


def spec_of(name: str) -> RotarySpec:
    """The real model's specification that a name like `rope.video.split.float64` stands for."""
    _, kind, rope_type, precision = name.split(".")
    axes = (20, 2048, 2048) if kind == "video" else (20,)
    return RotarySpec(4096 if kind == "video" else 2048, 32, axes, rope_type, double_precision=precision == "float64")


@pytest.mark.parametrize("name", TABLES)
def test_tables_equal_golden_vectors(name):
    spec = spec_of(name)
    tables = RotaryPositionEmbedding(spec)(PRIMITIVES[f"{name}.coords"])
    assert_same_rotation(tables, (PRIMITIVES[f"{name}.cos"], PRIMITIVES[f"{name}.sin"]), spec)


@pytest.mark.parametrize("name", TABLES)
def test_interleaved_tables_equal_those_of_diffusers(name):
    spec = spec_of(name.replace("split", "interleaved"))
    theirs = LTX2AudioVideoRotaryPosEmbed(
        spec.dim,
        modality="video" if len(spec.max_positions) == 3 else "audio",
        double_precision=spec.double_precision,
        rope_type="interleaved",
    )
    coords = PRIMITIVES[f"{name}.coords"]
    tables = RotaryPositionEmbedding(spec)(coords)
    assert tables[0].shape == (1, 4, spec.dim)
    assert_same_rotation(tables, theirs(coords), spec)
    # The other half of each pair turns by the same angle.
    assert_same_rotation(tables, tuple(table[..., 1::2].repeat_interleave(2, -1) for table in theirs(coords)), spec)


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_wrong_frequencies_are_noticed(name, monkeypatch):
    right = rope_module.rotary_frequencies
    monkeypatch.setattr(rope_module, "rotary_frequencies", lambda *arguments: right(*arguments) * (1 + 1e-5))
    with pytest.raises(AssertionError, match="rotary"):
        test_tables_equal_golden_vectors(name)


def test_frequencies_span_theta():
    frequencies = rotary_frequencies(5, theta=16.0)
    torch.testing.assert_close(frequencies, torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]) * math.pi / 2)


def test_unused_entries_lead_and_are_not_rotated():
    # Three axes with two frequencies each leave 2 of 8 pairs unused.
    cos, sin = rotary_tables(torch.rand(1, 4, 3), 16, 1)
    assert torch.equal(cos[..., :2], torch.ones(1, 1, 4, 2))
    assert torch.equal(sin[..., :2], torch.zeros(1, 1, 4, 2))
    assert (sin[..., 2:] != 0).all()


@pytest.mark.parametrize("rope_type", ROPE_TYPES)
def test_rotation_by_hand(rope_type):
    # One head of width 2 at the middle of the axis turns by the angle 0, at its end by pi / 2.
    tables = rotary_tables(torch.tensor([[[0.5], [1.0]]]), 2, 1, rope_type)
    rotated = apply_rotary(torch.tensor([[[3.0, 4.0], [3.0, 4.0]]]), tables, rope_type)
    torch.testing.assert_close(rotated, torch.tensor([[[3.0, 4.0], [-4.0, 3.0]]]))


@pytest.mark.parametrize("rope_type", ROPE_TYPES)
def test_rotation_keeps_lengths_and_dtype(rope_type):
    x = torch.randn(2, 5, 24, dtype=torch.bfloat16)
    rotated = apply_rotary(x, rotary_tables(torch.rand(1, 5, 1), 24, 3, rope_type), rope_type)
    assert rotated.dtype == torch.bfloat16
    torch.testing.assert_close(rotated.float().norm(dim=-1), x.float().norm(dim=-1), atol=2e-2, rtol=1e-2)


def test_equal_rows_share_memory_and_different_rows_do_not():
    rope = RotaryPositionEmbedding(RotarySpec(16, 2, (20, 64, 64)))
    coords = prepare_video_coords(2, 2, 2, 2)
    assert rope(coords)[0].stride(0) == 0
    different = coords.clone()
    different[1, 0] += 1.0
    cos = rope(different)[0]
    assert cos.stride(0) != 0
    torch.testing.assert_close(cos[:1], rope(different[:1])[0])


def test_tables_are_remembered_until_the_coordinates_change():
    rope = RotaryPositionEmbedding(RotarySpec(16, 2, (20, 64, 64)))
    coords = prepare_video_coords(1, 2, 2, 2)
    first = rope(coords)
    assert rope(coords)[0] is first[0]
    coords[:, 0] += 0.5
    second = rope(coords)
    assert not torch.equal(second[0], first[0])
    assert len(rope._memo) == 1
    del coords
    assert len(rope._memo) == 0


def test_tables_are_recomputed_where_changes_cannot_be_noticed():
    rope = RotaryPositionEmbedding(RotarySpec(16, 2, (20, 64, 64)))
    with torch.inference_mode():
        coords = prepare_video_coords(1, 2, 2, 2)
        first = rope(coords)[0].clone()
        coords[:, 0] += 0.5
        assert not torch.equal(rope(coords)[0], first)


def test_memo_is_left_behind_by_copies():
    memo, source = TensorMemo(), torch.zeros(1)
    memo.get(source, "key", lambda: 1)
    for other in (copy.deepcopy(memo), pickle.loads(pickle.dumps(memo))):
        assert len(other) == 0


def test_positions_without_bounds_are_taken_as_they_are():
    rope = RotaryPositionEmbedding(RotarySpec(16, 2, (20,)))
    coords = prepare_audio_coords(1, 4)
    torch.testing.assert_close(rope(coords.mean(-1))[1], rope(coords)[1])


def test_wrong_specs_are_refused():
    with pytest.raises(ValueError, match=r"rope_type must be one of .* got 'spiral'"):
        RotarySpec(16, 2, (20,), "spiral")
    with pytest.raises(ValueError, match="width 18 and 2 heads"):
        RotarySpec(18, 2, (20,), "split")
