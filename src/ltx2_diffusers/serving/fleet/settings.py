"""What a server is told of its replicas: how many there are, what each has, and when there are to be more or fewer."""

import argparse
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...checks import as_device, check_from_zero, check_positive

LOCAL = "local"
_INSTALL = "pip install 'ltx2-diffusers[serve,ray]'"
_ONLY_WITH_RAY = (
    *("replicas", "gpus_per_replica", "cpus_per_replica", "replica_resource"),
    *("scale_up_after", "scale_down_after"),
)


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Processes that hold the checkpoint, each on what Ray gives it, and make clips side by side.

    Args:
        address: `"local"` starts Ray on this machine, `"auto"` or `HOST:PORT` joins a cluster that runs.
        least: Replicas that are always there.
        most: Most replicas; above `least` their number follows the queue.
        gpus: GPUs of a replica: 0, a whole number, which make each clip together, or a part of one that several replicas share.
        cpus: CPU cores of a replica, which are the threads it computes with on a CPU.
        resources: What else a machine has to have that holds a replica, as it was named to `ray start --resources`.
        scale_up_after: How long jobs have to wait before there are more replicas, in seconds.
        scale_down_after: How long replicas have to be idle before there are fewer, in seconds.

    Raises:
        ValueError: If one of them is wrong.
    """

    address: str = LOCAL
    least: int = 1
    most: int = 1
    gpus: float = 0.0
    cpus: float = 1.0
    resources: Mapping[str, float] = field(default_factory=dict)
    scale_up_after: float = 10.0
    scale_down_after: float = 600.0

    def __post_init__(self) -> None:
        if "://" in self.address:
            raise ValueError(
                f"--ray is {self.address!r}, an address of Ray's client, which Ray Serve does not take; run the server on "
                "a machine of the cluster with --ray auto"
            )
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"--replicas is {self.least}:{self.most}, but has to be MIN:MAX with 1 <= MIN <= MAX; use 1:4"
            )
        check_positive(cpus_per_replica=self.cpus)
        check_from_zero(
            gpus_per_replica=self.gpus, scale_up_after=self.scale_up_after, scale_down_after=self.scale_down_after
        )
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(
                f"`gpus_per_replica` is {self.gpus:g}, but a clip is made on a part of one GPU or on whole ones; use "
                f"{self.gpus:.0f}"
            )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of replicas to those of `ltx2 serve`."""
    ray = parser.add_argument_group("more than one GPU or machine, by Ray Serve")
    ray.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="make clips on replicas: 'local' starts Ray on this machine, 'auto' or HOST:PORT joins a cluster",
    )
    ray.add_argument(
        "--replicas",
        metavar="MIN[:MAX]",
        help="how many clips are made at a time; up to MAX where jobs wait; default 1",
    )
    numbers = {
        "--gpus-per-replica": "GPUs of a replica, which make each clip together, or a part of one; default 1 with --device cuda, else 0",
        "--cpus-per-replica": "CPU cores of a replica, its threads on a CPU; default 1",
        "--scale-up-after": "seconds that jobs wait before there are more replicas; default 10",
        "--scale-down-after": "seconds that replicas are idle before there are fewer; default 600",
    }
    for name, help in numbers.items():
        ray.add_argument(name, type=float, metavar="NUMBER", help=help)
    ray.add_argument(
        "--replica-resource",
        metavar="NAME=AMOUNT",
        action="append",
        help="what else of a machine's --resources a replica takes; repeatable",
    )


def fleet_of(given: Mapping[str, Any], device: str) -> Fleet | None:
    """The replicas that options ask for, if they do.

    Args:
        given: The options of `ltx2 serve`.
        device: Where each computes.

    Raises:
        ValueError: If one of them is wrong.
    """
    said = {name: given[name] for name in _ONLY_WITH_RAY if given[name] is not None}
    if given["ray"] is None:
        if said:
            raise ValueError(
                f"--{next(iter(said)).replace('_', '-')} is about replicas; give --ray local or an address, too"
            )
        return None
    least, most = _range(said.get("replicas", "1"))
    kind = as_device(device)
    gpus = said.get("gpus_per_replica", float(kind.type == "cuda"))
    if kind.index is not None:
        raise ValueError(
            f"--device {device} names a GPU, but Ray gives each replica its own; use --device {kind.type}"
        )
    if (kind.type == "cuda") != (gpus > 0):
        raise ValueError(
            f"--gpus-per-replica {gpus:g} does not go with --device {device}; "
            f"{'use 1' if kind.type == 'cuda' else 'use --device cuda, or leave it out'}"
        )
    known = {"cpus": "cpus_per_replica", "scale_up_after": "scale_up_after", "scale_down_after": "scale_down_after"}
    numbers = {name: said[option] for name, option in known.items() if option in said}
    resources = dict(map(_amount, said.get("replica_resource", ())))
    return Fleet(address=given["ray"], least=least, most=most, gpus=gpus, resources=resources, **numbers)


def _range(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    try:
        return int(least), int(most or least)
    except ValueError:
        raise ValueError(f"--replicas is {text!r}, but has to be MIN or MIN:MAX; use 1:4") from None


def _amount(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    try:
        number = float(amount)
    except ValueError:
        number = 0.0
    if not name or not number > 0:
        raise ValueError(f"--replica-resource is {text!r}, but has to be NAME=AMOUNT, as fast_disk=1")
    return name, number


def check_ray() -> None:
    """See that Ray is installed.

    Raises:
        ValueError: If not; the message names the command that installs it.
    """
    try:
        # Ray alone is not enough: its part that serves has packages of its own.
        if importlib.util.find_spec("ray") is not None:
            import ray.serve  # noqa: F401

            return
        missing = "ray"
    except ImportError as error:
        missing = f"ray[serve] ({error})"
    raise ValueError(f"--ray needs {missing}; install it with: {_INSTALL}")
