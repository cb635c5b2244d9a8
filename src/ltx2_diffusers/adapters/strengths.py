"""Strengths of adapters as `set_adapters` takes them: numbers, for all modules or by component and block."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from .settings import is_finite_number

# By a part of a module's path.
BlockStrengths = Mapping[str, float]
# A strength for all components, or one per component; `None` stands for 1.
AdapterWeight = float | Mapping[str, float | BlockStrengths | None] | None


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


def check_weight(name: str, weight: AdapterWeight, paths: Mapping[str, Sequence[str]]) -> None:
    """Raise `ValueError` for a strength that is no finite number, or that belongs to nothing.

    Args:
        name: The adapter.
        weight: Its strength.
        paths: The modules with adapters by component, for all components that there can be.
    """
    if not isinstance(weight, Mapping):
        _check_number(name, weight)
        return
    for component, strength in weight.items():
        if component not in paths:
            raise ValueError(
                f"the strengths of the adapter {name!r} are for the components {list(weight)}, but {component!r} is none; "
                f"use {_nearest(component, list(paths))!r}"
            )
        if not isinstance(strength, Mapping):
            _check_number(name, strength)
            continue
        for block, number in strength.items():
            _check_number(name, number)
            if paths[component] and not any(_is_in(block, path) for path in paths[component]):
                raise ValueError(
                    f"the strengths of the adapter {name!r} name {block!r}, which is in no path of an adapted module of the "
                    f"{component}; such are {', '.join(paths[component][:3])}"
                )


def strength_at(weight: AdapterWeight, component: str, path: str) -> float:
    """The strength of one module: that of the first block that its path contains, by default 1."""
    of_component = weight.get(component) if isinstance(weight, Mapping) else weight
    if isinstance(of_component, Mapping):
        of_component = next((number for block, number in of_component.items() if _is_in(block, path)), None)
    return 1.0 if of_component is None else float(of_component)


def _is_in(block: str, path: str) -> bool:
    """Whether a path contains a block's name, where block 1 is not block 10."""
    return re.search(re.escape(str(block)) + r"(?!\d)", path) is not None


def _check_number(name: str, value: Any) -> None:
    if value is not None and not is_finite_number(value):
        raise ValueError(f"the strength of the adapter {name!r} has to be a finite number but is {value!r}; use 1.0")


def _nearest(word: Any, words: Sequence[str]) -> str:
    return get_close_matches(str(word), words, n=1, cutoff=0.0)[0]
