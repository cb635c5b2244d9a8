"""Where context parallelism splits the video stream over ranks.

The audio stream and the text stay whole on every rank: they are short, and every rank needs them. Split are the video
tokens, their rotary tables and, where timesteps differ between tokens, the index of every token's modulation row.
Attention layers whose keys are video tokens exchange them; the others need nothing from other ranks. Lengths that the ranks
do not divide need `ulysses_anything` or `ring_anything` of diffusers' configuration.
"""

from typing import Any

import torch
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelModelPlan, ParallelConfig
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
    }


def gathered(tokens: torch.Tensor, num_tokens: int, parallel: ParallelConfig) -> torch.Tensor:
    """Predictions `[B, S, C]` of all S video tokens, of which every rank has its own `[B, s, C]`.

    Not left to diffusers' hook, because not every backend gathers parts of unequal length.
    """
    context: Any = parallel.context_parallel_config
    group = context._flattened_mesh.get_group()
    # Parts are split as evenly as can be, longer ones first.
    least, longer = divmod(num_tokens, torch.distributed.get_world_size(group))
    longest = least + (longer > 0)
    padded = nn.functional.pad(tokens, (0, 0, 0, longest - tokens.shape[1])).contiguous()
    parts = [torch.empty_like(padded) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(parts, padded, group=group)
    return torch.cat([part[:, : least + (rank < longer)] for rank, part in enumerate(parts)], dim=1)


def on_processors(config: Any) -> ParallelConfig | None:
    """What diffusers' `enable_parallelism` settles on, for processors without accelerators, for which it makes no mesh.

    Returns:
        `ParallelConfig`, *optional*: `None` where diffusers can do it itself, or nothing splits tokens.
    """
    context: Any = config if isinstance(config, ContextParallelConfig) else config.context_parallel_config
    if torch.accelerator.is_available() or context is None:
        return None
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError(
            "enable_parallelism() needs torch.distributed; start the program by torchrun, and call "
            "torch.distributed.init_process_group() first"
        )
    parallel = ParallelConfig(context_parallel_config=context)
    shape, names = context.mesh_shape, context.mesh_dim_names
    mesh = context.mesh or distributed.device_mesh.init_device_mesh("cpu", shape, mesh_dim_names=names)
    parallel.setup(distributed.get_rank(), distributed.get_world_size(), torch.device("cpu"), mesh=mesh)
    return parallel


def token_parallel_config(model: Any, num_ranks: int) -> ContextParallelConfig:
    """Tokens of the video split over ranks, at any length.

    Raises:
        ValueError: If the heads of the network cannot be spread over so many ranks.
    """
    heads = sorted({model.config.num_attention_heads, model.config.audio_num_attention_heads})
    if not all(_spreads(number, num_ranks) for number in heads):
        nearest = next(ranks for ranks in range(num_ranks, 0, -1) if all(_spreads(number, ranks) for number in heads))
        raise ValueError(
            f"{num_ranks} ranks cannot share the {' and '.join(map(str, heads))} attention heads of "
            f"{type(model).__name__}; use {nearest}"
        )
    return ContextParallelConfig(ulysses_degree=num_ranks, ulysses_anything=True)


def _spreads(heads: int, ranks: int) -> bool:
    """Whether every rank gets a head; the last one may get fewer than the others."""
    most = -(-heads // ranks)
    return most * (ranks - 1) < heads
