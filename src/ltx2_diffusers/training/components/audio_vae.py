"""Training the audio VAE from nothing.

Shapes: B batch, T mel frames, M mel bins, N samples.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from ...models.audio_vae import AutoencoderKLLTX2Audio
from ...models.mel import waveform_to_mel
from .losses import kl_divergence, l1
from .step import Losses, TrainingStep, weighted


@dataclass(frozen=True)
class AudioVaeWeights:
    """Weights of the losses of an audio VAE.

    Args:
        mel: Of the mean absolute difference of log-mel spectrograms. Default 1.0.
        kl: Of the KL divergence per latent, in nats. Default 1e-6.
    """

    mel: float = 1.0
    kl: float = 1e-6


class AudioVaeStep(TrainingStep):
    """Encodes log-mel spectrograms, draws latents, decodes them and compares.

    Latents hold four frames, the first one alone, so T frames come back as the largest 4 k + 1 among them; the rest
    is not compared. Begin with [`spread_latents`] and [`centre_output`]. A batch holds `mel` `[B, 2, T, M]`, see [`spectrogram`].

    Args:
        vae: The autoencoder to train.
        weights: Weights of the losses.
    """

    def __init__(self, vae: AutoencoderKLLTX2Audio, weights: AudioVaeWeights = AudioVaeWeights()) -> None:
        super().__init__()
        self.vae, self.weights = vae, weights

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The autoencoder."""
        return {"audio_vae": self.vae}

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        """`mel` and `kl`."""
        mel = batch["mel"]
        posterior = self.vae.encode(mel).latent_dist
        made = self.vae.decode(posterior.sample()).sample
        frames = made.shape[2]
        losses = {"mel": l1(made, mel[:, :, :frames]), "kl": kl_divergence(posterior.mean, posterior.logvar)}
        return weighted(losses, asdict(self.weights))


def spectrogram(vae: AutoencoderKLLTX2Audio, waveform: Tensor, sample_rate: int) -> Tensor:
    """The log-mel spectrogram `[B, 2, T, M]` of a waveform `[B, channels, N]` that a VAE encodes.

    Args:
        vae: Whose rate, hop and bins are taken.
        waveform: Samples in [-1, 1].
        sample_rate: Of the waveform, in Hz.
    """
    config = vae.config
    return waveform_to_mel(waveform, sample_rate, config.sample_rate, config.mel_bins, config.mel_hop_length)
