"""Rotary position embeddings and the positions they are computed from.

Shapes: B batch, n position axes (3 for video: seconds, pixel rows, pixel columns; 1 for audio and for text), T tokens,
D width of all heads together, H heads, F frequencies per axis, r = D / (2 H).

Positions are the bounds [start, end) of every token. Video times and audio times are both in seconds, so that one
table of the time axis serves the attention between the streams.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..kernels.steps import RotaryTables
from .tensor_memo import TensorMemo, host_can_read

ROPE_TYPES = ("split", "interleaved")


def prepare_video_coords(
    batch_size: int,
    num_frames: int,
    height: int,
    width: int,
    *,
    device: torch.device | str | None = None,
    fps: float = 24.0,
    patch_size: int = 1,
    patch_size_t: int = 1,
    scale_factors: Sequence[int] = (8, 32, 32),
    causal_offset: int = 1,
) -> torch.Tensor:
    """Bounds of every video token of a latent grid, in seconds and pixels.

    Args:
        batch_size (`int`): Number of equal rows B.
        num_frames, height, width (`int`): Latent frames, rows and columns.
        device (`torch.device`, *optional*): Where the result lies.
        fps (`float`, defaults to 24.0): Frames per second of the pixels.
        patch_size, patch_size_t (`int`, defaults to 1): Latent rows and columns, latent frames per token.
        scale_factors (`Sequence[int]`, defaults to (8, 32, 32)): Pixel frames, rows and columns per latent one.
        causal_offset (`int`, defaults to 1): Pixel frames that the first latent frame stands for.

    Returns:
        `torch.Tensor`: `[B, 3, T, 2]` float32; tokens run through columns fastest and frames slowest.
    """
    steps = (patch_size_t, patch_size, patch_size)
    axes = [
        torch.arange(0, size, step, dtype=torch.float32, device=device)
        for size, step in zip((num_frames, height, width), steps)
    ]
    grids = torch.meshgrid(*axes, indexing="ij")
    # Numbers, not tensors of them: those would have to come from the CPU, which the recording of a graph on a GPU forbids.
    frames, rows, columns = (
        torch.stack([starts, starts + step], dim=-1).flatten(0, 2) * factor
        for starts, step, factor in zip(grids, steps, scale_factors)
    )
    # A latent frame covers `scale_factors[0]` pixel frames, the first one only `causal_offset` of them.
    seconds = (frames + causal_offset - scale_factors[0]).clamp(min=0) / fps
    return torch.stack([seconds, rows, columns]).repeat(batch_size, 1, 1, 1)


def prepare_audio_coords(
    batch_size: int,
    num_frames: int,
    device: torch.device | str | None = None,
    shift: int = 0,
    *,
    patch_size_t: int = 1,
    scale_factor: int = 4,
    causal_offset: int = 1,
    hop_length: int = 160,
    sampling_rate: int = 16000,
) -> torch.Tensor:
    """Bounds of every audio token, in seconds.

    Args:
        batch_size (`int`): Number of equal rows B.
        num_frames (`int`): Audio latent frames.
        device (`torch.device`, *optional*): Where the result lies.
        shift (`int`, defaults to 0): Latent frames to skip at the beginning of the grid.
        patch_size_t (`int`, defaults to 1): Latent frames per token.
        scale_factor (`int`, defaults to 4): Mel frames per latent frame.
        causal_offset (`int`, defaults to 1): Mel frames that the first latent frame stands for.
        hop_length (`int`, defaults to 160): Samples per mel frame.
        sampling_rate (`int`, defaults to 16000): Samples per second.

    Returns:
        `torch.Tensor`: `[B, 1, T, 2]` float32.
    """
    starts = torch.arange(shift, num_frames + shift, patch_size_t, dtype=torch.float32, device=device)
    mel_frames = torch.stack([starts, starts + patch_size_t], dim=-1) * scale_factor
    mel_frames = (mel_frames + causal_offset - scale_factor).clamp(min=0)
    # Multiply before dividing: the other order rounds differently, and large frequencies make that visible.
    return (mel_frames * hop_length / sampling_rate).repeat(batch_size, 1, 1, 1)


def rotary_frequencies(count: int, theta: float = 10000.0, double_precision: bool = True) -> torch.Tensor:
    """Frequencies `theta^(j / (count - 1)) * pi / 2` for j = 0 ... count - 1, `[count]` float32 on the CPU.

    `double_precision` builds the grid in float64 before it is rounded; not every device has float64, so it is built
    on the CPU.
    """
    dtype = torch.float64 if double_precision else torch.float32
    exponents = torch.linspace(0.0, 1.0, count, dtype=dtype, device="cpu")
    return (torch.pow(theta, exponents) * torch.pi / 2.0).to(torch.float32)


_FREQUENCIES: dict[tuple[int, float, bool, torch.device], torch.Tensor] = {}


def _frequencies(count: int, theta: float, double_precision: bool, device: torch.device) -> torch.Tensor:
    """[`rotary_frequencies`] on a device, where they stay: a copy from the CPU would wait, and cannot be in a CUDA graph."""
    if torch.compiler.is_compiling() or device.type == "cpu":
        return rotary_frequencies(count, theta, double_precision).to(device)
    key = count, theta, double_precision, device
    if key not in _FREQUENCIES:
        _FREQUENCIES[key] = rotary_frequencies(count, theta, double_precision).to(device)
    return _FREQUENCIES[key]


def rotary_tables(
    fractions: torch.Tensor,
    dim: int,
    num_heads: int,
    rope_type: str = "split",
    theta: float = 10000.0,
    double_precision: bool = True,
) -> RotaryTables:
    """Cosine and sine tables for positions given as fractions of their axis.

    Args:
        fractions (`torch.Tensor`): `[B, T, n]` float32; 0 to 1 spans the axis, values outside are legal.
        dim (`int`): Width D of queries and keys.
        num_heads (`int`): Number of heads H; used by `"split"` only.
        rope_type (`str`, defaults to `"split"`): `"split"` rotates the two halves of every head against each other,
            `"interleaved"` rotates neighbouring entries.
        theta (`float`, defaults to 10000.0): Ratio of the highest to the lowest frequency.
        double_precision (`bool`, defaults to `True`): See [`rotary_frequencies`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Cosine and sine, float32: `[B, H, T, r]` for `"split"`, a view of
        memory laid out `[B, T, H, r]`; `[B, T, D]` for `"interleaved"`.
    """
    num_axes = fractions.shape[-1]
    frequencies = _frequencies(dim // (2 * num_axes), theta, double_precision, fractions.device)
    # The largest angles exceed 1e4, where float32 is coarse: trained models saw exactly this order of operations.
    angles = ((fractions * 2 - 1).unsqueeze(-2) * frequencies[:, None]).flatten(2)
    # Entries that no axis uses lie first and are not rotated.
    padding = dim // 2 - angles.shape[-1]
    cos = nn.functional.pad(angles.cos(), (padding, 0), value=1.0)
    sin = nn.functional.pad(angles.sin(), (padding, 0), value=0.0)
    if rope_type == "interleaved":
        return cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)
    return tuple(table.unflatten(-1, (num_heads, -1)).transpose(1, 2) for table in (cos, sin))


@dataclass(frozen=True)
class RotarySpec:
    """What a rotary table depends on beside the positions.

    Args:
        dim (`int`): Width D of queries and keys.
        num_heads (`int`): Number of heads H.
        max_positions (`tuple[float, ...]`): Length of every axis used, in the unit of the coordinates; further axes
            of the coordinates are ignored.
        rope_type (`str`, defaults to `"split"`): `"split"` or `"interleaved"`.
        theta (`float`, defaults to 10000.0): Ratio of the highest to the lowest frequency.
        double_precision (`bool`, defaults to `True`): Whether frequencies are computed in float64.
    """

    dim: int
    num_heads: int
    max_positions: tuple[float, ...]
    rope_type: str = "split"
    theta: float = 10000.0
    double_precision: bool = True

    def __post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise ValueError(f"rope_type must be one of {ROPE_TYPES}, got {self.rope_type!r}.")
        if self.rope_type == "split" and self.dim % (2 * self.num_heads):
            raise ValueError(
                f"Split rotary embeddings need a width divisible by twice the number of heads; "
                f"got width {self.dim} and {self.num_heads} heads."
            )


class RotaryPositionEmbedding(nn.Module):
    """Turns token bounds into rotary tables, once for as long as the bounds do not change.

    Args:
        spec ([`RotarySpec`]): Widths, axes and frequencies of the tables.
    """

    def __init__(self, spec: RotarySpec) -> None:
        super().__init__()
        self.spec = spec
        self._memo = TensorMemo()

    def forward(self, coords: torch.Tensor, device: torch.device | str | None = None) -> RotaryTables:
        """Rotary tables of tokens.

        Args:
            coords (`torch.Tensor`): `[B, n, T, 2]` bounds, or `[B, n, T]` positions, float32.
            device (`torch.device`, *optional*, defaults to that of `coords`): Where the tables lie.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: Cosine and sine as [`rotary_tables`] lays them out. Rows that are
            equal share their memory, so the tables are to be read only.
        """
        device = torch.device(device) if device is not None else coords.device
        return self._memo.get(coords, (self.spec, device), lambda: self._tables(coords, device))

    def _tables(self, coords: torch.Tensor, device: torch.device) -> RotaryTables:
        spec = self.spec
        # Comparing rows waits for the device, which is worth it only where the answer is remembered.
        compares = coords.shape[0] > 1 and TensorMemo.can_remember(coords) and host_can_read(coords)
        if compares and bool((coords == coords[:1]).all()):
            cos, sin = self._tables(coords[:1], device)
            shape = (coords.shape[0], *cos.shape[1:])
            return cos.expand(shape), sin.expand(shape)
        used = coords[:, : len(spec.max_positions)]
        middles = (used[..., 0] + used[..., 1]) / 2.0 if used.ndim == 4 else used
        fractions = torch.stack([middles[:, i] / length for i, length in enumerate(spec.max_positions)], dim=-1)
        return rotary_tables(
            fractions.to(device), spec.dim, spec.num_heads, spec.rope_type, spec.theta, spec.double_precision
        )

    def extra_repr(self) -> str:
        return str(self.spec)


class VideoRotaryPositionEmbedding(RotaryPositionEmbedding):
    """Rotary tables of the video stream, and the positions of its latent grids.

    Args:
        spec ([`RotarySpec`]): Widths, axes and frequencies of the tables.
        grid: Constants of the grid, the keyword arguments of [`prepare_video_coords`].
    """

    def __init__(self, spec: RotarySpec, **grid: Any) -> None:
        super().__init__(spec)
        self.grid = grid

    def prepare_video_coords(
        self,
        batch_size: int,
        num_frames: int,
        height: int,
        width: int,
        device: torch.device | str | None = None,
        fps: float = 24.0,
    ) -> torch.Tensor:
        """[`prepare_video_coords`] with the grid constants of this model, `[B, 3, T, 2]`."""
        return prepare_video_coords(batch_size, num_frames, height, width, device=device, fps=fps, **self.grid)


class AudioRotaryPositionEmbedding(RotaryPositionEmbedding):
    """Rotary tables of the audio stream, and the positions of its latent frames.

    Args:
        spec ([`RotarySpec`]): Widths, axes and frequencies of the tables.
        grid: Constants of the grid, the keyword arguments of [`prepare_audio_coords`].
    """

    def __init__(self, spec: RotarySpec, **grid: Any) -> None:
        super().__init__(spec)
        self.grid = grid

    def prepare_audio_coords(
        self, batch_size: int, num_frames: int, device: torch.device | str | None = None, shift: int = 0
    ) -> torch.Tensor:
        """[`prepare_audio_coords`] with the constants of this model, `[B, 1, T, 2]`."""
        return prepare_audio_coords(batch_size, num_frames, device, shift, **self.grid)
