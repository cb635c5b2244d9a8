"""The LTX-2 video VAE: pixels to latents and back, whole, streamed or in tiles.

Shapes: B batch, C latent channels (128 in published models), F pixel frames (8 k + 1), H and W pixel height and width
(multiples of 32), F', H', W' their latent counterparts (k + 1, H / 32, W / 32).
"""

# The constructor's arguments are read back from `self.config`, where `register_to_config` puts them.
# ruff: noqa: ARG002

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging
from diffusers.utils.accelerate_utils import apply_forward_hook

from ..declared import whole_number
from .latent_statistics import denormalized, normalized
from .loading import CheckpointMixin
from .saving import AtomicModelSaveMixin
from .shared_tiles import shared_tiles
from .video_vae_blocks import VideoDecoder, VideoEncoder
from .video_vae_config import (
    DOWN_BLOCK_TYPES,
    DOWNSAMPLE_TYPES,
    UPSAMPLE_TYPES,
    check_compression_ratios,
    check_config,
    compression_factors,
    down_stages,
    up_stages,
)
from .video_vae_streaming import joined_frames
from .video_vae_tiling import (
    BlendedAxis,
    Run,
    RunTiles,
    blended_spans,
    plan_decode,
    plan_encode,
    run_blended_space,
    run_blended_time,
    run_weighted,
    stream_weighted,
)
from .video_vae_tiling_config import TilingConfig, encoding_config

logger = logging.get_logger(__name__)

CHUNK_FRAMES = 8
"""Frames that streamed decoding computes at a time."""
STREAMED_ABOVE = 2**24
"""Pixels times frames above which decoding streams by itself: 43 frames of 512 x 768."""


