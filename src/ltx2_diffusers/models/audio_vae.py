"""Audio VAE of LTX-2: stereo log-mel spectrogram to latent and back.

Shape legend: B batch, C mel planes, T mel frames (10 ms), M mel bins, N samples, Z latent channels,
L latent steps (40 ms), m latent bins (M / 4). Tokens `[B, L, Z*m]` hold the channel slowest.
"""

# The constructor's arguments are read back from `self.config`, where `register_to_config` puts them.
# ruff: noqa: ARG002

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor
from torch.nn import functional as F

from .audio_vae_blocks import CAUSALITY_AXES, COMPRESSION_RATIO, AudioDecoder, AudioEncoder, CoderLayout
from .loading import CheckpointMixin
from .mel import waveform_to_mel
from .saving import AtomicModelSaveMixin

_NORM_TYPES = ("pixel", "group")


class AutoencoderKLLTX2Audio(CheckpointMixin, AtomicModelSaveMixin, ModelMixin, AutoencoderMixin, ConfigMixin):
    """Compresses a log-mel spectrogram by four in time and frequency, causally in time.

    Config, state-dict keys and methods are those of diffusers' class; `encode_waveform`, `normalize_latents` and
    `denormalize_latents` are additions. `encode` and `decode` speak raw latents; the transformer's are normalised.

    Weights and inputs of different dtypes compute in the wider one. The encoder needs float32 for full quality, so
    give `encode` a float32 spectrogram even where the weights are bfloat16 (`encode_waveform` does).

    Args (defaults are those of all published checkpoints):
        base_channels: channels of the finest level, and length of the latent statistics (which must equal Z*m).
        output_channels: mel planes that `decode` returns.
        ch_mult: width factor of each level, finest first.
        num_res_blocks: residual blocks per encoder level; the decoder has one more.
        attn_resolutions: resolutions (starting at `resolution`, halved per level) with attention, or None.
        in_channels: mel planes that `encode` takes.
        resolution: nominal resolution of the finest level; matters only for `attn_resolutions`.
        latent_channels: Z.
        norm_type: "pixel", or "group" where `causality_axis` is "none".
        causality_axis: "height" (time), "width", "width-compatibility" or "none".
        dropout: probability inside residual blocks while training.
        mid_block_add_attention: attention at the coarsest level.
        sample_rate: rate of the spectrogram's waveform in Hz.
        mel_hop_length: samples between mel frames.
        is_causal: whether the first latent step covers one mel frame instead of four, for those who time the steps.
        mel_bins: M, also the number of bins that `decode` returns.
        double_z: the encoder gives means and log-variances; must be True.
    """

    _supports_gradient_checkpointing = False
    # Called themselves, and not through the forward of the whole, with which diffusers would bring them.
    _group_offload_block_modules: Any = ("encoder", "decoder")
    latents_mean: Tensor
    latents_std: Tensor

    @register_to_config
    def __init__(
        self,
        base_channels: int = 128,
        output_channels: int = 2,
        ch_mult: tuple[int, ...] = (1, 2, 4),
        num_res_blocks: int = 2,
        attn_resolutions: tuple[int, ...] | None = None,
        in_channels: int = 2,
        resolution: int = 256,
        latent_channels: int = 8,
        norm_type: str = "pixel",
        causality_axis: str = "height",
        dropout: float = 0.0,
        mid_block_add_attention: bool = False,
        sample_rate: int = 16000,
        mel_hop_length: int = 160,
        is_causal: bool = True,
        mel_bins: int | None = 64,
        double_z: bool = True,
    ) -> None:
        super().__init__()
        _check_config(norm_type, causality_axis, double_z)
        layout = CoderLayout(*(self.config[name] for name in CoderLayout._fields))
        self.encoder = AudioEncoder(in_channels, 2 * latent_channels, layout)
        self.decoder = AudioDecoder(latent_channels, output_channels, mel_bins, layout)
        self.register_buffer("latents_mean", torch.zeros(base_channels))
        self.register_buffer("latents_std", torch.ones(base_channels))
        self.temporal_compression_ratio = COMPRESSION_RATIO
        self.mel_compression_ratio = COMPRESSION_RATIO
        self.use_slicing = False

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode a log-mel spectrogram.

        Args:
            x: log-mel `[B, C, T, M]`, natural logarithm.
            return_dict: return an [`AutoencoderKLOutput`] instead of a tuple.

        Returns:
            The distribution of raw latents `[B, Z, ceil(T/4), M/4]`; `.mode()` gives the means.
        """
        _check_planes("x", x, self.config.in_channels, "[batch, mel planes, frames, mel bins]")
        slices = x.split(1) if self.use_slicing else (x,)
        posterior = DiagonalGaussianDistribution(torch.cat([self.encoder(part) for part in slices]))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook
    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Decode raw latents to a log-mel spectrogram.

        Args:
            z: raw latents `[B, Z, L, m]`.
            return_dict: return a [`DecoderOutput`] instead of a tuple.

        Returns:
            Log-mel `[B, C, 4L - 3, M]`.
        """
        _check_planes("z", z, self.config.latent_channels, "[batch, latent channels, steps, latent bins]")
        slices = z.split(1) if self.use_slicing else (z,)
        mel = torch.cat([self.decoder(part) for part in slices])
        return DecoderOutput(sample=mel) if return_dict else (mel,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode a log-mel spectrogram.

        Args:
            sample: log-mel `[B, C, T, M]`.
            sample_posterior: draw latents instead of taking their means.
            return_dict: return a [`DecoderOutput`] instead of a tuple.
            generator: source of the draw.

        Returns:
            The reconstructed log-mel.
        """
        posterior = self.encode(sample).latent_dist
        latents = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(latents, return_dict=return_dict)

    def encode_waveform(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """Encode a waveform of any sampling rate and channel layout to raw latent means.

        Front-end and encoder run in float32 whatever the dtype of the weights; see [`~models.mel.waveform_to_mel`]
        for the treatment of channels and rates.

        Args:
            waveform: `[B, channels, N]`, samples in [-1, 1], on the model's device.
            sample_rate: sampling rate of `waveform` in Hz.

        Returns:
            Raw latents `[B, Z, L, m]`, float32; `normalize_latents` makes them the transformer's.
        """
        config = self.config
        if config.mel_bins is None:
            raise ValueError("mel_bins of the config is None, so a waveform has no spectrogram size; use 64.")
        mel = waveform_to_mel(waveform, sample_rate, config.sample_rate, config.mel_bins, config.mel_hop_length)
        return self.encode(mel).latent_dist.mode()

    def normalize_latents(self, latents: Tensor) -> Tensor:
        """Turn raw latents into the normalised latents of the transformer.

        Args:
            latents: raw tokens `[B, L, Z*m]` or raw latents `[B, Z, L, m]`.

        Returns:
            (latents - mean) / std per token feature, in the shape of `latents`.
        """
        mean, std = self._statistics(latents)
        return (latents - mean) / std

    def denormalize_latents(self, latents: Tensor) -> Tensor:
        """Turn normalised latents of the transformer into the raw latents that `decode` takes.

        Args:
            latents: normalised tokens `[B, L, Z*m]` or latents `[B, Z, L, m]`.

        Returns:
            latents * std + mean per token feature, in the shape of `latents`.
        """
        mean, std = self._statistics(latents)
        return latents * std + mean

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation, shaped to broadcast against tokens or latents."""
        unpacked = latents.ndim == 4
        features = latents.shape[1] * latents.shape[3] if unpacked else latents.shape[-1]
        expected = self.latents_mean.shape[0]
        if latents.ndim not in (3, 4) or features != expected:
            raise ValueError(
                f"latents must be tokens [batch, steps, {expected}] or have shape "
                f"[batch, {self.config.latent_channels}, steps, {expected // self.config.latent_channels}], "
                f"got {list(latents.shape)}."
            )
        shape = (latents.shape[1], 1, latents.shape[3]) if unpacked else (features,)
        return self.latents_mean.to(latents).view(shape), self.latents_std.to(latents).view(shape)


def conform_latent_length(latents: Tensor, length: int) -> Tensor:
    """Give normalised audio latents a wanted number of steps: crop the end, or append zeros.

    Zero is the mean of normalised latents, so the filling is neutral; raw latents must be normalised first.

    Args:
        latents: normalised tokens `[B, L, D]` or latents `[B, Z, L, m]`.
        length: wanted number of 40 ms steps.

    Returns:
        The same with `length` steps.
    """
    if latents.ndim not in (3, 4):
        raise ValueError(
            f"latents must be tokens [batch, steps, features] or [batch, channels, steps, bins], "
            f"got {list(latents.shape)}."
        )
    if length < 1:
        raise ValueError(f"length must be at least 1 step, got {length}; use 1.")
    return F.pad(latents, (0, 0, 0, length - latents.shape[-2]))


def _check_config(norm_type: str, causality_axis: str, double_z: bool) -> None:
    """Refuse configs that the architecture cannot honour."""
    if causality_axis not in CAUSALITY_AXES:
        raise ValueError(
            f"causality_axis must be one of {list(CAUSALITY_AXES)}, got {causality_axis!r}; the published audio VAE "
            'uses "height".'
        )
    if norm_type not in _NORM_TYPES:
        raise ValueError(
            f'norm_type must be one of {list(_NORM_TYPES)}, got {norm_type!r}; the published audio VAE uses "pixel".'
        )
    if norm_type == "group" and causality_axis != "none":
        raise ValueError(
            f'norm_type "group" sees the whole clip and cannot go with causality_axis {causality_axis!r}; use '
            'norm_type "pixel" or causality_axis "none".'
        )
    if not double_z:
        raise ValueError("double_z must be True, got False: the encoder has to give means and log-variances.")


def _check_planes(name: str, value: Tensor, channels: int, layout: str) -> None:
    """Refuse tensors without four axes or with the wrong number of channels."""
    if value.ndim != 4 or value.shape[1] != channels:
        hint = " A mono spectrogram has to be duplicated." if value.ndim == 4 and value.shape[1] == 1 else ""
        raise ValueError(f"{name} must have shape {layout} with {channels} channels, got {list(value.shape)}.{hint}")
