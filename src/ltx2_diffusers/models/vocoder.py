"""Vocoders of LTX-2: log-mel spectrogram to waveform (2.0), and the same with bandwidth extension to 48 kHz (2.3).

Shape legend: B batch, C audio channels, T mel frames, M mel bins, D hidden channels, N samples, Q frequency bins.
"""

# The constructors' arguments are read back from `self.config`, where `register_to_config` puts them.
# ruff: noqa: ARG002

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from .antialias import AntiAliasedActivation, SnakeBeta, resample_up
from .loading import CheckpointMixin
from .mel import LOG_MEL_FLOOR
from .mixed_precision import Conv1d, ConvTranspose1d
from .saving import AtomicModelSaveMixin

_ACTIVATIONS = {"act_fn": ("leaky_relu", "snake", "snakebeta"), "final_act_fn": ("tanh", "clamp", None)}


class ResidualStack(nn.Module):
    """Residual pairs of convolutions, one pair per dilation, each convolution behind its activation.

    Args:
        channels: D.
        kernel_size: taps of all convolutions.
        dilations: dilation of each pair's first convolution.
        activations: activations of the pairs' first and second convolutions, in order of execution.
    """

    def __init__(
        self, channels: int, kernel_size: int, dilations: Sequence[int], activations: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            Conv1d(channels, channels, kernel_size, dilation=dilation, padding="same") for dilation in dilations
        )
        self.convs2 = nn.ModuleList(Conv1d(channels, channels, kernel_size, padding="same") for _ in dilations)
        self.acts1 = nn.ModuleList(activations[0::2])
        self.acts2 = nn.ModuleList(activations[1::2])

    def forward(self, x: Tensor) -> Tensor:
        """Refine `[B, D, N]`."""
        for act1, conv1, act2, conv2 in zip(self.acts1, self.convs1, self.acts2, self.convs2):
            x = x + conv2(act2(conv1(act1(x))))
        return x


