"""Where context parallelism splits the video stream over ranks.

The audio stream and the text stay whole on every rank: they are short, and every rank needs them. Split are the video
tokens, their rotary tables and, where timesteps differ between tokens, the index of every token's modulation row.
Attention layers whose keys are video tokens exchange them; the others need nothing from other ranks.
"""

import torch
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelModelPlan, ContextParallelOutput
from torch import nn


class SplitPoint(nn.Module):
    """Passes a tensor through; a place for the hook that keeps this rank's part of it."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return tokens


def context_parallel_plan(rope_type: str) -> ContextParallelModelPlan:
    """The plan for diffusers' `enable_parallelism`.

    Args:
        rope_type (`str`): `"split"` tables are `[B, H, S, r]`, `"interleaved"` ones `[B, S, D]`.
    """
    if rope_type == "split":
        table = ContextParallelInput(split_dim=2, expected_dims=4, split_output=True)
    else:
        table = ContextParallelInput(split_dim=1, expected_dims=3, split_output=True)
    return {
        "split_tokens": {0: ContextParallelInput(split_dim=1, expected_dims=3, split_output=True)},
        "split_token_index": {0: ContextParallelInput(split_dim=1, expected_dims=2, split_output=True)},
        "rope": {0: table, 1: table},
        "cross_attn_rope": {0: table, 1: table},
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }
