"""Convert an LTX-2 LoRA file from any known layout into another."""

import argparse
import sys
from collections.abc import Callable

from _common import add_common_options, chosen_dtype, run

from ltx2_diffusers.adapters.convert import convert_lora, lora_differences
from ltx2_diffusers.adapters.keys import LORA_FORMATS

_EXAMPLES = """layouts:
  diffusers            transformer.<module>.lora_A.weight, connectors.<module>...
  original             diffusion_model.<module>.lora_A.weight (Lightricks)
  original_with_alpha  the same with <module>.alpha
  kohya_dotted         diffusion_model.<module>.lora_down.weight, .alpha (ComfyUI)
  kohya_underscored    lora_unet_<module with underscores>.lora_down.weight, .alpha
  peft                 base_model.model.<module>.lora_A.weight
  bare                 <module>.lora_A.weight

The input's layout is recognised. Its alphas are folded into the up factors; alpha layouts get alpha = rank.

example:
  python conversion/convert_lora.py my_lora.safetensors pytorch_lora_weights.safetensors --format diffusers --check
"""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="LoRA file in any layout")
    parser.add_argument("output", help="safetensors file to write")
    parser.add_argument(
        "--format", choices=LORA_FORMATS, default="diffusers", help="layout to write (default: diffusers)"
    )
    add_common_options(parser)
    return parser.parse_args()


def _convert(options: argparse.Namespace, on_tensor: Callable[[str], None]) -> list[str] | None:
    dtype = chosen_dtype(options)
    convert_lora(options.source, options.output, options.format, dtype=dtype, on_tensor=on_tensor)
    return lora_differences(options.source, options.output, dtype) if options.check else None


if __name__ == "__main__":
    sys.exit(run(_convert, _options()))
