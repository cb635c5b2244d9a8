"""What caches between steps save on the miniature, and what they cost.

Run `python -m benchmarks.step_caches [--quick] [--count N]`. Every setting makes the clips of the same captions and seeds one by
one. Block runs are counted, so that what is saved does not depend on the machine. PSNR and log-spectral distance compare with the clips made without; the score is the share of clips whose shape,
colour, background, motion and pitch are what the caption says.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, MagCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig

from benchmarks.common import print_table, write_results
from benchmarks.mini_world import CLIP, Asked, Bench, Clip, psnr, scored, spectral_distance
from ltx2_diffusers import GuidanceOptions, LTX2Pipeline
from ltx2_diffusers.checkpoints.packaged import checkpoint_path
from ltx2_diffusers.training.components.audio_vae import spectrogram

SCORES = ("shape", "colour", "background", "direction", "pitch")


class Counted:
    """A pipeline that counts the blocks that run, and notes what its calls skipped.

    Args:
        pipeline: The pipeline.
    """

    def __init__(self, pipeline: LTX2Pipeline) -> None:
        self.pipeline, self.runs, self.ratios = pipeline, 0, list[dict[str, float]]()
        for block in pipeline.transformer.transformer_blocks:
            block.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.runs += 1

    def __call__(self, **call: Any) -> Any:
        """The output of the pipeline."""
        output = self.pipeline(**call)
        self.ratios.append({name: one["skip_ratio"] for name, one in output.info["passes"].items()})
        return output


def calibrated(counted: Counted, asked: Asked) -> list[float]:
    """Ratios of the pass with the prompt, measured on one clip of another caption."""
    counted.pipeline.transformer.enable_cache(MagCacheConfig(calibrate=True))
    output = counted(prompt=asked.caption, generator=torch.Generator().manual_seed(1), **CLIP, output_type="latent")
    counted.pipeline.transformer.disable_cache()
    return output.info["passes"]["conditional"]["mag_ratios"]


def settings(ratios: list[float], timestep: Callable[[], float]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, configuration of a cache or `None`, and arguments of the call."""
    yield "off", None, {}
    for threshold in (0.05, 0.1, 0.2, 0.3):
        yield f"FirstBlockCacheConfig({threshold})", FirstBlockCacheConfig(threshold), {}
    for threshold in (0.03, 0.1):
        config = MagCacheConfig(threshold, mag_ratios=ratios, num_inference_steps=len(ratios))
        yield f"MagCacheConfig({threshold}, mag_ratios=...)", config, {}
    every_second = MagCacheConfig(mag_ratios=[1.0], num_inference_steps=1, retention_ratio=0, max_skip_steps=1)
    yield "every second step, by MagCacheConfig", every_second, {}
    yield "TaylorSeerCacheConfig(cache_interval=3)", TaylorSeerCacheConfig(cache_interval=3), {}
    broadcast = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        spatial_attention_block_identifiers=["transformer_blocks"],
        current_timestep_callback=timestep,
    )
    yield "PyramidAttentionBroadcastConfig, every second", broadcast, {}
    for n in (1, 2):
        options = GuidanceOptions(skip_step=n, audio_skip_step=n)
        yield f"skip_step={n}, audio_skip_step={n}", None, {"guidance_options": options}
    for interval in ((0.3, 1.0), (0.3, 0.95)):
        options = GuidanceOptions(guidance_interval=interval)
        yield f"guidance_interval={interval}", None, {"guidance_options": options}


def compared(bench: Bench, made: list[Clip], plain: list[Clip]) -> dict[str, float]:
    """How near clips are to those made without a cache."""
    vae = bench.pipeline.audio_vae
    mels = [
        [spectrogram(vae, clip.audio[None], clip.rate)[0] for clip in pair if clip.audio is not None]
        for pair in zip(made, plain)
    ]
    return {
        "psnr_db": statistics.fmean(psnr(one.frames, other.frames) for one, other in zip(made, plain)),
        "log_spectral_distance_db": statistics.fmean(spectral_distance(one, other) for one, other in mels),
    }


def measured(bench: Bench) -> Iterator[dict[str, Any]]:
    """A row for each setting."""
    asked, counted = bench.asked(bench.count + 1), Counted(bench.kind(LTX2Pipeline))
    calibration, asked = asked[-1], asked[:-1]
    texts, plain, runs = [one.caption for one in asked], list[Clip](), 0
    transformer = counted.pipeline.transformer
    ratios = calibrated(counted, calibration)
    for name, config, call in settings(ratios, lambda: float(counted.pipeline.current_timestep)):
        counted.runs, counted.ratios = 0, []
        if config is not None:
            transformer.enable_cache(config)
        clips = bench.generate(counted, texts, **CLIP, **call)
        if config is not None:
            transformer.disable_cache()
        plain, runs = plain or clips, runs or counted.runs
        scores = scored(asked, clips)
        yield {
            "setting": name,
            "skip_ratio": {
                key: round(statistics.fmean(one[key] for one in counted.ratios), 3) for key in counted.ratios[0]
            },
            "block_runs": counted.runs / len(clips),
            "block_run_ratio": counted.runs / runs,
            **compared(bench, clips, plain),
            "score": statistics.fmean(scores[key] or 0.0 for key in SCORES),
        }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two clips of six steps, for a trial")
    parser.add_argument("--count", type=int, default=12, help="clips of each setting; default 12")
    options = parser.parse_args()
    torch.set_num_threads(1)
    count, steps = (2, 6) if options.quick else (options.count, None)
    bench = Bench(checkpoint_path("ltx2-mini"), count=count, batch_size=1, steps=steps)
    rows = list(measured(bench))
    print_table(
        [{**row, "skip_ratio": " ".join(f"{ratio:.2f}" for ratio in row["skip_ratio"].values())} for row in rows]
    )
    print(write_results("step_caches", {"clips": count, "rows": rows}))


if __name__ == "__main__":
    main()
