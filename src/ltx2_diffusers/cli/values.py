"""Values of options: how they are read, how options are named, and which of their values are input files."""

import argparse
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

Options = Mapping[str, Any]
"""Options that were given, by name."""


class AppendPlaced(argparse.Action):
    """Collects `[frame, file, strength]` of an option with two arguments."""

    def __call__(self, _parser: Any, namespace: Any, values: Any, _option_string: str | None = None) -> None:
        try:
            placed = [int(values[0]), *weighted_file(values[1])]
        except ValueError:
            raise argparse.ArgumentError(self, f"needs a frame number and a file, got {' '.join(values)!r}") from None
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), placed])


def weighted_file(text: str) -> list[Any]:
    """File and number of `FILE[:NUMBER]`; a file whose own name ends like that is taken for the file."""
    name, _, number = text.rpartition(":")
    if name and not Path(text).exists():
        try:
            return [Path(name), float(number)]
        except ValueError:
            pass
    return [Path(text), 1.0]


def weighted_lora(text: str) -> list[Any]:
    """File and strength of `FILE[:WEIGHT]`, where the strength is a number, or one per part as in `video=1,audio=0`."""
    name, _, weight = text.rpartition(":")
    if not name or "=" not in weight or Path(text).exists():
        return weighted_file(text)
    from ..adapters.modules import PARTS

    strengths = dict(part.partition("=")[::2] for part in weight.split(","))
    if len(strengths) <= weight.count(","):
        raise argparse.ArgumentTypeError(f"names a part twice in {weight!r}; give each part one strength")
    if unknown := [part for part in strengths if part not in PARTS]:
        nearest = get_close_matches(unknown[0], PARTS, n=1, cutoff=0.0)[0]
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} in {weight!r} is no part of a model; use {nearest!r}")
    try:
        return [Path(name), {part: float(number) for part, number in strengths.items()}]
    except ValueError:
        raise argparse.ArgumentTypeError(f"needs strengths like video=1,audio=0.5, got {weight!r}") from None


def stretch(text: str) -> list[float]:
    """Start and end in seconds of `FROM:TO`."""
    start, _, end = text.partition(":")
    try:
        seconds = [float(start), float(end)]
    except ValueError:
        seconds = []
    if not seconds or not 0 <= seconds[0] < seconds[1]:
        raise argparse.ArgumentTypeError(f"needs two rising times in seconds like 1.5:3.0, got {text!r}")
    return seconds


def negative_prompt(text: str) -> str:
    """The text, or the one that the word "recommended" stands for; the manifest keeps what was used."""
    from ..guidance.presets import RECOMMENDED_NEGATIVE_PROMPT

    return RECOMMENDED_NEGATIVE_PROMPT if text == "recommended" else text


def flag(option: str) -> str:
    """The option as it is typed."""
    return f"--{option.replace('_', '-')}"


def flags(options: Collection[str], last: str = "or") -> str:
    """Several options in words."""
    *others, name = map(flag, options)
    return f"{', '.join(others)} {last} {name}" if others else name


def replaced_files(value: Any, change: Callable[[Path], Any]) -> Any:
    """A value of an option with every input file in it replaced by what `change` makes of it."""
    if isinstance(value, Path):
        return change(value)
    if isinstance(value, dict):
        return {name: replaced_files(part, change) for name, part in value.items()}
    return [replaced_files(part, change) for part in value] if isinstance(value, list) else value


def parts_of(value: Any) -> list[Any]:
    """A value of an option, or all that a list or a mapping of them holds."""
    if isinstance(value, dict):
        return parts_of(list(value.values()))
    return [part for item in value for part in parts_of(item)] if isinstance(value, list) else [value]


def input_files(options: Options) -> dict[Path, str]:
    """Every input file of the options, with the option that names it."""
    found: dict[Path, str] = {}
    for option, value in options.items():
        for part in parts_of(value):
            if isinstance(part, Path):
                found.setdefault(part, option)
    return found
