"""Entry point of the `ltx2` command."""

import argparse
import sys
from collections.abc import Sequence

from .. import __version__


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ltx2` with all its subcommands."""
    from . import convert, doctor, generate, info, replay

    parser = argparse.ArgumentParser(
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
