"""Training the latent upsamplers from nothing.

Shapes: B batch, C latent channels, F frames, H height, W width; F', h, w latent frames, height and width.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.latent_upsampler import LTX2LatentUpsamplerModel
from ...models.video_vae import AutoencoderKLLTX2Video
from .losses import l1
from .step import Losses, TrainingStep, weighted


@dataclass(frozen=True)
class UpsamplerWeights:
    """Weights of the losses of an upsampler.

    Args:
        latents: Of the mean absolute difference of normalised latents. Default 1.0.
        pixels: Of that of decoded pixels; 0 does not decode. Default 0.0.
    """

    latents: float = 1.0
    pixels: float = 0.0


class UpsamplerStep(TrainingStep):
    """Enlarges latents of a small clip and compares them with those of the same clip at full size.

    The network works on un-normalised latents, as in generation; the comparison is made after normalising both, so
    that every channel counts alike. A batch holds `small` and `large`, un-normalised latents of both sizes, see
    [`latent_pair`]; with a weight for pixels also the clip itself, `pixels` `[B, 3, F, H, W]`.

    Args:
        upsampler: The network to train.
        vae: The video VAE of the latents, whose statistics are known; it is frozen.
        weights: Weights of the losses.
    """

    def __init__(
        self,
        upsampler: LTX2LatentUpsamplerModel,
        vae: AutoencoderKLLTX2Video,
        weights: UpsamplerWeights = UpsamplerWeights(),
    ) -> None:
        super().__init__()
        self.upsampler, self.vae, self.weights = upsampler, vae.requires_grad_(False), weights
        self._folder = "temporal_upsampler" if upsampler.config.temporal_upsample else "latent_upsampler"

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The upsampler, under the name that it has beside a pipeline."""
        return {self._folder: self.upsampler}

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        """`latents`, and `pixels` if it has a weight."""
        made = self.upsampler(batch["small"])
        wanted = batch["large"]
        if made.shape != wanted.shape:
            raise ValueError(
                f"the upsampler makes latents {list(made.shape)} of small ones, but large ones are {list(wanted.shape)}; "
                "give pairs as latent_pair makes them."
            )
        losses = {"latents": l1(self.vae.normalize_latents(made), self.vae.normalize_latents(wanted))}
        if self.weights.pixels:
            # The step of a clean decode for decoders that have one.
            timestep = torch.zeros(len(made), device=made.device)
            losses["pixels"] = l1(self.vae.decode(made, timestep).sample, batch["pixels"])
        return weighted(losses, asdict(self.weights))


@torch.no_grad()
def latent_pair(vae: AutoencoderKLLTX2Video, upsampler: LTX2LatentUpsamplerModel, pixels: Tensor) -> dict[str, Tensor]:
    """Un-normalised latents of clips, `large`, and of the same clips as the upsampler is to be given them, `small`.

    In space a clip is made smaller by area averaging, in time by leaving out every second frame.

    Args:
        vae: The autoencoder.
        upsampler: Tells by which factors.
        pixels: Clips `[B, 3, F, H, W]` in [-1, 1]; the smaller ones have to be of a size the autoencoder takes.

    Returns:
        `{"small": [B, C, F', h, w], "large": [B, C, ...]}`.
    """
    space, time = upsampler_factors(upsampler)
    small = pixels[:, :, ::time]
    height, width = (round(side / space) for side in pixels.shape[-2:])
    if (height * space, width * space) != pixels.shape[-2:] or (small.shape[2] - 1) * time + 1 != pixels.shape[2]:
        raise ValueError(
            f"clips of {pixels.shape[2]} frames of {pixels.shape[3]} x {pixels.shape[4]} pixels cannot be made smaller by "
            f"{time} in time and {space} in space; use {time} * k + 1 frames and sides that {space} divides."
        )
    small = F.interpolate(small, (small.shape[2], height, width), mode="area") if space != 1 else small
    latents = (vae.encode(video.to(vae.device, vae.dtype)).latent_dist.mode() for video in (small, pixels))
    return dict(zip(("small", "large"), latents))


def upsampler_factors(upsampler: LTX2LatentUpsamplerModel) -> tuple[float, int]:
    """By how much an upsampler enlarges: (rows and columns, frames)."""
    config = upsampler.config
    if config.temporal_upsample:
        return (2.0 if config.spatial_upsample else 1.0), 2
    return (config.rational_spatial_scale if config.use_rational_resampler else 2.0), 1
