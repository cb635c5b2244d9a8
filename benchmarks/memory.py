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
from ltx2_diffusers import LTX2LatentUpsamplerModel, LTX2Pipeline, packaged_checkpoint
from ltx2_diffusers.devices import GPUS
from ltx2_diffusers.pipelines.plan import Size, plan_clip
from ltx2_diffusers.pipelines.planned import Liberties, Planner, clip_wish, stored
from ltx2_diffusers.planning import stages
from ltx2_diffusers.planning.counting import counted, measured
from ltx2_diffusers.planning.needs import Counts
from ltx2_diffusers.planning.parts import parts_of
from ltx2_diffusers.planning.policy import Budget, Choice

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
        "image": lambda models: stages.encoding_given(models, clip),
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


def fitting(choice: Choice | None, fastest: float) -> str:
    """A cell of the table of what fits where: where the transformer is, and how much longer a call takes."""
    if choice is None:
        return "no"
    where, weights = choice.placements["transformer"], choice.variant.weights["transformer"]
    kept = (
        f", {where.num_on_device} of {weights.blocks} blocks on the card"
        if where.where == "streamed" and where.num_on_device != 2
        else ""
    )
    shown = {"resident": "on the card", "released": "on the card while it runs"}.get(where.where)
    text = shown or f"from {'RAM' if where.source == 'ram' else 'disk'}{kept}"
    return f"{text}; {choice.seconds / fastest:.2f}"


def table(cards: Sequence[int] = CARDS_GB, models: Sequence[str] = tuple(MODELS)) -> list[dict[str, str]]:
    """What fits where: a row for each card, a cell for each model and clip."""
    rows: list[dict[str, str]] = [{"card": f"{gb} GB"} for gb in cards]
    for model in models:
        parts = parts_of(model)
        counts = Counts(parts, "cuda", stored)
        for clip, size in CLIPS.items():
            sides = (size["height"], size["width"], size["num_frames"])
            wish = clip_wish(parts, sides, 24.0, size.get("two_stage", False), (False, 0), None, None, 1, 512)
            choices = [
                Planner(parts, Liberties(RAM_GB), Budget(gb * 2**30, RAM_GB * 2**30, GPUS[GPU]), counts).choice(wish)[
                    0
                ]
                for gb in (_UNLIMITED_GB, *cards)
            ]
            for row, choice in zip(rows, choices[1:]):
                row[f"{MODELS[model]}, {clip}"] = fitting(choice, choices[0].seconds)
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
