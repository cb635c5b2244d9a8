"""What the denoising loop carries, and what the transformer reads.

Shapes: B batch, T tokens (appended ones included), D features of a token, S text tokens.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Modality:
    """Input of one stream for one forward pass; changed with `dataclasses.replace`.

    Args:
        enabled: False leaves the stream's tokens as they are; the other stream still attends to them.
        latent: Noisy tokens `[B, T, D]`.
        timesteps: Noise level of each token, sigma in [0, 1], `[B, T]` or `[B, T, 1]`.
        positions: Start and end of each token, float32 `[B, axes, T, 2]`: video has time in seconds, rows and columns
            in pixels; audio has time in seconds.
        context: Text embedding of this stream `[B, S, width]`.
        context_mask: 1 for text tokens to attend to, `[B, S]`, default None (all).
        sigma: Noise level of the whole stream `[B]`, for models that modulate their text by it (2.3 and later).
        attention_mask: Strength of self-attention between tokens in [0, 1], `[B, T, T]`, default None (all 1).
        keyframes_mask: 1 for tokens that stand for a single pixel frame, `[B, T, 1]`, default None (2.5 models).
    """

    enabled: bool
    latent: torch.Tensor
    timesteps: torch.Tensor
    positions: torch.Tensor
    context: torch.Tensor
    context_mask: torch.Tensor | None = None
    sigma: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    keyframes_mask: torch.Tensor | None = None


@dataclass(frozen=True)
class LatentState:
    """A stream's tokens with everything that says how they are denoised; replaced, never edited.

    Args:
        latent: Tokens `[B, T, D]`; the target's first, appended conditions after them.
        denoise_mask: How far each token is denoised, float32 `[B, T, 1]`: 1 fully, 0 not at all.
        positions: Start and end of each token, float32 `[B, axes, T, 2]`.
        clean_latent: What the tokens are held to where the mask is below 1, `[B, T, D]`.
        attention_mask: Strength of self-attention in [0, 1], `[B, T, T]`, default None (all 1).
        keyframes_mask: 1 for tokens that stand for a single pixel frame, `[B, T, 1]`, default None.
        frozen: True if the whole stream is given and its sigma is 0 throughout, default False.
        waits: Whether a token stays at the noise level of its mask until the run comes down to it (LTX-Video); default
            False, its level is a share of the run's, and it is held to the clean one by the rest.
        num_appended: Tokens at the end that conditions appended, default 0.
    """

    latent: torch.Tensor
    denoise_mask: torch.Tensor
    positions: torch.Tensor
    clean_latent: torch.Tensor
    attention_mask: torch.Tensor | None = None
    keyframes_mask: torch.Tensor | None = None
    frozen: bool = False
    waits: bool = False
    num_appended: int = 0

    def levels(self, sigma: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Noise level of each token `[B, T, 1]` times `scale`, when the run is at `sigma`, a scalar on the same device."""
        if self.waits:
            return torch.minimum(self.denoise_mask, sigma) * scale
        return sigma * scale * self.denoise_mask

    @property
    def num_tokens(self) -> int:
        """Tokens T of the sequence, appended ones included."""
        return self.denoise_mask.shape[1]
