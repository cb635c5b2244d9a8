"""What a forward pass and a guided step do between matrix products: kernels and bytes, diffusers against ours.

Run `python -m benchmarks.counts [--quick]`. Both libraries run on the meta device at the sizes of the published models, 6144
video tokens (121 frames of 512 x 768), 126 of audio and 1024 of text in bfloat16; no clock is read, so the numbers are the
same anywhere. Counted is what a CUDA device would be given: every operation of PyTorch is a kernel that reads its inputs and
writes its results once, `torch.nn.functional.rms_norm` and attention are one kernel each, views are none. A function that
runs fused counts as the kernels that PyTorch's compiler makes of it. Matrix products, convolutions and attention are left
out: both libraries have the same ones.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import LTX2VideoTransformer3DModel
from diffusers.utils import logging
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from benchmarks import transformer_forward
from benchmarks.common import print_table, write_results
from benchmarks.step import SIGMA, step_of_diffusers
from ltx2_diffusers.kernels import steps
from ltx2_diffusers.kernels.fusing import fusion
from ltx2_diffusers.models.video_vae_blocks import has_channels_last
from ltx2_diffusers.pipelines.planned import clip_sizes, clip_wish
from ltx2_diffusers.planning.counting import FusedAttention, LiveTensors
from ltx2_diffusers.planning.parts import ModelParts, parts_of
from ltx2_diffusers.planning.stages import Denoising, denoiser_of, initial_states

MODELS = {"19B": "ltx-2-19b", "22B": "ltx-2.3-22b"}
SIZE = (512, 768, 121)
VIDEO_TOKENS, TEXT_TOKENS = 6144, 1024
# Most that ours may do, fused, of what diffusers does.
KERNELS_BOUND, BYTES_BOUND = 0.35, 0.45
# Memory without values, and a view that PyTorch does not call one.
_ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view")
# What reads as much of its first argument as it returns.
_LOOK_UPS = ("embedding", "index", "index_select", "gather")


class Count(NamedTuple):
    """What was counted.

    Args:
        kernels: Kernels beside products and attention.
        bytes: Bytes that they read and write.
        products: Matrix products and convolutions.
    """

    kernels: int
    bytes: int
    products: int


class _Operations(TorchDispatchMode):
    """Adds up kernels and their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.bytes = self.products = 0
        self.is_inside = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if self.is_inside or func.is_view or name in _ALLOCATIONS or name == "_local_scalar_dense":
            return result
        if func.overloadpacket in flop_registry or name == "_addmm_activation":
            self.products += 1
        else:
            reads = (args[1:] if name == "copy_" else args, kwargs)
            limit = num_bytes(result) if name in _LOOK_UPS else None
            self.add(1, num_bytes(reads, limit) + num_bytes(result))
        return result

    def add(self, kernels: int, size: int) -> None:
        self.kernels += kernels
        self.bytes += size

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count nothing."""
        before, self.is_inside = self.is_inside, True
        try:
            yield
        finally:
            self.is_inside = before


class _Functions(TorchFunctionMode):
    """Counts functions that are one kernel on a CUDA device, though PyTorch writes them out without one."""

    def __init__(self, operations: _Operations) -> None:
        super().__init__()
        self.operations = operations

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        kernels = kernels_of(func, args)
        if kernels is None:
            return func(*args, **kwargs)
        with self.operations.inside():
            result = func(*args, **kwargs)
        if kernels:
            # What is handed on unchanged is not written.
            given = {id(tensor) for tensor in _tensors((args, kwargs))}
            written = [tensor for tensor in _tensors(result) if id(tensor) not in given]
            self.operations.add(kernels, num_bytes((args, kwargs)) + num_bytes(written))
        return result


def _of_rotations(query: torch.Tensor, _norm: Any, _tables: Any, key: torch.Tensor, *_: Any) -> int:
    return 1 if query.shape == key.shape else 2


# What PyTorch's compiler makes of fused functions on a GPU; `tests/kernels/test_generated.py` has it make them.
KERNELS: dict[Any, Callable[..., int]] = {
    steps.modulate: lambda *_: 1,
    steps.add: lambda _, branch: int(branch is not None),
    steps.add_norm_modulate: lambda *_: 1,
    steps.norm_rotate: _of_rotations,
    # The gates themselves first.
    steps.gate_heads: lambda *_: 2,
    # With channels first, the sums over them first.
    steps.pixel_norm_silu: lambda x, *_: 1 if has_channels_last(x) else 2,
}


def kernels_of(func: Any, args: tuple) -> int | None:
    """Kernels of a function that is not counted by its operations; `None` for all others."""
    if func in KERNELS:
        return KERNELS[func](*args)
    if func is torch.nn.functional.rms_norm or func is torch.rms_norm:
        weight = args[2] if len(args) > 2 else None
        return 1 if weight is None or weight.dtype == args[0].dtype else None
    return None


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested values; of norms their weights."""
    for value in tree_iter(values, is_leaf=lambda one: isinstance(one, torch.nn.Module)):
        value = value.weight if isinstance(value, torch.nn.RMSNorm) else value
        if isinstance(value, torch.Tensor):
            yield value


def num_bytes(values: Any, limit: int | None = None) -> int:
    """Bytes of all tensors in nested values, each view once, of each at most so many as a limit says."""
    seen = {}
    for tensor in _tensors(values):
        key = tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride()
        # An axis that is only broadcast is read once.
        sizes = [size for size, stride in zip(tensor.shape, tensor.stride()) if stride or not size]
        seen[key] = int(torch.Size(sizes).numel()) * tensor.element_size()
    return sum(size if limit is None else min(size, limit) for size in seen.values())


