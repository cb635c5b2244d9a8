"""What an extension goes on from: the latents at its edge, and its own place in the finished clip.

Shapes: C channels, F latent frames, h and w latent rows and columns, L audio latents, M mel bins of a latent, N samples.
"""

from collections.abc import Iterator
from typing import Any

import torch

from ....conditioning.carry import carried_pixel_frames
from ....conditioning.streams import Streams
from ....media.preprocess import fit_cover, normalize_pixels
from ....media.waveforms import fit_audio
from ....models.audio_vae import conform_latent_length
from ....models.mel import conform_to_stereo, resample
from ...arguments import Delivery, Generators
from ...conditions.source import SourceClip
from ...decoding import original_frames
from ...staged import LTX2StagedPipeline
from .plan import Extension
from .segments import Segment, decode_segment

# Frames of a given clip that are converted at a time, so that a long one is never held as floats.
_FRAMES_PER_PIECE = 64


def given_latents(pipeline: LTX2StagedPipeline, extension: Extension) -> Streams:
    """Given latents as they are, with as many of the sound as the video lasts."""
    video, audio = (
        None if latents is None else latents.to(pipeline._execution_device, torch.float32)
        for latents in extension.source
    )
    if audio is None:
        return Streams(video, None)
    length = extension.timeline.audio_at(extension.num_frames)
    if audio.shape[2] < length:
        # Only normalised latents may be filled up with zeros.
        filler = pipeline.audio_vae.denormalize_latents(torch.zeros_like(audio))
        audio = torch.cat([audio, filler[:, :, : length - audio.shape[2]]], dim=2)
    return Streams(video, audio[:, :, :length])


def edge_latents(pipeline: LTX2StagedPipeline, extension: Extension) -> Streams | None:
    """Normalised latents next to where the clip goes on; only these are encoded of a clip in pixels."""
    source, timeline = extension.source, extension.timeline
    if source is None:
        return None
    if not isinstance(source, SourceClip):
        video, audio = given_latents(pipeline, extension)
        audio = None if audio is None else pipeline.audio_vae.normalize_latents(audio)
        return Streams(pipeline.vae.normalize_latents(video), audio)
    count = carried_pixel_frames(timeline.overlap)
    pixels = source.pixels[:count] if timeline.backwards else source.pixels[-count:]
    video = pipeline.encode_video(normalize_pixels(fit_cover(pixels, extension.size.height, extension.size.width)))
    if source.audio is None:
        return Streams(video, None)
    latents = timeline.carried_audio(extension.num_frames)
    rate = source.audio.rate
    waveform = fit_audio(source.audio.samples, extension.num_frames / source.frame_rate, rate)
    # What these latents decode to at the start of a clip is cut from a segment, which goes on just behind it.
    duration_s = pipeline.sizes.mel_frames(latents) * pipeline.audio_hop_length / pipeline.audio_sampling_rate
    samples = min(round(duration_s * rate), waveform.shape[-1])
    waveform = waveform[..., :samples] if timeline.backwards else waveform[..., waveform.shape[-1] - samples :]
    return Streams(video, conform_latent_length(pipeline.encode_audio(waveform, rate), latents))


def source_pieces(
    pipeline: LTX2StagedPipeline, extension: Extension, delivery: Delivery, generator: Generators
) -> Iterator[tuple[Any, torch.Tensor | None]]:
    """The given clip in the wished type, piece by piece, its sound with the first: pixels as they are, latents decoded."""
    source = extension.source
    if source is None:
        return
    if not isinstance(source, SourceClip):
        whole = Segment(edge_latents(pipeline, extension), (0, 0), False, {})
        yield decode_segment(pipeline, whole, delivery, generator)
        return
    sound = None
    if source.audio is not None:
        own = pipeline.vocoder.config.output_sampling_rate
        waveform = resample(conform_to_stereo(source.audio.samples.float()), source.audio.rate, own)
        sound = fit_audio(waveform, source.num_frames / source.frame_rate, own)
    for part in source.pixels.split(_FRAMES_PER_PIECE):
        pixels = fit_cover(part, extension.size.height, extension.size.width)[0].movedim(0, -1)
        yield original_frames(pipeline, pixels, 1, delivery.output_type), sound
        sound = None if sound is None else sound[..., :0]
