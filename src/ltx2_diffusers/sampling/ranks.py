"""The passes of a guided step shared among processes: each makes some, and all receive the results."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from ..conditioning.streams import Streams, Tensors, on_streams


def agreed(number: int, device: torch.device) -> int:
    """A number that all ranks have computed, as the first one did: their kernels may round differently."""
    told = torch.tensor(number, device=device)
    distributed.broadcast(told, 0)
    return int(told)


@dataclass(frozen=True)
class PassShare:
    """Which rank makes which pass; the same for a whole run, as ranks may keep something of their passes.

    Args:
        names: All passes of the run, those that share blocks one after the other.
        group: The ranks, a process group of `torch.distributed`.
    """

    names: Sequence[str]
    group: Any

    def owner(self, name: str) -> int:
        """The rank within the group that makes a pass; one that was not known before the run is the first one's."""
        if name not in self.names:
            return 0
        return self.names.index(name) * distributed.get_world_size(self.group) // len(self.names)

    def mine(self, names: Collection[str]) -> list[str]:
        """Those of some passes that this rank makes."""
        rank = distributed.get_rank(self.group)
        return [name for name in names if self.owner(name) == rank]

    def exchanged(
        self, names: Sequence[str], own: Mapping[str, Streams[Any]], like: Tensors
    ) -> dict[str, Streams[Any]]:
        """Velocities of all passes, in float32, in which they are combined.

        Args:
            names: The passes of this step, in the same order on all ranks.
            own: What this rank has made.
            like: Tensors of the shape and on the device of each stream's velocities; `None` for an absent stream.
        """
        passes = {}
        for name in names:
            source = distributed.get_global_rank(self.group, self.owner(name))
            if name in own:
                velocities = on_streams(lambda one: one.float().contiguous(), own[name])
            else:
                velocities = on_streams(lambda one: torch.empty(one.shape, device=one.device), like)
            for one in velocities:
                if one is not None:
                    distributed.broadcast(one, source, group=self.group)
            passes[name] = velocities
        return passes
