"""What the networks compute between matrix products, one function per step; on devices that gain by it each is one kernel.

Shapes: B batch, T tokens, R rows of modulation values, D width, H heads, r = D / (2 H); of videos C channels, F frames, H
height, W width.

Every function is written for reading, and runs as it is written unless steps are fused, see
[`~ltx2_diffusers.kernels.fusing.set_fusion`].
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from .fusing import fused, fuses, is_bare

# Reference: `PixelNorm`; unrelated to the config key `resnet_norm_eps`.
PIXEL_NORM_EPS = 1e-8

RotaryTables = tuple[torch.Tensor, torch.Tensor]
Norm = Callable[[torch.Tensor], torch.Tensor]


class TokenLayout(NamedTuple):
    """Which row of modulation values every token takes.

    Without `lengths` and `row_index`, rows meet tokens by broadcasting: one row for all, or one per token.

    Args:
        lengths (`tuple[int, ...]`, *optional*): Token r of R runs of tokens takes row r; the number of tokens per run.
        row_index (`torch.Tensor`, *optional*): `[B, T]`, the row of every token, out of rows `[1, R, ...]`.
    """

    lengths: tuple[int, ...] | None = None
    row_index: torch.Tensor | None = None


class ScaleShift(NamedTuple):
    """Values that modulate tokens.

    Args:
        scale, shift (`torch.Tensor`): `[B, R, D]`.
        layout ([`TokenLayout`]): Which row belongs to which token.
    """

    scale: torch.Tensor
    shift: torch.Tensor
    layout: TokenLayout = TokenLayout()


class Branch(NamedTuple):
    """What a branch of a network adds to the tokens.

    Args:
        update (`torch.Tensor`): `[B, T, D]`.
        gate (`torch.Tensor`, *optional*): `[B, R, D]`, what the update is multiplied by.
        layout ([`TokenLayout`]): Which row of the gate belongs to which token.
    """

    update: torch.Tensor
    gate: torch.Tensor | None = None
    layout: TokenLayout = TokenLayout()


@fused
def modulate(x: torch.Tensor, values: ScaleShift) -> torch.Tensor:
    """`x * (1 + scale) + shift`, `[B, T, D]`."""
    rows = 1 + values.scale, values.shift
    return _by_token(lambda x, factor, shift: torch.addcmul(shift, x, factor), values.layout, (x,), rows)


@fused
def add(x: torch.Tensor, branch: Branch | None) -> torch.Tensor:
    """`x + gate * update`, `[B, T, D]`; `x` without a branch."""
    if branch is None:
        return x
    if branch.gate is None:
        return x + branch.update
    return _by_token(torch.addcmul, branch.layout, (x, branch.update), (branch.gate,))


@fused
def add_norm_modulate(
    x: torch.Tensor, branch: Branch | None, norm: Norm, modulations: tuple[ScaleShift | None, ...]
) -> tuple[torch.Tensor, ...]:
    """`x' = x + gate * update`, then `norm(x') * (1 + scale) + shift` for every modulation.

    Args:
        x (`torch.Tensor`): `[B, T, D]`.
        branch ([`Branch`], *optional*): What is added; `None` adds nothing.
        norm: An `RMSNorm`.
        modulations (`tuple[ScaleShift, ...]`): `None` leaves the normalised tokens as they are.

    Returns:
        `tuple[torch.Tensor, ...]`: `x'` and one tensor for each modulation, all `[B, T, D]`.
    """
    x = add(x, branch)
    normed = norm(x)
    return x, *(normed if values is None else modulate(normed, values) for values in modulations)


@fused
def norm_rotate(
    query: torch.Tensor,
    query_norm: Norm,
    query_tables: RotaryTables,
    key: torch.Tensor,
    key_norm: Norm,
    key_tables: RotaryTables,
    rope_type: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries `[B, T, D]` and keys `[B, S, D]`, each normalised and then rotated by its positions; see [`apply_rotary`]."""
    query = apply_rotary(query_norm(query), query_tables, rope_type)
    return query, apply_rotary(key_norm(key), key_tables, rope_type)


