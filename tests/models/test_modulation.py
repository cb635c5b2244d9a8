"""Timestep conditioning: sinusoids, distinct timesteps, and the spreading of values over tokens."""

import math

import pytest
import torch

from ltx2_diffusers.kernels.steps import Branch, ScaleShift, TokenLayout, add, modulate
from ltx2_diffusers.models.modulation import (
    MAX_RUNS,
    AdaLayerNormSingle,
    Modulation,
    distinct_timesteps,
    evaluate,
    timestep_sinusoid,
)
from tests.golden_data import assert_within, golden_sinusoid, load_tensors


def test_sinusoid_equals_golden_vectors():
    primitives = load_tensors("transformer/primitives.safetensors")
    sinusoid = timestep_sinusoid(primitives["timestep"])
    assert_within(sinusoid, primitives["timestep_sinusoid"], "timestep sinusoid")


def test_recorded_frequencies_give_the_recorded_sinusoids_and_are_neighbours_of_our_own():
    primitives = load_tensors("transformer/primitives.safetensors")
    assert_within(golden_sinusoid(primitives["timestep"]), primitives["timestep_sinusoid"], "sampling")
    own, recorded = timestep_sinusoid(torch.ones(1)), golden_sinusoid(torch.ones(1))
    torch.testing.assert_close(own, recorded, atol=3e-7, rtol=0)


def test_sinusoid_by_hand():
    sinusoid = timestep_sinusoid(torch.tensor([3.0]))[0]
    assert sinusoid[0].item() == pytest.approx(math.cos(3.0))
    assert sinusoid[128].item() == pytest.approx(math.sin(3.0))
    assert sinusoid[192].item() == pytest.approx(math.sin(3.0 / 100), rel=1e-5)


def spread(distinct: torch.Tensor, layout: TokenLayout, num_tokens: int) -> torch.Tensor:
    """The timestep of every token, read back through the layout."""
    zeros = torch.zeros(
        max(distinct.shape[0], 1 if layout.row_index is None else len(layout.row_index)), num_tokens, 1
    )
    return modulate(zeros, ScaleShift(torch.zeros_like(distinct)[..., None], distinct[..., None], layout))[..., 0]


TIMESTEPS = {
    "one value": torch.full((2, 6), 500.0),
    "two runs": torch.tensor([[0.0, 0.0, 700.0, 700.0, 700.0, 700.0]]),
    "runs that differ between samples": torch.tensor([[0.0, 0.0, 7.0, 7.0, 7.0, 7.0], [5.0] * 4 + [0.0] * 2]),
    "few values, many runs": torch.tensor([[0.0, 1.0] * MAX_RUNS]),
    "all different": torch.arange(2.0 * MAX_RUNS)[None],
}


@pytest.mark.parametrize("timestep", TIMESTEPS.values(), ids=TIMESTEPS.keys())
@pytest.mark.parametrize("as_index", [False, True])
def test_layouts_restore_every_token(timestep, as_index):
    distinct, layout = distinct_timesteps(timestep, as_index)
    assert torch.equal(spread(distinct, layout, timestep.shape[1]).expand_as(timestep), timestep)
    if as_index:
        assert layout.row_index.shape == timestep.shape


def test_layouts_are_as_small_as_they_can_be():
    rows = {name: distinct_timesteps(timestep)[0].shape for name, timestep in TIMESTEPS.items()}
    assert rows["one value"] == (2, 1)
    assert rows["two runs"] == (1, 2)
    assert rows["runs that differ between samples"] == (2, 3)
    assert rows["few values, many runs"] == (1, 2)
    assert rows["all different"] == TIMESTEPS["all different"].shape


def test_values_that_python_cannot_read_stay_per_token():
    timestep = torch.zeros(1, 9, device="meta")
    distinct, layout = distinct_timesteps(timestep)
    assert distinct is timestep and layout == TokenLayout()


@pytest.mark.parametrize("timestep", TIMESTEPS.values(), ids=TIMESTEPS.keys())
def test_modulation_per_distinct_timestep_equals_modulation_per_token(timestep):
    module, table = AdaLayerNormSingle(4, 3), torch.randn(3, 4)
    x, update = torch.randn(*timestep.shape, 4), torch.randn(*timestep.shape, 4)
    outputs = []
    for distinct, layout in (distinct_timesteps(timestep), (timestep, TokenLayout())):
        values, _ = evaluate(module, distinct, layout, torch.float32)
        shift, scale, gate = values.with_table(table)
        outputs.append(add(modulate(x, ScaleShift(scale, shift, layout)), Branch(update, gate, layout)))
    torch.testing.assert_close(*outputs, atol=2e-5, rtol=1e-5)


def test_modulation_by_hand():
    x = torch.tensor([[[1.0], [2.0], [3.0]]])
    layout = TokenLayout(lengths=(1, 2))
    rows = torch.tensor([[[10.0], [20.0]]])
    assert modulate(x, ScaleShift(rows, rows + 0.5, layout)).flatten().tolist() == [21.5, 62.5, 83.5]
    assert add(x, Branch(x, rows, layout)).flatten().tolist() == [11.0, 42.0, 63.0]
    values = Modulation(torch.tensor([[[[1.0], [2.0]]]]), TokenLayout()).with_table(torch.tensor([[3.0], [4.0]]))
    assert [value.item() for value in values] == [4.0, 6.0]
