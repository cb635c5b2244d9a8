"""Times and memory of decoding one clip with our video VAE and with diffusers', same weights, interleaved.

Run `python -m benchmarks.vae_decode [--quick]`. Times are taken at a quarter of the published widths, so that a CPU
can do it; memory is counted at full size on the meta device, which allocates nothing.
"""

import argparse
import statistics
import weakref
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.common import interleaved, print_table, ratio, write_results
from ltx2_diffusers.models.video_vae import AutoencoderKLLTX2Video

NUM_FRAMES = 9
GIBIBYTE = 2**30

MEMORY_SHAPE = {"frames": 121, "height": 512, "width": 768}

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


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors created while it is on and still referenced after each operation.

    What a convolution allocates for itself is left out, since it depends on the backend and its size limits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                # Weights and inputs were there before.
                self._seen.add(tensor.untyped_storage()._cdata)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


def peak_bytes(run: Callable[[], Any]) -> int:
    """Highest number of tensor bytes alive between the operations of `run`, without weights and inputs."""
    with LiveTensors() as counter:
        run()
    return counter.peak


@torch.no_grad()
def measure_time(version: str, side: int, repeats: int) -> dict[str, Any]:
    """Decode `NUM_FRAMES` frames of `side` x `side` pixels with both classes at reduced width."""
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLLTX2Video(**reduced(CONFIGS[version])).eval()
    ours = AutoencoderKLLTX2Video(**reduced(CONFIGS[version])).eval()
    ours.load_state_dict(theirs.state_dict())
    latents = torch.randn(1, ours.config.latent_channels, (NUM_FRAMES - 1) // 8 + 1, side // 32, side // 32)
    runs = {"ours": lambda: ours.decode(latents).sample, "diffusers": lambda: theirs.decode(latents).sample}
    difference = (runs["ours"]() - runs["diffusers"]()).abs().max().item()
    times = interleaved(runs, repeats)
    return {
        "structure": f"{version}, decoder at a quarter of the width",
        "frames": NUM_FRAMES,
        "height": side,
        "width": side,
        "median_s": {name: statistics.median(samples) for name, samples in times.items()},
        "ratio_diffusers_over_ours": ratio(times, "diffusers", "ours"),
        "max_abs_difference": difference,
    }


@torch.no_grad()
def measure_memory(version: str) -> dict[str, Any]:
    """Count the activations of the published model at `MEMORY_SHAPE` in bfloat16, without computing anything."""
    shape = 1, 128, (MEMORY_SHAPE["frames"] - 1) // 8 + 1, MEMORY_SHAPE["height"] // 32, MEMORY_SHAPE["width"] // 32
    latents = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    peak = {}
    for name, cls in {"ours": AutoencoderKLLTX2Video, "diffusers": diffusers.AutoencoderKLLTX2Video}.items():
        with torch.device("meta"):
            vae = cls(**CONFIGS[version]).to(torch.bfloat16).eval()
        peak[name] = peak_bytes(lambda vae=vae: vae.decode(latents).sample) / GIBIBYTE
    return {
        "structure": version,
        **MEMORY_SHAPE,
        "dtype": "bfloat16",
        "peak_activations_gib": peak,
        "ratio_diffusers_over_ours": peak["diffusers"] / peak["ours"],
    }


def main() -> None:
    """Measure all cases, print a line for each and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64 pixels and few repeats only")
    arguments = parser.parse_args()
    sides, repeats = ((64,), 5) if arguments.quick else ((64, 128), 15)
    times = [measure_time(version, side, repeats) for version in CONFIGS for side in sides]
    memory = [measure_memory(version) for version in CONFIGS]
    print_table(
        [
            {
                "decode": case["structure"],
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
                "activations": case["structure"],
                "ours, GiB": case["peak_activations_gib"]["ours"],
                "diffusers, GiB": case["peak_activations_gib"]["diffusers"],
                "ratio": case["ratio_diffusers_over_ours"],
            }
            for case in memory
        ]
    )
    name = "vae_decode_quick" if arguments.quick else "vae_decode"
    print(write_results(name, {"time": times, "memory": memory}))


if __name__ == "__main__":
    main()
