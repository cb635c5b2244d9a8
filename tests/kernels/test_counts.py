"""What a block does between matrix products, at the sizes of the published models: as much as recorded, and far less than diffusers."""

import pytest
import torch
from torch import nn

from benchmarks import counts
from benchmarks.counts import BYTES_BOUND, KERNELS_BOUND, Case, Count, Subjects, count, kernels_of
from ltx2_diffusers.kernels import steps
from ltx2_diffusers.kernels.fusing import fusion
from ltx2_diffusers.planning.parts import parts_of

# Kernels of a block and their bytes in units of the video's tokens (6144 x 4096 in bfloat16), fused; they may only fall.
BUDGET = {"19B": (26, 30.9), "22B": (42, 36.5)}
DEPTH = 48


def per_block(model: str, image: bool) -> dict[str, tuple[Count, Count]]:
    """What a forward pass without blocks does, and what each block adds."""
    short, longer = (
        counts.counted(Subjects(parts_of(counts.MODELS[model]), depth), Case(image, False)) for depth in (1, 2)
    )
    found = {}
    for name in short:
        block = Count(*(b - a for a, b in zip(short[name], longer[name])))
        found[name] = Count(*(a - b for a, b in zip(short[name], block))), block
    return found


@pytest.mark.parametrize(
    "model, image",
    [
        ("19B", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("19B", True), ("22B", False), ("22B", True))),
    ],
)
def test_a_block_keeps_its_budget(model, image):
    found = per_block(model, image)
    whole = {name: Count(*(a + DEPTH * b for a, b in zip(*pair))) for name, pair in found.items()}
    theirs, ours = whole["diffusers"], whole["ours, fused"]
    assert ours.kernels <= KERNELS_BOUND * theirs.kernels
    assert ours.bytes <= BYTES_BOUND * theirs.bytes
    assert ours.products == theirs.products
    kernels, units = BUDGET[model]
    block = found["ours, fused"][1]
    assert block.kernels <= kernels
    assert block.bytes / (counts.VIDEO_TOKENS * 4096 * 2) <= units


def on_meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, device="meta")


def test_operations_are_counted_as_a_device_runs_them():
    x, row = on_meta(2, 6, 8), on_meta(1, 1, 8)
    size = x.numel() * 2
    assert count(lambda: x.transpose(1, 2).unflatten(1, (2, 4))) == (0, 0, 0)
    assert count(lambda: x * row + x) == (2, 3 * size + 16 + 2 * size, 0)
    # An axis that is broadcast is read once, and so is a tensor that is read twice.
    assert count(lambda: x * row.expand(2, 6, 8)) == (1, 2 * size + 16, 0)
    assert count(lambda: x * x) == (1, 2 * size, 0)
    assert count(lambda: x.copy_(row)) == (1, 16 + size, 0)
    assert count(lambda: nn.functional.linear(x, on_meta(8, 8))) == (0, 0, 1)
    assert count(lambda: nn.functional.rms_norm(x, (8,), on_meta(8))) == (1, 2 * size + 16, 0)
    assert count(lambda: nn.functional.scaled_dot_product_attention(*[x[None]] * 3)) == (0, 0, 0)
    table, index = on_meta(100, 8), torch.zeros(3, dtype=torch.long)
    assert count(lambda: nn.functional.embedding(index, table)) == (1, 3 * 8 + 2 * 3 * 16, 0)


def test_fused_functions_are_counted_as_kernels():
    x, gate = on_meta(1, 6, 8), on_meta(1, 1, 8)
    norm, size = nn.RMSNorm(8, elementwise_affine=False), 96
    values = steps.ScaleShift(gate, on_meta(1, 1, 8))
    arguments = x, steps.Branch(on_meta(1, 6, 8), gate), norm, (values,)
    with fusion(True):
        # The gate, which is the scale here, is read once.
        assert count(lambda: steps.add_norm_modulate(*arguments)) == (1, 4 * size + 2 * 16, 0)
        # Tokens that are handed on as they are, are not written.
        assert count(lambda: steps.add_norm_modulate(x, None, norm, (values,))) == (1, 2 * size + 2 * 16, 0)
        assert count(lambda: steps.add(x, None)) == (0, 0, 0)
        layer = nn.Linear(8, 32, device="meta", dtype=torch.bfloat16)
        assert count(lambda: steps.linear_gelu(x, layer, "tanh")) == (0, 0, 1)
    assert count(lambda: steps.add_norm_modulate(*arguments)).kernels > 1
    assert kernels_of(torch.add, (x, x)) is None
