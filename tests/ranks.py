"""Several processes of one test, as torchrun would start them."""

from collections.abc import Callable
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers.utils import logging


def lines_of_ranks(
    function: Callable[..., list[str]], num_ranks: int, folder: Path, *arguments: Any
) -> list[list[str]]:
    """What a function returns in each of so many processes, which are one process group on the CPU.

    Forked processes need not import anything again.
    """
    method = "fork" if "fork" in get_all_start_methods() else "spawn"
    given = (num_ranks, folder, function, arguments)
    torch.multiprocessing.start_processes(_run, given, num_ranks, start_method=method)
    return [(folder / f"lines.{rank}").read_text().splitlines() for rank in range(num_ranks)]


def _run(rank: int, num_ranks: int, folder: Path, function: Callable[..., list[str]], arguments: tuple) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=num_ranks)
    lines = function(*arguments)
    (folder / f"lines.{rank}").write_text("\n".join(lines))
    # Nobody leaves while others may still read what it sent.
    dist.barrier()
    dist.destroy_process_group()
