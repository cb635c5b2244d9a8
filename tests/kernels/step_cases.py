"""Every fused function with arguments of all kinds, and its formula in float64."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from ltx2_diffusers.kernels import steps
from ltx2_diffusers.kernels.steps import Branch, ScaleShift, TokenLayout

B, T, S, D, H = 2, 24, 7, 32, 4
FOR_ALL = TokenLayout()
BY_INDEX = TokenLayout(row_index=(torch.arange(T) >= 9).long().repeat(B, 1))
EPS = 1e-6


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rms_norm(dtype: torch.dtype, weighted: bool = True, width: int = D) -> nn.RMSNorm:
    norm = nn.RMSNorm(width, eps=EPS, elementwise_affine=weighted, dtype=dtype).requires_grad_(False)
    if weighted:
        norm.weight.copy_(1 + 0.1 * noise(width, seed=9))
    return norm


def scale_shift(rows: int, dtype: torch.dtype, layout: TokenLayout = FOR_ALL, seed: int = 1) -> ScaleShift:
    return ScaleShift(*(noise(1, rows, D, seed=seed + i, dtype=dtype) for i in (0, 1)), layout)


def tables(tokens: int, rope_type: str, width: int = D, heads: int = H) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines as models make them: float32 whatever the tokens are."""
    angles = 3 * noise(1, tokens, width // 2, seed=5)
    if rope_type == "interleaved":
        angles = angles.repeat_interleave(2, dim=-1)
        return angles.cos(), angles.sin()
    cos, sin = (table.unflatten(-1, (heads, -1)).transpose(1, 2) for table in (angles.cos(), angles.sin()))
    return cos, sin


class Case(NamedTuple):
    """A fused function, its arguments, and what it is to give in float64."""

    function: Callable[..., Any]
    arguments: tuple
    exact: list[torch.Tensor]


def _rows(values: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    values = values.double()
    return values if layout.row_index is None else values[0][layout.row_index]


def _added(x: torch.Tensor, branch: Branch | None) -> torch.Tensor:
    if branch is None:
        return x.double()
    gate = 1.0 if branch.gate is None else _rows(branch.gate, branch.layout)
    return x.double() + gate * branch.update.double()


def _normed(x: torch.Tensor, norm: nn.RMSNorm) -> torch.Tensor:
    x = x.double()
    weight = 1.0 if norm.weight is None else norm.weight.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * weight


def _modulated(x: torch.Tensor, values: ScaleShift | None) -> torch.Tensor:
    if values is None:
        return x.double()
    return x.double() * (1 + _rows(values.scale, values.layout)) + _rows(values.shift, values.layout)


def _rotated(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], rope_type: str) -> torch.Tensor:
    """Pairs of entries as complex numbers, multiplied by those of the tables."""
    if rope_type == "interleaved":
        factor = torch.complex(*(table[..., ::2].double() for table in turn))
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * factor).flatten(-2)
    factor = torch.complex(*(table.transpose(1, 2).double() for table in turn))
    first, second = x.unflatten(-1, (factor.shape[2], 2, -1)).unbind(-2)
    turned = torch.complex(first, second) * factor
    return torch.stack([turned.real, turned.imag], dim=-2).flatten(-3)


def _read(x: torch.Tensor, branch: Branch | None, norm: nn.RMSNorm, *modulations: ScaleShift | None) -> Case:
    # The tokens are kept in their own type, and the norm reads what is kept.
    added = _added(x, branch).to(x.dtype)
    copies = [_modulated(_normed(added, norm), values) for values in modulations]
    return Case(steps.add_norm_modulate, (x, branch, norm, modulations), [_added(x, branch), *copies])


def cases(dtype: torch.dtype) -> dict[str, Case]:
    """All cases in one type of tokens and weights."""
    x, update = (noise(B, T, D, seed=seed, dtype=dtype) for seed in (0, 3))
    norm, weighted = rms_norm(dtype, False), rms_norm(dtype)
    gated = Branch(update, noise(1, 1, D, seed=4, dtype=dtype))
    by_index = Branch(update, noise(1, 2, D, seed=4, dtype=dtype), BY_INDEX)
    one, two = scale_shift(1, dtype), scale_shift(2, dtype, BY_INDEX)
    logits = noise(B, T, H, seed=2, dtype=dtype)
    found = {
        "norm, modulate": _read(x, None, norm, one),
        "add, norm": _read(x, Branch(update), norm, None),
        "add, weighted norm, modulate": _read(x, Branch(update), weighted, one),
        "add gated, norm, modulate": _read(x, gated, norm, one),
        "add gated, norm, modulate by token": _read(x, by_index, norm, two),
        "add, norm, modulate twice": _read(x, Branch(update), norm, one, scale_shift(1, dtype, seed=7)),
        "add gated": Case(steps.add, (x, gated), [_added(x, gated)]),
        "add gated by token": Case(steps.add, (x, by_index), [_added(x, by_index)]),
        "modulate by token": Case(steps.modulate, (x, two), [_modulated(x, two)]),
        "gate heads": Case(
            steps.gate_heads,
            (x, logits),
            [(x.double().unflatten(-1, (H, -1)) * 2 * logits.double().sigmoid()[..., None]).flatten(-2)],
        ),
    }
    for rope_type in ("split", "interleaved"):
        for length in (T, S):
            sides = [(x, weighted, tables(T, rope_type))]
            sides.append((noise(B, length, D, seed=8, dtype=dtype), weighted, tables(length, rope_type)))
            exact = [_rotated(_normed(side, of), turn, rope_type) for side, of, turn in sides]
            arguments = (*sides[0], *sides[1], rope_type)
            found[f"norm, rotate {rope_type}, {length} keys"] = Case(steps.norm_rotate, arguments, exact)
    for how, video in (("", noise(B, 8, 3, 4, 5, dtype=dtype)), (", channels last", _channels_last(dtype))):
        values = tuple(noise(B, 8, 1, 1, 1, seed=seed, dtype=dtype) for seed in (1, 2))
        for modulation in (None, values):
            rms = (video.double().pow(2).mean(1, keepdim=True) + steps.PIXEL_NORM_EPS).sqrt()
            exact = video.double() / rms
            if modulation is not None:
                exact = exact * (1 + values[1].double()) + values[0].double()
            name = f"pixel norm, {'modulate, ' if modulation is not None else ''}SiLU{how}"
            exact = nn.functional.silu(exact)
            found[name] = Case(steps.pixel_norm_silu, (video, modulation, True, False), [exact])
    return found


def _channels_last(dtype: torch.dtype) -> torch.Tensor:
    return noise(B, 8, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last_3d)


def results(case: Case) -> list[torch.Tensor]:
    """What the function gives, without gradients."""
    with torch.no_grad():
        given = case.function(*case.arguments)
    return [given] if isinstance(given, torch.Tensor) else list(given)
