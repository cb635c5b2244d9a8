"""What the conversion scripts share: a dtype option, progress on stderr, errors without a traceback."""

import argparse
import sys
from collections.abc import Callable

import torch
from tqdm import tqdm

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_DTYPES |= {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Options that every script has."""
    parser.add_argument(
        "--dtype",
        choices=sorted(_DTYPES),
        help="cast floating-point tensors (default: keep the stored dtype; scaled fp8 weights become bfloat16)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="afterwards compare every tensor name, dtype, shape and byte of input and output; exit with 1 if they differ",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def chosen_dtype(options: argparse.Namespace) -> torch.dtype | None:
    """The torch dtype named by `--dtype`."""
    return _DTYPES[options.dtype] if options.dtype else None


def run(
    main: Callable[[argparse.Namespace, Callable[[str], None]], list[str] | None], options: argparse.Namespace
) -> int:
    """Runs a conversion with a progress bar and reports the outcome.

    Args:
        main: Does the work; gets the options and a function to call per tensor written; returns the differences that
            the check found, or None if there was no check.
        options: The parsed command line.

    Returns:
        Exit status: 0 done, 1 the check found differences, 2 the input cannot be converted.
    """
    try:
        with tqdm(unit=" tensors", disable=options.quiet, file=sys.stderr) as progress:
            found = main(options, lambda _: progress.update())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if found is None:
        return 0
    if not found:
        print("equal")
        return 0
    print("\n".join(found))
    print(f"{len(found)} differences", file=sys.stderr)
    return 1
