"""Times and memory of decoding and encoding one clip with our video VAE and with diffusers', same weights, interleaved.

Run `python -m benchmarks.vae [--quick] [--device cuda]`. On a CPU times are taken at a quarter of the published widths, of the
encoder at a sixteenth; memory and operations are counted at full size on the meta device, which allocates nothing. Streamed
decoding is timed on tall clips, because on one thread PyTorch runs another, slow convolution where channels times frames
times rows are few, as in chunks of small clips of a narrow decoder. On a card the published sizes are timed in bfloat16, and
memory is what PyTorch allocates; `diffusers, channels last` is its fastest way there.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import interleaved, print_table, ratio, write_results
from ltx2_diffusers import fusion
from ltx2_diffusers.models.compiled import compile_model
from ltx2_diffusers.models.video_vae import AutoencoderKLLTX2Video
from ltx2_diffusers.planning.counting import peak_bytes

NUM_FRAMES = 9
GIBIBYTE = 2**30

MEMORY_SHAPES = ({"frames": 121, "height": 512, "width": 768}, {"frames": 121, "height": 1024, "width": 1536})
LONG_SHAPE = {"frames": 1001, "height": 1024, "width": 1536}
STREAMED_SHAPE = {"height": 512, "width": 96}
TILES = {
    "tile_sample_min_height": 96,
    "tile_sample_min_width": 96,
    "tile_sample_stride_height": 64,
    "tile_sample_stride_width": 64,
}
# Least ratio of decoding on a card to diffusers as it comes.
CARD_BOUND = 1.8

_PUBLISHED = {"decoder_causal": False, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
# The published structures of the two versions.
CONFIGS = {
    "2.0": _PUBLISHED,
    "2.3": _PUBLISHED
    | {
        "block_out_channels": (256, 512, 1024, 1024),
        "layers_per_block": (4, 6, 4, 2, 2),
        "decoder_block_out_channels": (256, 512, 512, 1024),
        "decoder_layers_per_block": (4, 6, 4, 2, 2),
        "decoder_spatio_temporal_scaling": (True,) * 4,
        "decoder_inject_noise": (False,) * 5,
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_residual": (False,) * 4,
        "upsample_factor": (2, 2, 1, 2),
        "decoder_spatial_padding_mode": "zeros",
    },
}


def reduced(config: dict[str, Any]) -> dict[str, Any]:
    """The same decoder at a quarter of the widths, with the smallest encoder."""
    widths = config.get("decoder_block_out_channels", (256, 512, 1024))
    return config | {
        "latent_channels": 8,
        "block_out_channels": (16, 32, 64, 64),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_block_out_channels": tuple(width // 4 for width in widths),
    }


def runs_of(vae: Any, latents: torch.Tensor, video: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """What is timed of one VAE, by name."""

    def tiled() -> torch.Tensor:
        vae.enable_tiling(**TILES)
        try:
            return vae.decode(latents).sample
        finally:
            vae.disable_tiling()

    return {
        "decode": lambda: vae.decode(latents).sample,
        "decode in tiles": tiled,
        "encode": lambda: vae.encode(video).latent_dist.mode(),
    }


@torch.no_grad()
def measure_time(version: str, side: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Decode and encode `NUM_FRAMES` frames of `side` x `side` pixels with both classes at reduced width."""
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLLTX2Video(**reduced(CONFIGS[version])).eval()
    ours = AutoencoderKLLTX2Video(**reduced(CONFIGS[version])).eval()
    ours.load_state_dict(theirs.state_dict())
    ours.disable_streaming()
    latents = torch.randn(1, ours.config.latent_channels, (NUM_FRAMES - 1) // 8 + 1, side // 32, side // 32)
    video = torch.rand(1, 3, NUM_FRAMES, side, side) * 2 - 1
    both = {name: runs_of(vae, latents, video) for name, vae in (("ours", ours), ("diffusers", theirs))}
    for what in both["ours"]:
        # Clips no larger than a tile are not tiled.
        if what == "decode in tiles" and side <= TILES["tile_sample_min_height"]:
            continue
        runs = {name: one[what] for name, one in both.items()}
        difference = (runs["ours"]() - runs["diffusers"]()).abs().max().item()
        times = interleaved(runs, repeats)
        yield {
            "what": what,
            "structure": f"{version}, {'encoder at a sixteenth' if what == 'encode' else 'decoder at a quarter'} of the width",
            "frames": NUM_FRAMES,
            "height": side,
            "width": side,
            "median_s": {name: statistics.median(samples) for name, samples in times.items()},
            "ratio_diffusers_over_ours": ratio(times, "diffusers", "ours"),
            "max_abs_difference": difference,
        }


@torch.no_grad()
def measure_on_card(version: str, shape: dict[str, int], repeats: int) -> Iterator[dict[str, Any]]:
    """Decode and encode a clip at the published size on a card, both libraries with the same weights."""
    generator = torch.Generator("cuda").manual_seed(0)
    vaes, weights = {}, None
    for name in ("diffusers", "diffusers, channels last", "ours", "ours, compiled"):
        cls = AutoencoderKLLTX2Video if name.startswith("ours") else diffusers.AutoencoderKLLTX2Video
        vae = _published(cls, version)
        if weights is None:
            drawn = {key: torch.empty_like(value, device="cuda") for key, value in vae.state_dict().items()}
            weights = {key: value.normal_(0, 0.02, generator=generator) for key, value in drawn.items()}
        vae.load_state_dict(weights, assign=True)
        vaes[name] = vae
    vaes["diffusers, channels last"].to(memory_format=torch.channels_last_3d)
    compile_model(vaes["ours, compiled"])
    for name in ("ours", "ours, compiled"):
        vaes[name].disable_streaming()
    latents = torch.randn(_latents_of(shape).shape, device="cuda", generator=generator).bfloat16()
    size = shape["frames"], shape["height"], shape["width"]
    video = torch.rand(1, 3, *size, device="cuda", generator=generator).bfloat16() * 2 - 1
    runs = {name: runs_of(vae, latents, video) for name, vae in vaes.items()}
    streamed = copy.copy(vaes["ours"])
    streamed.enable_streaming()
    runs["ours, streamed"] = {"decode": lambda: streamed.decode(latents).sample}
    for what in ("decode", "encode"):
        chosen = {name: one[what] for name, one in runs.items() if what in one}
        expected = chosen["diffusers"]()
        differences = {name: float((run() - expected).abs().max()) for name, run in chosen.items()}
        del expected
        times = interleaved(chosen, repeats)
        for name, run in chosen.items():
            yield {
                "what": what,
                "by": name,
                "structure": version,
                "clip": " x ".join(map(str, size)),
                "seconds": statistics.median(times[name]),
                "over diffusers": ratio(times, "diffusers", name)["median"],
                "over channels last": ratio(times, "diffusers, channels last", name)["median"],
                "GiB": _allocated(run),
                "largest difference": f"{differences[name]:.1e}",
            }


def _allocated(run: Callable[[], Any]) -> float:
    """Most bytes on the card that `run` takes beside what was there, in GiB."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return (torch.cuda.max_memory_allocated() - before) / GIBIBYTE


@torch.no_grad()
def measure_streaming(version: str, frames: int, repeats: int) -> dict[str, Any]:
    """Decode a clip whole and in chunks, and take the time until the first frames are there."""
    torch.manual_seed(0)
    vae = AutoencoderKLLTX2Video(**reduced(CONFIGS[version])).eval()
    latents = torch.randn(
        1,
        vae.config.latent_channels,
        (frames - 1) // 8 + 1,
        STREAMED_SHAPE["height"] // 32,
        STREAMED_SHAPE["width"] // 32,
    )

    def decoded(streamed: bool) -> torch.Tensor:
        vae.use_streaming = streamed
        return vae.decode(latents).sample

    runs = {"whole": lambda: decoded(False), "streamed": lambda: decoded(True)}
    whole, streamed = (run() for run in runs.values())
    first = []
    for _ in range(repeats):
        start = time.perf_counter()
        chunks = vae.decode_streamed(latents)
        next(chunks)
        shown = time.perf_counter()
        for _ in chunks:
            pass
        first.append((shown - start) / (time.perf_counter() - start))
    times = interleaved(runs, repeats)
    return {
        "structure": f"{version}, decoder at a quarter of the width",
        "frames": frames,
        **STREAMED_SHAPE,
        "median_s": {name: statistics.median(samples) for name, samples in times.items()},
        "ratio_streamed_over_whole": ratio(times, "streamed", "whole"),
        "first_frame_over_decode": statistics.median(first),
        "max_abs_difference": (streamed - whole).abs().max().item(),
        "rms_difference": (streamed - whole).square().mean().sqrt().item(),
    }


def _published(cls: type, version: str) -> Any:
    with torch.device("meta"):
        return cls(**CONFIGS[version]).to(torch.bfloat16).eval()


def _latents_of(shape: dict[str, int]) -> torch.Tensor:
    sides = (shape["frames"] - 1) // 8 + 1, shape["height"] // 32, shape["width"] // 32
    return torch.empty(1, 128, *sides, dtype=torch.bfloat16, device="meta")


@torch.no_grad()
def measure_memory(version: str, shape: dict[str, int]) -> dict[str, Any]:
    """Count the activations and the video of the published model in bfloat16, without computing anything."""
    latents, size = _latents_of(shape), (shape["frames"], shape["height"], shape["width"])
    video = torch.empty(1, 3, *size, dtype=torch.bfloat16, device="meta")
    ours, theirs = (_published(cls, version) for cls in (AutoencoderKLLTX2Video, diffusers.AutoencoderKLLTX2Video))
    peak = {"diffusers": peak_bytes(lambda: theirs.decode(latents).sample) / GIBIBYTE}
    for name, streamed in (("ours", False), ("ours, streamed", True)):
        ours.use_streaming = streamed
        peak[name] = peak_bytes(lambda: ours.decode(latents).sample) / GIBIBYTE
    both = {"diffusers": theirs, "ours": ours}
    encoding = {name: peak_bytes(lambda vae=vae: vae.encode(video).latent_dist.mode()) for name, vae in both.items()}
    return {
        "structure": version,
        **shape,
        "dtype": "bfloat16",
        "peak_activations_gib": peak,
        "ratio_of_encoding_ours_over_diffusers": encoding["ours"] / encoding["diffusers"],
        "ratio_diffusers_over_ours": peak["diffusers"] / peak["ours"],
        "ratio_ours_over_diffusers": peak["ours"] / peak["diffusers"],
        "ratio_streamed_over_diffusers": peak["ours, streamed"] / peak["diffusers"],
    }


@torch.no_grad()
def measure_stream(version: str, shape: dict[str, int]) -> dict[str, Any]:
    """Count memory without the video, and operations before the first frames, of a clip that is read chunk by chunk."""
    vae, latents = _published(AutoencoderKLLTX2Video, version), _latents_of(shape)

    def read() -> None:
        for chunk in vae.decode_streamed(latents):
            del chunk

    with FlopCounterMode(display=False) as counter:
        chunks = vae.decode_streamed(latents)
        next(chunks)
        first = counter.get_total_flops()
        for _ in chunks:
            pass
    operations = counter.get_total_flops()
    return {
        "structure": version,
        **shape,
        "dtype": "bfloat16",
        "peak_activations_gib": peak_bytes(read) / GIBIBYTE,
        "operations_before_first_frame": first / operations,
    }


def on_card(is_quick: bool) -> int:
    """Time the published sizes on a card, print and write; exit status 1 if a bound is missed."""
    rows = []
    for version in CONFIGS:
        for shape in MEMORY_SHAPES[: 1 if is_quick else 2]:
            with fusion("auto"):
                rows += measure_on_card(version, shape, 3 if is_quick else 7)
            # After every case, since a limit may end it.
            path = write_results("vae_cuda", {"cases": rows})
            torch.cuda.empty_cache()
    print_table(rows)
    print("written to", path)
    best = {}
    for row in rows:
        if row["what"] == "decode" and row["by"].startswith("ours"):
            key = f"{row['structure']}, {row['clip']}"
            best[key] = max(best.get(key, 0.0), row["over diffusers"])
    low = [f"decode, {key}: {value:.2f}, bound {CARD_BOUND}" for key, value in best.items() if value < CARD_BOUND]
    print("\n".join(low))
    return int(bool(low) and not is_quick)


def main() -> int:
    """Measure all cases, print a line for each and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few repeats, on a card of the smaller clip only")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default cpu")
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        return on_card(arguments.quick)
    repeats = 2 if arguments.quick else 15
    times = [case for version in CONFIGS for side in (64, 128) for case in measure_time(version, side, repeats)]
    frames, runs = (25, 2) if arguments.quick else (121, 5)
    streaming = [measure_streaming(version, frames, runs) for version in CONFIGS]
    memory = [measure_memory(version, shape) for version in CONFIGS for shape in MEMORY_SHAPES]
    shapes = MEMORY_SHAPES if arguments.quick else (*MEMORY_SHAPES, LONG_SHAPE)
    streams = [measure_stream(version, shape) for version in CONFIGS for shape in shapes]
    print_table(
        [
            {
                "what": case["what"],
                "structure": case["structure"],
                "pixels": case["width"],
                "ours, s": case["median_s"]["ours"],
                "diffusers, s": case["median_s"]["diffusers"],
                "ratio (paired)": case["ratio_diffusers_over_ours"]["paired"],
                "max difference": f"{case['max_abs_difference']:.1e}",
            }
            for case in times
        ]
    )
    print_table(
        [
            {
                "streamed": case["structure"],
                "clip": f"{case['frames']} x {case['height']} x {case['width']}",
                "whole, s": case["median_s"]["whole"],
                "streamed, s": case["median_s"]["streamed"],
                "ratio (paired)": case["ratio_streamed_over_whole"]["paired"],
                "first frame": case["first_frame_over_decode"],
                "rms difference": f"{case['rms_difference']:.1e}",
            }
            for case in streaming
        ]
    )
    print_table(
        [
            {
                "activations": case["structure"],
                "clip": f"{case['frames']} x {case['height']} x {case['width']}",
                **{f"{name}, GiB": value for name, value in case["peak_activations_gib"].items()},
                "streamed over diffusers": case["ratio_streamed_over_diffusers"],
                "encoding, ours over diffusers": case["ratio_of_encoding_ours_over_diffusers"],
            }
            for case in memory
        ]
    )
    print_table(
        [
            {
                "read chunk by chunk": case["structure"],
                "clip": f"{case['frames']} x {case['height']} x {case['width']}",
                "GiB": case["peak_activations_gib"],
                "operations before the first frame": case["operations_before_first_frame"],
            }
            for case in streams
        ]
    )
    name = "vae_quick" if arguments.quick else "vae"
    print(write_results(name, {"time": times, "streaming": streaming, "memory": memory, "streams": streams}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
