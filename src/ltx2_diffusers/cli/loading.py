"""Loading a pipeline as the command line describes it."""

import argparse
from pathlib import Path
from typing import Any

DTYPES = ("bfloat16", "float16", "float32")


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which checkpoint to load, and how."""
    group = parser.add_argument_group("checkpoint")
    group.add_argument(
        "--checkpoint",
        default="ltx2-tiny",
        help="folder or Hub id in diffusers layout, an original .safetensors file, or the name of a packaged miniature "
        "(ltx2-tiny, ltx2.3-tiny: random weights, for trying things out)",
    )
    group.add_argument("--text-encoder", default=None, help="Gemma folder or Hub id; needed with an original file")
    group.add_argument("--device", default=None, help="cpu, cuda, cuda:1, mps; default the best present")
    group.add_argument("--dtype", choices=DTYPES, default=None, help="default bfloat16 on a GPU, float32 on a CPU")
    group.add_argument(
        "--offload",
        choices=("none", "model", "sequential"),
        default="none",
        help="keep components on the CPU until they run",
    )


def check_device(device: str) -> None:
    """Raise `ValueError` if this machine has no such device."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {device} cannot be used: {str(error).splitlines()[0]}; this machine has "
            f"{', '.join(dict.fromkeys(('cpu', _best_device(torch))))}"
        ) from None


def load_pipeline(options: argparse.Namespace, pipeline_class: type | None = None) -> Any:
    """The pipeline with the reference scheduler, on its device."""
    import torch
    from diffusers.utils import logging

    from ..checkpoints.packaged import PACKAGED, packaged_checkpoint
    from ..pipelines.text_to_video import LTX2Pipeline
    from ..schedulers.scheduling_ltx2 import LTX2Scheduler

    pipeline_class = pipeline_class or LTX2Pipeline
    device = options.device or _best_device(torch)
    check_device(device)
    dtype = getattr(torch, options.dtype or ("float32" if device == "cpu" else "bfloat16"))
    logging.disable_progress_bar()
    if options.checkpoint in PACKAGED:
        pipeline = pipeline_class.from_pretrained(packaged_checkpoint(options.checkpoint), dtype=dtype)
    elif Path(options.checkpoint).suffix in (".safetensors", ".sft"):
        if options.text_encoder is None:
            raise ValueError(
                f"{options.checkpoint} holds no text encoder; name a Gemma folder or Hub id with --text-encoder"
            )
        pipeline = pipeline_class.from_single_file(options.checkpoint, text_encoder=options.text_encoder, dtype=dtype)
    else:
        pipeline = pipeline_class.from_pretrained(options.checkpoint, dtype=dtype)
    if not isinstance(pipeline.scheduler, LTX2Scheduler):
        pipeline.scheduler = LTX2Scheduler.from_config(pipeline.scheduler.config)
    if options.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif options.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
    return pipeline


def _best_device(torch: Any) -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
