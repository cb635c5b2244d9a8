"""Devices by name, and rates at which estimates count."""

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Gpu(NamedTuple):
    """A device: memory in GiB, dense bfloat16 operations per second in units of 1e12, as its maker states them.

    Sums are in float32, which consumer cards make at half the rate of sums in half precision.
    """

    memory_gib: float
    tflops: float
    has_float8: bool = False


GPUS = {
    "rtx3060": Gpu(12, 25),
    "rtx3090": Gpu(24, 71),
    "rtx4060": Gpu(8, 30, True),
    "rtx4070": Gpu(12, 58, True),
    "rtx4080": Gpu(16, 97, True),
    "rtx4090": Gpu(24, 165, True),
    "rtx5090": Gpu(32, 209, True),
    "l40s": Gpu(48, 362, True),
    "a100": Gpu(80, 312),
    "h100": Gpu(80, 989, True),
    "h200": Gpu(141, 989, True),
}
"""Devices that `--gpu` names."""
CPU = Gpu(math.inf, 0.1)
"""Some cores of a CPU, for estimates alone."""
USUAL = "rtx4090"
"""Whose speed is counted with where none is known."""

PINNED_BYTES_PER_S = 22e9
"""From pinned host memory to a card: PCIe 4.0 of 16 lanes moves 32 GB/s, of which about 70 % arrive."""
PAGEABLE_BYTES_PER_S = 6e9
"""From pageable host memory, which is copied once more on its way."""
DISK_BYTES_PER_S = 3e9
"""From a file on an NVMe disk, read once and in order."""
EXPOSED_SHARE = 0.05
"""Share of the time of copies that is lost even beside longer computation, which they take bandwidth of memory from."""
COMPUTE_SHARE = 0.55
"""Share of the stated operations per second that a generation reaches: matrix products about 80 %, attention and
convolutions half, and operations by element beside them."""

CONTEXT_BYTES = int(0.6 * 2**30)
"""What CUDA takes of a card before the first tensor: context, kernels, and the workspaces of its libraries."""
FRAGMENTS = 0.06
"""Share of what tensors need that the allocator holds beyond it, between blocks of its own."""
HOST_BYTES = int(2.5 * 2**30)
"""What Python, PyTorch with CUDA and the libraries take of host memory before the first weight."""


_GROUPS, _OWN_GROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_FIRST_VERSION = ("limit_in_bytes", "usage_in_bytes")


def device_named(name: str | None) -> Gpu:
    """The device of a name, or the usual one.

    Raises:
        ValueError: If no device has that name.
    """
    if name is not None and name not in GPUS:
        raise ValueError(f"`gpu` is {name!r}, which is no known card; use one of {', '.join(GPUS)}")
    return GPUS[name or USUAL]


def present_gpu() -> str | None:
    """The name of the CUDA card of this machine, if it has one that is known."""
    import torch

    if not torch.cuda.is_available():
        return None
    shown = torch.cuda.get_device_name().lower().replace(" ", "")
    return next((name for name in sorted(GPUS, key=len, reverse=True) if name in shown), None)


def free_gib(device: "torch.device | str") -> float | None:
    """GiB that a device can still give, with what this process has taken; `None` for one that has no memory of its own."""
    import torch

    device = torch.device(device)
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_reserved(device)) / 2**30


def host_gib() -> float:
    """GiB of host memory that this machine can still give, and the group of processes that this one runs in may take."""
    of_group = _group_bytes(_GROUPS, _OWN_GROUP)
    return _machine_gib() if of_group is None else min(_machine_gib(), of_group / 2**30)


def _group_bytes(groups: Path, own: Path) -> float | None:
    """Bytes that the control groups of Linux leave to this process; `None` if none of them has a limit."""
    free: list[int] = []
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, name in lines:
        if controllers not in ("", "memory"):
            continue
        # The second version has one tree and other names than the first one.
        root, files = (groups, ("max", "current")) if not controllers else (groups / "memory", _FIRST_VERSION)
        group = root / name.lstrip("/")
        for place in (group, *group.parents):
            if place.is_relative_to(root):
                free += _left(place, *files)
    # The first version says that there is no limit by a huge one.
    return min((left for left in free if left < 2**60), default=None)


def _left(group: Path, limit: str, used: str) -> list[int]:
    """Bytes that one group leaves, if it has a limit; what the system keeps of files is given back on demand."""
    try:
        most, taken = (int((group / f"memory.{name}").read_text()) for name in (limit, used))
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return [max(most - taken + int(kept.get("total_inactive_file", kept.get("inactive_file", 0))), 0)]
    except (OSError, ValueError):
        return []


def _machine_gib() -> float:
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024 / 2**30
    except (OSError, KeyError):
        # Not Linux: all of it.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


class Process(NamedTuple):
    """One of several processes that a launcher, such as torchrun, has started together.

    Args:
        rank: Its number among all.
        world: How many there are.
        local: Its number on its machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0


def launched() -> Process:
    """What a launcher says in the environment; one process alone without."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    return Process(*(int(os.environ.get(name, default)) for name, default in zip(names, (0, 1, 0))))
