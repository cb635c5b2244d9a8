"""Timestep conditioning: AdaLN-single modules and the application of their values to tokens.

Shapes: B batch, T tokens, R rows of modulation values, m values per row, D width, N timesteps.

Tokens of one stream share very few timesteps: one in plain generation, two where an image conditions the video. So
modules are evaluated per distinct timestep, and a [`TokenLayout`] says which row belongs to which token. No tensor of
m values per token is ever made, unless nearly every token has its own timestep.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from diffusers.models.embeddings import TimestepEmbedding
from torch import nn

from ..kernels.steps import TokenLayout
from .tensor_memo import host_can_read

# Width of the sinusoid and its lowest frequency 1 / 10000, as in every published checkpoint.
SINUSOID_DIM = 256
SINUSOID_PERIOD = 10000.0

# Up to this many runs of equal timesteps, tokens are modulated run by run; beyond it, rows are gathered per token.
MAX_RUNS = 8


def timestep_sinusoid(timestep: torch.Tensor) -> torch.Tensor:
    """Sinusoidal embedding of timesteps in [0, 1000], `[N]` to `[N, 256]` float32, cosines first."""
    half = SINUSOID_DIM // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep[:, None].float() * torch.exp(-math.log(SINUSOID_PERIOD) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class AdaLayerNormSingle(nn.Module):
    """Computes the modulation values that all blocks share from timesteps.

    Args:
        dim (`int`): Width D of the stream.
        num_values (`int`): Number m of values per timestep.
    """

    def __init__(self, dim: int, num_values: int) -> None:
        super().__init__()
        self.num_values = num_values
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepEmbedding(SINUSOID_DIM, dim)})
        self.linear = nn.Linear(dim, num_values * dim)

    def forward(
        self, timestep: torch.Tensor, hidden_dtype: torch.dtype | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Modulation values and embedded timesteps.

        Args:
            timestep (`torch.Tensor`): `[N]` float32 in [0, 1000].
            hidden_dtype (`torch.dtype`, *optional*, defaults to float32): The dtype to compute in.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: `[N, m * D]` and `[N, D]`.
        """
        sinusoid = timestep_sinusoid(timestep).to(hidden_dtype or torch.float32)
        embedded = self.emb["timestep_embedder"](sinusoid)
        return self.linear(nn.functional.silu(embedded)), embedded


class Modulation(NamedTuple):
    """Modulation values and the tokens they belong to.

    Args:
        rows (`torch.Tensor`): `[B, R, m, D]`.
        layout ([`TokenLayout`]): Which row belongs to which token.
    """

    rows: torch.Tensor
    layout: TokenLayout

    def with_table(self, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The m values `[B, R, D]` after adding a block's own `[m, D]` table."""
        return (table + self.rows).unbind(2)


def distinct_timesteps(timestep: torch.Tensor, as_index: bool = False) -> tuple[torch.Tensor, TokenLayout]:
    """Reduce per-token timesteps to those that differ.

    Finding out which tokens differ waits for the device once. Where Python cannot look at values (while compiling a
    whole model or capturing a graph) every token keeps its own row.

    Args:
        timestep (`torch.Tensor`): `[B, 1]`, or `[B, T]` with one value per token.
        as_index (`bool`, defaults to `False`): Whether the layout must be an index per token, which unlike runs can
            be split over ranks.

    Returns:
        `tuple[torch.Tensor, TokenLayout]`: Timesteps `[B or 1, R]` and the layout of the rows made from them.
    """
    num_tokens = timestep.shape[1]
    if num_tokens == 1 or not host_can_read(timestep):
        return timestep, TokenLayout()
    if not as_index:
        changes = (timestep[:, 1:] != timestep[:, :-1]).any(dim=0).nonzero().flatten().tolist()
        starts = [0, *(position + 1 for position in changes)]
        if len(starts) <= MAX_RUNS:
            lengths = tuple(end - start for start, end in pairwise([*starts, num_tokens]))
            return timestep[:, starts], TokenLayout(lengths=lengths if len(lengths) > 1 else None)
    values, index = torch.unique(timestep, return_inverse=True)
    if not as_index and 2 * values.numel() > timestep.numel():
        return timestep, TokenLayout()
    return values[None], TokenLayout(row_index=index)


def evaluate(
    module: AdaLayerNormSingle, timestep: torch.Tensor, layout: TokenLayout, dtype: torch.dtype
) -> tuple[Modulation, Modulation]:
    """Modulation values and embedded timesteps (as one value per row) of distinct timesteps `[B, R]`."""
    values, embedded = module(timestep.flatten(), hidden_dtype=dtype)
    rows = values.view(*timestep.shape, module.num_values, -1)
    return Modulation(rows, layout), Modulation(embedded.view(*timestep.shape, 1, -1), layout)
