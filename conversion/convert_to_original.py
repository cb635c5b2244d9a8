"""Convert a folder in diffusers' layout into one original LTX-2 checkpoint file."""

import argparse
import sys
from collections.abc import Callable

from _common import add_common_options, chosen_dtype, run

from ltx2_diffusers.checkpoints.convert import convert_to_original, differences

_EXAMPLES = """examples:
  # transformer, connectors, VAEs and vocoder in one file (text encoder and upsampler have files of their own)
  python conversion/convert_to_original.py LTX-2-diffusers ltx-2-19b-dev.safetensors --check

  # one component
  python conversion/convert_to_original.py LTX-2-diffusers/latent_upsampler upscaler.safetensors

Memory: one tensor at a time. The file appears under its name only when it is complete.
"""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="pipeline folder, or the folder of one component")
    parser.add_argument("output", help="safetensors file to write")
    parser.add_argument(
        "--metadata-from",
        metavar="FILE",
        help="original file whose metadata are carried over (license, unknown fields)",
    )
    add_common_options(parser)
    return parser.parse_args()


def _convert(options: argparse.Namespace, on_tensor: Callable[[str], None]) -> list[str] | None:
    dtype = chosen_dtype(options)
    convert_to_original(
        options.source, options.output, dtype=dtype, metadata_from=options.metadata_from, on_tensor=on_tensor
    )
    return differences(options.output, options.source, dtype) if options.check else None


if __name__ == "__main__":
    sys.exit(run(_convert, _options()))
