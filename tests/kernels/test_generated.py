"""What PyTorch's compiler makes of fused functions on a GPU: as many kernels as `benchmarks.counts` says.

The code for a GPU is generated, not run, so that none is needed.
"""

import importlib.util
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.counts import kernels_of
from ltx2_diffusers.kernels import fusing
from tests.kernels.step_cases import cases

CASES = cases(torch.bfloat16)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


def generated(function: Callable[..., Any], arguments: tuple, monkeypatch: pytest.MonkeyPatch) -> str:
    """The code that calls the kernels."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._guards import detect_fake_mode
    from torch._inductor import config
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.post_grad import post_grad_passes
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V

    # It names the driver of a device that is there.
    monkeypatch.setattr("torch.utils._triton.triton_hash_with_backend", lambda: "none")
    codes = []

    def compiler(graph: torch.fx.GraphModule, inputs: list) -> Callable[..., Any]:
        fakes = detect_fake_mode(inputs)
        with V.set_fake_mode(fakes), V.set_debug_handler(DebugContext()):
            post_grad_passes(graph, True)
            lowering = GraphLowering(graph, shape_env=fakes.shape_env)
            with V.set_graph_handler(lowering):
                lowering.run(*inputs)
                codes.append(lowering.codegen()[0])
        return graph.forward

    backend = aot_autograd(fw_compiler=compiler, decompositions=select_decomp_table)
    values = [fusing._as_value(value) for value in arguments]
    torch._dynamo.reset()
    with torch.no_grad(), config.patch(cpu_backend="triton", **fusing._OPTIONS):
        torch.compile(function, backend=backend, fullgraph=True)(*values)
    (code,) = codes
    # What runs, without remarks and what measures it.
    lines = getattr(code, "value", code).partition("def call(")[2].partition("def get_args(")[0].splitlines()
    return "\n".join(line for line in lines if not line.strip().startswith("#"))


@pytest.mark.parametrize("name", CASES)
def test_a_step_is_as_many_kernels_as_it_is_counted_as(name, monkeypatch):
    function, arguments, _ = CASES[name]
    code = generated(function, arguments, monkeypatch)
    # Nothing is left to operators of PyTorch.
    assert not re.search(r"extern_kernels\.|\baten\.", code)
    assert len(re.findall(r"\btriton_\w+\.run\(", code)) == kernels_of(function, arguments)


def test_what_one_kernel_cannot_do_is_seen(monkeypatch):
    norm = nn.RMSNorm(32, elementwise_affine=False)

    def two(x: torch.Tensor, norm: fusing.RMSNorm) -> torch.Tensor:
        return norm(x).sum(dim=1)

    code = generated(two, (torch.randn(2, 24, 32), norm), monkeypatch)
    assert len(re.findall(r"\btriton_\w+\.run\(", code)) == 2
