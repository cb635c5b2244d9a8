"""Convert an original LTX-2 checkpoint file into a folder in diffusers' layout."""

import argparse
import sys
from collections.abc import Callable

from _common import add_common_options, chosen_dtype, run

from ltx2_diffusers.checkpoints.convert import convert_to_diffusers, differences

_EXAMPLES = """examples:
  # a complete pipeline, text encoder and upscaler included
  python conversion/convert_to_diffusers.py ltx-2-19b-dev.safetensors LTX-2-diffusers \\
      --text-encoder gemma-3-12b-it-qat-q4_0-unquantized \\
      --latent-upsampler ltx-2-spatial-upscaler-x2-1.0.safetensors --check

  # one upscaler
  python conversion/convert_to_diffusers.py ltx-2-temporal-upscaler-x2-1.0.safetensors upscaler

Memory: one tensor at a time. The folder appears under its name only when it is complete.
"""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="original safetensors file (complete model, single component or upscaler)")
    parser.add_argument("output", help="folder to write")
    parser.add_argument(
        "--text-encoder", metavar="FOLDER", help="Gemma folder (or a pipeline folder that has one) to copy in"
    )
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", help="tokenizer folder (default: in or beside the text encoder)"
    )
    parser.add_argument("--latent-upsampler", metavar="FILE", help="upscaler file to add as latent_upsampler/")
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="largest weight file, e.g. 5GB or 500MB (default: 5GB)"
    )
    parser.add_argument(
        "--distilled",
        action=argparse.BooleanOptionalAction,
        help="write the scheduler of a distilled model (default: if the file's name says distilled)",
    )
    add_common_options(parser)
    return parser.parse_args()


def _convert(options: argparse.Namespace, on_tensor: Callable[[str], None]) -> list[str] | None:
    dtype = chosen_dtype(options)
    convert_to_diffusers(
        options.source,
        options.output,
        text_encoder=options.text_encoder,
        tokenizer=options.tokenizer,
        latent_upsampler=options.latent_upsampler,
        dtype=dtype,
        max_shard_size=options.max_shard_size,
        distilled=options.distilled,
        on_tensor=on_tensor,
    )
    return differences(options.source, options.output, dtype) if options.check else None


if __name__ == "__main__":
    sys.exit(run(_convert, _options()))
