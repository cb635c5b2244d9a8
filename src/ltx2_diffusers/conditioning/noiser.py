"""Puts noise on a latent state.

Shapes: B batch, T tokens (appended ones included), D features of a token.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..checks import check_share
from .state import LatentState


class GaussianNoiser:
    """Mixes a state with Gaussian noise, as far as its denoise mask allows.

    Noise is drawn on the generator's own device, so that a CPU generator gives the same noise for any device.

    Args:
        generator: Source of randomness, or one per row of the batch, so that each row is what it would be alone;
            default None (the device's global source).
        blend: `"latent"` (default, 2.0 reference and diffusers) mixes noise and latent with weight mask * noise_scale;
            `"clean"` (newest reference) mixes clean latent and noised latent with weight mask. They differ only where
            a mask lies between 0 and 1 and the state started from a given latent; use it with
            `VideoLatentTools(fill_latent=False)`.
        noise_dtype: Dtype that noise is drawn in, default float32. bfloat16 draws what the 2.0 reference draws.
    """

    def __init__(
        self,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        blend: Literal["latent", "clean"] = "latent",
        noise_dtype: torch.dtype = torch.float32,
    ) -> None:
        if blend not in ("latent", "clean"):
            raise ValueError(f"blend must be 'latent' or 'clean', got {blend!r}.")
        self.generator = list(generator) if isinstance(generator, Sequence) else generator
        self.blend = blend
        self.noise_dtype = noise_dtype

    def draw(self, shape: Sequence[int], device: torch.device | str | None = None) -> torch.Tensor:
        """Noise N(0, 1) of a shape whose first axis is the batch."""
        if isinstance(self.generator, list) and len(self.generator) != shape[0]:
            raise ValueError(
                f"generator must be one generator or one per row; got {len(self.generator)} for a batch of {shape[0]}."
            )
        return randn_tensor(tuple(shape), self.generator, device=torch.device(device or "cpu"), dtype=self.noise_dtype)

    def __call__(
        self, state: LatentState, noise_scale: float | torch.Tensor = 1.0, noise: torch.Tensor | None = None
    ) -> LatentState:
        """The state with noise on its latent.

        Args:
            state: Packed state, conditions already applied.
            noise_scale: Noise level in [0, 1] of tokens with mask 1, one for all rows or one per row `[B]`; default 1.0
                (pure noise).
            noise: Noise `[B, T, D]` drawn elsewhere, default None (drawn here).
        """
        if isinstance(noise_scale, torch.Tensor):
            noise_scale = noise_scale.to(state.latent.device)[:, None, None]
        else:
            check_share(noise_scale=noise_scale)
        if noise is None:
            noise = self.draw(state.latent.shape, state.latent.device)
        elif noise.shape != state.latent.shape:
            raise ValueError(f"noise must have shape {list(state.latent.shape)}, got {list(noise.shape)}.")
        noise = noise.to(state.latent)
        mask = state.denoise_mask
        if self.blend == "latent":
            weight = mask * noise_scale
            latent = noise * weight + state.latent * (1 - weight)
        else:
            noised = torch.lerp(state.latent.float(), noise.float(), torch.as_tensor(noise_scale).to(noise).float())
            latent = torch.lerp(state.clean_latent.float(), noised, mask)
        return replace(state, latent=latent.to(state.latent.dtype))
