"""Weights that are spread over processes, whole for as long as one of their networks is called on its own."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.distributed.fsdp import FSDPModule


@contextmanager
def gathered(networks: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Let parts of networks that FSDP spreads over processes be called without the whole around them.

    What FSDP wraps on its own, such as blocks, gathers its weights itself when it is called; the rest belongs to the
    outermost wrapper, which holds it whole in every process during the block. All processes have to enter together.

    Args:
        networks: What Accelerate prepared; others than FSDP's are left alone.
    """
    with ExitStack() as held:
        for network in networks:
            if isinstance(network, FSDPModule):
                # Otherwise the first part that is called would take itself for the outermost one.
                network._get_fsdp_state()._lazy_init()
                network.unshard()
                held.callback(network.reshard)
        yield
