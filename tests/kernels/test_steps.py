"""Steps between matrix products: as they are written and compiled, against their formulas in float64."""

import copy

import pytest
import torch

from ltx2_diffusers.kernels.fusing import fusion
from ltx2_diffusers.kernels.steps import linear_gelu, pixel_norm_silu
from tests.kernels.step_cases import Case, cases, results

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CASES = {name: cases(dtype) for name, dtype in DTYPES.items()}
# Roundings on the way, each by half a step of the type: norm, factor, product or sum.
ROUNDINGS = 4
all_cases = pytest.mark.parametrize("dtype, name", [(dtype, name) for dtype in DTYPES for name in CASES[dtype]])


def check(given: list[torch.Tensor], case: Case, dtype: torch.dtype) -> None:
    """Within 1e-5 of the largest value in float32, and within the function's roundings in bfloat16."""
    bound = 1e-5 if dtype == torch.float32 else ROUNDINGS * torch.finfo(dtype).eps / 2
    assert len(given) == len(case.exact)
    for value, exact in zip(given, case.exact):
        assert value.dtype == dtype
        assert (value.double() - exact).abs().max() <= bound * exact.abs().max()


@all_cases
def test_functions_as_written_compute_their_formulas(dtype, name):
    case = CASES[dtype][name]
    check(results(case), case, DTYPES[dtype])


@pytest.mark.slow
@all_cases
def test_compiled_functions_differ_by_one_rounding(dtype, name):
    case = CASES[dtype][name]
    plain = results(case)
    with fusion(True):
        compiled = results(case)
    check(compiled, case, DTYPES[dtype])
    for one, other, exact in zip(compiled, plain, case.exact):
        if DTYPES[dtype] == torch.float32:
            assert (one - other).abs().max() <= 1e-5 * exact.abs().max()
        else:
            # Numbers that cancel are as far off as the largest of what they are made of.
            step = torch.finfo(torch.bfloat16).eps * exact.abs().clamp(min=0.5)
            assert ((one.double() - other.double()).abs() <= step).all()


@pytest.mark.gpu
@all_cases
def test_compiled_functions_on_a_gpu(dtype, name):
    case = CASES[dtype][name]
    on_gpu = case._replace(arguments=_moved(case.arguments, "cuda"))
    with fusion(True):
        given = [value.cpu() for value in results(on_gpu)]
    check(given, case, DTYPES[dtype])


def _moved(value, device):
    if isinstance(value, tuple):
        items = (_moved(item, device) for item in value)
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, torch.nn.Module):
        return copy.deepcopy(value).to(device)
    return value.to(device) if isinstance(value, torch.Tensor) else value


def test_gelu_takes_the_place_of_its_product_where_no_gradient_and_no_hook_needs_it():
    products = []

    class Watched(torch.nn.Linear):
        def forward(self, x):
            products.append(super().forward(x))
            return products[-1]

    layer, x, seen = Watched(8, 32), torch.randn(2, 3, 8), []
    kept = linear_gelu(x, layer, "tanh")
    assert torch.equal(kept, torch.nn.functional.gelu(products[0], approximate="tanh"))
    with torch.no_grad():
        given = linear_gelu(x, layer, "tanh")
        layer.register_forward_hook(lambda *called: seen.append(called[-1]))
        hooked = linear_gelu(x, layer, "tanh")
    assert given.data_ptr() == products[1].data_ptr() and torch.equal(given, kept)
    assert torch.equal(hooked, kept) and torch.equal(seen[0], products[0])
    (slope,) = torch.autograd.grad(linear_gelu(x.requires_grad_(), layer, "none").sum(), x)
    assert slope.abs().sum() > 0


def test_float16_normalises_values_whose_squares_it_cannot_hold():
    x = torch.randn(1, 4, 2, 2, 2) * 1000
    x[..., 0] = 0
    given = pixel_norm_silu(x.half(), None, False, False)
    assert given.dtype == torch.float16
    assert (given - pixel_norm_silu(x, None, False, False)).abs().max() < 2e-3


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_product_applies_gelu_itself_on_a_gpu(dtype):
    layer, x = torch.nn.Linear(64, 256, device="cuda", dtype=dtype), torch.randn(2, 48, 64, device="cuda", dtype=dtype)
    inner = torch.nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    exact = torch.nn.functional.gelu(inner, approximate="tanh")
    plain = linear_gelu(x, layer, "tanh")
    with fusion(True):
        given = linear_gelu(x, layer, "tanh")
    error, of_plain = ((value.double() - exact).abs().max() for value in (given, plain))
    # A rounding less, or at most the one of the result more.
    assert error <= of_plain + torch.finfo(dtype).eps / 2 * exact.abs().max()
