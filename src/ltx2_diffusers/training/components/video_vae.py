"""Training the video VAE from nothing.

Shapes: B batch, C latent channels, F frames, H height, W width; F', H', W' their latent counterparts.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...checks import check_from_zero
from ...models.video_vae import AutoencoderKLLTX2Video
from .critics import pair_adversarial_loss, pair_critic_loss
from .losses import kl_divergence, l1, squares, wavelet_loss
from .step import Losses, TrainingStep, held, weighted


@dataclass(frozen=True)
class VideoVaeWeights:
    """Weights of the losses of a video VAE.

    Args:
        pixels: Of the mean absolute difference of pixels. Default 1.0.
        wavelets: Of the difference of details, see [`wavelet_loss`]. Default 0.1: a fresh network makes details that are
            not there, and with 1.0 it learns to make nothing at all.
        squares: Of the mean squared difference of pixels. Default 0.0: it blurs in the end, but a network that knows
            nothing yet finds out sooner where things are than by `pixels` alone.
        kl: Of the KL divergence per latent, in nats. Default 1e-6.
        adversarial: Of what the critic finds; read only with a critic. Default 0.05.
    """

    pixels: float = 1.0
    wavelets: float = 0.1
    squares: float = 0.0
    kl: float = 1e-6
    adversarial: float = 0.05


class VideoVaeStep(TrainingStep):
    """Encodes videos, draws latents, decodes them and compares.

    The posterior is a diagonal Gaussian whose log variance is one number per position, shared by all channels, so
    the noise on a latent has the same size in every channel, and the encoder scales its channels against it. Decoders
    that are conditioned on a timestep see latents mixed with noise, normalised as in generation (the share of noise is
    the timestep), and learn to take it away; noise that decoders inject (`decoder_inject_noise`) they draw by
    themselves. Begin with [`spread_latents`].

    A batch holds `pixels` `[B, 3, F, H, W]` in [-1, 1], F = 8 k + 1.

    Args:
        vae: The autoencoder to train.
        weights: Weights of the losses.
        critic: A [`PairCritic`]; default None, no adversarial loss. Best given once reconstructions are recognisable.
        max_decode_timestep: Timesteps of a conditioned decoder are drawn evenly from 0 to this. Default 0.1, twice the
            timestep that the reference decodes with.
        latent_noise: Most noise that is added to latents before they are decoded, as part of their deviation: each clip
            gets as much as a random share of it. So a decoder learns to forgive what a transformer does not hit. Needs
            latents whose statistics are known. Default 0.0.
    """

    def __init__(
        self,
        vae: AutoencoderKLLTX2Video,
        weights: VideoVaeWeights = VideoVaeWeights(),
        critic: nn.Module | None = None,
        max_decode_timestep: float = 0.1,
        latent_noise: float = 0.0,
    ) -> None:
        super().__init__()
        self.vae, self.critic = vae, critic
        self.weights, self.max_decode_timestep = weights, max_decode_timestep
        check_from_zero(latent_noise=latent_noise)
        self.latent_noise = latent_noise
        self._pair: tuple[Tensor, Tensor] | None = None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The autoencoder."""
        return {"vae": self.vae}

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        """`pixels`, `wavelets`, `squares`, `kl`, and `adversarial` with a critic."""
        pixels = batch["pixels"]
        posterior = self.vae.encode(pixels).latent_dist
        made = self._decoded(self._missed(posterior.sample()))
        losses = {
            "pixels": l1(made, pixels),
            "wavelets": wavelet_loss(made, pixels),
            "squares": squares(made, pixels),
            "kl": kl_divergence(posterior.mean, posterior.logvar),
        }
        if self.critic is not None:
            with held(self.critic):
                losses["adversarial"] = pair_adversarial_loss(self.critic, made, pixels)
            self._pair = made.detach(), pixels
        return weighted(losses, asdict(self.weights))

    def critic_losses(self) -> Losses:
        """`critic`, of the videos of the last `forward`."""
        if self.critic is None or self._pair is None:
            return super().critic_losses()
        return weighted({"critic": pair_critic_loss(self.critic, *self._pair)}, {"critic": 1.0})

    def _missed(self, latents: Tensor) -> Tensor:
        """Raw latents `[B, C, F', H', W']` with noise."""
        if not self.latent_noise:
            return latents
        shares = self.latent_noise * torch.rand(len(latents), 1, 1, 1, 1, device=latents.device)
        clean = self.vae.normalize_latents(latents)
        return self.vae.denormalize_latents(clean + shares * torch.randn_like(clean))

    def _decoded(self, latents: Tensor) -> Tensor:
        """Videos of raw latents `[B, C, F', H', W']`, through noise where the decoder takes it away."""
        if not self.vae.config.timestep_conditioning:
            return self.vae.decode(latents).sample
        timestep = self.max_decode_timestep * torch.rand(len(latents), device=latents.device)
        clean = self.vae.normalize_latents(latents)
        noisy = torch.lerp(clean, torch.randn_like(clean), timestep.view(-1, 1, 1, 1, 1).to(clean.dtype))
        return self.vae.decode(self.vae.denormalize_latents(noisy), timestep).sample
