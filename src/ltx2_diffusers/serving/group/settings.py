"""What a server is told of processes that make each clip together."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...checks import as_device
from ...cli.jobs.ranks import WAYS, check_shared
from ..fleet.settings import Fleet


@dataclass(frozen=True, kw_only=True)
class Group:
    """Processes that make each clip together, each on a device of its own.

    Args:
        ranks: How many they are.
        parallel: What they share: `"tokens"` of the video, or `"passes"` of guidance.

    Raises:
        ValueError: If there are none.
    """

    ranks: int = 1
    parallel: str = WAYS[0]

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise ValueError(f"--ranks is {self.ranks}, but has to be at least 1; use 2")


ALONE = Group()
"""One process."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of groups to those of `ltx2 serve`."""
    group = parser.add_argument_group("one clip on several GPUs")
    group.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        help="processes that make each clip together, each on a GPU of its own; default 1, or as many as --gpus-per-replica",
    )
    group.add_argument(
        "--parallel", choices=WAYS, help="what they share: the video's tokens (default), or the passes of guidance"
    )


def group_of(given: Mapping[str, Any], engine: Mapping[str, Any], fleet: Fleet | None) -> Group:
    """The processes that options ask for to make each clip.

    Args:
        given: The options of `ltx2 serve`.
        engine: Options that say what is loaded, and where.
        fleet: The replicas, if there are any; each holds such a group.

    Raises:
        ValueError: If options contradict each other.
    """
    ranks, gpus = given["ranks"], 0.0 if fleet is None else fleet.gpus
    if gpus and ranks not in (None, max(1, gpus)):
        raise ValueError(
            f"--ranks {ranks} does not go with --gpus-per-replica {gpus:g}, as each process has a GPU of its own; use "
            f"--gpus-per-replica {max(1, ranks)} alone"
        )
    group = Group(ranks=max(1, int(gpus)) if ranks is None else ranks, parallel=given["parallel"] or WAYS[0])
    if group.ranks == 1:
        if given["parallel"] is not None:
            raise ValueError("--parallel shares each clip among processes, and there is one; give --ranks 2, too")
        return group
    device = as_device(engine["device"])
    if device.type not in ("cuda", "cpu") or device.index is not None:
        raise ValueError(
            f"--ranks {group.ranks} gives each process a device of its own, which --device {device} is not; use --device cuda"
        )
    check_shared({**engine, "parallel": group.parallel}, f"--ranks {group.ranks} shares each clip among several")
    return group
