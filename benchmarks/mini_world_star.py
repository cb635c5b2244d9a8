"""A shape that the miniature never saw, taught by a LoRA: how often it is seen and heard without the adapter, and with it.

Run `python -m benchmarks.mini_world_star --lora out/star` with what `examples/mini_world/star.yaml` trained. Captions name
colours of a star that it was not trained on. The same file is loaded in diffusers' own pipeline, too, with guidance by the
prompt alone in both.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from diffusers import LTX2Pipeline as DiffusersPipeline
from diffusers.utils import logging

from benchmarks.common import print_table, write_results
from benchmarks.mini_world import CLIP, SAID, SEED, Bench, Clip, identity, quiet, scored
from examples.mini_world.drawing import FRAME_RATE
from examples.mini_world.networks import TEXT_POSITIONS
from examples.mini_world.scenes import NEW_SHAPE
from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.checkpoints.packaged import checkpoint_path

PLAIN = {
    "guidance_scale": 3.0,
    "audio_guidance_scale": 3.0,
    "guidance_rescale": 0.0,
    "audio_guidance_rescale": 0.0,
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    "num_inference_steps": 20,
}
"""What both libraries do alike."""


def in_diffusers(bench: Bench, lora: Path, texts: Sequence[str]) -> list[Clip]:
    """Clips of diffusers' pipeline with the adapter."""
    pipeline: Any = quiet(DiffusersPipeline.from_pretrained(bench.checkpoint))
    pipeline.load_lora_weights(lora)
    rate = pipeline.vocoder.config.output_sampling_rate

    def with_rate(**call: Any) -> SimpleNamespace:
        # Its output does not say the rate of the sound.
        output = pipeline(**call)
        return SimpleNamespace(frames=output.frames, audio=output.audio, sampling_rate=rate)

    call = {"max_sequence_length": TEXT_POSITIONS, "frame_rate": FRAME_RATE}
    return bench.generate(with_rate, texts, **call, **CLIP, **PLAIN)


def main(arguments: Sequence[str] | None = None) -> int:
    """Score and write; exit status 1 if the adapter teaches the shape to fewer than 80 of 100 clips."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mini_world_star", description=__doc__.splitlines()[0])
    parser.add_argument("--lora", type=Path, required=True, help="folder of the trained adapter")
    parser.add_argument("--checkpoint", default="ltx2-mini", help="packaged checkpoint or folder (default ltx2-mini)")
    parser.add_argument("--prompts", type=int, default=100, help="captions (default 100)")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bench = Bench(checkpoint_path(options.checkpoint), count=options.prompts)
    asked = bench.asked(bench.count, shapes=(NEW_SHAPE,))
    texts = [a.caption for a in asked]
    base, taught = bench.load(LTX2Pipeline), bench.load(LTX2Pipeline)
    taught.load_lora_weights(options.lora)
    clips = {
        "without": bench.generate(base, texts, **CLIP),
        "with the LoRA": bench.generate(taught, texts, **CLIP),
        "with the LoRA, by the prompt alone": bench.generate(taught, texts, **CLIP, **PLAIN),
        "the same in diffusers": in_diffusers(bench, options.lora, texts),
    }
    rows = {name: scored(asked, made) for name, made in clips.items()}
    write_results("mini_world_star", {**identity(bench), "seed": SEED, "scores": rows})
    print_table([{"": name, **{key: row[key] for key in ("clips", *SAID)}} for name, row in rows.items()])
    return int(min(row["shape"] for name, row in rows.items() if name != "without") < 80)


if __name__ == "__main__":
    sys.exit(main())
