"""Neighbourhood attention: by hand, against a mask of all pairs, golden vectors, in parts, and its windows."""

import itertools
import sys
import types

import pytest
import torch

from benchmarks.neighbourhood_attention import attention_operations
from ltx2_diffusers.kernels.steps import apply_rotary
from ltx2_diffusers.models import neighbourhood_attention as room
from ltx2_diffusers.models.neighbourhood_attention import (
    LTX2VideoVaeNeighborhoodAttnProcessor,
    NeighbourhoodAttention,
    attend_in_place,
    grid_rotary_tables,
    natten_attention,
    neighbourhood_attention,
    split_head,
    window,
)
from tests.golden_data import assert_within, load_tensors

KERNELS = ("3_3_3", "3_5_3", "5_3_5")
# Grid and kernel: boxes of several forms on every axis; a kernel as long as an axis, and longer; of even length.
CASES = [((5, 9, 12), (3, 5, 5)), ((19, 3, 21), (11, 3, 7)), ((4, 20, 6), (7, 11, 3)), ((6, 7, 9), (2, 4, 9))]
cases = pytest.mark.parametrize(("grid", "kernel"), CASES, ids=str)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_tensors("ltx25/diffusion_decoder/primitives.safetensors")


def states(grid: tuple[int, ...], heads: int = 2, width: int = 8, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(grid))
    return [torch.randn(batch, *grid, heads, width, generator=generator) for _ in range(3)]


