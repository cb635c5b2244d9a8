"""Latents to token sequences and back.

Shapes: B batch, C channels, F latent frames, h latent height, w latent width, L audio latents, M mel bins of a latent,
p patch size, T tokens, D features of a token.
"""

from typing import Protocol, TypeVar

import torch

from .shapes import AudioLatentShape, VideoLatentShape

_Shape = TypeVar("_Shape", VideoLatentShape, AudioLatentShape, contravariant=True)


class Patchifier(Protocol[_Shape]):
    """What packs the latents of one stream, see the classes below."""

    patch_size: int

    def get_token_count(self, shape: _Shape) -> int: ...

    def patchify(self, latents: torch.Tensor) -> torch.Tensor: ...

    def unpatchify(self, latents: torch.Tensor, output_shape: _Shape) -> torch.Tensor: ...


class VideoLatentPatchifier:
    """Packs `[B, C, F, h, w]` into `[B, F*(h/p)*(w/p), C*p*p]`, frames slowest and columns fastest.

    Args:
        patch_size: Edge p of a square patch in latents, default 1 (every released model). Time is never packed.
    """

    def __init__(self, patch_size: int = 1) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size must be at least 1, got {patch_size}; use 1.")
        self.patch_size = patch_size

    def get_token_count(self, shape: VideoLatentShape) -> int:
        """Tokens T of a latent of this shape."""
        return shape.frames * (shape.height // self.patch_size) * (shape.width // self.patch_size)

    def patchify(self, latents: torch.Tensor) -> torch.Tensor:
        """Packs a latent `[B, C, F, h, w]` into tokens `[B, T, D]`; features run channel, patch row, patch column."""
        shape = VideoLatentShape.from_torch_shape(latents.shape)
        p = self.patch_size
        if shape.height % p or shape.width % p:
            raise ValueError(f"latents of {shape.height}x{shape.width} cannot be cut into patches of edge {p}.")
        blocks = latents.unflatten(4, (-1, p)).unflatten(3, (-1, p))  # [B, C, F, h/p, p, w/p, p]
        return blocks.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)

    def unpatchify(self, latents: torch.Tensor, output_shape: VideoLatentShape) -> torch.Tensor:
        """Unpacks tokens `[B, T, D]` into a latent of `output_shape` `[B, C, F, h, w]`."""
        p = self.patch_size
        grid = (output_shape.frames, output_shape.height // p, output_shape.width // p)
        _check_tokens(latents, self.get_token_count(output_shape), output_shape.channels * p * p)
        blocks = latents.unflatten(2, (-1, p, p)).unflatten(1, grid)  # [B, F, h/p, w/p, C, p, p]
        return blocks.permute(0, 4, 1, 2, 5, 3, 6).flatten(5).flatten(3, 4)


class AudioPatchifier:
    """Packs `[B, C, L, M]` into `[B, L, C*M]`: one token per latent.

    Args:
        patch_size: Only 1, the value of every released model, is known; the argument exists for existing callers.
    """

    def __init__(self, patch_size: int = 1) -> None:
        if patch_size != 1:
            raise ValueError(f"patch_size of audio must be 1, got {patch_size}; use 1.")
        self.patch_size = patch_size

    def get_token_count(self, shape: AudioLatentShape) -> int:
        """Tokens T of a latent of this shape."""
        return shape.frames

    def patchify(self, latents: torch.Tensor) -> torch.Tensor:
        """Packs a latent `[B, C, L, M]` into tokens `[B, L, C*M]`."""
        AudioLatentShape.from_torch_shape(latents.shape)
        return latents.transpose(1, 2).flatten(2)

    def unpatchify(self, latents: torch.Tensor, output_shape: AudioLatentShape) -> torch.Tensor:
        """Unpacks tokens `[B, L, C*M]` into a latent of `output_shape` `[B, C, L, M]`."""
        _check_tokens(latents, output_shape.frames, output_shape.channels * output_shape.mel_bins)
        return latents.unflatten(2, (output_shape.channels, output_shape.mel_bins)).transpose(1, 2)


def _check_tokens(tokens: torch.Tensor, count: int, features: int) -> None:
    if tokens.ndim != 3 or tokens.shape[1:] != (count, features):
        raise ValueError(
            f"tokens must have shape [B, {count}, {features}], got {list(tokens.shape)}; "
            "remove appended tokens first (clear_conditioning)."
        )
