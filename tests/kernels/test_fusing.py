"""The switch of fused steps: where it is on, what is compiled and how often, and what keeps a step as it is written."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ltx2_diffusers.kernels import fusing
from ltx2_diffusers.kernels.fusing import fused, fuses, fusion, set_fusion

X = torch.randn(2, 5, 8)


@pytest.fixture
def compilations(monkeypatch):
    """Compiles nothing, and lists what would be."""
    found = []

    def compile(function, options):
        assert options["emulate_precision_casts"]
        found.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(fusing, "_compiled", {})
    return found


@fused
def doubled(x: torch.Tensor, norm: nn.RMSNorm | None = None, values: tuple = ()) -> torch.Tensor:
    """`2 * norm(x)`, plus values."""
    return sum((value for value in values if value is not None), 2 * (x if norm is None else norm(x)))


def test_steps_are_fused_where_the_switch_says_so(compilations):
    assert not fuses(X)
    with torch.no_grad():
        # By itself on CUDA devices alone.
        assert not fuses(X)
        with fusion(True):
            assert fuses(X)
            with fusion(False):
                assert not fuses(X)
            assert fuses(X)
        assert not fuses(X)
    with fusion(True):
        # With gradients a step stays a part of the graph.
        assert not fuses(X)
        doubled(X)
    assert not compilations


def test_the_switch_returns_after_an_error():
    with pytest.raises(KeyError), fusion(True):
        raise KeyError
    with torch.no_grad():
        assert not fuses(X)


@pytest.mark.parametrize("mode", ["on", None, 1, "Auto"])
def test_unknown_modes_are_refused(mode):
    with pytest.raises(ValueError, match=r'`mode` has to be True, False or "auto" but is .*; use "auto"'):
        set_fusion(mode)


@torch.no_grad()
def test_a_function_is_compiled_once_for_each_kind_of_argument(compilations):
    step, norm = fused(doubled.__wrapped__), nn.RMSNorm(8, elementwise_affine=False)
    with fusion(True):
        for tokens in (5, 6, 10):
            assert torch.equal(step(X.repeat(1, 2, 1)[:, :tokens]), 2 * X.repeat(1, 2, 1)[:, :tokens])
        assert len(compilations) == 2  # a slice is not contiguous
        for other in (X[..., :4].contiguous(), X.bfloat16(), X[:1]):
            step(other)
        assert len(compilations) == 5
        step(X, norm)
        step(X, nn.RMSNorm(8, elementwise_affine=False))
        assert len(compilations) == 6
        step(X, nn.RMSNorm(8, eps=1e-3, elementwise_affine=False))
        step(X, None, (X, None))
    assert compilations == [f"doubled_{index}" for index in range(8)]


@torch.no_grad()
def test_hooks_of_norms_are_called(compilations):
    called, norm = [], nn.RMSNorm(8, elementwise_affine=False)
    norm.register_forward_hook(lambda *_: called.append("forward"))
    with fusion(True):
        doubled(X, norm)
        norm = nn.RMSNorm(8)
        norm.register_forward_pre_hook(lambda *_: called.append("before"))
        doubled(X, norm)
        norm, forward = nn.RMSNorm(8), norm.forward
        # So do accelerate and diffusers hook in.
        norm.forward = lambda x: (called.append("instead"), forward(x))[1]
        doubled(X, norm)
        doubled(X, _OwnNorm(8))
    assert called == ["forward", "before", "instead"] and not compilations


class _OwnNorm(nn.RMSNorm):
    pass


@torch.no_grad()
def test_whole_numbers_and_tensors_of_other_libraries_leave_a_function_as_written(compilations):
    with fusion(True):
        doubled(X, None, (3, 4))
        doubled(X.as_subclass(_OwnTensor))
    assert not compilations


class _OwnTensor(torch.Tensor):
    pass


@pytest.mark.usefixtures("compilations")
@torch.no_grad()
def test_watchers_see_one_call():
    class Watcher(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    seen = []
    with fusion(True), Watcher():
        result = doubled(X)
    # Beside what was asked of the tensor to find out.
    assert seen.count(doubled) == 1 and torch.Tensor.__rmul__ not in seen
    assert torch.equal(result, 2 * X)


@torch.no_grad()
def test_models_without_values_compile_nothing(compilations):
    with fusion(True):
        assert doubled(X.to("meta")).shape == X.shape
    assert not compilations


@torch.no_grad()
def test_a_compiler_at_work_gets_the_function_as_written():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: doubled(x) + 1, backend=backend, fullgraph=True)
    assert torch.equal(compiled(X), 2 * X + 1)
    with fusion(True):
        # The switch is none of its business.
        assert torch.equal(compiled(X), 2 * X + 1)
    assert len(graphs) == 1


@pytest.mark.slow
@torch.no_grad()
def test_other_numbers_of_tokens_are_compiled_once_more_and_then_no_more():
    from torch._dynamo.utils import counters

    step, norm = fused(doubled.__wrapped__), nn.RMSNorm(8).requires_grad_(False)
    torch._dynamo.reset()
    counters.clear()
    found = []
    with fusion(True):
        for tokens in (5, 7, 11, 4, 600):
            x = torch.randn(2, tokens, 8)
            torch.testing.assert_close(step(x, norm), 2 * norm(x))
            found.append(counters["stats"]["unique_graphs"])
        assert found == [1, 2, 2, 2, 2]
        # What was learned of tokens says nothing of another width.
        x, wide = torch.randn(2, 5, 16), nn.RMSNorm(16).requires_grad_(False)
        torch.testing.assert_close(step(x, wide), 2 * wide(x))
    assert counters["stats"]["unique_graphs"] == 3 and not counters["graph_break"]
