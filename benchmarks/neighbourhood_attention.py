"""Time of neighbourhood attention against dense attention of as many operations, and memory of the diffusion decoder.

Run `python -m benchmarks.neighbourhood_attention [--quick]`. Boxes of queries compute more scores than their windows hold;
times are given per operation that is made, and per operation that windows alone need. Memory is counted at full size, in
bfloat16, on the meta device, which allocates nothing; beside it stands that of the convolutional decoder of LTX-2.3.
"""

import argparse
import statistics
from math import isqrt, prod
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.common import interleaved, print_table, write_results
from benchmarks.vae import CONFIGS, GIBIBYTE, MEMORY_SHAPES
from ltx2_diffusers import AutoencoderKLLTX2Video, LTX2VideoDiffusionDecoderModel
from ltx2_diffusers.models.neighbourhood_attention import GATHERING, Windows, _layout, neighbourhood_attention, window
from ltx2_diffusers.planning.counting import counted
from ltx2_diffusers.planning.stages import decoding_by_diffusion, decoding_video

# Frames, rows and columns, and the kernel: of the diffusion, of the last stage before it, and of the first ones.
GRIDS = (((16, 24, 24), (11, 11, 11)), ((16, 32, 32), (3, 5, 5)), ((16, 16, 24), (3, 7, 7)))
HEADS, WIDTH = 4, 64


def attention_operations(windows: Windows, width: int) -> tuple[int, int]:
    """Additions and multiplications of one sample that [`neighbourhood_attention`] makes on a CPU, and those that windows alone need."""
    made = prod(
        sum(row.boxes * row.queries * row.keys for row in rows) for rows in _layout(windows, GATHERING["cpu"].key_cost)
    )
    needed = prod(len(axis.starts) * axis.length for axis in windows)
    return 4 * width * made, 4 * width * needed


@torch.no_grad()
def measure_time(grid: tuple[int, ...], kernel: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Seconds for a grid, and for dense attention of a square of as many scores."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, *grid, HEADS, WIDTH) for _ in range(3))
    windows = tuple(map(window, grid, kernel))
    made, needed = attention_operations(windows, HEADS * WIDTH)
    length = isqrt(made // (4 * HEADS * WIDTH))
    dense = [torch.randn(1, HEADS, length, WIDTH) for _ in range(3)]
    attend = torch.nn.functional.scaled_dot_product_attention
    runs = {
        "neighbourhood": lambda: neighbourhood_attention(query * WIDTH**-0.5, key, value, windows),
        "dense": lambda: attend(*dense),
    }
    times = {name: statistics.median(samples) for name, samples in interleaved(runs, repeats).items()}
    per_dense = times["dense"] / (4 * HEADS * WIDTH * length**2)
    return {
        "grid": grid,
        "kernel": kernel,
        "median_s": times,
        "operations_made_over_needed": made / needed,
        "time_per_operation_made_over_dense": times["neighbourhood"] / made / per_dense,
        "time_per_operation_needed_over_dense": times["neighbourhood"] / needed / per_dense,
    }


def measure_memory(shape: dict[str, int], how: str) -> dict[str, Any]:
    """Most bytes of tensors beside the weights, of both decoders; tiles are those of `enable_tiling()`."""
    with torch.device("meta"):
        # Blocks run one after the other in the same memory.
        diffusion = LTX2VideoDiffusionDecoderModel(decoder_stage_depths=(1, 1, 1, 1, 1))
        convolutional = AutoencoderKLLTX2Video(**CONFIGS["2.3"])
    for model in (diffusion, convolutional):
        torch.nn.Module.to(model, torch.bfloat16).eval().requires_grad_(False)
    sizes = (1, 128, (shape["frames"] - 1) // 8 + 1, shape["height"] // 32, shape["width"] // 32)
    clip: Any = SimpleNamespace(video=sizes, batch_size=1)
    run = decoding_by_diffusion({"diffusion_decoder": diffusion}, clip, how)
    others = {
        one: counted(decoding_video({"vae": convolutional}, clip, one)).peak for one in ("tiled_in_space", "tiled")
    }
    return {
        **shape,
        "how": how,
        "gib": {"diffusion": counted(run).peak / GIBIBYTE}
        | {f"convolutional, {name}": peak / GIBIBYTE for name, peak in others.items()},
    }


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="time of one grid, and no memory")
    quick = parser.parse_args().quick
    times = [measure_time(*one, repeats=3 if quick else 7) for one in (GRIDS[:1] if quick else GRIDS)]
    shown = ("grid", "kernel", "operations_made_over_needed")
    print_table(
        [{name: value for name, value in one.items() if name in shown or "per_operation" in name} for one in times]
    )
    memory = [] if quick else [measure_memory(shape, how) for shape in MEMORY_SHAPES for how in ("whole", "tiled")]
    for one in memory:
        print(one)
    write_results("neighbourhood_attention", {"time": times, "memory": memory})


if __name__ == "__main__":
    main()
