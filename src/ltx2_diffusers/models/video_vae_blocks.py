"""Building blocks, encoder and decoder of the LTX-2 video VAE.

Shapes: B batch, C channels, F frames, H height, W width, at whatever depth of the network. P is the number of
positions (time x height x width) that a resampling layer folds into one.

Without gradients elementwise steps work in place and padding copies once, so that a residual block holds three
tensors of its size at a time: the skip, the convolution's padded input and its result.

The decoder's layers take a clip whole, or in chunks of frames with what [`Carried`] keeps for them between chunks; a
chunk then gives as many frames as its own frames and the kept ones suffice for. All layers keep the memory layout of
what they are given, channels first or last.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.utils.torch_utils import randn_tensor
from torch import nn
from torch.nn import functional as F

from ..kernels.steps import pixel_norm_silu
from .modulation import SINUSOID_DIM, timestep_sinusoid
from .video_vae_config import STRIDES, DownStage, UpStage
from .video_vae_streaming import Carried, Stage, may_overwrite, stream_stage

# Where a border of one position takes its values, as indices into the padded axis: (leading, trailing).
_BORDER_SOURCES = {"reflect": (2, -3), "replicate": (1, -2), "circular": (-2, 1)}


Modulation = tuple[torch.Tensor, torch.Tensor]
"""Shift and scale, each `[B, C, 1, 1, 1]`."""


def _add(
    own: torch.Tensor, other: torch.Tensor, carried: Carried | None = None, key: nn.Module | None = None
) -> torch.Tensor:
    """`own + other`, into `own` where allowed; of a chunk, whose `own` trails `other`, frame by frame as they belong."""
    if carried is not None and key is not None:
        return carried.add(key, own, other)
    return own.add_(other) if may_overwrite() else own + other


def has_channels_last(x: torch.Tensor) -> bool:
    """Whether the channels of `[B, C, F, H, W]` are the innermost axis in memory."""
    return x.stride(1) == 1 and x.shape[1] > 1


def preferred_layout(x: torch.Tensor) -> torch.Tensor:
    """`[B, C, F, H, W]` in the memory layout in which its device convolves fastest; all layers keep it."""
    # 3-D convolutions of NVIDIA cards are several times faster with channels innermost.
    return x.contiguous(memory_format=torch.channels_last_3d) if x.is_cuda else x


def patchify(video: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Fold square patches into channels: `[B, C, F, H, W]` to `[B, C * p * p, F, H / p, W / p]`.

    Within a channel's patch the column offset is the slower index, the row offset the faster one.
    """
    patches = video.unflatten(4, (-1, patch_size)).unflatten(3, (-1, patch_size))
    return patches.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unpatchify(patches: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Inverse of [`patchify`]."""
    video = patches.unflatten(1, (-1, patch_size, patch_size))
    return video.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def space_to_depth(x: torch.Tensor, stride: tuple[int, int, int]) -> torch.Tensor:
    """Fold (time, height, width) offsets into channels, channel slowest: `[B, C, F, H, W]` to `[B, C * P, ...]`."""
    keeps_last = has_channels_last(x)
    x = x.unflatten(4, (-1, stride[2])).unflatten(3, (-1, stride[1])).unflatten(2, (-1, stride[0]))
    if keeps_last:
        return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).movedim(-1, 1)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def depth_to_space(x: torch.Tensor, factors: Sequence[int]) -> torch.Tensor:
    """Unfold channels to offsets along the axes behind them, any number of axes; inverse of [`space_to_depth`]."""
    count = len(factors)
    sizes = [size * factor for size, factor in zip(x.shape[2:], factors)]
    interleaved = [axis for i in range(count) for axis in (2 + count + i, 2 + i)]
    # The number of channels is not left to `reshape`, which cannot infer it where a chunk has no frames.
    channels, unfolded = x.shape[1] // math.prod(factors), x.unflatten(1, (-1, *factors))
    if has_channels_last(x):
        return unfolded.permute(0, *interleaved, 1).reshape(x.shape[0], *sizes, channels).movedim(-1, 1)
    return unfolded.permute(0, 1, *interleaved).reshape(x.shape[0], channels, *sizes)


class CausalConv3d(nn.Module):
    """A 3x3x3 convolution that repeats the border frames in time; the caller chooses causality.

    Args:
        in_channels, out_channels: Widths.
        padding_mode: How a border of one pixel is filled: "zeros", "reflect", "replicate" or "circular".
        stride: Of the convolution, the same along all axes.
    """

    def __init__(self, in_channels: int, out_channels: int, padding_mode: str = "zeros", stride: int = 1) -> None:
        super().__init__()
        self.padding_mode = padding_mode
        # Zeros cost nothing inside the convolution; any other border is written by `pad` together with time's.
        self.border = 0 if padding_mode == "zeros" else 1
        self.conv = nn.Conv3d(
            in_channels, out_channels, kernel_size=3, stride=stride, padding=(0, 1 - self.border, 1 - self.border)
        )

    def forward(self, x: torch.Tensor, causal: bool = True, carried: Carried | None = None) -> torch.Tensor:
        """Convolve `[B, C, F, H, W]`; frames and sides are kept (or halved by a stride of 2)."""
        return self.convolve(self.pad(x, causal, carried))

    def convolve(self, padded: torch.Tensor) -> torch.Tensor:
        """Convolve what [`pad`] or [`activate`] returned; too few frames for the kernel give none."""
        if padded.shape[2] >= self.conv.kernel_size[0]:
            return self.conv(padded)
        height, width = (side - 2 * self.border for side in padded.shape[-2:])
        return padded.new_empty(padded.shape[0], self.conv.out_channels, 0, height, width)

    def pad(self, x: torch.Tensor, causal: bool, carried: Carried | None = None) -> torch.Tensor:
        """The input of `conv`: `[B, C, F + 2, H, W]`, with H and W two larger unless the mode is "zeros".

        Of a chunk, the frames that are kept from the chunk before stand in front, and nothing behind but in the last one.
        """
        if may_overwrite():
            return self._filled(x, causal, carried)
        return self._joined(x, causal, carried)

    def activate(
        self,
        x: torch.Tensor,
        causal: bool,
        modulation: Modulation | None = None,
        carried: Carried | None = None,
        overwrite: bool = False,
    ) -> torch.Tensor:
        """Pixel norm, modulation and SiLU of `x`, padded for `conv`.

        Args:
            x: `[B, C, F, H, W]`.
            causal: Whether time is padded in front only.
            modulation: Applied between norm and SiLU.
            carried: What is kept between the chunks of a clip; None takes `x` for the whole clip.
            overwrite: Whether the caller needs `x` no more, so that its memory may be used.
        """
        return self.pad(self.activated(x, modulation, overwrite), causal, carried)

    def activated(self, x: torch.Tensor, modulation: Modulation | None, overwrite: bool) -> torch.Tensor:
        """The first part of [`activate`], without padding: `[B, C, F, H, W]`."""
        in_place = may_overwrite()
        # Before padding: on tensors with gaps some processors compute SiLU with another rounding at the end of every row.
        y = pixel_norm_silu(x, modulation, in_place, overwrite and in_place and x.is_contiguous())
        # Compiled, all of it is one step, which writes where it has read.
        return x.copy_(y) if overwrite and not in_place and not torch.is_grad_enabled() else y

    def _time_border(self, causal: bool, carried: Carried | None) -> tuple[torch.Tensor | None, int, int]:
        """The frames kept for this layer, and how often a first frame and a last one are repeated."""
        history = None if carried is None else carried.take(self)
        front = 0 if history is not None else 2 if causal else 1
        return history, front, int(not causal and (carried is None or carried.is_last))

    def _filled(self, x: torch.Tensor, causal: bool, carried: Carried | None) -> torch.Tensor:
        """One copy into a tensor of the padded size, whose borders are filled from within."""
        self._check_sides(x)
        batch, channels, frames, height, width = x.shape
        history, front, back = self._time_border(causal, carried)
        if not frames and history is None:
            front = back = 0
        start, border = front if history is None else history.shape[2], self.border
        layout = torch.channels_last_3d if has_channels_last(x) else torch.contiguous_format
        shape = batch, channels, start + frames + back, height + 2 * border, width + 2 * border
        padded = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)
        new = padded[:, :, start : start + frames]
        new[..., border : border + height, border : border + width] = x
        if border:
            leading, trailing = _BORDER_SOURCES[self.padding_mode]
            # Height after width, so that the corners are copies of filled borders; time last for the same reason.
            for dim in (4, 3):
                new.select(dim, 0).copy_(new.select(dim, leading))
                new.select(dim, -1).copy_(new.select(dim, trailing))
        if history is not None:
            padded[:, :, :start] = history
        elif front:
            padded[:, :, :front] = padded[:, :, front : front + 1]
        if back:
            padded[:, :, -1] = padded[:, :, -2]
        return self._kept(padded, carried)

    def _joined(self, x: torch.Tensor, causal: bool, carried: Carried | None) -> torch.Tensor:
        """The same of parts that autograd and the compiler can follow."""
        self._check_sides(x)
        history, front, back = self._time_border(causal, carried)
        if self.border and x.shape[2]:
            x = F.pad(x, (1, 1, 1, 1, 0, 0), mode=self.padding_mode)
        elif self.border:
            x = x.new_empty(*x.shape[:3], x.shape[3] + 2, x.shape[4] + 2)
        if history is not None:
            x = torch.cat([history, x], dim=2)
        elif not x.shape[2]:
            return x
        return self._kept(torch.cat([x[:, :, :1]] * front + [x] + [x[:, :, -1:]] * back, dim=2), carried)

    def _kept(self, padded: torch.Tensor, carried: Carried | None) -> torch.Tensor:
        """`padded`, whose last frames the next chunk begins with."""
        if carried is not None and padded.shape[2]:
            carried.keep(self, padded[:, :, 1 - self.conv.kernel_size[0] :])
        return padded

    def _check_sides(self, x: torch.Tensor) -> None:
        if self.padding_mode == "reflect" and min(x.shape[-2:]) < 2:
            raise ValueError(
                f"reflect padding needs a height and width of at least 2 positions, got {tuple(x.shape[-2:])}; use a "
                "larger video, or larger tiles."
            )


class BlockOptions(NamedTuple):
    """What all blocks of an encoder or a decoder share.

    Args:
        padding_mode: Spatial padding of all convolutions.
        norm_eps: Unused by the published structures, see `resnet_norm_eps`.
        timestep_conditioning: Whether all residual blocks and the output norm are modulated by a timestep.
    """

    padding_mode: str
    norm_eps: float
    timestep_conditioning: bool = False


class TimeEmbedder(nn.Module):
    """Sinusoid and two linear layers that turn a scaled timestep into modulation rows."""

    def __init__(self, rows: int, channels: int) -> None:
        super().__init__()
        self.rows = rows
        self.timestep_embedder = TimestepEmbedding(SINUSOID_DIM, rows * channels)

    def forward(self, timestep: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Embed `[B]` timesteps into `[B, rows, C, 1, 1, 1]` of `dtype`."""
        sinusoid = timestep_sinusoid(timestep).to(dtype)
        return self.timestep_embedder(sinusoid).unflatten(1, (self.rows, -1))[..., None, None, None]


class ResBlock(nn.Module):
    """Two activated convolutions around a skip, optionally modulated by time and with injected noise."""

    def __init__(self, in_channels: int, out_channels: int, options: BlockOptions, inject_noise: bool = False) -> None:
        super().__init__()
        self.conv1 = CausalConv3d(in_channels, out_channels, options.padding_mode)
        self.conv2 = CausalConv3d(out_channels, out_channels, options.padding_mode)
        self.norm3 = self.conv_shortcut = None
        if in_channels != out_channels:
            self.norm3 = nn.LayerNorm(in_channels, eps=options.norm_eps)
            self.conv_shortcut = nn.Conv3d(in_channels, out_channels, kernel_size=1)
        self.per_channel_scale1 = self.per_channel_scale2 = self.scale_shift_table = None
        if inject_noise:
            self.per_channel_scale1 = nn.Parameter(torch.zeros(in_channels, 1, 1))
            self.per_channel_scale2 = nn.Parameter(torch.zeros(in_channels, 1, 1))
        if options.timestep_conditioning:
            self.scale_shift_table = nn.Parameter(torch.randn(4, in_channels) / in_channels**0.5)

    def forward(
        self,
        x: torch.Tensor,
        temb: torch.Tensor | None,
        generator: torch.Generator | None,
        causal: bool,
        carried: Carried | None = None,
    ) -> torch.Tensor:
        """Map `[B, C, F, H, W]` to `[B, C_out, F, H, W]`; `temb` holds the block's `[B, 4, C, 1, 1, 1]` rows."""
        first = second = None
        if self.scale_shift_table is not None and temb is not None:
            shift1, scale1, shift2, scale2 = (temb + self.scale_shift_table[..., None, None, None]).unbind(1)
            first, second = (shift1, scale1), (shift2, scale2)
        # One name throughout: rebinding it frees each intermediate before the next convolution allocates.
        h = self.conv1.activate(x, causal, first, carried)
        h = self.conv1.convolve(h)
        h = _inject_noise(h, self.per_channel_scale1, generator, carried)
        h = self.conv2.activate(h, causal, second, carried, overwrite=True)
        h = self.conv2.convolve(h)
        h = _inject_noise(h, self.per_channel_scale2, generator, carried)
        if self.norm3 is not None and self.conv_shortcut is not None:
            x = self.conv_shortcut(self.norm3(x.movedim(1, -1)).movedim(-1, 1))
        return _add(h, x, carried, self)


def _inject_noise(
    h: torch.Tensor, channel_scale: nn.Parameter | None, generator: torch.Generator | None, carried: Carried | None
) -> torch.Tensor:
    """Add one normal `[H, W]` plane, shared by batch, channels and frames, times a scale per channel."""
    if channel_scale is None:
        return h
    draw = partial(randn_tensor, h.shape[-2:], generator=generator, device=h.device, dtype=h.dtype)
    plane = draw() if carried is None else carried.once(channel_scale, draw)
    return _add(h, (plane * channel_scale)[None, :, None])


class Downsampler(nn.Module):
    """Space-to-depth of a convolution plus the group means of the input's own space-to-depth."""

    def __init__(self, in_channels: int, out_channels: int, stride: tuple[int, int, int], padding_mode: str) -> None:
        super().__init__()
        self.stride = stride
        patch = math.prod(stride)
        self.group_size = in_channels * patch // out_channels
        self.conv = CausalConv3d(in_channels, out_channels // patch, padding_mode)

    def forward(self, x: torch.Tensor, causal: bool = True) -> torch.Tensor:
        """Map `[B, C, F, H, W]` to `[B, C_out, (F + 1) / 2 or F, H / 2 or H, W / 2 or W]`."""
        if self.stride[0] == 2:
            x = torch.cat([x[:, :, :1], x], dim=2)
        skip = space_to_depth(x, self.stride).unflatten(1, (-1, self.group_size)).mean(dim=2)
        return _add(space_to_depth(self.conv(x, causal), self.stride), skip)


class Upsampler(nn.Module):
    """Depth-to-space of a convolution, optionally with the input's own depth-to-space added.

    Args:
        in_channels, out_channels: Widths.
        stride: (time, height, width) factors; doubling time drops the first frame (F becomes 2 F - 1).
        residual: Whether the input, its channel block repeated to fit, is added.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: tuple[int, int, int], residual: bool, padding_mode: str
    ) -> None:
        super().__init__()
        self.stride = stride
        self.residual = residual
        self.conv = CausalConv3d(in_channels, out_channels * math.prod(stride), padding_mode)

    def forward(self, x: torch.Tensor, causal: bool = True, carried: Carried | None = None) -> torch.Tensor:
        """Map `[B, C, F, H, W]` to `[B, C_out, 2 F - 1 or F, 2 H or H, 2 W or W]`."""
        h = self.conv(x, causal, carried)
        if self.residual:
            # Repeating blocks of C / P channels after depth-to-space is repeating blocks of C channels before it.
            h = _add(h.unflatten(1, (-1, x.shape[1])), x.unsqueeze(1), carried, self).flatten(1, 2)
        begins = carried is None or carried.begins(self, h)
        return depth_to_space(h, self.stride)[:, :, self.stride[0] - 1 if begins else 0 :]


class ResBlocks(nn.Module):
    """A stage: residual blocks at one width, their time embedder, and what subclasses put before and after.

    Args:
        channels: Width of the residual blocks.
        num_layers: How many there are.
        options: What all blocks share.
        inject_noise: Whether they inject noise.
    """

    _gradient_checkpointing_func: Callable[..., torch.Tensor]

    def __init__(self, channels: int, num_layers: int, options: BlockOptions, inject_noise: bool = False) -> None:
        super().__init__()
        self.time_embedder = TimeEmbedder(4, channels) if options.timestep_conditioning else None
        self.resnets = nn.ModuleList(ResBlock(channels, channels, options, inject_noise) for _ in range(num_layers))
        self.gradient_checkpointing = False

    def forward(
        self,
        x: torch.Tensor,
        temb: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        causal: bool = True,
        carried: Carried | None = None,
    ) -> torch.Tensor:
        """Map `[B, C, F, H, W]` to the next stage's input; `temb` is the scaled timestep `[B]`."""
        # All in this frame: a caller further up that held what `enter` returns would keep it alive to the end.
        x = self.enter(x, causal, carried)
        if self.time_embedder is not None:
            temb = self.time_embedder(temb, x.dtype)
        for resnet in self.resnets:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(resnet, x, temb, generator, causal)
            else:
                x = resnet(x, temb, generator, causal, carried)
        return self.leave(x, causal)

    def enter(self, x: torch.Tensor, causal: bool, carried: Carried | None) -> torch.Tensor:  # noqa: ARG002 - for subclasses
        """What comes before the residual blocks: nothing."""
        return x

    def leave(self, x: torch.Tensor, causal: bool) -> torch.Tensor:  # noqa: ARG002 - for subclasses
        """What comes after the residual blocks: nothing."""
        return x


class DownBlock(ResBlocks):
    """Residual blocks, then the downsampler."""

    def __init__(self, stage: DownStage, options: BlockOptions) -> None:
        super().__init__(stage.in_channels, stage.num_layers, options)
        widths, self.downsamplers = (stage.in_channels, stage.out_channels), None
        if stage.resample == "conv":
            self.downsamplers = nn.ModuleList([CausalConv3d(*widths, options.padding_mode, stride=2)])
        elif stage.resample is not None:
            downsampler = Downsampler(*widths, STRIDES[stage.resample], options.padding_mode)
            self.downsamplers = nn.ModuleList([downsampler])

    def leave(self, x: torch.Tensor, causal: bool) -> torch.Tensor:
        """Downsample `[B, C, F, H, W]`."""
        return x if self.downsamplers is None else self.downsamplers[0](x, causal)


class UpBlock(ResBlocks):
    """The upsampler, then residual blocks."""

    def __init__(self, stage: UpStage, options: BlockOptions) -> None:
        channels, wide = stage.out_channels, stage.out_channels * stage.factor
        super().__init__(channels, stage.num_layers, options, stage.inject_noise)
        self.conv_in = self.upsamplers = None
        # By how much the number of frames grows, but for the first one.
        self.frame_factor: int = 1 if stage.resample is None else STRIDES[stage.resample][0]
        if stage.in_channels != wide:
            self.conv_in = ResBlock(stage.in_channels, channels, options)
        if stage.resample is not None:
            upsampler = Upsampler(wide, channels, STRIDES[stage.resample], stage.residual, options.padding_mode)
            self.upsamplers = nn.ModuleList([upsampler])

    def enter(self, x: torch.Tensor, causal: bool, carried: Carried | None) -> torch.Tensor:
        """Change the width of `[B, C, F, H, W]` if need be, and upsample."""
        if self.conv_in is not None:
            x = self.conv_in(x, None, None, causal, carried)
        return x if self.upsamplers is None else self.upsamplers[0](x, causal, carried)


class VideoEncoder(nn.Module):
    """Maps pixels to moments: means and one log-variance, repeated for every latent channel.

    Args:
        config: Of the [`AutoencoderKLLTX2Video`].
        stages: The down stages in execution order.
        mid_layers: Residual blocks of the mid block.
    """

    def __init__(self, config: Any, stages: list[DownStage], mid_layers: int) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.is_causal = config.encoder_causal
        self.latent_channels = config.latent_channels
        options = BlockOptions(config.encoder_spatial_padding_mode, config.resnet_norm_eps)
        channels, width = config.in_channels * config.patch_size**2, stages[-1].out_channels
        self.conv_in = CausalConv3d(channels, config.latent_channels, options.padding_mode)
        self.down_blocks = nn.ModuleList(DownBlock(stage, options) for stage in stages)
        self.mid_block = ResBlocks(width, mid_layers, options)
        self.conv_out = CausalConv3d(width, config.latent_channels + 1, options.padding_mode)

    def forward(self, hidden_states: torch.Tensor, causal: bool | None = None) -> torch.Tensor:
        """Encode `[B, 3, F, H, W]` in [-1, 1] to moments `[B, 2 C, F', H', W']`; `causal=None` is the default."""
        causal = self.is_causal if causal is None else causal
        h = self.conv_in(preferred_layout(patchify(hidden_states, self.patch_size)), causal)
        for block in self.down_blocks:
            h = block(h, causal=causal)
        h = self.mid_block(h, causal=causal)
        h = self.conv_out.activate(h, causal, overwrite=True)
        h = self.conv_out.convolve(h)
        means, log_variance = h.split([self.latent_channels, 1], dim=1)
        return torch.cat([means, log_variance.expand_as(means)], dim=1)


def _run_block(
    block: ResBlocks,
    temb: torch.Tensor | None,
    generator: torch.Generator | None,
    causal: bool,
    x: torch.Tensor,
    carried: Carried | None,
) -> torch.Tensor:
    """A block, with what changes from chunk to chunk as the last arguments."""
    return block(x, temb, generator, causal, carried)


class VideoDecoder(nn.Module):
    """Maps latents to pixels.

    Args:
        config: Of the [`AutoencoderKLLTX2Video`].
        stages: The up stages in execution order.
        mid_layers, mid_noise: Residual blocks of the mid block and whether they inject noise.
    """

    def __init__(self, config: Any, stages: list[UpStage], mid_layers: int, mid_noise: bool) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.is_causal = config.decoder_causal
        mode, conditioned = config.decoder_spatial_padding_mode, config.timestep_conditioning
        options = BlockOptions(mode, config.resnet_norm_eps, conditioned)
        width_in, width_out = stages[0].in_channels, stages[-1].out_channels
        self.conv_in = CausalConv3d(config.latent_channels, width_in, mode)
        self.mid_block = ResBlocks(width_in, mid_layers, options, mid_noise)
        self.up_blocks = nn.ModuleList(UpBlock(stage, options) for stage in stages)
        self.conv_out = CausalConv3d(width_out, config.out_channels * config.patch_size**2, mode)
        self.time_embedder = self.scale_shift_table = self.timestep_scale_multiplier = None
        if conditioned:
            self.timestep_scale_multiplier = nn.Parameter(torch.tensor(1000.0))
            self.time_embedder = TimeEmbedder(2, width_out)
            self.scale_shift_table = nn.Parameter(torch.randn(2, width_out) / width_out**0.5)

    def forward(
        self,
        hidden_states: torch.Tensor,
        temb: torch.Tensor | None = None,
        causal: bool | None = None,
        generator: torch.Generator | None = None,
        step: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Decode latents to pixels.

        Args:
            hidden_states: `[B, C, F', H', W']`, raw latents.
            temb: `[B]` or `[1]`, timestep in [0, 1]; needed if and only used when conditioned on it.
            causal: Whether time is padded in front only; None takes the configured value.
            generator: Source of the injected noise; None draws from the global one.
            step: A part of a streamed decode that is run instead, for the sake of hooks that bring the decoder's weights.

        Returns:
            `[B, 3, F, H, W]`, nominally in [-1, 1], not clamped.
        """
        if step is not None:
            return step(hidden_states)
        h = hidden_states
        for stage, _ in self._stages(h, temb, causal, generator):
            h = stage(h, None)
        return h

    def stream(
        self,
        latents: torch.Tensor,
        temb: torch.Tensor | None,
        causal: bool | None,
        generator: torch.Generator | None,
        chunk_frames: int,
    ) -> Iterator[torch.Tensor]:
        """Decode latents to the same pixels, handed out as soon as they are finished.

        Each stage computes at most `chunk_frames` of the frames that it makes at a time, when the next one asks for them.
        The other arguments are those of `forward`.

        Returns:
            An iterator over `[B, 3, f, H, W]`, f at least 1.
        """
        stages = self._stages(latents, temb, causal, generator, is_streamed=True)
        chunks, frames = iter([latents]), latents.shape[2]
        for stage, factor in stages:
            chunks = stream_stage(partial(self._called, stage), chunks, frames, max(1, chunk_frames // factor))
            frames = (frames - 1) * factor + 1
        return (chunk for chunk in chunks if chunk.shape[2])

    def _called(self, stage: Stage, chunk: torch.Tensor, carried: Carried | None) -> torch.Tensor:
        """A stage as a call of the decoder, around which offloading has its hooks."""
        return self(chunk, step=lambda h: stage(h, carried))

    def _stages(
        self,
        latents: torch.Tensor,
        temb: torch.Tensor | None,
        causal: bool | None,
        generator: torch.Generator | None,
        is_streamed: bool = False,
    ) -> list[tuple[Stage, int]]:
        """What is done one after the other, and by how much each step multiplies the frames."""
        causal = self.is_causal if causal is None else causal
        self.check_timestep(temb, len(latents))
        self._check_recomputable(generator, is_streamed)
        if self.timestep_scale_multiplier is not None and temb is not None:
            temb = (temb * self.timestep_scale_multiplier).flatten().expand(len(latents))
        settings = temb, generator, causal
        stages: list[tuple[Stage, int]] = [(partial(self._from_latents, *settings), 1)]
        blocks: list[Any] = list(self.up_blocks)
        stages += [(partial(_run_block, block, *settings), block.frame_factor) for block in blocks]
        return [*stages, (partial(self._to_pixels, temb, causal), 1)]

    def _from_latents(
        self,
        temb: torch.Tensor | None,
        generator: torch.Generator | None,
        causal: bool,
        h: torch.Tensor,
        carried: Carried | None,
    ) -> torch.Tensor:
        # No name for what goes on, which would keep it alive.
        h = preferred_layout(h)
        return _run_block(self.mid_block, temb, generator, causal, self.conv_in(h, causal, carried), carried)

    def _to_pixels(
        self, temb: torch.Tensor | None, causal: bool, h: torch.Tensor, carried: Carried | None
    ) -> torch.Tensor:
        modulation = None
        if self.time_embedder is not None and self.scale_shift_table is not None:
            rows = self.time_embedder(temb, h.dtype) + self.scale_shift_table[..., None, None, None]
            modulation = rows.unbind(1)
        h = self.conv_out.activate(h, causal, modulation, carried, overwrite=True)
        h = self.conv_out.convolve(h)
        return unpatchify(h, self.patch_size)

    def check_timestep(self, temb: torch.Tensor | None, batch: int) -> None:
        """Refuse timesteps that the decoder is conditioned on but that are missing or do not fit the batch."""
        if self.timestep_scale_multiplier is None:
            return
        if temb is None:
            raise ValueError("`temb` is None but the decoder is conditioned on it; pass a timestep, e.g. 0.05.")
        if temb.numel() not in (1, batch):
            raise ValueError(f"`temb` has {temb.numel()} timesteps for a batch of {batch}; pass 1 or {batch}.")

    def _check_recomputable(self, generator: torch.Generator | None, is_streamed: bool) -> None:
        blocks = [self.mid_block, *self.up_blocks]
        if not torch.is_grad_enabled() or not any(block.gradient_checkpointing for block in blocks):
            return
        if is_streamed:
            raise ValueError(
                "streamed decoding keeps frames from chunk to chunk, which gradient checkpointing cannot replay; decode under "
                "`torch.no_grad()`, or call disable_streaming() or disable_gradient_checkpointing()."
            )
        noisy = any(resnet.per_channel_scale1 is not None for block in blocks for resnet in block.resnets)
        if generator is not None and noisy:
            raise ValueError(
                "`generator` cannot be replayed by gradient checkpointing, so injected noise would differ in the "
                "backward pass; pass generator=None and seed with `torch.manual_seed`."
            )
