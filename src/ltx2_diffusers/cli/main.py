"""Entry point of the `ltx2` command."""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from .. import __version__


class Parser(argparse.ArgumentParser):
    """A parser that names an option which it does not know, before it misses others, and the nearest that it does."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, unless an option is unknown."""
        if self._subparsers is None:
            known = list(self._option_string_actions)
            words = [word.partition("=")[0] for word in (sys.argv[1:] if args is None else args)]
            words = words[: words.index("--")] if "--" in words else words
            unknown = [w for w in words if w.startswith("--") and not any(name.startswith(w) for name in known)]
            if unknown:
                meant = get_close_matches(unknown[0], known, n=1)
                self.error(f"unknown option {unknown[0]}" + (f"; did you mean {meant[0]}?" if meant else ""))
        return super().parse_known_args(args, namespace)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ltx2` with all its subcommands."""
    from . import convert, doctor, generate, info, replay

    parser = Parser(
        prog="ltx2",
        description="Generate video with synchronised sound with LTX-2.",
        epilog="ltx2 COMMAND --help shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"ltx2-diffusers {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (generate, replay, info, convert, doctor):
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; wrong input ends with one line on stderr and exit status 2."""
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError) as error:
        print(f"ltx2 {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"ltx2 {options.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
