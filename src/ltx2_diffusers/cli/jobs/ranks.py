"""A generation that several processes share, started by `torchrun -m ltx2_diffusers generate ...`."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...devices import launched
from ..values import Options, flag

WAYS = ("tokens", "passes")
"""What `--parallel` names."""


def check_parallel(options: Options) -> None:
    """Raise `ValueError` for options that contradict each other where processes share a generation, or where none do."""
    if launched().world == 1:
        if "parallel" in options:
            raise ValueError(
                "--parallel shares a generation among processes, and there is one; start it as torchrun --nproc-per-node 2 -m "
                "ltx2_diffusers generate ..."
            )
        return
    check_shared(options, "torchrun has started several")
    if "preview" in options and "tiling" in options:
        raise ValueError(
            "--preview and --tiling contradict each other where processes share the tiles: one process draws the preview; leave one "
            "of them out"
        )


def check_shared(options: Options, sharers: str) -> None:
    """Raise `ValueError` for what processes cannot share; `sharers` says in words that there are several."""
    if "vram" in options or options.get("offload", "none") != "none":
        name = "vram" if "vram" in options else "offload"
        raise ValueError(f"{flag(name)} is for one device, and {sharers}; leave it out")
    if "step_cache" in options and options.get("parallel") == "passes":
        raise ValueError(
            "--step-cache and --parallel passes contradict each other: processes do not know what others skip; use --parallel tokens"
        )


def check_alone(what: str) -> None:
    """Raise `ValueError` for what one process makes, and several were started for."""
    if (count := launched().world) > 1:
        raise ValueError(f"{what} is made by one process, and torchrun has started {count}; start it without")


def own_device(device: str) -> str:
    """The device of this process, where several of a machine would take the same one."""
    process = launched()
    return f"{device}:{process.local}" if process.world > 1 and device == "cuda" else device


@contextmanager
def sharing(device: str) -> Iterator[bool]:
    """Be one of the processes that share a generation, if there are several; tells whether this one writes the files."""
    import torch

    process = launched()
    if process.world == 1:
        yield True
        return
    join(device)
    yield process.rank == 0
    # After an error torchrun ends the others, which may be waiting for this one; so there is nothing to take leave of.
    torch.distributed.destroy_process_group()


def join(device: str, **meeting: Any) -> None:
    """Become one of the processes that share generations.

    Args:
        device: The device of this process.
        meeting: How they find each other, for `init_process_group`; default by the environment.
    """
    import torch

    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", **meeting)


def share(pipeline: Any, options: Options) -> None:
    """Let a pipeline share its calls with the other processes, if there are any."""
    process = launched()
    if process.world == 1:
        return
    pipeline.enable_parallelism(options.get("parallel", WAYS[0]))
    if process.rank:
        pipeline.set_progress_bar_config(disable=True)


@contextmanager
def place_to_write(folder: Path, writes: bool) -> Iterator[Path]:
    """A folder that is removed afterwards, beside the results of the process that writes them."""
    from ...atomic import temporary_folder

    if writes:
        with temporary_folder(folder) as path:
            yield path
    else:
        with tempfile.TemporaryDirectory(prefix=f"ltx2-rank-{os.environ.get('RANK')}-") as name:
            yield Path(name)
