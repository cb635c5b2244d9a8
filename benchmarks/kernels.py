"""How near a device comes to what it can do: fused steps against a copy, a forward pass against its own matrix products.

Run `python -m benchmarks.kernels [--device cuda]`. A fused step that reads and writes so many bytes cannot be faster than a
copy that does; a forward pass cannot be faster than its matrix products and its attention, run alone one after another. Both
are measured in the same process, so that the device itself drops out. Sizes are those of the published model on a card, 6144
video tokens and 8 of 48 blocks; on a processor they are small, steps run as they are written, and nothing is held to a bound.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.common import interleaved, print_table, write_results
from benchmarks.contenders import OURS, contenders
from benchmarks.counts import num_bytes
from benchmarks.step import WIDE
from benchmarks.transformer_forward import CONFIG, make_inputs, with_coords
from ltx2_diffusers import fusion
from ltx2_diffusers.kernels import steps

# Least share of the bandwidth of a copy, and most time over that of products and attention alone.
BANDWIDTH_BOUND, FORWARD_BOUND = 0.8, 1.15


# That PyTorch does not count operations of, on some devices.
_MORE_PRODUCTS = ("_addmm_activation", "_scaled_dot_product")


class Sizes(NamedTuple):
    """What is measured: tokens, width and heads, shape of a video inside the VAE, config of the transformer."""

    tokens: int
    width: int
    heads: int
    video: tuple[int, ...]
    config: dict[str, Any]


SIZES = {
    "cpu": Sizes(1152, 512, 8, (1, 32, 4, 32, 32), CONFIG),
    "cuda": Sizes(6144, 4096, 32, (1, 128, 16, 128, 192), WIDE),
}


def fused_steps(sizes: Sizes, device: str, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Every fused step at the sizes of a network, with its arguments."""
    generator = torch.Generator(device).manual_seed(0)

    def noise(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    tokens, width, heads = sizes[:3]
    x, update, query, key = (noise(1, tokens, width) for _ in range(4))
    rows = [steps.ScaleShift(noise(1, 1, width), noise(1, 1, width)) for _ in range(2)]
    branch = steps.Branch(update, noise(1, 1, width))
    norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=False)
    weighted = nn.RMSNorm(width, eps=1e-6).to(device, dtype)
    # Tables are float32 whatever tokens are.
    tables = tuple(noise(1, heads, tokens, width // heads // 2, dtype=torch.float32) for _ in range(2))
    video = noise(*sizes.video).to(memory_format=torch.channels_last_3d)
    calls = {
        "modulate": (steps.modulate, x, rows[0]),
        "add, norm, modulate": (steps.add_norm_modulate, x, branch, norm, tuple(rows[:1])),
        "add, norm, modulate twice": (steps.add_norm_modulate, x, branch, norm, tuple(rows)),
        "norm, rotate, of queries and keys": (
            steps.norm_rotate,
            query,
            weighted,
            tables,
            key,
            weighted,
            tables,
            "split",
        ),
        "gates of heads": (steps.gate_heads, x, noise(1, tokens, heads)),
        "pixel norm, SiLU": (steps.pixel_norm_silu, video, None, True, False),
    }
    return {name: partial(*call) for name, call in calls.items()}


class _Products(TorchDispatchMode):
    """Keeps matrix products and attention with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.overloadpacket in flop_registry or func.overloadpacket.__name__.startswith(_MORE_PRODUCTS):
            self.found.append(partial(func, *args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def products_of(run: Callable[[], Any]) -> list[Callable[[], Any]]:
    """The matrix products and attentions of `run`, each to be run alone."""
    with fusion(False), _Products() as products:
        run()
    return products.found


def _all(functions: list[Callable[[], Any]]) -> None:
    for function in functions:
        function()


@torch.no_grad()
def main() -> int:
    """Measure, print and write; exit status 1 if a bound is missed on a card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=sorted(SIZES), help="default cpu")
    device = parser.parse_args().device
    sizes, is_card = SIZES[device], device == "cuda"
    dtype = torch.bfloat16 if is_card else torch.float32
    rows, low = [], []
    with fusion("auto"):
        for name, run in fused_steps(sizes, device, dtype).items():
            moved = num_bytes(run.args) + num_bytes(run())
            source = torch.ones(moved // 2, dtype=torch.uint8, device=device)
            times = interleaved({"step": run, "copy": partial(torch.empty_like(source).copy_, source)}, 9, 3, 10)
            seconds = {who: statistics.median(samples) for who, samples in times.items()}
            share = seconds["copy"] / seconds["step"]
            rows.append({"what": name, "GB/s": moved / seconds["step"] / 1e9, "of a copy": share})
            low += [f"{name}: {share:.2f} of a copy, bound {BANDWIDTH_BOUND}"] if share < BANDWIDTH_BOUND else []
        (model,) = contenders(sizes.config, device, (OURS,)).values()
        inputs = with_coords(model, make_inputs(model, sizes.tokens, False, 1024))
        forward = partial(model, **inputs)
        products = products_of(forward)
        times = interleaved({"forward": forward, "products": partial(_all, products)}, 9, 2)
        over = statistics.median(times["forward"]) / statistics.median(times["products"])
    low += [f"forward: {over:.2f} of its products, bound {FORWARD_BOUND}"] if over > FORWARD_BOUND else []
    print_table(rows)
    print(f"a forward pass takes {over:.3f} of the time of its {len(products)} products and attentions")
    name = "kernels_cuda" if is_card else "kernels"
    print("written to", write_results(name, {"steps": rows, "forward over products": over}))
    print("\n".join(low))
    return int(bool(low) and is_card)


if __name__ == "__main__":
    sys.exit(main())
