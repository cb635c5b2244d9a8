"""`ltx2 calibrate`: the largest inputs of layers over some generations, for the static scales of fp8_scaled_mm."""

import argparse
from pathlib import Path
from typing import Any

from ..loading import DTYPES, best_device, check_checkpoint, check_device, load_pipeline

_EXAMPLES = """examples:
  ltx2 calibrate LTX-2-diffusers --prompts prompts.txt -o amax.json
  ltx2 generate --checkpoint LTX-2-diffusers --quantize fp8-scaled-mm --calibration amax.json --prompt "waves" -o waves.mp4

Use prompts and sizes like those that are going to be generated; some ten prompts do. Larger inputs than any that were
recorded are clamped.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "calibrate",
        usage="ltx2 calibrate CHECKPOINT (--prompts FILE | --prompt TEXT) -o FILE [options]",
        help="record how large the inputs of layers become, for --quantize fp8-scaled-mm",
        description="Generate from prompts, and write the largest input of every linear layer of the transformer's blocks as JSON.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", help="folder or Hub id in diffusers layout, an original file, or a packaged name"
    )
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument("--prompts", metavar="FILE", type=Path, help="texts, one on each line")
    texts.add_argument("--prompt", metavar="TEXT", action="append", help="a text; repeatable")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="JSON file to write")
    parser.add_argument("--text-encoder", metavar="NAME", help="Gemma folder or Hub id; needed with an original file")
    for name, meaning in (
        ("width", "pixels, a multiple of 32; default 768"),
        ("height", "the same; default 512"),
        ("num-frames", "8 k + 1; default 121"),
        ("steps", "denoising steps; default the reference value of the checkpoint"),
    ):
        parser.add_argument(f"--{name}", metavar="N", type=int, help=meaning)
    parser.add_argument("--seed", metavar="N", type=int, default=10, help="of the noise; default 10")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default the best present")
    parser.add_argument("--dtype", choices=DTYPES, help="default bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument(
        "--offload",
        choices=("none", "model", "sequential"),
        default="none",
        help="keep components on the CPU until they run",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Generate, and write what was recorded."""
    from ...atomic import check_writable
    from ...checks import check_seed

    prompts = _prompts(options)
    check_seed("seed", options.seed)
    if Path(options.output).suffix != ".json":
        raise ValueError(
            f"--output {options.output!r} has to be a .json file; use {Path(options.output).stem + '.json'!r}"
        )
    check_writable(options.output)
    check_checkpoint(options.checkpoint)
    device = options.device or best_device()
    check_device(device)
    values = _recorded(options, device, prompts)
    print(
        f"{options.output}: {len(values)} layers, inputs up to {max(values.values()):.3g}, from {len(prompts)} prompts"
    )
    return 0


def _prompts(options: argparse.Namespace) -> list[str]:
    if options.prompt is not None:
        return options.prompt
    texts = [line.strip() for line in options.prompts.read_text(encoding="utf-8").splitlines()]
    if not any(texts):
        raise ValueError(f"--prompts {str(options.prompts)!r} holds no text; write one prompt on each line")
    return [text for text in texts if text]


def _recorded(options: argparse.Namespace, device: str, prompts: list[str]) -> dict[str, float]:
    """Load, generate and write."""
    import torch

    from ... import LTX2Pipeline
    from ...checkpoints.packaged import PACKAGED, PACKAGED_SIZE
    from ...quantization.calibration import calibrate, write_calibration

    dtype = options.dtype or ("float32" if device == "cpu" else "bfloat16")
    settings = {"checkpoint": options.checkpoint, "device": device, "dtype": dtype, "offload": options.offload}
    if options.text_encoder is not None:
        settings["text_encoder"] = options.text_encoder
    pipeline = load_pipeline(settings, LTX2Pipeline)
    call: dict[str, Any] = dict(PACKAGED_SIZE) if options.checkpoint in PACKAGED else {}
    sizes = {"width": options.width, "height": options.height, "num_frames": options.num_frames}
    call |= {
        name: value for name, value in {**sizes, "num_inference_steps": options.steps}.items() if value is not None
    }
    values = calibrate(pipeline, prompts, generator=torch.Generator("cpu").manual_seed(options.seed), **call)
    write_calibration(options.output, values)
    return values
