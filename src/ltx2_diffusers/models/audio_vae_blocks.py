"""Blocks, encoder and decoder of the LTX-2 audio VAE.

Shape legend: B batch, C channels, T mel frames ("height" axis), M mel bins ("width" axis), L latent steps.
Attribute names follow the published checkpoints.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from .mixed_precision import Conv2d, GroupNorm

# Mel frames per latent step and mel bins per latent bin; constants of the published architecture.
COMPRESSION_RATIO = 4
_NORM_EPS = 1e-6
_GROUPS = 32

# Zero padding (left, right, top, bottom) of the strided 3x3 convolution; the bins are left/right, time top/bottom.
_DOWNSAMPLE_PADDING = {
    "none": (0, 1, 0, 1),
    "width": (2, 0, 0, 1),
    "width-compatibility": (1, 0, 0, 1),
    "height": (0, 1, 2, 0),
}
CAUSALITY_AXES = tuple(_DOWNSAMPLE_PADDING)


class CoderLayout(NamedTuple):
    """Widths, attention places and layers of an encoder or decoder, named as in the config of the audio VAE.

    Args:
        base_channels: channels at the finest level.
        ch_mult: width factor of each level, finest first.
        num_res_blocks: residual blocks per encoder level (a decoder level has one more).
        attn_resolutions: resolutions with attention after each residual block, or None.
        resolution: nominal resolution of the finest level, halved per level.
        mid_block_add_attention: attention between the two middle blocks.
        norm_type: "pixel" or "group".
        causality_axis: one of `CAUSALITY_AXES`.
        dropout: probability inside residual blocks.
    """

    base_channels: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int] | None
    resolution: int
    mid_block_add_attention: bool
    norm_type: str
    causality_axis: str
    dropout: float

    def width(self, level: int) -> int:
        """Channels of a level."""
        return self.base_channels * self.ch_mult[level]

    def has_attention(self, level: int) -> bool:
        """Whether a level's residual blocks are followed by attention."""
        return self.resolution // 2**level in (self.attn_resolutions or ())


class PixelNorm(nn.Module):
    """Divides each position by the root mean square of its channels."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, C, T, M]`."""
        return x / (x.square().mean(dim=1, keepdim=True) + _NORM_EPS).sqrt()


def make_norm(norm_type: str, channels: int) -> nn.Module:
    """Build the normalisation layer that `norm_type` names."""
    if norm_type == "pixel":
        return PixelNorm()
    return GroupNorm(_GROUPS, channels, eps=_NORM_EPS)


class CausalConv2d(nn.Module):
    """Convolution that keeps `[T, M]` and sees nothing later on the causal axis."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, causality_axis: str) -> None:
        super().__init__()
        total = kernel_size - 1
        centred, causal = (total // 2, total - total // 2), (total, 0)
        time = causal if causality_axis == "height" else centred
        bins = causal if causality_axis in ("width", "width-compatibility") else centred
        self.padding = bins + time
        self.conv = Conv2d(in_channels, out_channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `[B, C, T, M]`."""
        return self.conv(F.pad(x, self.padding))


class ResidualBlock(nn.Module):
    """Two normalised, activated 3x3 convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, layout: CoderLayout) -> None:
        super().__init__()
        axis = layout.causality_axis
        self.norm1 = make_norm(layout.norm_type, in_channels)
        self.conv1 = CausalConv2d(in_channels, out_channels, 3, axis)
        self.norm2 = make_norm(layout.norm_type, out_channels)
        self.dropout = nn.Dropout(layout.dropout)
        self.conv2 = CausalConv2d(out_channels, out_channels, 3, axis)
        self.nin_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = CausalConv2d(in_channels, out_channels, 1, axis)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C_in, T, M]` to `[B, C_out, T, M]`."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return self.nin_shortcut(x) + hidden


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions of the spectrogram, with a residual."""

    def __init__(self, channels: int, norm_type: str) -> None:
        super().__init__()
        self.norm = make_norm(norm_type, channels)
        self.q = Conv2d(channels, channels, 1)
        self.k = Conv2d(channels, channels, 1)
        self.v = Conv2d(channels, channels, 1)
        self.proj_out = Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within `[B, C, T, M]`."""
        normed = self.norm(x)
        # [B, C, T, M] -> [B, 1 head, T*M, C]
        query, key, value = (layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(attended[:, 0].transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """Halves time and bins with a strided 3x3 convolution."""

    def __init__(self, channels: int, causality_axis: str) -> None:
        super().__init__()
        self.padding = _DOWNSAMPLE_PADDING[causality_axis]
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, T, M]` to half its time and bins."""
        return self.conv(F.pad(x, self.padding))


