"""Memory and steps on a card at full size, with random weights: what plans predict against what the card gives.

`python -m benchmarks.gpu_memory` needs a CUDA card of 80 GB and takes less than nine minutes; results are written after every
case, so that a run that is cut off loses none that is done. `--tiny` runs the same code on the miniature's sizes, also on a CPU.

- `two stages`: steps of both stages at 1024 x 1536 x 121 and the decoding, streamed from host memory within 24 GB.
- `image to video`: a guided step with the first frame given, all weights of a call on the card.
- `float8`: a step in bfloat16, with fp8_cast and with fp8_scaled_mm.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks.common import print_table, write_results
from ltx2_diffusers.memory.streaming import stop_streaming, stream_blocks
from ltx2_diffusers.pipelines.planned import clip_sizes, plan_memory, stored
from ltx2_diffusers.planning import stages
from ltx2_diffusers.planning.counting import counted, measured
from ltx2_diffusers.planning.parts import ModelParts, num_bytes, parts_of
from ltx2_diffusers.planning.plan import MemoryPlan

GIB = 2**30
FULL = {"height": 1024, "width": 1536, "num_frames": 121}
TINY = {"height": 128, "width": 128, "num_frames": 25}
ALLOWANCE_GB = 24


@torch.no_grad()
def with_values(model: nn.Module, device: torch.device, maker: torch.device | None = None) -> nn.Module:
    """A model of the meta device on another one, with random weights, which are drawn on the device `maker`."""
    model = nn.Module.to_empty(model, device=device)
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_floating_point():
            tensor.zero_()
        elif tensor.ndim < 2:
            tensor.copy_(torch.ones(tensor.shape))
        else:
            # Matrices that keep the size of what they multiply.
            drawn = torch.randn(tensor.shape, device=maker or device, dtype=torch.bfloat16) * tensor.shape[-1] ** -0.5
            tensor.copy_(drawn.to(tensor.dtype))
    return model


@contextmanager
def allowance(device: torch.device, gigabytes: float) -> Iterator[None]:
    """No more than so much of the card for this process."""
    if device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(gigabytes * GIB / total, 1.0), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def emptied(device: torch.device) -> None:
    """Give back what nobody holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def timed(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds of a run, the median of some after a first one."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.no_grad():
            run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def row(
    name: str, run: Callable[[Any], Callable[[], Any]], models: Any, meta: Any, device: torch.device
) -> dict[str, Any]:
    """A stage: predicted and measured bytes beside the weights, what the card has reserved in all, and its time."""
    predicted = counted(run(meta), device.type).peak
    found = measured(run(models), device)
    seconds = timed(run(models), device, 2)
    return {
        "stage": name,
        "predicted GiB": predicted / GIB,
        "measured GiB": found.allocated / GIB,
        "ratio": found.allocated / predicted,
        "reserved GiB": found.reserved / GIB,
        "seconds": seconds,
    }


def two_stages(parts: ModelParts, plan: MemoryPlan, device: torch.device, depth: int | None) -> list[dict[str, Any]]:
    """Steps of both stages and the decoding as a plan for `ALLOWANCE_GB` has them."""
    clip, first = clip_sizes(parts, plan.clip)
    guided = stages.Denoising(parts.preset, (parts.preset.video, parts.preset.audio))
    alone = stages.Denoising(parts.preset, None)
    place = plan.parts["transformer"].placement
    meta = {"transformer": parts.model("transformer", depth), "vae": parts.model("vae")}
    # Blocks are made in host memory, where they wait.
    transformer = with_values(parts.model("transformer", depth), torch.device("cpu"), device)
    emptied(device)
    blocks = len(transformer.transformer_blocks)
    count = max(1, min(place.num_on_device or 2, blocks - 1))
    stream_blocks(transformer, "ram", device, count)
    rows = []
    with allowance(device, ALLOWANCE_GB):
        for name, size, wish in (("stage 1, guided", first, guided), ("stage 2", clip, alone)):
            rows.append(
                row(
                    name,
                    lambda m, s=size, w=wish: stages.denoising(m, s, w),
                    {"transformer": transformer},
                    meta,
                    device,
                )
            )
        stop_streaming(transformer)
        del transformer
        emptied(device)
        vae = {"vae": with_values(parts.model("vae"), device)}
        rows.append(row("decoding", lambda m: stages.decoding_video(m, clip, plan.decoding), vae, meta, device))
    return [{"case": f"two stages within {ALLOWANCE_GB} GB", "blocks on the device": count, **one} for one in rows]


def image_to_video(
    parts: ModelParts, plan: MemoryPlan, device: torch.device, depth: int | None
) -> list[dict[str, Any]]:
    """A guided step with the first frame given, beside the weights of the whole call but the language model."""
    clip, _ = clip_sizes(parts, plan.clip)
    wish = stages.Denoising(parts.preset, (parts.preset.video, parts.preset.audio), image=True)
    beside = [with_values(parts.model(name), device) for name in ("connectors", "vae", "audio_vae", "vocoder")]
    models = {"transformer": with_values(parts.model("transformer", depth), device)}
    meta = {"transformer": parts.model("transformer", depth)}
    found = row("guided step", lambda m: stages.denoising(m, clip, wish), models, meta, device)
    weights = sum(num_bytes(model) for model in (*beside, *models.values()))
    return [{"case": "image to video, resident", "weights GiB": weights / GIB, **found}]


def float8(parts: ModelParts, plan: MemoryPlan, device: torch.device, depth: int | None) -> list[dict[str, Any]]:
    """A step of the first stage in bfloat16 and in float8."""
    _, first = clip_sizes(parts, plan.clip)
    wish, rows = stages.Denoising(parts.preset, None), []
    for storage in (None, "fp8_cast", "fp8_scaled_mm"):
        emptied(device)
        meta = {"transformer": stored(parts.model("transformer", depth), storage)}
        models = {"transformer": with_values(stored(parts.model("transformer", depth), storage), device)}
        weights = num_bytes(models["transformer"]) / GIB
        found = row("step", lambda m: stages.denoising(m, first, wish), models, meta, device)
        rows.append({"case": f"transformer {storage or 'bfloat16'}", "weights GiB": weights, **found})
        del models
    return rows


def main() -> None:
    """Run the cases, writing after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="the miniature's sizes, also on a CPU")
    parser.add_argument("--device", default="cuda", help="default cuda; with --tiny also cpu")
    parser.add_argument("--layers", type=int, help="blocks of the transformer; default the published depth")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type != "cuda" and not options.tiny:
        parser.error("full size needs a CUDA card; give --tiny for a CPU")
    model, size = ("ltx2-mini", TINY) if options.tiny else ("ltx-2-19b", FULL)
    parts = parts_of(model, dtype=torch.bfloat16)
    kind = {"device": device.type, "num_inference_steps": 2}
    plan = plan_memory(model, ALLOWANCE_GB, 64, two_stage=True, **size, **kind)
    results: dict[str, Any] = {"model": model, "plan": str(plan), "rows": []}
    # A quick case comes first: what is cut off is what takes longest.
    for case in (float8, image_to_video, two_stages):
        start = time.perf_counter()
        results["rows"] += case(parts, plan, device, options.layers)
        emptied(device)
        results[f"seconds of {case.__name__}"] = time.perf_counter() - start
        path = write_results("gpu_memory", results)
    for one in results["rows"]:
        print_table([one])
    print("written to", path)


if __name__ == "__main__":
    main()
