"""Enlarging a video in latent space.

Shapes: B videos of the batch, C channels, F latent frames, h and w latent rows and columns, T tokens, H and W rows and
columns of pixels.
"""

from dataclasses import dataclass

import torch
from diffusers.utils import logging

from ... import checks
from ...media.frames import FilePath, Frames, SourceRate, as_image, read_frames, source_rate
from ...media.writing import ClipFile
from ...models import latent_filters, video_vae
from ..decoding import decoded
from ..engine import OUTPUT_TYPES, check_noise_levels, check_save_path, with_decoder_noise
from . import Decoded, Delivery, Generators, LTX2PipelineBase, LTX2PipelineOutput, Result, Upsampler, takes

logger = logging.get_logger(__name__)

MAX_ADAIN_FACTOR = 10.0


@dataclass(frozen=True)
class UpsampleArguments:
    """What the call takes.

    Args:
        video: A clip, or the name of its file: a list of images, an array `[F, H, W, 3]` or a tensor `[F, 3, H, W]`
            of bytes or floats in [0, 1]. It is cut to 8 k + 1 frames. Either this or `latents`.
        height, width: Size in pixels, multiples of 32, that `video` is brought to before it is enlarged, or that
            packed `latents` have. Default 512 x 768.
        num_frames: Frames of packed `latents`, 8 k + 1. Default 121. Of a `video` or of other `latents` only their true
            number may be given.
        spatial_patch_size, temporal_patch_size: Patches of packed `latents`. Default 1.
        latents: Latents `[B, C, F, h, w]`, or packed `[B, T, C]`.
        latents_normalized: Whether `latents` are normalised with the statistics of the VAE. Default `False`.
        decode_timestep, decode_noise_scale: Noise level of the decoder and share of noise mixed in, for a VAE with
            timestep conditioning. One value or one per video.
        adain_factor: How far each channel takes the mean and spread that it had before, 0 (not at all, default) to
            10.
        tone_map_compression_ratio: How far large values are compressed, 0 (not at all, default) to 1.
        generator: Source of the encoder's and the decoder's noise, or one per video.
        output_type: `"pil"`, `"np"`, `"pt"`, `"uint8"` or `"latent"` (un-normalised).
        return_dict: Whether to return an [`LTX2PipelineOutput`] instead of the tuple `(frames,)`.
        frame_rate: Frames per second of the input, noted in the output for saving it; default that of a file, the average
            one if it varies, or 24.0 for frames and latents. Frames of a file of another rate are left out or repeated by
            their times.
        save_path: File to write, ending in `.mp4` or `.mov`, as in [`LTX2Pipeline`].
    """

    video: Frames | None = None
    height: int = 512
    width: int = 768
    num_frames: int = 121
    spatial_patch_size: int = 1
    temporal_patch_size: int = 1
    latents: torch.Tensor | None = None
    latents_normalized: bool = False
    decode_timestep: float | list[float] = 0.0
    decode_noise_scale: float | list[float] | None = None
    adain_factor: float = 0.0
    tone_map_compression_ratio: float = 0.0
    generator: Generators = None
    output_type: str = "pil"
    return_dict: bool = True
    frame_rate: float | None = None
    save_path: FilePath | None = None