def of_all_pairs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kernel: tuple[int, ...]) -> torch.Tensor:
    """Attention with a mask of all pairs, whose windows are counted out."""
    seen = torch.ones(1, 1, dtype=torch.bool)
    for length, size in zip(query.shape[1:4], kernel):
        size, axis = min(size, length), torch.zeros(length, length, dtype=torch.bool)
        for i in range(length):
            first = min(max(i - size // 2, 0), length - size)
            axis[i, first : first + size] = True
        seen = torch.kron(seen.int(), axis.int()).bool()
    flat = (x.flatten(1, 3).transpose(1, 2) for x in (query, key, value))
    mixed = torch.nn.functional.scaled_dot_product_attention(*flat, attn_mask=seen, scale=1.0)
    return mixed.transpose(1, 2).reshape(query.shape)


def windows(grid: tuple[int, ...], kernel: tuple[int, ...]) -> tuple:
    return tuple(map(window, grid, kernel))


def test_windows_by_hand():
    assert window(6, 3).starts == (0, 0, 1, 2, 3, 3)
    assert window(5, 4).starts == (0, 0, 0, 1, 1)
    assert window(3, 7) == ((0, 0, 0), 3)


@cases
def test_boxes_give_what_a_mask_of_all_pairs_gives(grid, kernel):
    query, key, value = states(grid)
    mixed = neighbourhood_attention(query, key, value, windows(grid, kernel))
    assert_within(mixed, of_all_pairs(query, key, value, kernel), "equal layers")


@cases
@pytest.mark.parametrize("values", [1, 20_000])
def test_boxes_give_the_same_few_at_a_time(monkeypatch, grid, kernel, values):
    arguments = (*states(grid), windows(grid, kernel))
    whole = neighbourhood_attention(*arguments)
    monkeypatch.setitem(room.GATHERING, "cpu", room.Gathering(values))
    assert_within(neighbourhood_attention(*arguments), whole, "equal layers")


def test_a_key_outside_of_the_window_does_not_matter():
    query, key, value = states((9, 9, 9))
    before = neighbourhood_attention(query, key, value, windows((9, 9, 9), (3, 5, 3)))
    value[:, 4, 6, 4] += 100
    changed = (neighbourhood_attention(query, key, value, windows((9, 9, 9), (3, 5, 3))) != before).flatten(4).any(-1)
    seen = torch.zeros_like(changed)
    # At the border, the windows of the last rows reach further back.
    seen[:, 3:6, 4:9, 3:6] = True
    assert torch.equal(changed, seen)


def test_gradients_are_those_of_a_mask_of_all_pairs():
    grid, kernel = CASES[0]
    made = []
    for attend in (
        lambda *qkv: neighbourhood_attention(*qkv, windows(grid, kernel)),
        lambda *qkv: of_all_pairs(*qkv, kernel),
    ):
        leaves = [x.requires_grad_() for x in states(grid)]
        attend(*leaves).square().sum().backward()
        made.append([leaf.grad for leaf in leaves])
    for own, expected in zip(*made):
        assert_within(own, expected, "miniature")


@pytest.mark.parametrize("kernel", KERNELS)
@torch.no_grad()
def test_golden_attention(golden, kernel):
    attn = golden_attention(golden, kernel)
    assert_within(attn(golden[f"na.{kernel}.in"]), golden[f"na.{kernel}.out"], "neighbourhood attention")


def golden_attention(golden: dict[str, torch.Tensor], kernel: str) -> NeighbourhoodAttention:
    attn = NeighbourhoodAttention(16, 8, [int(size) for size in kernel.split("_")])
    weights = {name.removeprefix("na.weights."): x for name, x in golden.items() if name.startswith("na.weights.")}
    attn.load_state_dict(weights)
    return attn


@pytest.mark.parametrize("width", [8, 16, 24, 64])
def test_golden_rotation(golden, width):
    assert split_head(width) == tuple(golden[f"rope.{width}.split"].tolist())
    x = golden[f"rope.{width}.in"]
    rotated = apply_rotary(x, grid_rotary_tables(x.shape[1:4], width), "interleaved")
    assert_within(rotated, golden[f"rope.{width}.out"], "neighbourhood attention")


@pytest.mark.parametrize(("slab", "made"), [(1, 1), (2, 1), (3, 2), (2, 4), (100, 3)])
@pytest.mark.parametrize("frames", [3, 4, 13])
@torch.no_grad()
def test_attention_in_place_is_attention(monkeypatch, slab, made, frames):
    """Also where frames wait for keys that come later, and where all see the same."""
    torch.manual_seed(0)
    attn = NeighbourhoodAttention(16, 8, (5, 3, 4))
    x = torch.randn(2, frames, 4, 5, 16)
    context = torch.randn(x.shape)
    expected = x + context + attn(2 * (x + context))
    monkeypatch.setattr(room, "SLAB_TOKENS", slab * 2 * 4 * 5)
    monkeypatch.setattr(room, "PROJECTED_TOKENS", made * 2 * 4 * 5)
    arrived: list[int] = []

    def arriving(first: int, last: int) -> torch.Tensor:
        arrived.extend(range(first, last))
        return context[:, first:last]

    attend_in_place(x, attn, lambda part: 2 * part, arriving)
    assert_within(x, expected, "equal layers")
    assert arrived == list(range(frames))


class StandIn(types.ModuleType):
    """What NATTEN promises of `na3d`, by a mask of all pairs: windows follow from the number of keys."""

    def __init__(self) -> None:
        super().__init__("natten")
        self.calls = 0

    def na3d(self, query, key, value, kernel_size, scale):
        assert query.shape == key.shape
        assert all(x.is_contiguous() for x in (query, key, value))
        assert scale == 1.0
        self.calls += 1
        return of_all_pairs(query, key, value, kernel_size)


@pytest.mark.parametrize("slab", [1, 2, 100])
@torch.no_grad()
def test_natten_gets_queries_where_its_windows_are_the_right_ones(monkeypatch, slab):
    """Where it is not installed, its documented contract stands for it."""
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "natten", stand_in)
    monkeypatch.setattr(room, "_has_natten", lambda: True)
    torch.manual_seed(0)
    attn = NeighbourhoodAttention(16, 8, (5, 3, 4))
    x = torch.randn(1, 11, 4, 5, 16)
    expected = x + attn(x)
    attn.set_processor(LTX2VideoVaeNeighborhoodAttnProcessor("natten"))
    monkeypatch.setattr(room, "NATTEN_SLAB_TOKENS", slab * 4 * 5)
    attend_in_place(x, attn, lambda part: part)
    assert_within(x, expected, "equal layers")
    assert stand_in.calls


@pytest.mark.gpu
@cases
def test_natten_gives_what_boxes_give(grid, kernel):
    pytest.importorskip("natten")
    if any(size > length for size, length in zip(kernel, grid)):
        kernel = tuple(map(min, kernel, grid))
    arguments = ([x.cuda() for x in states(grid, width=64)], windows(grid, kernel))
    expected = neighbourhood_attention(*arguments[0], arguments[1])
    assert (natten_attention(*arguments[0], arguments[1]) - expected).abs().max() < 1e-3


@pytest.mark.gpu
@cases
def test_boxes_on_a_gpu(grid, kernel):
    qkv = states(grid, width=64)
    expected = neighbourhood_attention(*qkv, windows(grid, kernel))
    made = neighbourhood_attention(*(x.cuda() for x in qkv), windows(grid, kernel))
    assert (made.cpu() - expected).abs().max() < 2e-2


def test_processors_are_chosen_by_name():
    with pytest.raises(ValueError, match=r"`kernel` has to be .* but is 'flex'"):
        LTX2VideoVaeNeighborhoodAttnProcessor("flex")
    if not room._has_natten():
        with pytest.raises(ValueError, match='`kernel` is "natten", but the package natten is not installed'):
            LTX2VideoVaeNeighborhoodAttnProcessor("natten")


def test_operations_are_counted():
    """Those of windows by hand; boxes make more, and not many times as much."""
    made, needed = attention_operations(windows((16, 24, 24), (11, 11, 11)), 64)
    assert needed == 4 * 64 * 16 * 24 * 24 * 11**3
    assert needed < made < 3 * needed
    sides = itertools.product((3, 5), repeat=3)
    assert all(attention_operations(windows(side, side), 1)[0] == 4 * torch.Size(side).numel() ** 2 for side in sides)
