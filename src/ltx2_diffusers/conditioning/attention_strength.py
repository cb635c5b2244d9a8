"""How strongly appended condition tokens and the target attend to each other.

Shapes: B batch, T tokens so far, N tokens of the target, K appended tokens, f pixel frames, F latent frames, h latent
height, w latent width.
"""

import torch
from torch.nn import functional

from .shapes import VideoLatentShape


def extend_attention_mask(
    attention_mask: torch.Tensor | None, num_target: int, num_tokens: int, num_new: int, strength: torch.Tensor | None
) -> torch.Tensor | None:
    """The self-attention mask `[B, T+K, T+K]` once K tokens are appended to T, or None if nothing is masked.

    Target and new tokens see each other with `strength`, new tokens see each other fully, and new tokens and those
    appended earlier do not see each other.

    Args:
        attention_mask: Mask `[B, T, T]` so far, None if nothing is masked yet.
        num_target: Tokens N of the target, which stand first.
        num_tokens: Tokens T so far.
        num_new: Tokens K to append.
        strength: Strength in [0, 1] of each new token `[B, K]`; None asks for no masking of its own.
    """
    known = strength if attention_mask is None else attention_mask
    if known is None:
        return None
    batch, total = known.shape[0], num_tokens + num_new
    mask = torch.zeros(batch, total, total, device=known.device)
    mask[:, :num_tokens, :num_tokens] = 1.0 if attention_mask is None else attention_mask
    mask[:, num_tokens:, num_tokens:] = 1.0
    across = known.new_ones(batch, num_new) if strength is None else strength
    mask[:, :num_target, num_tokens:] = across[:, None, :]
    mask[:, num_tokens:, :num_target] = across[:, :, None]
    return mask


def token_strength(
    strength: float | torch.Tensor | None, batch: int, num_new: int, device: torch.device
) -> torch.Tensor | None:
    """Attention strength as one value per appended token, `[B, K]`; None where it masks nothing.

    Args:
        strength: A number, a tensor of one value per token `[K]`, or one per sample and token `[B, K]`; in [0, 1].
        batch: Batch size B.
        num_new: Appended tokens K.
        device: Where the result is made.
    """
    if strength is None or (isinstance(strength, int | float) and strength == 1):
        return None
    values = torch.as_tensor(strength, dtype=torch.float32, device=device)
    if values.ndim > 2 or (values.ndim > 0 and values.shape[-1] != num_new):
        raise ValueError(
            f"attention_strength must be a number or have shape [{num_new}] or [{batch}, {num_new}], "
            f"got {list(values.shape)}."
        )
    low, high = values.aminmax()
    if low < 0 or high > 1:
        raise ValueError(f"attention_strength must lie in [0, 1], got values from {low:g} to {high:g}.")
    return values.expand(batch, num_new)


def pixel_mask_to_tokens(mask: torch.Tensor, shape: VideoLatentShape) -> torch.Tensor:
    """Attention strength per token `[B, F*h*w]` from a mask in pixels.

    Args:
        mask: Mask `[B, 1, f, height, width]` in [0, 1]; f - 1 must be a multiple of F - 1.
        shape: Size of the latent whose tokens are weighted.
    """
    frames, latent_frames = mask.shape[2], shape.frames
    if (latent_frames == 1) != (frames == 1) or (latent_frames > 1 and (frames - 1) % (latent_frames - 1)):
        raise ValueError(
            f"mask has {frames} frames, which do not divide into {latent_frames} latent frames; "
            f"use {shape.pixel_frames()} frames."
        )
    planes = functional.interpolate(mask[:, 0].float(), size=(shape.height, shape.width), mode="area")
    rest = planes[:, 1:]
    if latent_frames > 1:
        rest = rest.unflatten(1, (latent_frames - 1, -1)).mean(dim=2)
    return torch.cat([planes[:, :1], rest], dim=1).flatten(1)
