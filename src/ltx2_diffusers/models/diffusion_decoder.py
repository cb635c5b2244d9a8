"""The diffusion video decoder of LTX-2.5: latents of the video VAE to pixels, by few steps of diffusion or by one.

Shapes: B batch, C latent channels, F latent frames, h, w latent height and width, T, H, W frames, height and width of
pixels, D width of a stage.
"""

# The constructor's arguments are read back from `self.config`, where `register_to_config` puts them.
# ruff: noqa: ARG002

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise, product
from math import ceil, prod
from operator import mul, truediv
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import AttentionMixin
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from ..checks import check_at_least_one, check_choice
from ..declared import as_declared
from .diffusion_decoder_blocks import (
    NORM_EPS,
    NUM_MODULATIONS,
    DiffusionBlock,
    Frames,
    NeighbourhoodBlock,
    ShuffleUpsampler,
)
from .diffusion_decoder_tiling import SIZE_NAMES, Grid, TileSizes
from .latent_statistics import denormalized
from .loading import CheckpointMixin
from .modulation import SINUSOID_DIM, timestep_sinusoid
from .neighbourhood_attention import frame_slabs
from .saving import AtomicModelSaveMixin
from .video_vae_blocks import patchify, unpatchify
from .video_vae_streaming import joined_frames
from .video_vae_tiling import TIME, blend_into, blended_space, tail

OUTPUT_TYPES = ("x0", "v")

Generators = torch.Generator | list[torch.Generator] | None
Number = int | None
Draw = Callable[[], torch.Tensor]
Noise = Callable[[torch.Tensor, tuple[slice, ...]], torch.Tensor]