class LTX2Vocoder(CheckpointMixin, AtomicModelSaveMixin, ModelMixin, ConfigMixin):
    """Turns a log-mel spectrogram into a waveform by transposed convolutions (the LTX-2.0 vocoder).

    Config, state-dict keys and methods are those of diffusers' class. Weights and spectrograms of different dtypes
    compute in the wider one.

    Args (defaults are those of the LTX-2.0 checkpoint):
        in_channels: audio channels times mel bins.
        hidden_channels: D before the first upsampling; each upsampling halves it.
        out_channels: audio channels C.
        upsample_kernel_sizes: taps of each upsampling.
        upsample_factors: factor of each upsampling; their product is the number of samples per mel frame.
        resnet_kernel_sizes: taps of the residual stacks, whose mean follows each upsampling.
        resnet_dilations: dilations of each residual stack.
        act_fn: "leaky_relu", "snake" or "snakebeta".
        leaky_relu_negative_slope: slope of the leaky ReLUs, except the last, which has 0.01.
        antialias: filter the snake activations of the residual stacks; the last activation always is.
        antialias_ratio: factor of the rate at which filtered activations run.
        antialias_kernel_size: taps of their filters.
        final_act_fn: "tanh", "clamp" to [-1, 1], or None.
        final_bias: whether the last convolution has a bias.
        output_sampling_rate: rate of the waveform in Hz.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 128,
        hidden_channels: int = 1024,
        out_channels: int = 2,
        upsample_kernel_sizes: Sequence[int] = (16, 15, 8, 4, 4),
        upsample_factors: Sequence[int] = (6, 5, 2, 2, 2),
        resnet_kernel_sizes: Sequence[int] = (3, 7, 11),
        resnet_dilations: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        act_fn: str = "leaky_relu",
        leaky_relu_negative_slope: float = 0.1,
        antialias: bool = False,
        antialias_ratio: int = 2,
        antialias_kernel_size: int = 12,
        final_act_fn: str | None = "tanh",
        final_bias: bool = True,
        output_sampling_rate: int = 24000,
    ) -> None:
        super().__init__()
        _check_config(self.config)
        self.total_upsample_factor = math.prod(upsample_factors)
        self.conv_in = Conv1d(in_channels, hidden_channels, 7, padding=3)
        self.upsamplers = nn.ModuleList()
        self.resnets = nn.ModuleList()
        channels = hidden_channels
        for kernel_size, factor in zip(upsample_kernel_sizes, upsample_factors):
            self.upsamplers.append(_upsampler(channels, kernel_size, factor))
            channels //= 2
            self.resnets.extend(self._residual_stacks(channels))
        self.act_out = self._last_activation(channels)
        self.conv_out = Conv1d(channels, out_channels, 7, padding=3, bias=final_bias)

    def _residual_stacks(self, channels: int) -> list[ResidualStack]:
        """The parallel stacks behind one upsampling."""
        shapes = zip(self.config.resnet_kernel_sizes, self.config.resnet_dilations)
        return [
            ResidualStack(channels, kernel, dilations, [self._activation(channels) for _ in range(2 * len(dilations))])
            for kernel, dilations in shapes
        ]

    def _activation(self, channels: int) -> nn.Module:
        """One activation of the residual stacks."""
        if self.config.act_fn == "leaky_relu":
            return nn.LeakyReLU(self.config.leaky_relu_negative_slope)
        snake = SnakeBeta(channels, separate_beta=self.config.act_fn == "snakebeta")
        return self._antialiased(snake) if self.config.antialias else snake

    def _last_activation(self, channels: int) -> nn.Module:
        """The activation before the last convolution."""
        if self.config.act_fn == "leaky_relu":
            # The checkpoints were trained with torch's default slope here, whatever the config says elsewhere.
            return nn.LeakyReLU()
        return self._antialiased(SnakeBeta(channels))

    def _antialiased(self, act: nn.Module) -> AntiAliasedActivation:
        """Wrap an activation in the configured filters."""
        return AntiAliasedActivation(act, self.config.antialias_ratio, self.config.antialias_kernel_size)

    def forward(self, hidden_states: Tensor, time_last: bool = False) -> Tensor:
        """Turn a log-mel spectrogram into a waveform.

        Args:
            hidden_states: log-mel `[B, C, T, M]`, or `[B, C, M, T]` with `time_last`.
            time_last: whether time is the last axis.

        Returns:
            Waveform `[B, C, T * samples per frame]`; within [-1, 1] unless `final_act_fn` is None.
        """
        x = self._flatten_bins(hidden_states, time_last)
        stacks_per_level = len(self.config.resnet_kernel_sizes)
        x = self.conv_in(x)
        for level, upsampler in enumerate(self.upsamplers):
            if self.config.act_fn == "leaky_relu":
                x = F.leaky_relu(x, self.config.leaky_relu_negative_slope)
            x = upsampler(x)
            stacks = self.resnets[level * stacks_per_level : (level + 1) * stacks_per_level]
            x = torch.stack([stack(x) for stack in stacks]).mean(dim=0)
        x = self.conv_out(self.act_out(x))
        if self.config.final_act_fn == "tanh":
            return x.tanh()
        return x.clamp(-1, 1) if self.config.final_act_fn == "clamp" else x

    def _flatten_bins(self, mel: Tensor, time_last: bool) -> Tensor:
        """Turn a spectrogram into `[B, C * M, T]`."""
        features = mel.shape[1] * mel.shape[2 if time_last else 3] if mel.ndim == 4 else None
        if features != self.config.in_channels:
            layout = "[batch, channels, mel bins, frames]" if time_last else "[batch, channels, frames, mel bins]"
            raise ValueError(
                f"hidden_states must have shape {layout} with channels * mel bins = {self.config.in_channels}, "
                f"got {list(mel.shape)} with time_last={time_last}."
            )
        return (mel if time_last else mel.transpose(2, 3)).flatten(1, 2)


class CausalSTFT(nn.Module):
    """Magnitude spectrum by convolution with windowed Fourier bases, which only checkpoints provide.

    Args:
        filter_length: samples per frame K.
        hop_length: samples between frames.
    """

    forward_basis: Tensor
    inverse_basis: Tensor

    def __init__(self, filter_length: int, hop_length: int) -> None:
        super().__init__()
        self.hop_length = hop_length
        rows = 2 * (filter_length // 2 + 1)
        self.register_buffer("forward_basis", torch.zeros(rows, 1, filter_length))
        # Never used, but part of every checkpoint.
        self.register_buffer("inverse_basis", torch.zeros(rows, 1, filter_length))

    def forward(self, waveform: Tensor) -> Tensor:
        """Map `[B, N]` to magnitudes `[B, Q, N / hop_length]`; a frame sees no later sample."""
        basis = self.forward_basis.to(waveform.dtype)
        padded = F.pad(waveform[:, None], (basis.shape[-1] - self.hop_length, 0))
        real, imaginary = F.conv1d(padded, basis, stride=self.hop_length).chunk(2, dim=1)
        return (real.square() + imaginary.square()).sqrt()


class CausalMel(nn.Module):
    """Causal log-mel spectrogram with the filters of the checkpoint.

    Args:
        filter_length: samples per frame.
        hop_length: samples between frames.
        num_mel_channels: M.
    """

    mel_basis: Tensor

    def __init__(self, filter_length: int, hop_length: int, num_mel_channels: int) -> None:
        super().__init__()
        self.stft_fn = CausalSTFT(filter_length, hop_length)
        self.register_buffer("mel_basis", torch.zeros(num_mel_channels, filter_length // 2 + 1))

    def forward(self, waveform: Tensor) -> Tensor:
        """Map `[B, C, N]` to log-mel `[B, C, M, N / hop_length]`."""
        magnitude = self.stft_fn(waveform.flatten(0, 1))
        mel = self.mel_basis.to(magnitude.dtype) @ magnitude
        return mel.clamp(min=LOG_MEL_FLOOR).log().unflatten(0, waveform.shape[:2])


class LTX2VocoderWithBWE(CheckpointMixin, AtomicModelSaveMixin, ModelMixin, ConfigMixin):
    """Vocoder at 16 kHz followed by a second one that adds the upper band up to 48 kHz (LTX-2.3 and later).

    Config, state-dict keys and methods are those of diffusers' class. Two attributes select how it computes; both
    defaults are those of Lightricks' implementation, and setting both to False gives diffusers' numbers:

    * `clamp_first_stage` (bool, default True): limit the first stage to [-1, 1], which the checkpoints were trained
      with although their converted config has `final_act_fn` None. It matters only where the first stage overshoots.
    * `run_in_float32` (bool, default True): compute in float32 whatever the dtype of weights and spectrogram, without
      autocast, one layer's weights widened at a time. Spectral errors grow by half in bfloat16.

    Args (defaults are those of the LTX-2.3 checkpoint; the arguments of [`LTX2Vocoder`] for the first stage, and the
    same with the prefix `bwe_` for the second):
        filter_length: samples per frame of the spectrogram between the stages.
        hop_length: samples between its frames.
        window_length: must equal `filter_length`.
        num_mel_channels: mel bins between the stages.
        input_sampling_rate: rate of the first stage in Hz.
        output_sampling_rate: rate of the result in Hz, a multiple of the first.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 128,
        hidden_channels: int = 1536,
        out_channels: int = 2,
        upsample_kernel_sizes: Sequence[int] = (11, 4, 4, 4, 4, 4),
        upsample_factors: Sequence[int] = (5, 2, 2, 2, 2, 2),
        resnet_kernel_sizes: Sequence[int] = (3, 7, 11),
        resnet_dilations: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        act_fn: str = "snakebeta",
        leaky_relu_negative_slope: float = 0.1,
        antialias: bool = True,
        antialias_ratio: int = 2,
        antialias_kernel_size: int = 12,
        final_act_fn: str | None = None,
        final_bias: bool = False,
        bwe_in_channels: int = 128,
        bwe_hidden_channels: int = 512,
        bwe_out_channels: int = 2,
        bwe_upsample_kernel_sizes: Sequence[int] = (12, 11, 4, 4, 4),
        bwe_upsample_factors: Sequence[int] = (6, 5, 2, 2, 2),
        bwe_resnet_kernel_sizes: Sequence[int] = (3, 7, 11),
        bwe_resnet_dilations: Sequence[Sequence[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        bwe_act_fn: str = "snakebeta",
        bwe_leaky_relu_negative_slope: float = 0.1,
        bwe_antialias: bool = True,
        bwe_antialias_ratio: int = 2,
        bwe_antialias_kernel_size: int = 12,
        bwe_final_act_fn: str | None = None,
        bwe_final_bias: bool = False,
        filter_length: int = 512,
        hop_length: int = 80,
        window_length: int = 512,
        num_mel_channels: int = 64,
        input_sampling_rate: int = 16000,
        output_sampling_rate: int = 48000,
    ) -> None:
        super().__init__()
        self._check_stages_fit()
        # All settings of the second stage have the prefix, so that their names tell those of both.
        names = [key.removeprefix("bwe_") for key in self.config if key.startswith("bwe_")]
        self.vocoder, self.bwe_generator = (
            LTX2Vocoder(**{name: self.config[prefix + name] for name in names}, output_sampling_rate=rate)
            for prefix, rate in (("", input_sampling_rate), ("bwe_", output_sampling_rate))
        )
        self.mel_stft = CausalMel(filter_length, hop_length, num_mel_channels)
        self.clamp_first_stage = True
        self.run_in_float32 = True

    def forward(self, mel_spec: Tensor) -> Tensor:
        """Turn a log-mel spectrogram into a waveform at `output_sampling_rate`.

        Args:
            mel_spec: log-mel `[B, C, T, M]`.

        Returns:
            Waveform `[B, C, N]` in [-1, 1], in the dtype of `mel_spec`.
        """
        if not self.run_in_float32:
            return self._generate(mel_spec)
        # Nothing casts on the meta device, which has no such switch.
        with torch.autocast("cpu" if mel_spec.is_meta else mel_spec.device.type, enabled=False):
            return self._generate(mel_spec.float()).to(mel_spec.dtype)

    def _generate(self, mel: Tensor) -> Tensor:
        """Both stages in the dtype at hand: `[B, C, T, M]` to `[B, C, N]`."""
        low_band = self.vocoder(mel)
        if self.clamp_first_stage:
            low_band = low_band.clamp(-1, 1)
        samples, ratio = low_band.shape[-1], self._ratio
        low_band = F.pad(low_band, (0, -samples % self.config.hop_length))
        residual = self.bwe_generator(self.mel_stft(low_band), time_last=True)
        waveform = (residual + resample_up(low_band, ratio)).clamp(-1, 1)
        return waveform[..., : samples * ratio]

    @property
    def _ratio(self) -> int:
        """Factor between the sampling rates of the stages."""
        return self.config.output_sampling_rate // self.config.input_sampling_rate

    def _check_stages_fit(self) -> None:
        """Refuse configs whose second stage cannot be added to the first."""
        config = self.config
        if config.output_sampling_rate % config.input_sampling_rate:
            raise ValueError(
                f"output_sampling_rate must be a multiple of input_sampling_rate = {config.input_sampling_rate}, "
                f"got {config.output_sampling_rate}; use {max(1, self._ratio) * config.input_sampling_rate}."
            )
        wanted = {
            "window_length": config.filter_length,
            "bwe_in_channels": config.out_channels * config.num_mel_channels,
            "bwe_out_channels": config.out_channels,
        }
        for name, value in wanted.items():
            if config[name] != value:
                raise ValueError(f"{name} must be {value} to fit the first stage, got {config[name]}.")
        samples_per_frame = config.hop_length * self._ratio
        if math.prod(config.bwe_upsample_factors) != samples_per_frame:
            raise ValueError(
                f"bwe_upsample_factors must multiply to hop_length * rate ratio = {samples_per_frame}, "
                f"got {list(config.bwe_upsample_factors)}."
            )
        # An odd difference would give one sample more than the factor asks for.
        for kernel_size, factor in zip(config.bwe_upsample_kernel_sizes, config.bwe_upsample_factors):
            if (kernel_size - factor) % 2:
                raise ValueError(
                    f"bwe_upsample_kernel_sizes must differ from bwe_upsample_factors by even numbers, got "
                    f"{kernel_size} for {factor}; use {kernel_size + 1}."
                )


def _upsampler(channels: int, kernel_size: int, factor: int) -> ConvTranspose1d:
    """Transposed convolution that multiplies the rate by `factor` and halves the channels."""
    if kernel_size < factor:
        raise ValueError(f"upsample_kernel_sizes must reach upsample_factors, got {kernel_size} for {factor}.")
    padding = (kernel_size - factor) // 2
    return ConvTranspose1d(channels, channels // 2, kernel_size, stride=factor, padding=padding)


def _check_config(config: Any) -> None:
    """Refuse lists that belong together but differ in length, and activations and filters that no checkpoint has."""
    pairs = ("upsample_kernel_sizes", "upsample_factors"), ("resnet_kernel_sizes", "resnet_dilations")
    for name, other_name in pairs:
        values, others = list(config[name]), list(config[other_name])
        if len(values) != len(others):
            raise ValueError(
                f"{name} and {other_name} must have the same length, got {len(values)} and {len(others)}: "
                f"{values} and {others}."
            )
    for name, known in _ACTIVATIONS.items():
        if config[name] not in known:
            raise ValueError(f"{name} must be one of {list(known)}, got {config[name]!r}.")
    if config.antialias and config.act_fn == "leaky_relu":
        raise ValueError('antialias must be False with act_fn "leaky_relu", got True; use act_fn "snakebeta".')
    ratio = config.antialias_ratio
    if config.antialias_kernel_size < ratio:
        raise ValueError(
            f"antialias_kernel_size must be at least antialias_ratio = {ratio}, got {config.antialias_kernel_size}; "
            f"use {6 * ratio}."
        )
