"""Clips made longer: segments that share latents with what is there, and the pieces that they add to it.

Shapes: C channels, F latent frames, h and w latent rows and columns, L audio latents, M mel bins of a latent, N samples.
A segment of F latent frames that shares K of them with its neighbour adds 8 (F - K) pixel frames.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ....conditioning.carry import carried_pixel_frames
from ....conditioning.streams import Streams
from ....models.latent_filters import adain_filter_latent
from ....prompts.encoding import Prompts
from ...arguments import Delivery, Generators, Request
from ...conditions.carried import CarriedLatents
from ...decoding import decode_audio, decode_video
from ...engine import generate, prepare, reads_negative
from ...staged import LTX2StagedPipeline
from .plan import Extension


@dataclass(frozen=True)
class Segment:
    """A generated segment.

    Args:
        latents: Normalised latents, the shared ones included; audio `None` without sound.
        shared: Latent frames and audio latents it shares with its neighbour, 0 for the first one of a clip.
        backwards: Whether the neighbour comes after it.
        info: How it was made.
    """

    latents: Streams
    shared: tuple[int, int]
    backwards: bool
    info: dict[str, Any]

    def new_latents(self) -> Streams:
        """What the segment adds to joined latents.

        Before a clip, the last new latent takes the place of the clip's first one, which stands for a single frame.
        """
        return Streams(*map(self._new, self.latents, self.shared))

    def _new(self, latents: torch.Tensor | None, shared: int) -> torch.Tensor | None:
        if latents is None or not shared:
            return latents
        return latents[:, :, : latents.shape[2] - shared + 1] if self.backwards else latents[:, :, shared:]

    def matched(self, reference: torch.Tensor | None, factor: float) -> "Segment":
        """The segment with the channel statistics of its new video latents moved towards those of a reference."""
        if reference is None or not factor:
            return self
        video, shared = self.latents.video, self.shared[0]
        new = adain_filter_latent(self._new(video, shared), reference, factor)
        parts = [new, video[:, :, new.shape[2] :]] if self.backwards else [video[:, :, :shared], new]
        return Segment(self.latents._replace(video=torch.cat(parts, dim=2)), self.shared, self.backwards, self.info)


def generate_segments(
    pipeline: LTX2StagedPipeline, prompts: Prompts, request: Request, extension: Extension, given: Streams | None
) -> Iterator[Segment]:
    """Generate one segment after the other, holding no more of them than what the next one shares.

    Args:
        pipeline: The pipeline; setting its `_interrupt` ends the series without the segment in progress, unless there is
            nothing else.
        prompts: How the texts are read.
        request: A segment without conditions.
        extension: The texts, and how segments lie in time.
        given: Normalised latents to go on from, at least the shared ones at the edge; `None` to begin from nothing.
    """
    timeline, num_frames = extension.timeline, extension.num_frames
    reference = None if given is None else given.video
    reader, with_negative = pipeline.prompt_reader, reads_negative(pipeline, request)
    read = texts = None
    for prompt in extension.prompts:
        # Segments that follow each other often share their prompt.
        if prompt != read:
            one, watched = replace(prompts, prompt=prompt), request.delivery.wanted
            read, texts = prompt, reader.read(one, with_negative, request.start.generator, watched=watched)
        conditions, shared = [], (0, 0)
        if given is not None:
            shared = (timeline.overlap, timeline.carried_audio(num_frames) if given.audio is not None else 0)
            edges = [None if one is None else timeline.edge(one, count) for one, count in zip(given, shared)]
            conditions = [CarriedLatents(*edges, at_end=timeline.backwards)]
        request = replace(request, conditions=conditions)
        made = generate(pipeline, request, prepare(pipeline, request, 1).runs, texts)
        if pipeline._interrupt and given is not None:
            return
        segment = Segment(made.latents, shared, timeline.backwards, made.info)
        segment = segment.matched(reference, extension.drift_control)
        num_frames += timeline.segment_frames if given is None else timeline.new_frames
        reference = segment.latents.video if reference is None else reference
        given = segment.latents
        yield segment
        if pipeline._interrupt:
            return


def decode_segment(
    pipeline: LTX2StagedPipeline, segment: Segment, delivery: Delivery, generator: Generators = None
) -> tuple[Any, torch.Tensor | None]:
    """The new frames and the new samples `[1, channels, N]` of a segment, decoded together with the shared ones."""
    video, audio = segment.latents
    frames = decode_video(pipeline, video.to(pipeline.transformer.dtype), delivery, generator)
    shared = carried_pixel_frames(segment.shared[0]) if segment.shared[0] else 0
    frames = cut_frames(frames, shared, segment.backwards)
    if audio is None:
        return frames, None
    waveform = decode_audio(pipeline, pipeline.audio_vae.denormalize_latents(audio), delivery.output_type)
    trimmed = pipeline.sizes.mel_frames(segment.shared[1]) if segment.shared[1] else 0
    samples = round(trimmed * waveform.shape[-1] / pipeline.sizes.mel_frames(audio.shape[2]))
    end = waveform.shape[-1] - samples
    return frames, waveform[..., :end] if segment.backwards else waveform[..., samples:]


def cut_frames(frames: Any, count: int, at_end: bool) -> Any:
    """Decoded clips without `count` frames at their start or end."""
    if isinstance(frames, list):
        return [clip[: len(clip) - count] if at_end else clip[count:] for clip in frames]
    return frames[:, : frames.shape[1] - count] if at_end else frames[:, count:]


def join_latents(pieces: Sequence[Streams], backwards: bool) -> Streams:
    """Latents of consecutive pieces as those of one clip; each piece but the first added to is only its new part."""
    joined = []
    for stream in zip(*pieces):
        if stream[0] is None:
            joined.append(None)
            continue
        # A segment before a clip brings that clip's first latent along.
        parts = [part if index == 0 or not backwards else part[:, :, 1:] for index, part in enumerate(stream)]
        joined.append(torch.cat(parts, dim=2))
    return Streams(*joined)
