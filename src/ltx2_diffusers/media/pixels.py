"""Floating-point pixels to bytes, in pieces small enough that a whole clip is never held twice.

Shapes: F frames, H and W rows and columns of pixels.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import PIL.Image
import torch

# Bytes of float32 scratch per piece. On a CPU a piece that stays in the second-level cache converts three times as fast
# as one that does not; on an accelerator a piece should be large against the cost of launching kernels.
_CPU_SCRATCH_BYTES = 2 * 2**20
_DEVICE_SCRATCH_BYTES = 256 * 2**20

Pixels = torch.Tensor | np.ndarray


def to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    """Convert pixels in [0, 1] of any layout to bytes on the tensor's device.

    The rule is `clamp(x * 255)` in float32, rounded half to even; bytes pass through unchanged.

    Args:
        pixels: Floating-point tensor in [0, 1], or a byte tensor. Values outside the range are clamped.

    Raises:
        ValueError: If the dtype is neither floating point nor uint8.
    """
    if pixels.dtype == torch.uint8:
        return pixels
    _check_float(pixels)
    return torch.as_tensor(_rounded(_floats(pixels) * 255))


def decoded_frames(video: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the bytes of a decoded clip a few frames at a time, as host tensors `[f, H, W, 3]`.

    Args:
        video: One clip as a video decoder returns it, `[3, F, H, W]`, in [-1, 1], on any device.

    Raises:
        ValueError: If the shape or the dtype is another.
    """
    return (part.cpu() for part in decoded_bytes(video))


def decoded_bytes(video: torch.Tensor) -> Iterator[torch.Tensor]:
    """The same where `video` lies: tensors `[f, H, W, 3]` on its device."""
    if video.ndim != 4 or video.shape[0] != 3:
        raise ValueError(f"video must have shape [3, F, H, W], got {list(video.shape)}; pass one item of the batch")
    _check_float(video)
    for part in video.split(_frames_per_piece(video.movedim(1, 0)), dim=1):
        # The scratch memory belongs to this function, so that the arithmetic runs in place.
        scratch = _floats(part) * 0.5
        scratch += 0.5
        scratch *= 255
        rounded = _rounded(scratch)
        if isinstance(rounded, torch.Tensor):
            yield rounded.movedim(0, -1).contiguous()
        else:
            yield torch.from_numpy(_channels_last(rounded, 0))


def byte_frames(frames: Any) -> Iterator[np.ndarray]:
    """Yield any supported form of a clip as byte arrays `[f, H, W, 3]`, a few frames at a time.

    Args:
        frames: A tensor or array `[F, 3, H, W]` or `[F, H, W, 3]`, floating point in [0, 1] or uint8; or an image; or
            an iterable of these in order of time. Three channels in the last axis are taken for `[F, H, W, 3]`.

    Raises:
        ValueError: If a shape, a dtype or a type is not among these.
    """
    if isinstance(frames, PIL.Image.Image):
        yield np.asarray(frames.convert("RGB"))[None]
    elif isinstance(frames, np.ndarray):
        # A view is enough for bytes and floats alike; only a read-only array must be copied for PyTorch.
        yield from _tensor_pieces(torch.from_numpy(frames if frames.flags.writeable else frames.copy()))
    elif isinstance(frames, torch.Tensor):
        yield from _tensor_pieces(frames)
    elif isinstance(frames, Iterable) and not isinstance(frames, str | bytes):
        for chunk in frames:
            yield from byte_frames(chunk)
    else:
        raise ValueError(
            f"frames must be a tensor, an array, images or an iterable of them, got {type(frames).__name__}"
        )


def _tensor_pieces(frames: torch.Tensor) -> Iterator[np.ndarray]:
    if frames.ndim != 4 or 3 not in (frames.shape[1], frames.shape[3]):
        raise ValueError(
            f"frames must have shape [F, 3, H, W] or [F, H, W, 3], got {list(frames.shape)}; pass one clip of a batch"
        )
    channel = 3 if frames.shape[3] == 3 else 1
    for part in frames.split(_frames_per_piece(frames)):
        yield _channels_last(to_uint8(part), channel)


def _frames_per_piece(frames: torch.Tensor) -> int:
    """Frames (first axis) whose float32 copy fits the scratch budget of the tensor's device; at least one."""
    budget = _CPU_SCRATCH_BYTES if frames.device.type == "cpu" else _DEVICE_SCRATCH_BYTES
    return max(1, budget // max(1, 4 * frames[0:1].numel()))


def _check_float(pixels: torch.Tensor) -> None:
    if not pixels.is_floating_point():
        raise ValueError(f"pixels must be floating point or uint8, got {pixels.dtype}; convert them to torch.uint8")


def _floats(pixels: torch.Tensor) -> Pixels:
    """Pixels as float32, on the CPU as an array.

    The frames before are being encoded meanwhile. PyTorch would wake all its threads for every step of the arithmetic,
    which then wait in a busy loop on the cores that the encoder needs; NumPy does it in this thread.
    """
    pixels = pixels.detach().to(torch.float32)
    return pixels.numpy() if pixels.device.type == "cpu" else pixels


def _rounded(scaled: Pixels) -> Pixels:
    """Round pixels in [0, 255] half to even, in place, and convert them to bytes."""
    # Both ends of what holds NaN are NaN; asking for them costs no memory.
    if 0 not in scaled.shape and not np.isfinite(float(scaled.min()) + float(scaled.max())):
        raise ValueError("the frames hold values that are not finite (NaN or infinity); decode them in float32")
    if isinstance(scaled, np.ndarray):
        return np.rint(scaled, out=scaled).clip(0, 255, out=scaled).astype(np.uint8)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def _channels_last(pixels: Pixels, channel: int) -> np.ndarray:
    """Bytes on the host with the axis `channel` moved to the end."""
    if isinstance(pixels, torch.Tensor):
        if pixels.device.type != "cpu":
            pixels, channel = pixels.movedim(channel, -1).contiguous().cpu(), -1
        pixels = pixels.numpy()
    return np.ascontiguousarray(np.moveaxis(pixels, channel, -1))
