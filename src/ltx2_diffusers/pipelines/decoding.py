"""From denoised latents to what is handed over.

Shapes: B batch, C channels, F latent frames, h and w latent rows and columns, L audio latents, M latent mel bins.
"""

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..conditioning.streams import Streams
from ..media.pixels import decoded_frames
from ..media.preprocess import normalize_pixels
from ..media.waveforms import fit_audio
from ..models.video_vae import AutoencoderKLLTX2Video
from .arguments import Delivery, Generators
from .base import LTX2PipelineBase
from .conditions.condition import Original
from .generation import LTX2GenerationPipeline
from .output import LTX2PipelineOutput
from .plan import ClipPlan

OUTPUT_TYPES = ("pil", "np", "pt", "uint8", "latent")


def deliver(
    pipeline: LTX2GenerationPipeline,
    latents: Streams,
    plan: ClipPlan,
    delivery: Delivery,
    generator: Generators,
    originals: Streams,
    info: dict[str, Any],
) -> LTX2PipelineOutput | tuple:
    """Decode finished latents, free offloaded models and wrap up.

    Args:
        pipeline: The pipeline.
        latents: Normalised latents, `None` for a stream that is absent.
        plan: Sizes of the clip.
        delivery: The form in which it is handed over.
        generator: Source of the decoder's noise.
        originals: [`Original`] of each stream that is handed over as it was given, or `None`.
        info: How the latents were made.
    """
    kept = originals if delivery.output_type != "latent" else Streams(None, None)
    frames = _delivered_video(pipeline, latents.video, plan, delivery, generator, kept.video)
    audio, rate = _delivered_audio(pipeline, latents.audio, plan, delivery, kept)
    pipeline.maybe_free_model_hooks()
    if not delivery.return_dict:
        return frames, audio
    frame_rate = None if frames is None else plan.frame_rate
    sources = (None if original is None else original.source for original in originals)
    return LTX2PipelineOutput(frames, audio, frame_rate, rate, {**info, "output_type": delivery.output_type}, *sources)


def _delivered_video(
    pipeline: LTX2GenerationPipeline,
    latents: torch.Tensor | None,
    plan: ClipPlan,
    delivery: Delivery,
    generator: Generators,
    original: Original | None,
) -> Any:
    if original is not None:
        return original_frames(pipeline, original.content, plan.batch_size, delivery.output_type)
    if latents is None:
        return None
    # Latents are handed over as exact as they are; decoding starts in the transformer's type, as in diffusers.
    dtype = latents.dtype if delivery.output_type == "latent" else pipeline.transformer.dtype
    return decode_video(pipeline, latents.to(dtype), delivery, generator)


def _delivered_audio(
    pipeline: LTX2GenerationPipeline,
    latents: torch.Tensor | None,
    plan: ClipPlan,
    delivery: Delivery,
    originals: Streams,
) -> tuple[torch.Tensor | None, int | None]:
    """Waveform and its rate."""
    if originals.audio is not None:
        sound = originals.audio.content
        return fit_audio(sound.samples, plan.duration_s, sound.rate).expand(plan.batch_size, -1, -1), sound.rate
    if latents is None:
        return None, None
    audio = decode_audio(pipeline, pipeline.audio_vae.denormalize_latents(latents), delivery.output_type)
    rate = pipeline.vocoder.config.output_sampling_rate if pipeline.vocoder is not None else None
    if originals.video is not None:
        # A given video may be shorter than the clip that the network saw, which needs 8 k + 1 frames.
        audio = audio[..., : round(len(originals.video.content) / plan.frame_rate * rate)]
    return audio, rate


def decode_video(
    pipeline: LTX2GenerationPipeline, latents: torch.Tensor, delivery: Delivery, generator: Generators = None
) -> Any:
    """Turn normalised video latents `[B, C, F, h, w]` into frames of the wished type."""
    if delivery.output_type == "latent":
        return pipeline.vae.denormalize_latents(latents)
    latents, timestep = with_decoder_noise(pipeline.vae, latents, delivery, generator)
    return decoded(pipeline, pipeline.vae.denormalize_latents(latents), timestep, delivery.output_type)


def with_decoder_noise(
    vae: AutoencoderKLLTX2Video, latents: torch.Tensor, delivery: Delivery, generator: Generators
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Latents and timestep as a decoder with timestep conditioning wants them; unchanged and `None` without."""
    if not vae.config.timestep_conditioning:
        return latents, None
    timestep = _per_sample(delivery.decode_timestep, latents)
    scale = timestep if delivery.decode_noise_scale is None else _per_sample(delivery.decode_noise_scale, latents)
    scale = scale.view(-1, 1, 1, 1, 1)
    noise = randn_tensor(latents.shape, generator, latents.device, latents.dtype)
    return (1 - scale) * latents + scale * noise, timestep


def decoded(pipeline: LTX2PipelineBase, latents: torch.Tensor, timestep: torch.Tensor | None, output_type: str) -> Any:
    """Turn un-normalised video latents into frames."""
    video = pipeline.vae.decode(latents.to(pipeline.vae.dtype), timestep, return_dict=False)[0]
    return video_as(pipeline, video, output_type)


def video_as(pipeline: LTX2PipelineBase, video: torch.Tensor, output_type: str) -> Any:
    """Pixels `[B, 3, F, H, W]` in [-1, 1] in the wished type."""
    if output_type == "uint8":
        return torch.stack([torch.cat(list(decoded_frames(item))) for item in video])
    return pipeline.video_processor.postprocess_video(video, output_type=output_type)


def original_frames(pipeline: LTX2PipelineBase, pixels: torch.Tensor, batch_size: int, output_type: str) -> Any:
    """Given pixels `[F, H, W, 3]` in [0, 255] in the wished type, one clip for the whole batch."""
    clip = normalize_pixels(pixels.movedim(-1, 0).float()).expand(batch_size, -1, -1, -1, -1)
    return video_as(pipeline, clip, output_type)


def decode_audio(pipeline: LTX2GenerationPipeline, latents: torch.Tensor, output_type: str) -> torch.Tensor:
    """Turn un-normalised audio latents `[B, C, L, M]` into a waveform `[B, channels, samples]`."""
    if output_type == "latent":
        return latents
    spectrogram = pipeline.audio_vae.decode(latents.to(pipeline.audio_vae.dtype), return_dict=False)[0]
    return pipeline.vocoder(spectrogram)


def _per_sample(value: float | list[float], latents: torch.Tensor) -> torch.Tensor:
    values = value if isinstance(value, list) else [value]
    return torch.tensor(values, device=latents.device, dtype=latents.dtype).expand(len(latents))
