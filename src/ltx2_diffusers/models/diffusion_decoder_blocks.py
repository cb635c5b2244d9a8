"""The layers of the diffusion video decoder, on videos whose channels come last.

Where nothing is recorded for gradients, blocks write into their input, a few frames or positions at a time: beside it only
what these need is held.

Shapes: B batch, T, H, W positions in time, height and width, C width.
"""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import nn

from ..kernels.steps import Norm
from .neighbourhood_attention import NeighbourhoodAttention, attend_in_place, frame_slabs
from .video_vae_blocks import depth_to_space
from .video_vae_streaming import joined_frames, may_overwrite

NORM_EPS = 1e-6
MLP_TOKENS = 16384
"""Positions that an MLP works on at a time, since its inner width is four times that of the block."""
NUM_MODULATIONS = 7

Frames = Callable[[int, int], torch.Tensor]
"""Some frames of a video that is never whole: from a first frame to before a last one, `[B, t, H, W, C]`."""


class SwiGLU(nn.Module):
    """A gated MLP without biases, about four times as wide inside: `w_down(silu(w_gate(x)) * w_up(x))`.

    Args:
        dim (`int`): Width C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = (4 * dim + 15) // 16 * 16
        self.w_up, self.w_gate = (nn.Linear(dim, hidden, bias=False) for _ in range(2))
        self.w_down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., C]` to `[..., C]`."""
        return self.w_down(nn.functional.silu(self.w_gate(x)) * self.w_up(x))


class NeighbourhoodBlock(nn.Module):
    """Neighbourhood attention and an MLP, each behind a norm and added to what comes in.

    Args:
        dim (`int`): Width C.
        head_dim (`int`): Width of a head.
        kernel (`Sequence[int]`): Positions that a query sees along time, height and width.
    """

    def __init__(self, dim: int, head_dim: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.RMSNorm(dim, eps=NORM_EPS) for _ in range(2))
        self.attn = NeighbourhoodAttention(dim, head_dim, kernel)
        self.mlp = SwiGLU(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, T, H, W, C]` to `[B, T, H, W, C]`, in the same memory where nothing is recorded."""
        return self._added(x, self.norm1, self.norm2)

    def _added(self, x: torch.Tensor, norm1: Norm, norm2: Norm, context: Frames | None = None) -> torch.Tensor:
        # A processor of somebody else's takes a whole clip.
        in_parts = may_overwrite() and x.is_contiguous() and hasattr(self.attn.processor, "attend")
        if not in_parts:
            x = x if context is None else x + context(0, x.shape[1])
            x = x + self.attn(norm1(x))
            return x + self.mlp(norm2(x))
        attend_in_place(x, self.attn, norm1, context)
        for part in x.flatten(0, 3).split(MLP_TOKENS):
            part += self.mlp(norm2(part))
        return x


class DiffusionBlock(NeighbourhoodBlock):
    """The same, after a projected context, and with norms that are modulated by the noise level.

    Args:
        dim, head_dim, kernel: As in [`NeighbourhoodBlock`].
    """

    def __init__(self, dim: int, head_dim: int, kernel: Sequence[int]) -> None:
        super().__init__(dim, head_dim, kernel)
        self.context_proj = nn.Linear(dim, dim)
        self.scale_shift_table = nn.Parameter(torch.zeros(NUM_MODULATIONS, dim))

    def forward(self, x: torch.Tensor, context: Frames, modulation: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """`[B, T, H, W, C]` to `[B, T, H, W, C]`.

        Args:
            x (`torch.Tensor`): The noisy video.
            context (`Frames`): What it is made after, `[B, t, H, W, C]`.
            modulation (`torch.Tensor`): `[7, C]`, what all blocks share. The gates among them, 2, 5 and 6, are part of the
                weights.
        """
        scale1, shift1, _, scale2, shift2, *_ = (modulation + self.scale_shift_table).unbind()

        def norm1(part: torch.Tensor) -> torch.Tensor:
            return torch.addcmul(shift1, self.norm1(part), 1 + scale1)

        def norm2(part: torch.Tensor) -> torch.Tensor:
            return torch.addcmul(shift2, self.norm2(part), 1 + scale2)

        return self._added(x, norm1, norm2, lambda first, last: self.context_proj(context(first, last)))


class ShuffleUpsampler(nn.Module):
    """Widens every position and spreads the result over finer ones.

    Args:
        dim (`int`): Width C that comes in.
        stride (`Sequence[int]`): Positions in time, height and width that one becomes.
        reduction (`int`): By how much the width is divided.
    """

    def __init__(self, dim: int, stride: Sequence[int], reduction: int) -> None:
        super().__init__()
        self.stride = tuple(stride)
        self.proj = nn.Linear(dim, prod(self.stride) * dim // reduction)

    def num_frames(self, frames: int, keep_first: bool = False) -> int:
        """Frames that so many become: the first of them stands for one, unless the video begins in the middle of a clip."""
        return frames * self.stride[0] - (0 if keep_first else self.stride[0] - 1)

    def frames(self, x: torch.Tensor, first: int, last: int, keep_first: bool = False) -> torch.Tensor:
        """Frames `first` to before `last` of the result, `[B, t, H * s_h, W * s_w, C / reduction]`.

        Args:
            x (`torch.Tensor`): `[B, T, H, W, C]`.
            first, last (`int`): Among those of [`num_frames`].
            keep_first (`bool`, defaults to `False`): See there.
        """
        ratio = self.stride[0]
        first, last = (i + (0 if keep_first else ratio - 1) for i in (first, last))
        start = first // ratio
        spread = depth_to_space(self.proj(x[:, start : -(-last // ratio)]).movedim(-1, 1), self.stride).movedim(1, -1)
        return spread[:, first - start * ratio : last - start * ratio]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The whole result, `[B, T', H * s_h, W * s_w, C / reduction]`."""
        count = self.num_frames(x.shape[1])
        slabs = frame_slabs(count, len(x) * prod((*x.shape[2:4], *self.stride[1:])))
        return joined_frames((self.frames(x, *slab) for slab in slabs), count, dim=1)