class AutoencoderKLLTX2Video(CheckpointMixin, AtomicModelSaveMixin, ModelMixin, AutoencoderMixin, ConfigMixin):
    """Encodes videos to the latents of LTX-2 and decodes them.

    Config keys, state-dict keys and calls are those of diffusers' class of the same name. `encode` and `decode` work
    on raw latents; `normalize_latents` and `denormalize_latents` convert to and from what the transformer sees.

    Args:
        in_channels: Pixel channels of the input, default 3.
        out_channels: Pixel channels of the output, default 3.
        latent_channels: Latent width, default 128.
        block_out_channels: Width after each encoder stage.
        down_block_types: One "LTX2VideoDownBlock3D" per encoder stage, the only kind there is.
        decoder_block_out_channels: Width before each decoder stage's upsampling is divided by `upsample_factor`;
            output side first, like all decoder lists but `upsample_type`.
        layers_per_block: Residual blocks per encoder stage, then of the mid block; one entry stands for all.
        decoder_layers_per_block: Residual blocks per decoder stage, then of the mid block.
        spatio_temporal_scaling: Whether each encoder stage downsamples; one value or a list.
        decoder_spatio_temporal_scaling: Whether each decoder stage upsamples; one value or a list.
        decoder_inject_noise: Whether residual blocks add noise, per decoder stage, then the mid block.
        downsample_type: "spatial", "temporal", "spatiotemporal" or "conv" per encoder stage.
        upsample_type: "spatial", "temporal" or "spatiotemporal" per decoder stage, in execution order.
        upsample_residual: Whether each upsampler adds its input; one value or a list.
        upsample_factor: By how much each upsampler divides the width.
        timestep_conditioning: Whether the decoder is modulated by a timestep.
        patch_size: Side of the pixel patches folded into channels, default 4.
        patch_size_t: Frames folded into channels; 1 is the only value implemented.
        resnet_norm_eps: Epsilon of the norm in width-changing residual blocks, which published models do not have.
        scaling_factor: Multiplies normalised latents, default 1.0.
        encoder_causal: Whether the encoder sees only past frames, default True.
        decoder_causal: Whether the decoder sees only past frames; default True as in diffusers, published False.
        encoder_spatial_padding_mode: "zeros", "reflect", "replicate" or "circular".
        decoder_spatial_padding_mode: The same for the decoder; 2.0 "reflect", 2.3 "zeros".
        spatial_compression_ratio: Pixels per latent side; None derives it from the decoder's stages.
        temporal_compression_ratio: Frames per latent frame; None derives it from the decoder's stages.
    """

    _supports_gradient_checkpointing = True
    # Called themselves, and not through the forward of the whole, with which diffusers would bring them.
    _group_offload_block_modules: Any = ("encoder", "decoder")
    latents_mean: torch.Tensor
    latents_std: torch.Tensor

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        latent_channels: int = 128,
        block_out_channels: tuple[int, ...] = (256, 512, 1024, 2048),
        down_block_types: tuple[str, ...] = DOWN_BLOCK_TYPES,
        decoder_block_out_channels: tuple[int, ...] = (256, 512, 1024),
        layers_per_block: tuple[int, ...] = (4, 6, 6, 2, 2),
        decoder_layers_per_block: tuple[int, ...] = (5, 5, 5, 5),
        spatio_temporal_scaling: bool | tuple[bool, ...] = (True, True, True, True),
        decoder_spatio_temporal_scaling: bool | tuple[bool, ...] = (True, True, True),
        decoder_inject_noise: bool | tuple[bool, ...] = (False, False, False, False),
        downsample_type: tuple[str, ...] = DOWNSAMPLE_TYPES,
        upsample_type: tuple[str, ...] = UPSAMPLE_TYPES,
        upsample_residual: bool | tuple[bool, ...] = (True, True, True),
        upsample_factor: tuple[int, ...] = (2, 2, 2),
        timestep_conditioning: bool = False,
        patch_size: int = 4,
        patch_size_t: int = 1,
        resnet_norm_eps: float = 1e-6,
        scaling_factor: float = 1.0,
        encoder_causal: bool = True,
        decoder_causal: bool = True,
        encoder_spatial_padding_mode: str = "zeros",
        decoder_spatial_padding_mode: str = "reflect",
        spatial_compression_ratio: int | None = None,
        temporal_compression_ratio: int | None = None,
    ) -> None:
        super().__init__()
        config = self.config
        check_config(config)
        down, down_mid_layers = down_stages(config)
        up, up_mid_layers, mid_noise = up_stages(config)
        self._encoder_ratios = compression_factors(down, patch_size)
        self._decoder_ratios = compression_factors(up, patch_size)
        check_compression_ratios(config, *self._decoder_ratios)
        self.spatial_compression_ratio, self.temporal_compression_ratio = self._decoder_ratios
        self.encoder = VideoEncoder(config, down, down_mid_layers)
        self.decoder = VideoDecoder(config, up, up_mid_layers, mid_noise)
        self.register_buffer("latents_mean", torch.zeros(latent_channels), persistent=True)
        self.register_buffer("latents_std", torch.ones(latent_channels), persistent=True)
        self._init_tiling()
        self.use_streaming: bool | None = None
        self.chunk_frames = CHUNK_FRAMES

    def enable_streaming(self, chunk_frames: int | None = None) -> None:
        """Decode every clip in chunks of frames from now on, with the numbers of decoding it whole.

        Each layer keeps the few frames that it needs again, so that nothing is computed twice and nothing is blended: results
        differ by the rounding of the convolutions at most. By default, without this call, `decode` streams clips of more
        than 2^24 pixels times frames while no gradients are recorded, unless it works in tiles.

        Args:
            chunk_frames: Frames computed at a time, at least 1: fewer take less memory, and more time below about 8. `None`
                keeps the present number, initially 8.

        Raises:
            ValueError: If tiling is enabled, whose results are others.
        """
        if chunk_frames is not None:
            self.chunk_frames = _checked_chunk(chunk_frames)
        before, self.use_streaming = self.use_streaming, True
        try:
            self.check_decoding()
        except ValueError:
            self.use_streaming = before
            raise

    def disable_streaming(self) -> None:
        """Decode every clip whole, however large."""
        self.use_streaming = False

    def check_decoding(self) -> None:
        """Raise `ValueError` if streaming and tiling are both enabled."""
        if self.use_streaming and (self.use_tiling or self.use_framewise_decoding):
            way = "use_tiling" if self.use_tiling else "use_framewise_decoding"
            raise ValueError(
                f"streaming and tiling are both enabled (`{way}` is True), but a clip is decoded in one way; call "
                "disable_tiling() and set use_framewise_decoding = False for exact results, or call disable_streaming()."
            )

    def streams(self, z: torch.Tensor) -> bool:
        """Whether `decode` would stream latents `[B, C, F', H', W']`: if told to, or by itself if they are many.

        Raises:
            ValueError: If streaming and tiling are both enabled.
        """
        self.check_decoding()
        if self.use_streaming is not None:
            return self.use_streaming
        if self.use_tiling or self.use_framewise_decoding or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        batch, _, frames, height, width = z.shape
        pixels = height * width * self.spatial_compression_ratio**2
        return (1 if self.use_slicing else batch) * self.num_decoded_frames(frames) * pixels > STREAMED_ABOVE

    def num_decoded_frames(self, latent_frames: int) -> int:
        """Pixel frames that so many latent frames decode to."""
        return (latent_frames - 1) * self.temporal_compression_ratio + 1

    def _init_tiling(self) -> None:
        self._tile_group: Any = None
        self.use_slicing = False
        self.use_tiling = False
        self.use_framewise_encoding = False
        self.use_framewise_decoding = False
        # Read by callers of diffusers' class only.
        self.num_sample_frames_batch_size = 16
        self.num_latent_frames_batch_size = 2
        self.tile_sample_min_height = self.tile_sample_min_width = 512
        self.tile_sample_stride_height = self.tile_sample_stride_width = 448
        self.tile_sample_min_num_frames = 16
        self.tile_sample_stride_num_frames = 8

    def enable_tiling(
        self,
        tile_sample_min_height: int | None = None,
        tile_sample_min_width: int | None = None,
        tile_sample_min_num_frames: int | None = None,
        tile_sample_stride_height: int | None = None,
        tile_sample_stride_width: int | None = None,
        tile_sample_stride_num_frames: int | None = None,
    ) -> None:
        """Encode and decode in blended spatial tiles from now on; None keeps the current value.

        What tiles decode to differs from whole decoding; `enable_streaming` saves memory without that, and excludes this.

        Tiling in time is switched by the attributes `use_framewise_encoding` and `use_framewise_decoding`. For
        tiles that are weighted as in the reference, and streamed, see `decode_in_tiles`.

        Args:
            tile_sample_min_height: Height of a tile in pixels; larger videos are tiled. Initially 512.
            tile_sample_min_width: Width of a tile in pixels. Initially 512.
            tile_sample_min_num_frames: Frames of a tile. Initially 16.
            tile_sample_stride_height: Pixels from one tile's top to the next one's. Initially 448.
            tile_sample_stride_width: Pixels from one tile's left side to the next one's. Initially 448.
            tile_sample_stride_num_frames: Frames from one tile's start to the next one's. Initially 8.
        """
        if self.use_streaming:
            raise ValueError(
                "tiling cannot be enabled while streaming is (`use_streaming` is True); call disable_streaming() first."
            )
        self.use_tiling = True
        self.tile_sample_min_height = tile_sample_min_height or self.tile_sample_min_height
        self.tile_sample_min_width = tile_sample_min_width or self.tile_sample_min_width
        self.tile_sample_min_num_frames = tile_sample_min_num_frames or self.tile_sample_min_num_frames
        self.tile_sample_stride_height = tile_sample_stride_height or self.tile_sample_stride_height
        self.tile_sample_stride_width = tile_sample_stride_width or self.tile_sample_stride_width
        self.tile_sample_stride_num_frames = tile_sample_stride_num_frames or self.tile_sample_stride_num_frames

    def share_tiles(self, group: Any) -> None:
        """Share the tiles of tiled encoding and decoding among processes, of which all have to do the same.

        Every process receives all tiles, so that results are those of one process. Decoders that inject noise into every tile
        are not shared.

        Args:
            group: Process group of `torch.distributed`; `None` ends it.
        """
        self._tile_group = group

    def _run_tiles(self, encodes: bool) -> RunTiles:
        noise = self.config.decoder_inject_noise
        draws = not encodes and (any(noise) if isinstance(noise, (list, tuple)) else noise)
        return map if self._tile_group is None or draws else shared_tiles(self._tile_group)

    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Subtract the mean and divide by the deviation of each channel of `[B, C, F', H', W']`."""
        return normalized(latents, self, self.config.scaling_factor)

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Inverse of `normalize_latents`."""
        return denormalized(latents, self, self.config.scaling_factor)

    @apply_forward_hook
    def encode(
        self, x: torch.Tensor, causal: bool | None = None, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode videos to raw latents.

        Args:
            x: `[B, 3, F, H, W]` in [-1, 1]; frames beyond 8 k + 1 are dropped from the end with a warning.
            causal: Whether time is padded in front only; None takes `encoder_causal`.
            return_dict: Whether to return an `AutoencoderKLOutput` rather than a tuple.

        Returns:
            The distribution of the latents `[B, C, F', H', W']`.
        """
        x = self._checked_video(x)
        slices = x.split(1) if self.use_slicing else [x]
        run = partial(self.encoder, causal=causal)
        moments = torch.cat([self._blended(part, run, encodes=True) for part in slices])
        return _encoder_output(moments, return_dict)

    def tiled_encode(self, x: torch.Tensor, causal: bool | None = None) -> torch.Tensor:
        """Encode `[B, 3, F, H, W]` in blended spatial tiles to moments `[B, 2 C, F', H', W']`."""
        return self._blended_tiles(x, partial(self.encoder, causal=causal), encodes=True)

    @apply_forward_hook
    def decode(
        self,
        z: torch.Tensor,
        temb: torch.Tensor | None = None,
        causal: bool | None = None,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode raw latents to videos, whole, streamed ([`enable_streaming`]) or in tiles ([`enable_tiling`]).

        Args:
            z: `[B, C, F', H', W']`.
            temb: `[B]` or `[1]`, timestep in [0, 1]; needed if the decoder is conditioned on it, otherwise unused.
            causal: Whether time is padded in front only; None takes `decoder_causal`.
            return_dict: Whether to return a `DecoderOutput` rather than a tuple.
            generator: Source of the noise that decoders with `decoder_inject_noise` add; None draws globally.

        Returns:
            The video `[B, 3, F, H, W]`, nominally in [-1, 1], not clamped.
        """
        self._check_latents(z)
        self.decoder.check_timestep(temb, len(z))
        decoder = self._joined_stream if self.streams(z) else self.decoder
        run: Callable[..., torch.Tensor] = partial(decoder, causal=causal, generator=generator)
        if self.use_slicing:
            timesteps = [temb] * len(z) if temb is None or temb.numel() == 1 else temb.flatten().split(1)
            parts = [
                self._blended(part, partial(run, temb=t), encodes=False) for part, t in zip(z.split(1), timesteps)
            ]
            sample = torch.cat(parts)
        else:
            sample = self._blended(z, partial(run, temb=temb), encodes=False)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _joined_stream(self, z: torch.Tensor, temb: torch.Tensor | None, **settings: Any) -> torch.Tensor:
        chunks = self.decoder.stream(z, temb, chunk_frames=self.chunk_frames, **settings)
        return joined_frames(chunks, self.num_decoded_frames(z.shape[2]))

    def tiled_decode(
        self,
        z: torch.Tensor,
        temb: torch.Tensor | None,
        causal: bool | None = None,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Decode in blended spatial tiles; arguments as in `decode`."""
        run = partial(self.decoder, temb=temb, causal=causal, generator=generator)
        sample = self._blended_tiles(z, run, encodes=False)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def _blended(self, x: torch.Tensor, run: Run, encodes: bool) -> torch.Tensor:
        """Encode or decode, in blended chunks of frames if that is switched on and `x` is longer than one."""
        framewise = self.use_framewise_decoding or (encodes and self.use_framewise_encoding)
        frames = 1 if encodes else self.temporal_compression_ratio
        if not framewise or x.shape[2] <= self.tile_sample_min_num_frames // frames:
            return self._blended_space(x, run, encodes)
        axis = self._blended_axis("num_frames", x.shape[2], encodes)
        trim = slice(1, None) if encodes else slice(None, -1)
        return run_blended_time(x, lambda chunk: self._blended_space(chunk, run, encodes), axis, trim)

    def _blended_space(self, x: torch.Tensor, run: Run, encodes: bool) -> torch.Tensor:
        height, width = x.shape[-2:]
        pixels = 1 if encodes else self.spatial_compression_ratio
        too_high = height > self.tile_sample_min_height // pixels
        if self.use_tiling and (too_high or width > self.tile_sample_min_width // pixels):
            return self._blended_tiles(x, run, encodes)
        return run(x)

    def _blended_tiles(self, x: torch.Tensor, run: Run, encodes: bool) -> torch.Tensor:
        height, width = x.shape[-2:]
        rows, columns = self._blended_axis("height", height, encodes), self._blended_axis("width", width, encodes)
        return run_blended_space(x, run, rows, columns, self._run_tiles(encodes))

    def _blended_axis(self, axis: str, length: int, encodes: bool) -> BlendedAxis:
        """How `length` pixels or latents along `axis` are cut; the sizes of tiles are in pixels and frames."""
        in_time, half = axis == "num_frames", self.encoder if encodes else self.decoder
        space, time = self._encoder_ratios if encodes else self._decoder_ratios
        ratio = time if in_time else space
        size, stride = self._blended_tile(axis, ratio)
        given, made = (1, ratio) if encodes else (ratio, 1)
        smallest = 1 if in_time else self._min_side(half) * ratio // given
        return BlendedAxis(
            blended_spans(length, size // given + in_time, stride // given, smallest),
            keep=stride // made,
            blend=(size - stride) // made,
            size=(length - in_time) * given // made + in_time,
        )

    def _blended_tile(self, axis: str, ratio: int) -> tuple[int, int]:
        """Size and stride, in pixels or frames, of the blended tiles along `axis`."""
        names = f"tile_sample_min_{axis}", f"tile_sample_stride_{axis}"
        size, stride = (getattr(self, name) for name in names)
        for name, value in zip(names, (size, stride)):
            if value < ratio or value % ratio:
                nearest = max(ratio, round(value / ratio) * ratio)
                raise ValueError(f"`{name}` must be a positive multiple of {ratio}, got {value}; use {nearest}.")
        if stride > size:
            raise ValueError(f"`{names[1]}` must not exceed `{names[0]}` = {size}, got {stride}; use {size} or less.")
        return size, stride

    @apply_forward_hook
    def decode_streamed(
        self,
        latents: torch.Tensor,
        temb: torch.Tensor | None = None,
        causal: bool | None = None,
        generator: torch.Generator | None = None,
        chunk_frames: int | None = None,
    ) -> Iterator[torch.Tensor]:
        """Decode as `decode` does without tiles, and yield frames in order as soon as they are finished.

        Memory does not grow with the length of the clip: each layer holds the frames of its chunk and up to six before
        them. Frames are computed when they are asked for; an iterator that is left in the middle leaves nothing behind.
        Where components are offloaded, use it up before another one runs.

        Args:
            latents: `[B, C, F', H', W']`, raw, on any device.
            temb: `[B]` or `[1]`, timestep in [0, 1]; needed if the decoder is conditioned on it, otherwise unused.
            causal: Whether time is padded in front only; None takes `decoder_causal`.
            generator: Source of injected noise, drawn once for all chunks before the first one is handed out; None draws
                globally.
            chunk_frames: Frames computed at a time, at least 1; None takes the attribute `chunk_frames`, initially 8.

        Returns:
            An iterator over `[B, 3, f, H, W]`, f from 1 to `chunk_frames` + 1; concatenated in time they are the video.

        Raises:
            ValueError: If an argument is not valid, before anything is computed.
        """
        self._check_latents(latents)
        size = self.chunk_frames if chunk_frames is None else _checked_chunk(chunk_frames)
        return self.decoder.stream(latents.to(self._compute_device(latents)), temb, causal, generator, size)

    @apply_forward_hook
    def decode_in_tiles(
        self,
        latents: torch.Tensor,
        tiling_config: TilingConfig,
        temb: torch.Tensor | None = None,
        causal: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[torch.Tensor]:
        """Decode in the reference's weighted tiles and yield finished frames in order.

        Memory does not grow with the length of the clip: one temporal group of tiles and the overlap with the group
        before are alive at a time.

        Args:
            latents: `[B, C, F', H', W']`, raw, on any device; tiles are moved to the model's device one at a time.
            tiling_config: Sizes and overlaps; see [`TilingConfig.default`].
            temb: `[B]` or `[1]`, timestep in [0, 1]; needed if the decoder is conditioned on it, otherwise unused.
            causal: Whether time is padded in front only; None takes `decoder_causal`.
            generator: Source of injected noise, drawn anew for every tile; None draws globally.

        Returns:
            An iterator over `[B, 3, f, H, W]`; concatenated in time they are the video.
        """
        self._check_latents(latents)
        self.decoder.check_timestep(temb, len(latents))
        plan = plan_decode(latents.shape[2:], tiling_config, self._decoder_ratios, self._min_side(self.decoder))
        device = self._compute_device(latents)
        return stream_weighted(
            latents, lambda tile: self.decoder(tile.to(device), temb, causal, generator), plan, self._run_tiles(False)
        )

    @apply_forward_hook
    def encode_in_tiles(
        self,
        x: torch.Tensor,
        tiling_config: TilingConfig,
        causal: bool | None = None,
        discard_seams: bool = False,
        return_dict: bool = True,
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Encode in the reference's weighted tiles.

        Args:
            x: `[B, 3, F, H, W]` in [-1, 1], on any device; tiles are moved to the model's device one at a time.
            tiling_config: Sizes and overlaps; overlaps of at least 64 pixels and 16 frames.
            causal: Whether time is padded in front only; None takes `encoder_causal`.
            discard_seams: False lets tiles fade into each other (newest reference). True drops the outermost latents
                at each seam and averages the rest (reference 2.0); smaller overlaps are then raised with a warning.
            return_dict: Whether to return an `AutoencoderKLOutput` rather than a tuple.

        Returns:
            The distribution of the latents `[B, C, F', H', W']`, whose moments are summed over tiles.
        """
        config = encoding_config(tiling_config, raise_overlaps=discard_seams)
        x = self._checked_video(x)
        plan = plan_encode(x.shape[2:], config, self._encoder_ratios, self._min_side(self.encoder), discard_seams)
        device = self._compute_device(x)
        moments = run_weighted(x, lambda tile: self.encoder(tile.to(device), causal), plan, self._run_tiles(True))
        return _encoder_output(moments, return_dict)

    def forward(
        self,
        sample: torch.Tensor,
        temb: torch.Tensor | None = None,
        sample_posterior: bool = False,
        encoder_causal: bool | None = None,
        decoder_causal: bool | None = None,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Encode and decode a video.

        Args:
            sample: `[B, 3, F, H, W]` in [-1, 1].
            temb: As in `decode`.
            sample_posterior: Whether latents are drawn from the distribution rather than its mean.
            encoder_causal, decoder_causal: As `causal` in `encode` and `decode`.
            return_dict: Whether to return a `DecoderOutput` rather than a tuple.
            generator: Source of the draw from the distribution; injected noise is drawn globally, as in diffusers.
        """
        posterior = self.encode(sample, causal=encoder_causal).latent_dist
        z = posterior.sample(generator=generator) if sample_posterior else posterior.mode()
        return self.decode(z, temb, causal=decoder_causal, return_dict=return_dict)

    def _checked_video(self, x: torch.Tensor) -> torch.Tensor:
        """Refuse a video of the wrong shape, and crop its frames to a count that the encoder can halve."""
        channels = self.config.in_channels
        if x.ndim != 5 or x.shape[1] != channels or x.shape[2] == 0:
            raise ValueError(f"the video must have shape [B, {channels}, F, H, W], F >= 1, got {list(x.shape)}.")
        space, time = self._encoder_ratios
        for name, side in zip(("height", "width"), x.shape[-2:]):
            if side % space or side == 0:
                below, above = side // space * space, (side // space + 1) * space
                nearest = f"{below} or {above}" if below else str(above)
                raise ValueError(f"the video's {name} must be a multiple of {space}, got {side}; use {nearest}.")
        excess = (x.shape[2] - 1) % time
        if excess:
            kept = x.shape[2] - excess
            logger.warning(
                f"The video has {x.shape[2]} frames, which is not 1 more than a multiple of {time}; the last {excess} "
                f"are dropped and {kept} encoded."
            )
            x = x[:, :, :kept]
        return x

    def _check_latents(self, z: torch.Tensor) -> None:
        channels, side = self.config.latent_channels, self._min_side(self.decoder)
        if z.ndim != 5 or z.shape[1] != channels:
            raise ValueError(f"latents must have shape [B, {channels}, F', H', W'], got {list(z.shape)}.")
        if min(z.shape[2:]) == 0 or min(z.shape[-2:]) < side:
            raise ValueError(
                f"latents must have at least 1 frame and sides of at least {side} (the decoder pads by "
                f"{self.config.decoder_spatial_padding_mode!r}), got {list(z.shape[2:])}."
            )

    @property
    def min_latent_side(self) -> int:
        """Fewest latent rows or columns that `decode` takes: padding by reflection needs two."""
        return self._min_side(self.decoder)

    def _min_side(self, half: VideoEncoder | VideoDecoder) -> int:
        """Smallest latent height and width that the convolutions of `half` can pad."""
        return 2 if half.conv_in.padding_mode == "reflect" else 1

    def _compute_device(self, x: torch.Tensor) -> torch.device:
        # Parameters offloaded to "meta" are brought to the input's device by their hooks.
        return x.device if self.device.type == "meta" else self.device


def _checked_chunk(chunk_frames: int) -> int:
    count = whole_number(chunk_frames)
    if not isinstance(count, int) or count < 1:
        raise ValueError(
            f"`chunk_frames` must be a whole number of at least 1, got {chunk_frames!r}; use {CHUNK_FRAMES}."
        )
    return count


def _encoder_output(moments: torch.Tensor, return_dict: bool) -> AutoencoderKLOutput | tuple:
    posterior = DiagonalGaussianDistribution(moments)
    return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)