def apply_rotary(x: torch.Tensor, tables: RotaryTables, rope_type: str) -> torch.Tensor:
    """Rotate queries or keys by their positions.

    Args:
        x (`torch.Tensor`): `[B, T, D]`, heads not yet split.
        tables (`tuple[torch.Tensor, torch.Tensor]`): Cosine and sine of
            [`~ltx2_diffusers.models.rope.rotary_tables`], of B rows or of one row.
        rope_type (`str`): The type the tables were made for.

    Returns:
        `torch.Tensor`: `[B, T, D]` in the dtype of `x`; the rotation itself is done in float32.
    """
    cos, sin = tables
    if rope_type == "interleaved":
        cos, sin = cos[..., ::2], sin[..., ::2]
        first, second = x.unflatten(-1, (-1, 2)).float().unbind(-1)
        rotated = torch.stack(_rotate(first, second, cos, sin), dim=-1)
    else:
        cos, sin = cos.transpose(1, 2), sin.transpose(1, 2)
        first, second = x.unflatten(-1, (cos.shape[2], 2, -1)).float().unbind(-2)
        rotated = torch.cat(_rotate(first, second, cos, sin), dim=-1)
    return rotated.to(x.dtype).view_as(x)


def _rotate(
    first: torch.Tensor, second: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)


@fused
def gate_heads(x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Heads of `[B, T, D]`, each multiplied by twice the sigmoid of its logit `[B, T, H]`: zeros leave a head as it is."""
    gates = 2.0 * torch.sigmoid(logits)
    return (x.unflatten(-1, (logits.shape[-1], -1)) * gates.unsqueeze(-1)).flatten(-2)


def linear_gelu(x: torch.Tensor, layer: nn.Linear, approximate: str) -> torch.Tensor:
    """GELU of a linear layer, `[B, T, D]` to `[B, T, E]`; `approximate` is that of `torch.nn.functional.gelu`.

    Fused on CUDA, the product itself applies it to what it has summed, before rounding.
    """
    weight, bias = layer.weight, layer.bias
    in_product = fuses(x) and (x.is_cuda or x.is_meta) and approximate == "tanh" and is_bare(layer, nn.Linear)
    # In float32 the product's own GELU is not known to be as exact.
    if not in_product or bias is None or not x.dtype == weight.dtype == bias.dtype or x.dtype.itemsize != 2:
        # Of the widest tensors of a network there is one at a time, not two, unless a hook may have kept the first.
        kept = torch.is_grad_enabled() or layer._forward_hooks
        gelu = nn.functional.gelu if kept else torch.ops.aten.gelu_
        return gelu(layer(x), approximate=approximate)
    return torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True).unflatten(0, x.shape[:-1])


@fused
def pixel_norm_silu(
    x: torch.Tensor, shift_scale: tuple[torch.Tensor, torch.Tensor] | None, in_place: bool, overwrite: bool
) -> torch.Tensor:
    """SiLU of `x / rms * (1 + scale) + shift`, where the root mean square is that of the channels of a position.

    Args:
        x (`torch.Tensor`): `[B, C, F, H, W]`.
        shift_scale (`tuple[torch.Tensor, torch.Tensor]`, *optional*): `[B, C, 1, 1, 1]` each.
        in_place (`bool`): Whether intermediate values take the place of one another.
        overwrite (`bool`): Whether they take that of `x`.
    """
    # Squares of what these layers make, and the constant, are beyond what float16 holds.
    wide = x.float() if x.dtype == torch.float16 else x
    rms = ((wide * wide).mean(dim=1, keepdim=True) + PIXEL_NORM_EPS).sqrt().to(x.dtype)
    x = x.div_(rms) if overwrite else x / rms
    if shift_scale is not None:
        shift, scale = shift_scale
        x = x.mul_(1 + scale).add_(shift) if in_place else x * (1 + scale) + shift
    return nn.functional.silu(x, inplace=in_place)


def _by_token(
    function: Callable[..., torch.Tensor],
    layout: TokenLayout,
    tokens: tuple[torch.Tensor, ...],
    rows: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    if layout.row_index is not None:
        return function(*tokens, *(nn.functional.embedding(layout.row_index, row[0]) for row in rows))
    if layout.lengths is None:
        return function(*tokens, *rows)
    token_runs = [token.split(layout.lengths, dim=1) for token in tokens]
    row_runs = [row.split(1, dim=1) for row in rows]
    return torch.cat([function(*run) for run in zip(*token_runs, *row_runs)], dim=1)
