"""Entry point of the `ltx2` command."""

import argparse
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from .. import __version__


class Parser(argparse.ArgumentParser):
    """A parser that names what it does not know, before it misses other things, and the nearest that it does know.

    Args:
        fill: Adds options when they are needed first, where to know them costs imports.
        settings: Those of every parser.
    """

    def __init__(self, *, fill: "Callable[[Parser], None] | None" = None, **settings: Any) -> None:
        super().__init__(**settings)
        self._fill = fill

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, unless a command or an option is unknown."""
        if self._fill is not None:
            fill, self._fill = self._fill, None
            fill(self)
            # Words may stand between options, too.
            return self.parse_known_intermixed_args(args, namespace)
        words = [word.partition("=")[0] for word in (sys.argv[1:] if args is None else args)]
        if self._subparsers is None:
            self._check_options(words[: words.index("--")] if "--" in words else words)
        elif words:
            self._check_command(words[0])
        return super().parse_known_args(args, namespace)

    def _check_options(self, words: Sequence[str]) -> None:
        known = list(self._option_string_actions)
        unknown = [w for w in words if w.startswith("--") and not any(name.startswith(w) for name in known)]
        if unknown:
            meant = _nearest(unknown[0], known)
            self.error(f"unknown option {unknown[0]}" + (f"; did you mean {meant}?" if meant else ""))

    def _check_command(self, word: str) -> None:
        """The first word is a command, or an option that has no command."""
        commands = next(iter(self._subparsers._group_actions)).choices  # type: ignore[union-attr]
        if word.startswith("-"):
            if not any(name.startswith(word) for name in self._option_string_actions):
                # Of several commands that have such an option, the first is meant.
                owners = {
                    option: name
                    for name in reversed(list(commands))  # type: ignore[arg-type]
                    for option in commands[name]._option_string_actions  # type: ignore[index]
                }
                meant = _nearest(word, list(owners))
                hint = f"; did you mean `{self.prog} {owners[meant]} {meant}`?" if meant else ""
                self.error(f"unknown option {word}{hint}")
        elif word not in commands:  # type: ignore[operator]
            meant = _nearest(word, list(commands or ()))
            known = f"did you mean {meant!r}?" if meant else f"there are {', '.join(commands or ())}"
            self.error(f"unknown command {word!r}; {known}")


def _nearest(word: str, known: Sequence[str]) -> str | None:
    """The nearest known word, if one is near; dashes do not make words alike."""
    names = {name.lstrip("-"): name for name in known}
    return next((names[name] for name in get_close_matches(word.lstrip("-"), names, n=1)), None)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ltx2` with all its subcommands."""
    from ..serving import command
    from . import convert, doctor, generate, info, replay
    from .fitting import calibrate, plan
    from .jobs import storyboard
    from .training import data, train

    parser = Parser(
        prog="ltx2",
        description="Generate video with synchronised sound with LTX-2.",
        epilog="ltx2 COMMAND --help shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"ltx2-diffusers {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (generate, storyboard, replay, info, convert, calibrate, plan, doctor, data, train, command):
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; wrong input ends with a line on stderr for each error, and exit status 2."""
    options = build_parser().parse_args(arguments)
    command = " ".join(filter(None, (options.command, getattr(options, "data_command", None))))
    try:
        return options.run(options)
    except (ValueError, OSError, ImportError) as error:
        # Packages that are not installed are wrong input, too; the messages say what installs them.
        for line in str(error).splitlines() or [type(error).__name__]:
            print(f"ltx2 {command}: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"ltx2 {command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