class LTX2LatentUpsamplePipeline(LTX2PipelineBase):
    """Enlarges videos or video latents in space or time.

    Takes the components and call arguments of diffusers' pipeline of the same name.

    Args:
        vae: Video autoencoder.
        latent_upsampler: Network that enlarges un-normalised latents.
    """

    model_cpu_offload_seq = "vae->latent_upsampler"
    _optional_components: list[str] = []  # noqa: RUF012 (diffusers reads a list)

    latent_upsampler: Upsampler

    def __init__(self, vae: video_vae.AutoencoderKLLTX2Video, latent_upsampler: Upsampler) -> None:
        super().__init__()
        self._register(vae=vae, latent_upsampler=latent_upsampler)

    @takes(UpsampleArguments)
    @torch.no_grad()
    def __call__(self, call: UpsampleArguments) -> Result:
        """Enlarge a video, or latents such as a pipeline returns with `output_type="latent"`.

        Returns:
            [`LTX2PipelineOutput`] without sound, or the tuple `(frames,)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        self.require("vae", "latent_upsampler")
        _check(self, call)
        rate = SourceRate(24.0 if call.frame_rate is None else call.frame_rate)
        if call.video is not None:
            rate = source_rate(call.video, call.frame_rate)
            latents = self._encoded(read_frames(call.video, None, 1.0, "video", rate.read_at), call)
        elif call.latents is not None:
            latents = self._given(call.latents, call)
        latents = latents.to(self.latent_upsampler.dtype)
        enlarged = self.latent_upsampler(latents)
        if call.adain_factor:
            enlarged = latent_filters.adain_filter_latent(enlarged, latents, call.adain_factor)
        if call.tone_map_compression_ratio:
            enlarged = latent_filters.tone_map_latents(enlarged, call.tone_map_compression_ratio)
        result = enlarged if call.output_type == "latent" else self._decoded(enlarged, call)
        speed = 2.0 if self.latent_upsampler.config.temporal_upsample else 1.0
        output = LTX2PipelineOutput(result, None, rate.rate * speed, info={"output_type": call.output_type})
        if call.save_path is not None:
            output = output.moved_to(call.save_path)
        self.maybe_free_model_hooks()
        return output if call.return_dict else (output.frames,)

    def _decoded(self, latents: torch.Tensor, call: UpsampleArguments) -> Decoded:
        """Frames for the caller, or for a file."""
        decoding = (call.decode_timestep, call.decode_noise_scale, call.generator)
        # Unlike elsewhere the noise goes onto un-normalised latents, as diffusers does it here.
        noised, timestep = with_decoder_noise(
            self, latents, Delivery(call.output_type, call.return_dict, None, (), *decoding)
        )
        file = None if call.save_path is None else ClipFile.of(call.save_path)
        return decoded(self, noised, (timestep,), call.output_type if file is None else "uint8", file)

    def _encoded(self, pixels: torch.Tensor, call: UpsampleArguments) -> torch.Tensor:
        """Un-normalised float32 latents of a clip `[F, H, W, 3]`, sampled from the encoder's distribution."""
        usable = (len(pixels) - 1) // self.vae_temporal_compression_ratio * self.vae_temporal_compression_ratio + 1
        if usable < len(pixels):
            logger.warning(f"the video has {len(pixels)} frames; its first {usable} are used (8 * k + 1)")
        if call.num_frames not in (UpsampleArguments.num_frames, len(pixels), usable):
            raise ValueError(f"`num_frames` is {call.num_frames}, but `video` has {len(pixels)} frames; leave it out")
        pixels = pixels[:usable]
        # The video processor resamples images well, but only repeats or skips the values of a tensor.
        images = pixels.dtype == torch.uint8
        frames = [as_image(frame) for frame in pixels] if images else pixels.movedim(-1, 1) / 255
        clip = self.video_processor.preprocess_video(frames, height=call.height, width=call.width)
        clip = clip.to(self._execution_device, self.vae.dtype)
        generator = call.generator[0] if isinstance(call.generator, list) else call.generator
        return self.vae.encode(clip).latent_dist.sample(generator).float()

    def _given(self, latents: torch.Tensor, call: UpsampleArguments) -> torch.Tensor:
        """Check latents and bring them to un-normalised ones `[B, C, F, h, w]`, float32."""
        patch_size, patch_size_t = call.spatial_patch_size, call.temporal_patch_size
        checks.check_at_least_one(spatial_patch_size=patch_size, temporal_patch_size=patch_size_t)
        if latents.ndim not in (3, 5):
            raise ValueError(
                f"`latents` have to be [B, C, F, h, w] or packed [B, T, C] but are {tuple(latents.shape)}"
            )
        latents = latents.to(self._execution_device, torch.float32)
        if latents.ndim == 3:
            ratio = self.vae_spatial_compression_ratio
            frames = (call.num_frames - 1) // self.vae_temporal_compression_ratio + 1
            patches = (patch_size_t, patch_size, patch_size)
            grid = [side // p for side, p in zip((frames, call.height // ratio, call.width // ratio), patches)]
            if latents.shape[1] != torch.Size(grid).numel() or latents.shape[2] % torch.Size(patches).numel():
                raise ValueError(
                    f"packed `latents` have shape {tuple(latents.shape)}, but {call.num_frames} frames of {call.height} x "
                    f"{call.width} pixels need {torch.Size(grid).numel()} tokens; give the `height`, `width` and `num_frames` "
                    "they were made with"
                )
            # [B, F/pt, h/p, w/p, C, pt, p, p] -> [B, C, F/pt, pt, h/p, p, w/p, p]
            blocks = latents.unflatten(2, (-1, *patches)).unflatten(1, grid).permute(0, 4, 1, 5, 2, 6, 3, 7)
            latents = blocks.flatten(6).flatten(4, 5).flatten(2, 3)
        channels = self.latent_upsampler.config.in_channels
        if latents.shape[1] != channels:
            raise ValueError(f"`latents` have {latents.shape[1]} channels, the upsampler takes {channels}")
        return self.vae.denormalize_latents(latents) if call.latents_normalized else latents


def _check(pipeline: LTX2LatentUpsamplePipeline, call: UpsampleArguments) -> None:
    checks.check_size(call.height, call.width, pipeline.vae_spatial_compression_ratio)
    checks.check_num_frames(call.num_frames, pipeline.vae_temporal_compression_ratio)
    checks.check_choice("output_type", call.output_type, OUTPUT_TYPES)
    checks.check_positive(frame_rate=call.frame_rate)
    checks.check_most(checks.MAX_FRAME_RATE, frame_rate=call.frame_rate)
    checks.check_unit(tone_map_compression_ratio=call.tone_map_compression_ratio)
    if not 0 <= call.adain_factor <= MAX_ADAIN_FACTOR:
        raise ValueError(
            f"`adain_factor` has to be between 0 and {MAX_ADAIN_FACTOR:g} but is {call.adain_factor}; use 1"
        )
    if (call.video is None) == (call.latents is None):
        raise ValueError("provide either `video` or `latents`, and not both")
    checks.check_float_tensors(latents=call.latents)
    batch_size = 1 if call.latents is None else len(call.latents)
    checks.check_generator(call.generator, batch_size, torch.device(pipeline._execution_device))
    check_noise_levels("decode_timestep", call.decode_timestep, batch_size)
    check_noise_levels("decode_noise_scale", call.decode_noise_scale, batch_size)
    check_save_path(call.save_path, call.output_type, batch_size)
    if call.output_type != "latent":
        pipeline.vae.check_decoding()
    if call.latents is None or call.latents.ndim == 5:
        _check_unread(pipeline, call, call.latents)


def _check_unread(pipeline: LTX2LatentUpsamplePipeline, call: UpsampleArguments, latents: torch.Tensor | None) -> None:
    """What describes packed latents may be said of others only if it is true of them.

    diffusers takes and ignores it, so that its own defaults are no statement.
    """
    known: dict[str, int] = {}
    if latents is not None:
        frames, *sides = latents.shape[2:]
        known["num_frames"] = (frames - 1) * pipeline.vae_temporal_compression_ratio + 1
        known |= zip(("height", "width"), (side * pipeline.vae_spatial_compression_ratio for side in sides))
    what = "`video`" if latents is None else f"`latents` {tuple(latents.shape)}"
    for name in ("num_frames", "height", "width", "spatial_patch_size", "temporal_patch_size"):
        value, default = getattr(call, name), getattr(UpsampleArguments, name)
        is_read = latents is None and name in ("height", "width", "num_frames")
        if not is_read and value not in (default, known.get(name, default)):
            raise ValueError(f"`{name}` is {value}, which says nothing true of {what}; leave it out")
    if latents is None and call.latents_normalized:
        raise ValueError("`latents_normalized` is True, but `video` is given and no latents; leave it out")
