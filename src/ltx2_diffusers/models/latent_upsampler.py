"""The convolutional network that enlarges video latents in space, in time or in both.

Shapes: B batch, C latent channels, D inner channels, F latent frames, h, w latent height and width, p shuffle factor.
"""

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from torch.nn import functional as F

from .loading import CheckpointMixin
from .saving import AtomicModelSaveMixin
from .video_vae_blocks import depth_to_space

NORM_GROUPS = 32

# Config value `rational_spatial_scale` -> factor to enlarge by, stride to shrink by.
RATIONAL_SCALES = {0.75: (3, 4), 1.5: (3, 2), 2.0: (2, 1), 4.0: (4, 1)}


def fold_frames(x: torch.Tensor) -> torch.Tensor:
    """`[B, D, F, h, w]` to `[B * F, D, h, w]`."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold_frames(x: torch.Tensor, batch_size: int) -> torch.Tensor:
    """`[B * F, D, h, w]` to `[B, D, F, h, w]`; inverse of `fold_frames`."""
    return x.unflatten(0, (batch_size, -1)).transpose(1, 2)


class PixelShuffle(nn.Module):
    """Moves groups of channels to finer positions: `[B, D * prod(p), n1, n2, ...]` to `[B, D, n1 * p1, n2 * p2, ...]`.

    Channels are ordered with D slowest and the factors in the order of the axes.

    Args:
        factors: factor p of each axis after the channels.
    """

    def __init__(self, *factors: int) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return depth_to_space(x, self.factors)

    def extra_repr(self) -> str:
        return f"factors={self.factors}"


class BlurDownsample(nn.Module):
    """Keeps every `stride`-th row and column after a binomial blur: `[B, D, h, w]` to `[B, D, ceil(h / stride), ...]`.

    Args:
        stride: rows and columns per output row and column; 1 returns the input without blur.
        kernel_size: odd number of taps per axis, at least 3.
    """

    kernel: torch.Tensor

    def __init__(self, stride: int, kernel_size: int = 5) -> None:
        super().__init__()
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 3, got {kernel_size}; use {kernel_size | 1}.")
        self.stride = stride
        taps = torch.tensor([math.comb(kernel_size - 1, i) for i in range(kernel_size)], dtype=torch.float32)
        kernel = torch.outer(taps, taps)
        self.register_buffer("kernel", (kernel / kernel.sum())[None, None])

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: object) -> None:
        # Some original files leave the kernel out; its values are fixed by its size.
        state_dict.setdefault(f"{prefix}kernel", self.kernel)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride == 1:
            return x
        channels, padding = x.shape[1], self.kernel.shape[-1] // 2
        weight = self.kernel.expand(channels, -1, -1, -1)
        return F.conv2d(x, weight, stride=self.stride, padding=padding, groups=channels)


class RationalResampler(nn.Module):
    """Scales frames `[B * F, D, h, w]` by a fraction: enlarges by its numerator, then shrinks by its denominator.

    Args:
        channels: channels D.
        scale: one of `RATIONAL_SCALES`.
    """

    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        if scale not in RATIONAL_SCALES:
            nearest = min(RATIONAL_SCALES, key=lambda known: abs(known - scale))
            raise ValueError(
                f"rational_spatial_scale must be one of {sorted(RATIONAL_SCALES)}, got {scale}; use {nearest}."
            )
        factor, stride = RATIONAL_SCALES[scale]
        self.conv = nn.Conv2d(channels, factor**2 * channels, 3, padding=1)
        self.pixel_shuffle = PixelShuffle(factor, factor)
        self.blur_down = BlurDownsample(stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blur_down(self.pixel_shuffle(self.conv(x)))


class ResBlock(nn.Module):
    """Two normalised convolutions around a skip connection, with the activation after the sum.

    Args:
        channels: channels D.
        conv: `torch.nn.Conv2d` or `torch.nn.Conv3d`.
    """

    def __init__(self, channels: int, conv: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = conv(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(NORM_GROUPS, channels)
        self.conv2 = conv(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(hidden)) + x)


def build_upsampler(channels: int, spatial: bool, temporal: bool, rational_scale: float | None) -> nn.Module:
    """The enlarging layer: for `[B, D, F, h, w]` if `temporal`, else for folded frames `[B * F, D, h, w]`.

    Args:
        channels: channels D.
        spatial: whether rows and columns grow.
        temporal: whether frames double.
        rational_scale: scale of the rational resampler, None for plain doubling; not read when `temporal` is set.
    """
    if temporal:
        factors = (2, 2, 2) if spatial else (2, 1, 1)
        return nn.Sequential(nn.Conv3d(channels, math.prod(factors) * channels, 3, padding=1), PixelShuffle(*factors))
    if rational_scale is not None:
        return RationalResampler(channels, rational_scale)
    return nn.Sequential(nn.Conv2d(channels, 4 * channels, 3, padding=1), PixelShuffle(2, 2))


class LTX2LatentUpsamplerModel(CheckpointMixin, AtomicModelSaveMixin, ModelMixin, ConfigMixin):
    """Enlarges un-normalised video latents.

    Args:
        in_channels: latent channels C. Default 128.
        mid_channels: inner channels D, a multiple of 32. Default 1024.
        num_blocks_per_stage: residual blocks before and after the enlarging layer. Default 4.
        dims: 3 convolves over frames, rows and columns, 2 treats every frame by itself. Default 3.
        spatial_upsample: whether rows and columns grow. Default True.
        temporal_upsample: whether F frames become 2 F - 1; needs `dims` 3. Default False.
        rational_spatial_scale: 0.75, 1.5, 2.0 or 4.0, sizes are rounded up; read only by the rational resampler.
            Default 2.0.
        use_rational_resampler: whether rows and columns are scaled by that fraction instead of plainly doubled; has
            no effect together with `temporal_upsample`. Default True.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 128,
        mid_channels: int = 1024,
        num_blocks_per_stage: int = 4,
        dims: int = 3,
        spatial_upsample: bool = True,
        temporal_upsample: bool = False,
        rational_spatial_scale: float = 2.0,
        use_rational_resampler: bool = True,
    ) -> None:
        super().__init__()
        if dims not in (2, 3):
            raise ValueError(f"dims must be 2 or 3, got {dims}; use 3.")
        if not (spatial_upsample or temporal_upsample):
            raise ValueError("spatial_upsample and temporal_upsample are both False; set at least one to True.")
        if temporal_upsample and dims == 2:
            raise ValueError("temporal_upsample=True needs dims=3, got dims=2.")
        if mid_channels < NORM_GROUPS or mid_channels % NORM_GROUPS:
            nearest = max(round(mid_channels / NORM_GROUPS), 1) * NORM_GROUPS
            raise ValueError(f"mid_channels must be a multiple of {NORM_GROUPS}, got {mid_channels}; use {nearest}.")
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.initial_conv = conv(in_channels, mid_channels, 3, padding=1)
        self.initial_norm = nn.GroupNorm(NORM_GROUPS, mid_channels)
        self.res_blocks = nn.ModuleList(ResBlock(mid_channels, conv) for _ in range(num_blocks_per_stage))
        scale = rational_spatial_scale if use_rational_resampler else None
        self.upsampler = build_upsampler(mid_channels, spatial_upsample, temporal_upsample, scale)
        self.post_upsample_res_blocks = nn.ModuleList(
            ResBlock(mid_channels, conv) for _ in range(num_blocks_per_stage)
        )
        self.final_conv = conv(mid_channels, in_channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Enlarge latents.

        Args:
            hidden_states: un-normalised latents `[B, C, F, h, w]`.

        Returns:
            Un-normalised latents `[B, C, F', h', w']` of the new size.
        """
        channels = self.config.in_channels
        if hidden_states.ndim != 5 or hidden_states.shape[1] != channels:
            raise ValueError(
                f"hidden_states must have shape [B, {channels}, F, h, w], got {tuple(hidden_states.shape)}."
            )
        batch_size, framewise = hidden_states.shape[0], self.config.dims == 2
        if framewise:
            hidden_states = fold_frames(hidden_states)
        hidden_states = F.silu(self.initial_norm(self.initial_conv(hidden_states)))
        for block in self.res_blocks:
            hidden_states = block(hidden_states)
        if self.config.temporal_upsample:
            # The first latent frame stands for a single pixel frame, so only one of its two halves exists.
            hidden_states = self.upsampler(hidden_states)[:, :, 1:]
        elif framewise:
            hidden_states = self.upsampler(hidden_states)
        else:
            hidden_states = unfold_frames(self.upsampler(fold_frames(hidden_states)), batch_size)
        for block in self.post_upsample_res_blocks:
            hidden_states = block(hidden_states)
        hidden_states = self.final_conv(hidden_states)
        return unfold_frames(hidden_states, batch_size) if framewise else hidden_states
