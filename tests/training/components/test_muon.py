"""Muon: what makes its matrices orthogonal, and its first steps by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ltx2_diffusers.training.components import FitOptions, Muon, fit
from ltx2_diffusers.training.components.muon import orthogonalised
from tests.training.components.made import video
from tests.training.components.test_fit import vae_step


@pytest.mark.parametrize("shape", [(8, 8), (4, 40), (40, 4), (1, 9)])
def test_singular_values_come_close_to_one_and_directions_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    # The smallest of a square matrix takes more rounds.
    u, v = u[:, values > 0.1 * values[0]], v[values > 0.1 * values[0]]
    inner = u.mT @ orthogonalised(matrix) @ v.mT
    assert inner.diagonal().min() > 0.6 and inner.diagonal().max() < 1.3
    assert (inner - inner.diagonal().diag()).abs().max() < 0.1


def test_orthogonalising_forgets_the_size_and_takes_a_matrix_of_zeros():
    matrix = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert_close(orthogonalised(1000 * matrix), orthogonalised(matrix), atol=1e-2, rtol=0)
    assert not orthogonalised(torch.zeros(3, 5)).any()


def test_a_first_step_is_as_large_as_one_of_adamw():
    weight = nn.Parameter(torch.zeros(6, 2, 3, 3, 3))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=0.1).step()
    # An orthogonal matrix of 6 rows and 54 columns has a root mean square of 1 / sqrt(54).
    assert weight.square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.2)
    assert (weight * weight.grad).sum() < 0


def test_biases_take_the_steps_of_adam_by_hand():
    bias = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = Muon([bias], lr=0.1, betas=(0.9, 0.99))
    for gradient in ([4.0, -0.5], [2.0, -0.5]):
        bias.grad = torch.tensor(gradient)
        optimizer.step()
    moment, squares = (0.1 * 4 * 0.9 + 0.1 * 2) / 0.19, (0.01 * 16 * 0.99 + 0.01 * 4) / 0.0199
    assert_close(bias.detach(), torch.tensor([0.9 - 0.1 * moment / math.sqrt(squares), 1.2]))


def test_a_rate_may_be_a_tensor_that_changes():
    torch.manual_seed(0)
    found = []
    for rate in (0.1, torch.tensor(0.1)):
        weights = [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(3))]
        optimizer = Muon(weights, lr=rate)
        for part in (1.0, 0.5):
            if isinstance(rate, float):
                optimizer.param_groups[0]["lr"] = rate * part
            else:
                rate.fill_(0.1 * part)
            for weight in weights:
                weight.grad = torch.arange(weight.numel()).view_as(weight) - part
            optimizer.step()
        found.append(weights)
    assert_close(*found)


def test_decay_shrinks_what_has_a_gradient_alone():
    moved, still = (nn.Parameter(torch.full((2, 2), 3.0)) for _ in range(2))
    moved.grad = torch.zeros(2, 2)
    Muon([moved, still], lr=0.1, weight_decay=0.5).step()
    assert_close(moved.detach(), torch.full((2, 2), 3.0 * 0.95))
    assert_close(still.detach(), torch.full((2, 2), 3.0))


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    options = FitOptions(optimizer="muon", betas=(0.95, 0.99), state_file=tmp_path / "state.pt", progress=False)
    batches = [{"pixels": video(1, 3, 8, seed=number)} for number in range(4)]
    whole, first, resumed = vae_step(), vae_step(), vae_step(seed=5)
    torch.manual_seed(1)
    records = fit(whole, whole.vae.parameters(), batches, 4, 1e-3, replace(options, state_file=None))
    torch.manual_seed(1)
    fit(first, first.vae.parameters(), batches, 2, 1e-3, options)
    torch.manual_seed(2)
    assert fit(resumed, resumed.vae.parameters(), batches, 4, 1e-3, options) == records
    weights = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match=r"optimizer.*'muon'"):
        FitOptions(optimizer="sgd")
