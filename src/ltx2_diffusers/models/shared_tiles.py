"""Tiles of a video autoencoder shared among processes: each runs some, and all receive the results."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import distributed

from .video_vae_tiling import Run, RunTiles

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def shared_tiles(group: Any) -> RunTiles:
    """How tiles are run in turn: as many at a time as there are ranks, and handed out in order.

    Args:
        group: The ranks, a process group of `torch.distributed`.
    """
    rank, count = distributed.get_rank(group), distributed.get_world_size(group)

    def run_tiles(run: Run, tiles: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        waiting = iter(tiles)
        while some := list(islice(waiting, count)):
            own = run(some[rank]).contiguous() if rank < len(some) else None
            for owner, tile in enumerate(some):
                yield _from_rank(owner, own if owner == rank else None, tile.device, group)

    return run_tiles


def _from_rank(owner: int, own: torch.Tensor | None, device: torch.device, group: Any) -> torch.Tensor:
    """A tensor that one rank has, on all of them; `own` is it, on that rank."""
    source = distributed.get_global_rank(group, owner)
    # Tiles at borders have other sizes, which depend on the network.
    facts = torch.zeros(6, dtype=torch.long, device=device)
    if own is not None:
        facts = torch.tensor([*own.shape, _DTYPES.index(own.dtype)], device=device)
    distributed.broadcast(facts, source, group=group)
    *shape, dtype = facts.tolist()
    tile = torch.empty(shape, dtype=_DTYPES[dtype], device=device) if own is None else own
    distributed.broadcast(tile, source, group=group)
    return tile
