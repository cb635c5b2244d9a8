"""`ltx2 plan`: how a generation fits a card, before anything is loaded."""

import argparse
from pathlib import Path
from typing import Any

from ..loading import QUANTIZATIONS

_EXAMPLES = """examples:
  ltx2 plan ltx-2-19b --vram 16 --ram 32 --two-stage --width 1536 --height 1024 --num-frames 121
  ltx2 plan LTX-2-diffusers --vram auto --json plan.json
  ltx2 generate --checkpoint LTX-2-diffusers --vram 16 --prompt "waves" -o waves.mp4

Only configurations and headers of files are read. ltx-2-19b and ltx-2.3-22b need no files at all. Sizes are in GiB, as cards
are sold. Results are those of all weights on the card, up to rounding, unless --allow-lossy or --quantize is given.
"""
AUTO = "auto"
# Options that are arguments of `plan_memory` by the same names.
_PASSED_ON = (
    *("height", "width", "num_frames", "two_stage", "image", "quantize", "allow_lossy", "gpu", "device"),
    *("text_encoder", "upsampler", "decoder", "diffusion_decoder"),
)


def add_parser(commands: Any) -> None:
    """Add the subcommand to the parser."""
    from ...devices import GPUS

    parser = commands.add_parser(
        "plan",
        usage="ltx2 plan CHECKPOINT --vram GB [options]",
        help="show how a generation fits a card: where weights are, memory of each stage, time",
        description="Choose the fastest way to run a generation within the memory of a card, and show it. Nothing is loaded.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", help="folder in diffusers layout, original file, packaged name, ltx-2-19b or ltx-2.3-22b"
    )
    parser.add_argument(
        "--vram", metavar="GB", required=True, type=memory, help="of the card, or auto for this machine's"
    )
    parser.add_argument(
        "--ram", metavar="GB", type=memory, default=AUTO, help="of the host; default auto, what is free"
    )
    parser.add_argument("--two-stage", action="store_true", help="start at half the size, then refine at full size")
    parser.add_argument("--image", action="store_true", help="the first frame is given")
    parser.add_argument("--no-guidance", action="store_true", help="the first stage runs without guidance")
    for name, meaning in (
        ("width", "pixels, a multiple of 32, 64 in two stages; default 768"),
        ("height", "the same; default 512"),
        ("num-frames", "8 k + 1; default 121"),
        ("steps", "denoising steps; default the reference value of the checkpoint"),
    ):
        parser.add_argument(f"--{name}", metavar="N", type=int, help=meaning)
    parser.add_argument("--quantize", choices=QUANTIZATIONS, help="store the transformer in float8: lossy")
    parser.add_argument(
        "--allow-lossy", action="store_true", help="let the plan take float8 and tiles where they help"
    )
    parser.add_argument("--gpu", choices=GPUS, help="card whose speed times are counted with; default this machine's")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="kind of the device; default cuda")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="default bfloat16"
    )
    parser.add_argument("--text-encoder", metavar="DIR", type=Path, help="Gemma folder, of an original file")
    parser.add_argument("--upsampler", metavar="PATH", type=Path, help="of two stages, if the checkpoint has none")
    parser.add_argument(
        "--decoder", choices=("vae", "diffusion"), default="vae", help="what makes frames; default vae"
    )
    parser.add_argument(
        "--diffusion-decoder", metavar="PATH", type=Path, help="of --decoder diffusion, if the checkpoint has none"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the plan, for LTX2Pipeline.from_plan, too")
    parser.set_defaults(run=run)


def memory(value: str) -> float | str:
    """A number of GiB, or `auto`."""
    if value == AUTO:
        return value
    try:
        return float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is neither a number of GB nor {AUTO}") from None


def device_gib(wished: float | str, device: str) -> float:
    """GiB of a device; `auto` reads them.

    Raises:
        ValueError: If the device has no memory of its own to read.
    """
    from ... import devices

    if not isinstance(wished, str):
        return wished
    import torch

    found = None if device.startswith("cuda") and not torch.cuda.is_available() else devices.free_gib(device)
    if found is None and device.startswith("cuda"):
        raise ValueError("--vram auto reads the card, but there is none of CUDA here; give a number of GB")
    # A CPU, and Apple's processors, have the memory of the host.
    return devices.host_gib() if found is None else found


def host_gib(wished: float | str) -> float | None:
    """GiB of host memory; `None` for what is free."""
    return None if isinstance(wished, str) else wished


def run(options: argparse.Namespace) -> int:
    """Print the plan."""
    from ..messages import in_options

    try:
        plan = _plan(options)
    except ValueError as error:
        # The checkpoint is no option of this command.
        given = {name: value for name, value in vars(options).items() if value is not None and name != "checkpoint"}
        raise ValueError(in_options(str(error), given)) from error
    if options.json is not None:
        plan.save(options.json)
    print(plan)
    return 0


def _plan(options: argparse.Namespace) -> Any:
    import torch

    from ...pipelines.planned import plan_memory

    return plan_memory(
        options.checkpoint,
        device_gib(options.vram, options.device),
        host_gib(options.ram),
        guided=False if options.no_guidance else None,
        num_inference_steps=options.steps,
        dtype=getattr(torch, options.dtype),
        **{name: getattr(options, name) for name in _PASSED_ON},
    )
