"""Training the vocoders from nothing: log-mel spectrogram to waveform, and the same with bandwidth extension.

Shapes: B batch, C audio channels, N samples, T mel frames, M mel bins.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...models.mel import mel_filterbank, resample
from ...models.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from .critics import wave_adversarial_losses, wave_critic_loss
from .losses import mel_loss, relative_error, stft_loss
from .step import Losses, TrainingStep, held, weighted


@dataclass(frozen=True)
class VocoderWeights:
    """Weights of the losses of a vocoder; those of the last three are in HiFi-GAN's proportion of 45 : 1 : 2.

    Args:
        stft: Of the spectra at several resolutions, see [`stft_loss`]. Default 1.0.
        low_band: Of the same of the first of two stages, with bandwidth extension. Default 1.0.
        mel: Of the mel spectrogram of the result. Default 1.0.
        adversarial: Of what the critics find; read only with critics. Default 0.022.
        features: Of the difference of the critics' features; read only with critics. Default 0.044.
        samples: Of the difference of samples, relative to the sound's loudness. Only where phases follow from the
            spectrogram, as those of tones that repeat with its frames do; of other sound it makes silence. Default 0.0.
    """

    stft: float = 1.0
    low_band: float = 1.0
    mel: float = 1.0
    adversarial: float = 0.022
    features: float = 0.044
    samples: float = 0.0


class VocoderStep(TrainingStep):
    """Makes waveforms of log-mel spectrograms and compares them with those the spectrograms were taken from.

    The last frame of a spectrogram reaches beyond the end of its waveform, so what is made is cut to what is given.
    With bandwidth extension the first stage is compared too, with the waveform at its own rate; and the Fourier and
    mel filters between the stages, which no network learns, must have been set by [`set_spectrum_filters`].

    A batch holds `mel` `[B, C, T, M]` and `waveform` `[B, C, N]` at the vocoder's rate, N above 1024.

    Args:
        vocoder: The vocoder to train.
        weights: Weights of the losses.
        critic: [`WaveCritics`]; default None, no adversarial loss.
    """

    def __init__(
        self,
        vocoder: LTX2Vocoder | LTX2VocoderWithBWE,
        weights: VocoderWeights = VocoderWeights(),
        critic: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if isinstance(vocoder, LTX2VocoderWithBWE) and not vocoder.mel_stft.mel_basis.any():
            raise ValueError(
                "the vocoder's filters between its stages are all zero, so its second stage would learn from nothing; "
                "call set_spectrum_filters(vocoder) first."
            )
        self.vocoder, self.critic, self.weights = vocoder, critic, weights
        self._pair: tuple[Tensor, Tensor] | None = None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The vocoder."""
        return {"vocoder": self.vocoder}

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        """`stft`, `mel`, `samples` if weighted, `low_band` with bandwidth extension, and with critics `adversarial` and
        `features`."""
        made, low_band = self._made(batch["mel"])
        made, real = _cut(made, batch["waveform"])
        rate = self.vocoder.config.output_sampling_rate
        losses = {"stft": stft_loss(made, real), "mel": mel_loss(made, real, rate)}
        if self.weights.samples:
            losses["samples"] = relative_error(made, real)
        if low_band is not None:
            low_rate = self.vocoder.config.input_sampling_rate
            losses["low_band"] = stft_loss(*_cut(low_band, resample(real, rate, low_rate)))
        if self.critic is not None:
            with held(self.critic):
                losses["adversarial"], losses["features"] = wave_adversarial_losses(self.critic, made, real)
            self._pair = made.detach(), real
        return weighted(losses, asdict(self.weights))

    def critic_losses(self) -> Losses:
        """`critic`, of the sound of the last `forward`."""
        if self.critic is None or self._pair is None:
            return super().critic_losses()
        return weighted({"critic": wave_critic_loss(self.critic, *self._pair)}, {"critic": 1.0})

    def _made(self, mel: Tensor) -> tuple[Tensor, Tensor | None]:
        """The waveform, and that of the first of two stages."""
        if isinstance(self.vocoder, LTX2Vocoder):
            return self.vocoder(mel), None
        seen: list[Tensor] = []
        # The result alone does not hold what the first stage made, and running it again would double its cost.
        handle = self.vocoder.vocoder.register_forward_hook(lambda *call: seen.append(call[-1]))
        try:
            made = self.vocoder(mel)
        finally:
            handle.remove()
        return made, seen[0]


def _cut(made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Both waveforms at the length of the shorter one."""
    samples = min(made.shape[-1], real.shape[-1])
    return made[..., :samples], real[..., :samples]


@torch.no_grad()
def set_spectrum_filters(vocoder: LTX2VocoderWithBWE) -> None:
    """Set the Fourier and mel filters between the two stages of a vocoder, which a fresh one has as zeros."""
    size, mel_stft = vocoder.config.filter_length, vocoder.mel_stft
    sample, frequency = torch.arange(size), torch.arange(size // 2 + 1)
    angle = 2 * math.pi * frequency[:, None] * sample / size
    window = torch.hann_window(size)
    basis = torch.cat([torch.cos(angle), -torch.sin(angle)]) * window
    mel_stft.stft_fn.forward_basis.copy_(basis[:, None])
    mel_stft.stft_fn.inverse_basis.copy_(basis[:, None] / (window.square().sum() * size / 4))
    rate = vocoder.config.input_sampling_rate
    mel_stft.mel_basis.copy_(mel_filterbank(vocoder.config.num_mel_channels, rate, size).T)