@torch.no_grad()
def count(run: Callable[[], Any]) -> Count:
    """What `run` does that calls models on the meta device; inputs may hold values on the CPU."""
    with LiveTensors(), _Operations() as operations, _Functions(operations), FusedAttention("cuda"):
        run()
    return Count(operations.kernels, operations.bytes, operations.products)


class Case(NamedTuple):
    """What is counted.

    Args:
        image: Whether the first latent frame is given, so that tokens have two noise levels.
        guided: Whether it is a step with all four terms, or one forward pass.
    """

    image: bool
    guided: bool

    def __str__(self) -> str:
        return f"{'image' if self.image else 'text'} to video, {'guided step' if self.guided else 'forward'}"


CASES = [Case(image, guided) for guided in (False, True) for image in (False, True)]


class Subjects:
    """Both libraries' transformers of a published size on the meta device.

    Args:
        parts: The published model.
        depth: Blocks.
    """

    def __init__(self, parts: ModelParts, depth: int) -> None:
        self.parts, self.depth = parts, depth
        self.ours = parts.model("transformer", depth)
        config = {k: v for k, v in self.ours.config.items() if not k.startswith("_")}
        with torch.device("meta"):
            theirs = LTX2VideoTransformer3DModel.from_config(config)
        self.theirs = torch.nn.Module.to(theirs, torch.bfloat16).eval().requires_grad_(False)

    def inputs(self, model: Any, image: bool) -> dict[str, Any]:
        """Arguments of a forward pass."""
        inputs = transformer_forward.make_inputs(model, VIDEO_TOKENS, image, TEXT_TOKENS)
        inputs |= {"sigma": inputs["audio_timestep"], "audio_sigma": inputs["audio_timestep"]}
        return transformer_forward.with_coords(model, inputs)

    def forward_of_theirs(self, case: Case) -> Callable[[], Any]:
        """Diffusers' forward pass."""
        return partial(self.theirs, **self.inputs(self.theirs, case.image))

    def step_of_theirs(self, case: Case) -> Callable[[], Any]:
        """Diffusers' guided step: a batch of two, the perturbed and the isolated pass, and its formulas."""
        return step_of_diffusers(
            self.theirs, self.inputs(self.theirs, case.image), self.parts.preset.stg_blocks(self.depth)
        )

    def forward_of_ours(self, case: Case) -> Callable[[], Any]:
        """Our forward pass, at the noise levels and under the masks that a device would read."""
        inputs = self.inputs(self.ours, case.image)
        read = ("timestep", "audio_timestep", "encoder_attention_mask", "audio_encoder_attention_mask")
        values = transformer_forward.make_inputs(self.ours, VIDEO_TOKENS, case.image, TEXT_TOKENS, "cpu")
        return partial(self.ours, **{**inputs, **{name: values[name] for name in read}})

    def step_of_ours(self, case: Case) -> Callable[[], Any]:
        """Our guided step."""
        preset = self.parts.preset
        wish = clip_wish(self.parts, SIZE, 24.0, False, (False, 0), None, None, 1, TEXT_TOKENS)
        clip, _ = clip_sizes(self.parts, wish)
        denoiser = denoiser_of(
            self.ours, clip, Denoising(preset, (preset.video, preset.audio), case.image, TEXT_TOKENS)
        )
        states = initial_states(clip, case.image, torch.device("cpu"))
        return lambda: denoiser(states, torch.tensor(SIGMA), 0)


def counted(subjects: Subjects, case: Case) -> dict[str, Count]:
    """One case by diffusers, by ours as it is written, and by ours with fused steps; all after a first call."""
    theirs = subjects.step_of_theirs(case) if case.guided else subjects.forward_of_theirs(case)
    runs = {"diffusers": (theirs, False), "ours, plain": (None, False), "ours, fused": (None, True)}
    counts = {}
    for name, (run, is_fused) in runs.items():
        with fusion(is_fused):
            if run is None:
                run = subjects.step_of_ours(case) if case.guided else subjects.forward_of_ours(case)
            with torch.no_grad(), LiveTensors(), FusedAttention("cuda"):
                # Tables of positions, and in steps keys and values of the text, are kept from then on.
                run()
            counts[name] = count(run)
    return counts


def rows(model: str, case: Case, counts: dict[str, Count]) -> Iterator[dict[str, Any]]:
    """Rows of the table."""
    theirs = counts["diffusers"]
    for name, found in counts.items():
        yield {
            "model": model,
            "case": str(case),
            "by": name,
            "kernels": found.kernels,
            "of diffusers'": found.kernels / theirs.kernels,
            "GB": found.bytes / 1e9,
            "of its GB": found.bytes / theirs.bytes,
            "products": found.products,
        }


def main() -> int:
    """Count, print and write; exit status 1 if ours, fused, does more than the bounds allow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="forward passes of three blocks")
    options = parser.parse_args()
    logging.set_verbosity_error()
    table = []
    for model, name in MODELS.items():
        parts = parts_of(name)
        subjects = Subjects(parts, 3 if options.quick else parts.depth("transformer"))
        for case in CASES:
            if not (options.quick and case.guided):
                table += rows(model, case, counted(subjects, case))
    print_table(table)
    sizes = {
        "video tokens": VIDEO_TOKENS,
        "audio tokens": transformer_forward.AUDIO_TOKENS,
        "text tokens": TEXT_TOKENS,
    }
    name = "counts_quick" if options.quick else "counts"
    print("written to", write_results(name, {"sizes": sizes, "cases": table}))
    fused = [row for row in table if row["by"] == "ours, fused"]
    return int(any(row["of diffusers'"] > KERNELS_BOUND or row["of its GB"] > BYTES_BOUND for row in fused))


if __name__ == "__main__":
    sys.exit(main())