class Upsample(nn.Module):
    """Doubles time and bins; the causal axis loses its first entry, which no input precedes."""

    def __init__(self, channels: int, causality_axis: str) -> None:
        super().__init__()
        self.first_frame = 1 if causality_axis == "height" else 0
        self.first_bin = 1 if causality_axis == "width" else 0
        self.conv = CausalConv2d(channels, channels, 3, causality_axis)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, T, M]` to double its time and bins, less the dropped first entry."""
        x = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x[:, :, self.first_frame :, self.first_bin :]


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if the layout asks for it."""

    def __init__(self, in_channels: int, level: int, num_blocks: int, layout: CoderLayout) -> None:
        super().__init__()
        width = layout.width(level)
        widths = [in_channels] + [width] * num_blocks
        self.block = nn.ModuleList(ResidualBlock(*pair, layout) for pair in pairwise(widths))
        count = num_blocks if layout.has_attention(level) else 0
        self.attn = nn.ModuleList(AttentionBlock(width, layout.norm_type) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C_in, T, M]` to `[B, C_out, T, M]`."""
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        return x


class DownLevel(Level):
    """A level of the encoder, which all but the coarsest leave by a downsampling."""

    def __init__(self, in_channels: int, level: int, layout: CoderLayout) -> None:
        super().__init__(in_channels, level, layout.num_res_blocks, layout)
        is_last = level == len(layout.ch_mult) - 1
        self.downsample = nn.Identity() if is_last else Downsample(layout.width(level), layout.causality_axis)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C_in, T, M]` to the next level."""
        return self.downsample(super().forward(x))


class UpLevel(Level):
    """A level of the decoder, which all but the finest leave by an upsampling."""

    def __init__(self, in_channels: int, level: int, layout: CoderLayout) -> None:
        super().__init__(in_channels, level, layout.num_res_blocks + 1, layout)
        self.upsample = Upsample(layout.width(level), layout.causality_axis) if level > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C_in, T, M]` to the next level."""
        return self.upsample(super().forward(x))


class Middle(nn.Module):
    """Two residual blocks at the coarsest resolution, optionally with attention between them."""

    def __init__(self, channels: int, layout: CoderLayout) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, layout)
        has_attention = layout.mid_block_add_attention
        self.attn_1 = AttentionBlock(channels, layout.norm_type) if has_attention else nn.Identity()
        self.block_2 = ResidualBlock(channels, channels, layout)

    def forward(self, x: Tensor) -> Tensor:
        """Refine `[B, C, T, M]`."""
        return self.block_2(self.attn_1(self.block_1(x)))


class AudioEncoder(nn.Module):
    """Log-mel spectrogram to the moments of the latent.

    Args:
        in_channels: spectrogram planes.
        out_channels: moment channels, twice those of the latent.
        layout: widths and attention places.
    """

    def __init__(self, in_channels: int, out_channels: int, layout: CoderLayout) -> None:
        super().__init__()
        widths = [layout.base_channels, *map(layout.width, range(len(layout.ch_mult)))]
        self.conv_in = CausalConv2d(in_channels, layout.base_channels, 3, layout.causality_axis)
        self.down = nn.ModuleList(DownLevel(width, level, layout) for level, width in enumerate(widths[:-1]))
        self.mid = Middle(widths[-1], layout)
        self.norm_out = make_norm(layout.norm_type, widths[-1])
        self.conv_out = CausalConv2d(widths[-1], out_channels, 3, layout.causality_axis)

    def forward(self, mel: Tensor) -> Tensor:
        """Map log-mel `[B, C, T, M]` to moments `[B, 2Z, L, M/4]`."""
        hidden = self.conv_in(mel)
        for level in self.down:
            hidden = level(hidden)
        return self.conv_out(F.silu(self.norm_out(self.mid(hidden))))


class AudioDecoder(nn.Module):
    """Latent to log-mel spectrogram.

    Args:
        in_channels: latent channels.
        out_channels: spectrogram planes.
        mel_bins: bins of the result; None keeps as many as the latent has, as in diffusers.
        layout: widths and attention places.
    """

    def __init__(self, in_channels: int, out_channels: int, mel_bins: int | None, layout: CoderLayout) -> None:
        super().__init__()
        self.mel_bins = mel_bins
        coarsest = len(layout.ch_mult) - 1
        self.conv_in = CausalConv2d(in_channels, layout.width(coarsest), 3, layout.causality_axis)
        self.mid = Middle(layout.width(coarsest), layout)
        # Built from coarse to fine, but stored by level: index 0 is the finest.
        levels = [UpLevel(layout.width(min(level + 1, coarsest)), level, layout) for level in range(coarsest, -1, -1)]
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = make_norm(layout.norm_type, layout.width(0))
        self.conv_out = CausalConv2d(layout.width(0), out_channels, 3, layout.causality_axis)

    def forward(self, latents: Tensor) -> Tensor:
        """Map latents `[B, Z, L, M/4]` to log-mel `[B, C, 4L - 3, M]`."""
        hidden = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            hidden = level(hidden)
        mel = self.conv_out(F.silu(self.norm_out(hidden)))
        frames = COMPRESSION_RATIO * (latents.shape[2] - 1) + 1
        return _fit(mel, frames, latents.shape[3] if self.mel_bins is None else self.mel_bins)


def _fit(mel: Tensor, frames: int, bins: int) -> Tensor:
    """Crop `[B, C, T, M]` to the wanted frames and bins, or append zeros; the published sizes already fit."""
    mel = mel[:, :, :frames, :bins]
    return F.pad(mel, (0, bins - mel.shape[3], 0, frames - mel.shape[2]))
