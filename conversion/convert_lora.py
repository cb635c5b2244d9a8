"""Convert an LTX-2 LoRA file from any known layout into another."""

import argparse
import sys
from collections.abc import Callable

import torch
from tqdm import tqdm

from ltx2_diffusers.adapters.convert import convert_lora, lora_differences
from ltx2_diffusers.adapters.keys import LORA_FORMATS

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_DTYPES |= {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
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
    return parser.parse_args()


def _convert(options: argparse.Namespace, on_tensor: Callable[[str], None]) -> list[str] | None:
    """Does the work; the differences that the check found, or None if there was no check."""
    dtype = _DTYPES[options.dtype] if options.dtype else None
    convert_lora(options.source, options.output, options.format, dtype=dtype, on_tensor=on_tensor)
    return lora_differences(options.source, options.output, dtype) if options.check else None


def main() -> int:
    """Converts with a progress bar; 1 if the check found differences, 2 if the input cannot be converted."""
    options = _options()
    try:
        with tqdm(unit=" tensors", disable=options.quiet, file=sys.stderr) as progress:
            found = _convert(options, lambda _: progress.update())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if found is not None:
        print("\n".join(found) or "equal")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
