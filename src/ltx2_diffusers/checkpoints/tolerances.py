"""How far computed numbers may lie from the expected ones, and why: one table for the tests and for `ltx2 doctor`.

The values are those that stand beside the golden vectors, stated before anybody knew what a certain machine computes;
where none stands there, or it supposes equal angles, the row derives its own. A processor's maths library adds the
same products in another order and rounds `exp` to the other neighbour, which moves results by a few units in the last
place; the table leaves room for that and for nothing else. A relative error of 1e-3 exceeds every row, except where
values of 16 bits hide it; tests plant such errors to prove it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """A row: `|actual - expected| <= absolute + relative * |expected| + of_peak * max |expected|` in every element.

    Args:
        why: Where the numbers come from.
        absolute: What is allowed in any element, in units of the values.
        relative: What is allowed on top, as a share of the element's expected value.
        of_peak: What is allowed on top, as a share of the largest expected value.
    """

    why: str
    absolute: float = 0.0
    relative: float = 0.0
    of_peak: float = 0.0

    def worst(self, actual: Tensor, expected: Tensor) -> tuple[float, float]:
        """The difference in the element where it is largest compared with what is allowed, and what is allowed there.

        A value that is not a number differs without bound.
        """
        if actual.shape != expected.shape:
            raise ValueError(f"expected a tensor of shape {list(expected.shape)}, got {list(actual.shape)}")
        actual, expected = actual.double().cpu(), expected.double().cpu()
        size = expected.abs().nan_to_num(nan=0.0, posinf=0.0)
        allowed = self.absolute + self.relative * size + self.of_peak * size.max()
        difference = torch.where(actual == expected, 0.0, (actual - expected).abs())
        difference = difference.nan_to_num(nan=torch.inf, posinf=torch.inf)
        index = (difference / allowed.clamp(min=torch.finfo(torch.float64).tiny)).argmax()
        return difference.flatten()[index].item(), allowed.flatten()[index].item()


TOLERANCES = {
    # Components against golden vectors.
    "transformer": Tolerance(
        "README of the vectors. It holds for equal angles: those of the timesteps are given, and the rotary grid is "
        "built in float64.",
        absolute=2e-5,
        relative=1e-4,
    ),
    "timestep sinusoid": Tolerance(
        "`exp` may round a frequency to either neighbour, which turns the angle at timestep 1000 by 6e-5.",
        absolute=1e-4,
    ),
    "transformer with its own angles": Tolerance(
        "The row of the transformer, and the blocks hand a change of the sinusoid on at about its size. A rotary grid "
        "built in float32 costs no more.",
        absolute=1e-4,
        relative=1e-4,
    ),
    "rotary table": Tolerance("Cosines and sines of equal angles, each rounded to 2^-24.", absolute=1e-6),
    "rotary angle of a float32 grid": Tolerance(
        "In units of the frequency: an exponent rounded to 2^-24 in a power of 10000 is off by log(10000) * 2^-24.",
        absolute=2e-6,
    ),
    "connectors": Tolerance("Promised for one model; both reference implementations agree exactly.", absolute=1e-5),
    "video VAE": Tolerance("README of the vectors.", absolute=1e-5),
    "diffusion decoder": Tolerance("README of the vectors.", absolute=5e-5, relative=1e-4),
    "neighbourhood attention": Tolerance("README of the vectors.", absolute=1e-6),
    "mel filters and resampling": Tolerance("README of the vectors.", absolute=1e-6),
    "mel energies": Tolerance(
        "Energies and not their logarithms, because the logarithm magnifies rounding by 1 / energy near its floor of "
        "1e-5. README of the vectors: 1e-6 for energies of magnitude 1. A bin well above the floor adds 1024 products "
        "in any order, 1024 * 2^-24 = 6e-5 of it; there the relative part is a tolerance of the logarithm.",
        relative=1e-4,
        of_peak=1e-6,
    ),
    "vocoder": Tolerance("README of the vectors.", absolute=1e-5),
    "vocoder with bandwidth extension": Tolerance("README of the vectors.", absolute=2e-5),
    "duration head": Tolerance("README of the vectors, for seconds of magnitude 1.", absolute=1e-6, relative=1e-6),
    "latent upsampler": Tolerance("README of the vectors.", absolute=1e-5),
    "sampling": Tolerance("README of the vectors, pure functions.", absolute=2e-6, relative=2e-6),
    "schedule of more than 8000 tokens": Tolerance("README of the vectors.", absolute=1e-5, relative=1e-5),
    "trajectory": Tolerance("README of the vectors.", absolute=3e-5, relative=3e-5),
    "exact": Tolerance("README of the vectors for sums and products of bfloat16; and the same computation twice."),
    # Components and pipelines of the miniature checkpoints against recorded outputs.
    "checkpoint": Tolerance("README of the vectors.", absolute=1e-5),
    "checkpoint, video decoder": Tolerance("README of the vectors.", absolute=1e-4),
    "checkpoint, 2.3 vocoder": Tolerance(
        "README of the vectors: its second stage magnifies rounding 500 times, and a waveform of magnitude 1 is "
        "rounded to 2^-23 at least once: 6e-5.",
        absolute=1e-4,
    ),
    "float8 products": Tolerance(
        "README of the vectors: an input near an edge of rounding may fall to the other side of it.", absolute=2e-2
    ),
    "pipeline": Tolerance("README of the checkpoints' vectors, and promised for a pipeline.", absolute=1e-4),
    "pipeline, 2.3 sound": Tolerance(
        "README of the vectors: the second stage of the vocoder magnifies 500 times what its input differs by, an error "
        "of 1e-3 before it no less than rounding.",
        absolute=1e-2,
    ),
    # Components of the packaged miniature against diffusers' numbers, on another machine.
    "miniature": Tolerance(
        "The rows of the golden vectors judge values of magnitude 1 to 10 by 1e-5 to 1e-4; trained weights give values "
        "of any size. A rotation by an angle that is off by 3e-5 at timestep 500 stays within.",
        of_peak=1e-4,
    ),
    # This package against diffusers, and one of its ways to a result against another, on the same machine.
    "equal models": Tolerance("Promised for one model: the same sums of products, in another order.", absolute=1e-5),
    "equal layers": Tolerance("As one model, over one sum.", absolute=1e-6, relative=1e-5),
    "equal pipelines": Tolerance("Promised for a pipeline: as one model, over all its steps.", absolute=1e-4),
    "fused LoRA, float32": Tolerance("As one model, and every weight is rounded once more.", absolute=2e-5),
    # 16-bit values.
    "fused LoRA": Tolerance("README of the vectors: weights are rounded to bfloat16, 2^-9 of 2.", absolute=4e-3),
    "float16": Tolerance("What rounding to 11 bits costs over a network of this depth.", of_peak=2e-2),
    "bfloat16": Tolerance("What rounding to 8 bits costs over a network of this depth.", of_peak=8e-2),
}
