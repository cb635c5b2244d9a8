"""Memory of generations: predicted against measured, and what fits which card.

Run `python -m benchmarks.memory [--quick]`. Every stage of the packaged miniature is counted on the meta device, and measured
by PyTorch's profiler, which records each allocation of the CPU. Plans of the published models are made without their files.
`python -m benchmarks.gpu_memory` measures at full size on a card.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers.utils import logging

from benchmarks.common import print_table, write_results
from ltx2_diffusers import LTX2LatentUpsamplerModel, LTX2Pipeline, MemoryPlan, packaged_checkpoint, plan_memory
from ltx2_diffusers.memory import planning_stages as stages
from ltx2_diffusers.memory.counting import counted, measured
from ltx2_diffusers.memory.planning_parts import parts_of
from ltx2_diffusers.pipelines.plan import Size, plan_clip

MODELS = {"ltx-2-19b": "19B", "ltx-2.3-22b": "22B"}
CARDS_GB = (8, 12, 16, 24, 32, 48, 80)
RAM_GB = 64
CLIPS = {
    "768 x 512": {"height": 512, "width": 768, "num_frames": 121},
    "1536 x 1024, two stages": {"height": 1024, "width": 1536, "num_frames": 121, "two_stage": True},
}
# One speed for all cards, so that times tell what memory costs.
GPU = "rtx4090"
_UNLIMITED_GB = 1000
SHAPES = ((128, 128, 25), (192, 256, 49))


def stage_runs(pipeline: LTX2Pipeline, preset: Any, shape: Sequence[int]) -> dict[str, Callable[[Any], stages.Run]]:
    """Every stage as a function of models."""
    height, width, frames = shape
    clip = plan_clip(pipeline.sizes, 1, Size(height, width, frames), [(1.0, 1.0)])
    reading = stages.Reading(2, 100, 128)
    guided = stages.Denoising(preset, (preset.video, preset.audio), positions=128)
    return {
        "text": lambda models: stages.reading_text(models, reading),
        "connectors": lambda models: stages.connecting(models, reading),
        "step": lambda models: stages.denoising(models, clip, stages.Denoising(preset, None, positions=128)),
        "guided step": lambda models: stages.denoising(models, clip, guided),
        "upsampling": lambda models: stages.upsampling(models, clip),
        "image": lambda models: stages.encoding_image(models, clip),
        "decoding, whole": lambda models: stages.decoding_video(models, clip, "whole"),
        "decoding, streamed": lambda models: stages.decoding_video(models, clip, "streamed"),
        "sound": lambda models: stages.decoding_audio(models, clip),
    }


def compared(shapes: Sequence[Sequence[int]]) -> Iterator[dict[str, Any]]:
    """Rows of what is predicted and what is measured on the CPU."""
    folder = packaged_checkpoint("ltx2-mini")
    for dtype in (torch.float32, torch.bfloat16):
        parts, pipeline = parts_of(folder, dtype=dtype), LTX2Pipeline.from_pretrained(folder, dtype=dtype)
        upsampler = LTX2LatentUpsamplerModel.from_pretrained(folder / "latent_upsampler", dtype=dtype)
        real = {**pipeline.components, "latent_upsampler": upsampler}
        meta = {name: parts.model(name) for name in parts.components}
        for shape in shapes:
            for stage, run in stage_runs(pipeline, parts.preset, shape).items():
                predicted, found = counted(run(meta), "cpu").peak, measured(run(real)).allocated
                yield {
                    "stage": stage,
                    "clip": " x ".join(map(str, shape)),
                    "dtype": str(dtype).removeprefix("torch."),
                    "predicted bytes": predicted,
                    "measured bytes": found,
                    "ratio": found / predicted,
                }


def planned(model: str, vram_gb: float, clip: str, **wish: Any) -> MemoryPlan | None:
    """The plan of a published model for a card, if any fits."""
    try:
        return plan_memory(model, vram_gb, RAM_GB, gpu=GPU, **{**CLIPS[clip], **wish})
    except ValueError:
        return None


def fitting(plan: MemoryPlan | None, fastest: float) -> str:
    """A cell of the table of what fits where: what is done with the transformer, and how much longer a call takes."""
    if plan is None:
        return "no"
    part = plan.parts["transformer"]
    where = part.placement
    kept = f", {where.num_on_device} of 48 blocks on the card" if where.num_on_device > 2 else ""
    shown = {"resident": "on the card", "released": "on the card while it runs"}.get(where.where)
    text = shown or f"from {'RAM' if where.source == 'ram' else 'disk'}{kept}"
    return f"{text}; {plan.seconds / fastest:.2f}"


def table(cards: Sequence[int] = CARDS_GB) -> list[dict[str, str]]:
    """What fits where: a row for each card, a cell for each model and clip."""
    fastest = {}
    for model in MODELS:
        for clip in CLIPS:
            plan = planned(model, _UNLIMITED_GB, clip)
            fastest[model, clip] = plan.seconds if plan is not None else float("nan")
    rows = []
    for gb in cards:
        cells = {f"{MODELS[m]}, {clip}": fitting(planned(m, gb, clip), fastest[m, clip]) for m, clip in fastest}
        rows.append({"card": f"{gb} GB", **cells})
    return rows


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """The table as pages show it."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure, plan, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one clip and one card only")
    options = parser.parse_args()
    logging.disable_progress_bar()
    rows = list(compared(SHAPES[:1] if options.quick else SHAPES))
    print_table(rows)
    fits = table((24,) if options.quick else CARDS_GB)
    print(markdown(fits))
    name = "memory_quick" if options.quick else "memory"
    print(write_results(name, {"predicted and measured": rows, "ram_gb": RAM_GB, "speed of": GPU, "fits": fits}))


if __name__ == "__main__":
    main()
