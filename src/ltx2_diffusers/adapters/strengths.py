"""Strengths of adapters as `set_adapters` takes them: numbers, for all modules or by component and block."""

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from .modules import PARTS, part_of
from .settings import is_finite_number

# By a piece of a module's path.
BlockStrengths = Mapping[str, float]
# A strength for all modules, or one per component or part; `None` stands for 1.
AdapterWeight = float | Mapping[str, float | BlockStrengths | None] | None
# What a stage says of one of its adapters: a strength for all modules, or one per component or part.
StageStrength = float | Mapping[str, float]
StageStrengths = Mapping[str, StageStrength]


def listed_weights(names: Sequence[str], weights: Any, loaded: Sequence[str]) -> list[AdapterWeight]:
    """One strength per adapter.

    Raises:
        ValueError: If a name is unknown or stands twice, or if there are more or fewer strengths than names.
    """
    if unknown := [name for name in names if name not in loaded]:
        raise ValueError(f"`adapter_names` has {unknown}, but the loaded adapters are {list(loaded)}")
    if len(set(names)) != len(names):
        raise ValueError(f"`adapter_names` names an adapter twice: {list(names)}")
    listed = list(weights) if isinstance(weights, list | tuple) else [weights] * len(names)
    if len(listed) != len(names):
        raise ValueError(f"adapter_weights has {len(listed)} values for the {len(names)} adapters {list(names)}")
    return listed


def check_weight(
    name: str, weight: AdapterWeight, paths: Mapping[str, Sequence[str]], own_parts: Collection[str]
) -> None:
    """Raise `ValueError` for a strength that is no finite number, or that belongs to nothing.

    Args:
        name: The adapter.
        weight: Its strength.
        paths: The modules with adapters by component, for all components that there can be.
        own_parts: The parts that this adapter changes.
    """
    if not isinstance(weight, Mapping):
        _check_number(name, weight)
        return
    what = f"the strengths of the adapter {name!r}"
    for place, strength in weight.items():
        if place not in paths and place not in PARTS:
            raise ValueError(
                f"{what} are for components or parts, {list(weight)}, but {place!r} is none; use "
                f"{_nearest(place, [*paths, *PARTS])!r}"
            )
        if place not in paths or not isinstance(strength, Mapping):
            _check_number(name, strength)
        if place not in paths:
            if place not in own_parts:
                raise ValueError(f"{what} name {place!r}, but it changes only {[p for p in PARTS if p in own_parts]}")
            if "transformer" in weight:
                raise ValueError(f"{what} name 'transformer' and {place!r}, a part of it; leave one of them out")
        elif isinstance(strength, Mapping):
            _check_blocks(name, strength, place, paths[place])


def _check_blocks(name: str, strengths: BlockStrengths, component: str, paths: Sequence[str]) -> None:
    for block, number in strengths.items():
        _check_number(name, number)
        if paths and not any(_is_in(block, path) for path in paths):
            raise ValueError(
                f"the strengths of the adapter {name!r} name {block!r}, which is in no path of an adapted module of the "
                f"{component}; such are {', '.join(paths[:3])}"
            )


def strength_at(weight: AdapterWeight, component: str, path: str) -> float:
    """The strength of one module: that of its part or component, of the first block that its path contains, by default 1."""
    if not isinstance(weight, Mapping):
        return 1.0 if weight is None else float(weight)
    found = weight.get(part_of(component, path), weight.get(component))
    if isinstance(found, Mapping):
        found = next((number for block, number in found.items() if _is_in(block, path)), None)
    return 1.0 if found is None else float(found)


def _is_in(block: str, path: str) -> bool:
    """Whether a path contains a block's name, where block 1 is not block 10."""
    return re.search(re.escape(str(block)) + r"(?!\d)", path) is not None


def _check_number(name: str, value: Any) -> None:
    if value is not None and not is_finite_number(value):
        raise ValueError(f"the strength of the adapter {name!r} has to be a finite number but is {value!r}; use 1.0")


def _nearest(word: Any, words: Sequence[str]) -> str:
    return get_close_matches(str(word), words, n=1, cutoff=0.0)[0]
