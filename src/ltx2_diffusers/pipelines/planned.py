"""Plans of memory for pipelines and checkpoints, and pipelines that are loaded as a plan says.

Nothing is loaded for a plan: models are built without values, from configurations and headers of files.
"""

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import checks
from ..guidance.presets import DEFAULT_SIZE
from ..memory import devices
from ..memory.planning import ClipWish, MemoryPlan, PartPlan
from ..memory.planning_needs import Clips, Needs, variants
from ..memory.planning_parts import ModelParts, parts_of
from ..memory.planning_policy import DENOISER, Budget, Choice, chosen
from ..memory.planning_stages import DECODINGS
from ..quantization.layers import cast_layers, put_cast, put_scaled, scaled_layers
from ..sampling import PassLayout
from ..schedulers.scheduling_ltx2 import LTX2Scheduler
from .generation import LTX2GenerationPipeline
from .plan import ModelSizes, Size, plan_clip

QUANTIZATIONS = ("fp8_cast", "fp8_scaled_mm")
# Times of a smaller or shorter clip that are tried for a plan that does not fit.
_TRIES = 4


def plan_memory(
    checkpoint: str | os.PathLike,
    vram_gb: float,
    ram_gb: float | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    frame_rate: float = 24.0,
    two_stage: bool = False,
    image: bool = False,
    guided: bool | None = None,
    num_inference_steps: int | None = None,
    num_videos: int = 1,
    prompt_tokens: int = 1024,
    quantize: str | None = None,
    allow_lossy: bool = False,
    gpu: str | None = None,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    text_encoder: str | os.PathLike | None = None,
    upsampler: str | os.PathLike | None = None,
) -> MemoryPlan:
    """The fastest way to run a generation within a device's memory and host memory. Nothing is loaded.

    For every component it is chosen whether its weights stay on the device, are there while they are used, or come block by
    block from host memory or from their file; and how videos are decoded, and the passes of guidance made. By default all
    of that leaves the result as it is, up to rounding.

    Args:
        checkpoint: A folder in diffusers' layout, an original safetensors file, or a packaged name; or `"ltx-2-19b"` or
            `"ltx-2.3-22b"`, published models whose files are not needed for a plan.
        vram_gb: Memory of the device in GiB, as cards are sold. What CUDA and fragments take is counted within it.
        ram_gb: Host memory in GiB that may be used. Default what this machine has free.
        height, width: Size in pixels, default 512 x 768.
        num_frames: Frames, default 121.
        frame_rate: Frames per second. Default 24.0.
        two_stage: Whether a stage at half the size is refined. Default `False`.
        image: Whether the first frame is given. Default `False`.
        guided: Whether the first stage is guided. Default as the checkpoint's reference settings say.
        num_inference_steps: Steps of the first stage, default the reference's.
        num_videos: Videos of the batch. Default 1.
        prompt_tokens: Tokens of the longest prompt. Default 1024, the most.
        quantize: `"fp8_cast"` or `"fp8_scaled_mm"` to store the transformer in float8, which is lossy. Default as it is
            stored.
        allow_lossy: Whether the planner may itself store the transformer in float8 (`fp8_cast`) and decode in blended tiles,
            where that is faster or all that fits. Default `False`.
        gpu: Card whose speed times are estimated with, a name of `ltx2 plan --gpu`. Default this machine's, or an RTX 4090's.
        device: `"cuda"` (default), or `"cpu"` to count as a CPU's kernels do, without what CUDA takes.
        dtype: Type of the weights and of the computation. Default `torch.bfloat16`.
        text_encoder: Folder of the language model of an original file. Default: for a plan, the sizes of Gemma 3 12B.
        upsampler: File or folder of the upsampler, if the checkpoint has none.

    Raises:
        ValueError: If no plan fits, with the nearest that do; or if an argument is out of range or contradicts another.
    """
    asked = _checked(vram_gb, ram_gb, quantize, allow_lossy, device)
    parts = parts_of(checkpoint, text_encoder, upsampler, dtype)
    size = [default if given is None else given for given, default in zip((height, width, num_frames), DEFAULT_SIZE)]
    steps = (num_inference_steps, num_videos, prompt_tokens)
    wish = _wish(parts, size, frame_rate, two_stage, image, guided, *steps)
    name = gpu or (devices.present_gpu() if device == "cuda" else None)
    card = devices.CPU if device == "cpu" and gpu is None else devices.device_named(name)
    budget = Budget(vram_gb * 2**30, asked.ram_gb * 2**30, card, device == "cuda")
    planner = Planner(parts, asked, budget)
    sources = {"text_encoder": text_encoder, "upsampler": upsampler}
    plan = planner.plan(wish)
    shown = "a CPU" if card is devices.CPU else (name or devices.USUAL)
    return replace(plan, gpu=shown, **{key: None if v is None else os.fspath(v) for key, v in sources.items()})