class DiffusionDecoder(nn.Module):
    """The network: four stages that make a context of the latents, and a diffusion after it.

    Args:
        config: That of [`LTX2VideoDiffusionDecoderModel`].
    """

    # Lists of lists, which type checkers do not know.
    det_stages: Any
    upsamples: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        head_dim, widths, depths = config.decoder_head_dim, config.decoder_stage_channels, config.decoder_stage_depths
        pixels = config.out_channels * config.patch_size**2
        self.patch_size, self.output_type = config.patch_size, config.decoder_model_output_type
        self.time_scale = config.decoder_timestep_scale_multiplier
        self.conv_in, self.conv_in_x_t = nn.Linear(config.latent_channels, widths[0]), nn.Linear(pixels, widths[-1])
        self.det_stages = nn.ModuleList(
            nn.ModuleList(NeighbourhoodBlock(width, head_dim, kernel) for _ in range(depth))
            for width, depth, kernel in zip(widths, depths, config.decoder_stage_kernels)
        )
        reductions = config.decoder_upsample_channel_reductions
        self.upsamples = nn.ModuleList(map(ShuffleUpsampler, widths, config.decoder_upsample_strides, reductions))
        self.t_embedder = nn.ModuleDict(
            {"timestep_embedder": TimestepEmbedding(SINUSOID_DIM, config.decoder_t_emb_dim)}
        )
        self.shared_adaln = nn.ModuleDict({"proj": nn.Linear(config.decoder_t_emb_dim, NUM_MODULATIONS * widths[-1])})
        kernel = config.decoder_stage5_kernel
        self.diff_blocks = nn.ModuleList(DiffusionBlock(widths[-1], head_dim, kernel) for _ in range(depths[-1]))
        self.norm_out, self.conv_out = nn.RMSNorm(widths[-1], eps=NORM_EPS), nn.Linear(widths[-1], pixels)

    def features(self, latents: torch.Tensor) -> torch.Tensor:
        """What stage 4 begins with, `[B, t, y, x, D]`, of latents `[B, C, F, h, w]`."""
        x = self.conv_in(latents.movedim(1, -1))
        for blocks, upsample in zip(self.det_stages[:3], self.upsamples):
            for block in blocks:
                x = block(x)
            x = upsample(x)
        return x

    def context(self, features: torch.Tensor, keep_first: bool = False) -> Frames:
        """What the diffusion is conditioned on, `[B, T, H / p, W / p, D]`, made when it is read.

        Args:
            features: Result of [`features`], which is overwritten, or a tile of it.
            keep_first: Whether the first frame stands for as many as the others, in a tile that does not begin the clip.
        """
        for block in self.det_stages[3]:
            features = block(features)
        return lambda first, last: self.upsamples[3].frames(features, first, last, keep_first)

    def denoise(self, context: Frames, draw: Draw, num_steps: int) -> torch.Tensor:
        """Pixels `[B, 3, T, H, W]` of the noise that `draw` makes, in `num_steps` steps of equal size."""
        levels = [*torch.linspace(1, 1 / num_steps, num_steps).tolist(), 0.0]
        is_direct = self.output_type == "x0" and num_steps == 1
        x = draw()
        for level, following in pairwise(levels):
            hidden = self._embedded(x)
            if is_direct:
                # Noise is as large as the result.
                del x
                return self._predicted(hidden, context, level)
            prediction = self._predicted(hidden, context, level).float()
            velocity = prediction if self.output_type == "v" else (x.float() - prediction) / level
            x = (x.float() - (level - following) * velocity).to(x.dtype)
            del hidden, prediction, velocity
        return x

    def _embedded(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels `[B, 3, T, H, W]` as the blocks' `[B, T, H / p, W / p, D]`."""
        slabs = frame_slabs(x.shape[2], x[:, 0, 0].numel() // self.patch_size**2)
        patches = (patchify(x[:, :, first:last], self.patch_size) for first, last in slabs)
        return joined_frames((self.conv_in_x_t(part.movedim(1, -1)) for part in patches), x.shape[2], dim=1)

    def _predicted(self, hidden: torch.Tensor, context: Frames, level: float) -> torch.Tensor:
        """What the network says of noisy pixels at a noise level in (0, 1]: pixels `[B, 3, T, H, W]`."""
        timestep = torch.full((1,), level * self.time_scale, device=hidden.device)
        embedded = self.t_embedder["timestep_embedder"](timestep_sinusoid(timestep).to(hidden.dtype))
        modulation = self.shared_adaln["proj"](nn.functional.silu(embedded)).view(NUM_MODULATIONS, -1)
        for block in self.diff_blocks:
            hidden = block(hidden, context, modulation)
        slabs = frame_slabs(hidden.shape[1], hidden[:, 0, ..., 0].numel())
        patches = (self.conv_out(self.norm_out(hidden[:, first:last])).movedim(-1, 1) for first, last in slabs)
        return joined_frames((unpatchify(part, self.patch_size) for part in patches), hidden.shape[1])


class LTX2VideoDiffusionDecoderModel(CheckpointMixin, AtomicModelSaveMixin, ModelMixin, AttentionMixin, ConfigMixin):
    """Decodes latents of [`AutoencoderKLLTX2Video`] by a small diffusion over pixels; it has no encoder.

    Config keys, state-dict keys and calls are those of diffusers' class of the same name. `latents_mean` and `latents_std` are
    the statistics of the latents, for which no autoencoder is needed.

    Args:
        out_channels: Pixel channels, default 3.
        latent_channels: Latent width, default 128.
        patch_size: Side of the pixel patches that the diffusion works on, default 4.
        scaling_factor: Divides normalised latents before the statistics are put back, default 1.0.
        decoder_head_dim: Width of an attention head, a multiple of 8 that divides every width. Default 64.
        decoder_stage_channels: Widths of the four stages and of the diffusion.
        decoder_stage_depths: Their numbers of blocks.
        decoder_stage_kernels: Positions that the attention of each stage sees along time, height and width.
        decoder_upsample_strides: Positions that one becomes behind each stage.
        decoder_upsample_channel_reductions: By how much each stage divides its width.
        decoder_stage5_kernel: Positions that the attention of the diffusion sees.
        decoder_t_emb_dim: Width of the embedded noise level, default 384.
        decoder_timestep_scale_multiplier: Timestep of pure noise, default 1000.0.
        decoder_model_output_type: `"x0"` (default) if the network predicts pixels, `"v"` if it predicts a velocity.
        decoder_num_inference_steps: Steps of a call that says nothing of them, default 1.
        spatial_compression_ratio: Pixels per latent side, default 32.
        temporal_compression_ratio: Frames per latent frame, default 8.

    Raises:
        ValueError: If sizes contradict each other.
    """

    _no_split_modules: Any = ["NeighbourhoodBlock", "DiffusionBlock"]  # noqa: RUF012 (diffusers reads a list)
    _supports_gradient_checkpointing = False
    # Called itself, and not through the forward of the whole, with which diffusers would bring it.
    _group_offload_block_modules: Any = ("decoder",)

    @register_to_config
    def __init__(
        self,
        out_channels: int = 3,
        latent_channels: int = 128,
        patch_size: int = 4,
        scaling_factor: float = 1.0,
        decoder_head_dim: int = 64,
        decoder_stage_channels: tuple[int, ...] = (2048, 1024, 512, 512, 256),
        decoder_stage_depths: tuple[int, ...] = (4, 6, 4, 2, 8),
        decoder_stage_kernels: tuple[tuple[int, int, int], ...] = ((3, 7, 7), (3, 7, 7), (3, 5, 5), (3, 5, 5)),
        decoder_upsample_strides: tuple[tuple[int, int, int], ...] = ((1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 2, 2)),
        decoder_upsample_channel_reductions: tuple[int, ...] = (2, 2, 1, 2),
        decoder_stage5_kernel: tuple[int, int, int] = (11, 11, 11),
        decoder_t_emb_dim: int = 384,
        decoder_timestep_scale_multiplier: float = 1000.0,
        decoder_model_output_type: str = "x0",
        decoder_num_inference_steps: int = 1,
        spatial_compression_ratio: int = 32,
        temporal_compression_ratio: int = 8,
    ) -> None:
        super().__init__()
        check_decoder_config(self.config)
        kernels, strides = decoder_stage_kernels, decoder_upsample_strides
        self.spatial_compression_ratio = spatial_compression_ratio
        self.temporal_compression_ratio = temporal_compression_ratio
        self.decoder = DiffusionDecoder(self.config)
        # An attention at the end of the clip sees back instead of ahead; these copies of the last frame take its place.
        self._ghosts = kernels[0][0] // 2 * 2
        self._scales = [list(accumulate((stride[axis] for stride in strides), mul, initial=1)) for axis in range(3)]
        self._kernels = list(zip(*kernels, decoder_stage5_kernel))
        cell = (strides[3][0], strides[3][1] * patch_size, strides[3][2] * patch_size)
        smallest = tuple(max(k, ceil(last / s)) for k, last, s in zip(kernels[3], decoder_stage5_kernel, strides[3]))
        self._grid = Grid(cell, smallest)
        self.use_tiling = False
        vars(self).update(vars(TileSizes()))
        self.register_buffer("latents_mean", torch.zeros(latent_channels))
        self.register_buffer("latents_std", torch.ones(latent_channels))

    def enable_tiling(
        self,
        tile_sample_min_height: Number = None,
        tile_sample_min_width: Number = None,
        tile_sample_min_num_frames: Number = None,
        tile_sample_stride_height: Number = None,
        tile_sample_stride_width: Number = None,
        tile_sample_stride_num_frames: Number = None,
        *,
        safe: bool = False,
    ) -> None:
        """Decode larger clips in tiles that fade into each other from now on; None and 0 keep the current value.

        The first three stages see the whole clip. The others see nothing beyond their tile, so that results differ near
        seams: visibly so where tiles share less than the attention reaches, as they do by default.

        Args:
            tile_sample_min_height: Height of a tile in pixels. Initially 768.
            tile_sample_min_width: Width of a tile in pixels. Initially 768.
            tile_sample_min_num_frames: Frames of a tile. Initially 80.
            tile_sample_stride_height: Pixels from one tile's top to the next one's. Initially 704.
            tile_sample_stride_width: Pixels from one tile's left side to the next one's. Initially 704.
            tile_sample_stride_num_frames: Frames from one tile's start to the next one's. Initially 56.
            safe: Whether tiles share at least 160 pixels and 40 frames, as the original demands of them; strides that are not
                given follow from the sizes then.

        Raises:
            ValueError: If tiles are smaller than the attention needs, or do not meet, or share too little to be `safe`.
        """
        check_choice("safe", safe, (True, False))
        smallest = (tile_sample_min_height, tile_sample_min_width, tile_sample_min_num_frames)
        strides = (tile_sample_stride_height, tile_sample_stride_width, tile_sample_stride_num_frames)
        sizes = self._tile_sizes.changed(safe, dict(zip(SIZE_NAMES, smallest + strides)))
        self._grid.check(sizes)
        self.use_tiling = True
        vars(self).update(vars(sizes))

    def disable_tiling(self) -> None:
        """Decode every clip as a whole."""
        self.use_tiling = False

    @property
    def _tile_sizes(self) -> TileSizes:
        return TileSizes(*(getattr(self, name) for name in SIZE_NAMES))

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Raw latents `[B, C, F, h, w]` of normalised ones."""
        return denormalized(latents, self, self.config.scaling_factor)

    def streams(self, z: torch.Tensor) -> bool:
        """Whether latents `[B, C, F, h, w]` are decoded in tiles, whose frames come in parts."""
        sizes = self._tile_sizes
        ratios = (self.temporal_compression_ratio, *[self.spatial_compression_ratio] * 2)
        return self.use_tiling and any(n > size // r for n, (_, size, _), r in zip(z.shape[2:], sizes.axes, ratios))

    def num_decoded_frames(self, latent_frames: int) -> int:
        """Pixel frames that so many latent frames decode to."""
        return (latent_frames - 1) * self.temporal_compression_ratio + 1

    @apply_forward_hook
    def decode(
        self,
        z: torch.Tensor,
        generator: Generators = None,
        num_inference_steps: int | None = None,
        return_dict: bool = True,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode raw latents to videos.

        Latents with fewer frames, rows or columns than the attention needs (3, 7 and 7 in published models) are continued by
        their outermost ones, and the pixels of these are cut off.

        Args:
            z: `[B, C, F, h, w]`, without normalisation.
            generator: Source of the noise, or one for each video; None draws globally. It is drawn for the whole clip at
                once; in one step and in tiles, for each tile in the order of time, rows and columns.
            num_inference_steps: Steps of the diffusion, at least 1. Default the config's.
            return_dict: Whether to return a `DecoderOutput` rather than a tuple.

        Returns:
            The video `[B, 3, T, H, W]`, nominally in [-1, 1], not clamped.
        """
        chunks = self._decoded(z, generator, self.check_decoding(z, num_inference_steps))
        sample = joined_frames(chunks, self.num_decoded_frames(z.shape[2])) if self.streams(z) else next(chunks)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    forward = decode

    @apply_forward_hook
    def decode_streamed(
        self, latents: torch.Tensor, generator: Generators = None, num_inference_steps: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Decode as `decode` does, and yield frames in order as soon as they are finished.

        In tiles, one part in time and what the next one fades in from are alive at once; without them there is one part.

        Args:
            latents: As in `decode`, on any device.
            generator, num_inference_steps: As in `decode`.

        Returns:
            An iterator over `[B, 3, t, H, W]`; concatenated in time they are the video.
        """
        steps = self.check_decoding(latents, num_inference_steps)
        device = latents.device if self.device.type == "meta" else self.device
        return self._decoded(latents.to(device), generator, steps)

    def check_decoding(self, z: torch.Tensor, num_inference_steps: int | None = None) -> int:
        """The number of steps that `decode` makes; raises `ValueError` for what it would refuse."""
        channels = self.config.latent_channels
        if z.ndim != 5 or z.shape[1] != channels or min(z.shape) == 0:
            raise ValueError(f"latents must have shape [B, {channels}, F, h, w], none of them 0, got {list(z.shape)}.")
        if self.streams(z):
            self._grid.check(self._tile_sizes)
        asked = self.config.decoder_num_inference_steps if num_inference_steps is None else num_inference_steps
        steps = as_declared("num_inference_steps", asked, int)
        check_at_least_one(num_inference_steps=steps)
        return steps

    def _decoded(self, z: torch.Tensor, generator: Generators, num_steps: int) -> Iterator[torch.Tensor]:
        before, added = self._borders(z.shape[2:])
        features = self.decoder.features(nn.functional.pad(z, added, mode="replicate"))
        parts = self._tiled if self.streams(z) else self._whole
        height, width, top, left = (n * self.spatial_compression_ratio for n in (*z.shape[3:], *before))
        num_frames, yielded = self.num_decoded_frames(z.shape[2]), 0
        for part in parts(features, generator, num_steps):
            kept = part[:, :, : num_frames - yielded, top : top + height, left : left + width]
            yielded += kept.shape[2]
            yield kept
            # It would live on while the next one is made.
            del part, kept

    def _borders(self, size: Sequence[int]) -> tuple[tuple[int, int], tuple[int, ...]]:
        """Rows and columns that are put in front of so many latents, and what is added to each axis as `pad` takes it."""
        missing = [0, 0, 0]
        (times, *sides), ghosts = self._scales, [self._ghosts] * 4 + [0]
        # What each stage and the diffusion see; there the copies at the end are gone.
        frames = [(size[0] + copies - 1) * scale + 1 for scale, copies in zip(times, ghosts)]
        seen = [frames, *([n * scale for scale in scales] for n, scales in zip(size[1:], sides))]
        # Elsewhere it is as in diffusers; these clips it refuses, and the original continues them, also in time.
        if any(n < k for ns, ks in zip(seen, self._kernels) for n, k in zip(ns, ks)):
            floors = (max(map(ceil, map(truediv, ks, scales))) for ks, scales in zip(self._kernels, self._scales))
            missing = [max(floor - n, 0) for floor, n in zip(floors, size)]
        rows, columns = ((n // 2, n - n // 2) for n in missing[1:])
        return (rows[0], columns[0]), (*columns, *rows, 0, missing[0] + self._ghosts)

    def _whole(self, features: torch.Tensor, generator: Generators, num_steps: int) -> Iterator[torch.Tensor]:
        frames = self.decoder.upsamples[3].num_frames(features.shape[1])
        # As many frames are left as the attention of the diffusion needs.
        frames = max(frames - self._ghosts * self.temporal_compression_ratio, min(frames, self._kernels[0][4]))
        shape = frames, *(n * cell for n, cell in zip(features.shape[2:4], self._grid.cell[1:]))
        draw = partial(self._noise, features, shape, generator)
        yield self.decoder.denoise(self.decoder.context(features), draw, num_steps)

    def _noise(self, like: torch.Tensor, shape: tuple[int, ...], generator: Generators) -> torch.Tensor:
        shape = len(like), self.config.out_channels, *shape
        return randn_tensor(shape, generator=generator, device=like.device, dtype=like.dtype)

    def _tiled(self, features: torch.Tensor, generator: Generators, num_steps: int) -> Iterator[torch.Tensor]:
        cells = features.shape[1] - self._ghosts * self._scales[0][3], *features.shape[2:4]
        time, rows, columns = self._grid.axes(self._tile_sizes, cells)
        lead = self._grid.cell[0] - 1
        canvas = None
        if self.decoder.output_type != "x0" or num_steps > 1:
            canvas = self._noise(features, (time.size - lead, rows.size, columns.size), generator)

        def noise(like: torch.Tensor, place: tuple[slice, ...]) -> torch.Tensor:
            if canvas is not None:
                return canvas[(slice(None), slice(None), *place)]
            return self._noise(like, tuple(one.stop - one.start for one in place), generator)

        previous = None
        for index, (first, last) in enumerate(time.spans):
            part = features[:, first : None if last == cells[0] else last]
            frames = slice(max(first * self._grid.cell[0] - lead, 0), last * self._grid.cell[0] - lead)
            made = partial(self._tile, part, frames, noise, num_steps)
            group = blended_space(map(made, product(rows.spans, columns.spans)), rows, columns)
            blend_into(group, previous, time.blend, TIME)
            is_last = index == len(time.spans) - 1
            previous = None if is_last else tail(group, time.blend, TIME)
            yield group if is_last else group[:, :, : time.keep - (0 if index else lead)]
            # It would live on while the next one is made.
            del group

    def _tile(
        self, features: torch.Tensor, frames: slice, noise: Noise, num_steps: int, spans: tuple[tuple[int, int], ...]
    ) -> torch.Tensor:
        """Pixel frames of the cells between spans of rows and columns."""
        place = tuple(slice(first * side, last * side) for (first, last), side in zip(spans, self._grid.cell[1:]))
        # Its own memory, since tiles overlap and are written into.
        tile = features[:, :, slice(*spans[0]), slice(*spans[1])].clone(memory_format=torch.contiguous_format)
        context = self.decoder.context(tile, frames.start > 0)
        return self.decoder.denoise(context, partial(noise, tile, (frames, *place)), num_steps)


def check_decoder_config(config: Any) -> None:
    """Raise `ValueError` for sizes that contradict each other."""
    widths, reductions = config.decoder_stage_channels, config.decoder_upsample_channel_reductions
    for name, parameter in inspect.signature(LTX2VideoDiffusionDecoderModel).parameters.items():
        _check_lengths(name, getattr(config, name), parameter.default)
    if config.decoder_head_dim % 8:
        raise ValueError(f"`decoder_head_dim` has to be a multiple of 8 but is {config.decoder_head_dim}")
    for i, width in enumerate(widths):
        if width % config.decoder_head_dim:
            raise ValueError(
                f"`decoder_stage_channels` has to hold multiples of `decoder_head_dim` = {config.decoder_head_dim} but holds {width}"
            )
        if i < len(reductions) and widths[i + 1] != width // reductions[i]:
            raise ValueError(
                f"`decoder_stage_channels` holds {widths[i + 1]} behind {width}, which `decoder_upsample_channel_reductions` "
                f"divides by {reductions[i]}; use {width // reductions[i]}"
            )
    check_choice("decoder_model_output_type", config.decoder_model_output_type, OUTPUT_TYPES)
    ratios = {
        "temporal_compression_ratio": prod(stride[0] for stride in config.decoder_upsample_strides),
        "spatial_compression_ratio": prod(stride[1] for stride in config.decoder_upsample_strides) * config.patch_size,
    }
    for name, ratio in ratios.items():
        if getattr(config, name) != ratio:
            raise ValueError(
                f"`{name}` is {getattr(config, name)}, but `decoder_upsample_strides` and `patch_size` make {ratio}; use {ratio}"
            )


def _check_lengths(name: str, values: Any, published: Any) -> None:
    """Lists have to be as long as in the published config."""
    if isinstance(published, tuple):
        if len(values) != len(published):
            raise ValueError(f"`{name}` has to hold {len(published)} numbers but is {values!r}")
        for i, (value, other) in enumerate(zip(values, published)):
            _check_lengths(f"{name}[{i}]", value, other)
