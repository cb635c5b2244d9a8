"""Clips made longer: segments that share latents with what is there, and the pieces that they add to it.

Shapes: C channels, F latent frames, h and w latent rows and columns, L audio latents, M mel bins of a latent, N samples.
A segment of F latent frames that shares K of them with its neighbour adds 8 (F - K) pixel frames.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....conditioning.carry import carried_pixel_frames
from ....conditioning.streams import Streams
from ....models.latent_filters import adain_filter_latent
from ....prompts.reading import ReadPrompts
from ...arguments import Delivery, Request
from ...conditions.carried import CarriedLatents

# From a prompt and the conditions of its segment to a request.
MakeRequest = Callable[[str, Sequence[Any]], Request]


@dataclass(frozen=True)
class Timeline:
    """How segments lie on the time of the whole clip.

    The sound is counted from the start of the whole clip, so that rounding to audio latents does not add up.

    Args:
        segment_frames: Pixel frames of a segment, those it shares with its neighbour included.
        overlap: Latent frames K that are shared.
        audio_at: From pixel frames to audio latents as long.
        backwards: Whether segments come before what is there.
    """

    segment_frames: int
    overlap: int
    audio_at: Callable[[int], int]
    backwards: bool = False

    @property
    def new_frames(self) -> int:
        """Pixel frames that a segment adds."""
        return self.segment_frames - carried_pixel_frames(self.overlap)

    def carried_audio(self, num_frames: int) -> int:
        """Audio latents that the segment after `num_frames` pixel frames shares with what is there."""
        new = self.audio_at(num_frames + self.new_frames) - self.audio_at(num_frames)
        return self.audio_at(self.segment_frames) - new

    def edge(self, latents: torch.Tensor, count: int) -> torch.Tensor:
        """The `count` latents `[1, C, count, ...]` next to where the clip goes on."""
        return latents[:, :, :count] if self.backwards else latents[:, :, latents.shape[2] - count :]


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
    pipeline: Any,
    request_for: MakeRequest,
    read_for: Callable[[str], ReadPrompts],
    prompts: Sequence[str],
    timeline: Timeline,
    given: Streams | None,
    num_frames: int,
    drift_control: float = 0.0,
) -> Iterator[Segment]:
    """Generate one segment after the other, holding no more of them than what the next one shares.

    Args:
        pipeline: The pipeline; setting its `_interrupt` ends the series without the segment in progress, unless there is
            nothing else.
        request_for: Makes the request of a segment.
        read_for: Reads the prompt of a segment.
        prompts: One text per segment.
        timeline: How segments lie in time.
        given: Normalised latents to go on from, at least the shared ones at the edge; `None` to begin from nothing.
        num_frames: Pixel frames that are there, 0 with nothing.
        drift_control: How far the statistics of new video latents are moved to those of the first ones, 0 to 1.
    """
    reference = None if given is None else given.video
    for prompt in prompts:
        conditions, shared = [], (0, 0)
        if given is not None:
            shared = (timeline.overlap, timeline.carried_audio(num_frames) if given.audio is not None else 0)
            edges = [None if one is None else timeline.edge(one, count) for one, count in zip(given, shared)]
            conditions = [CarriedLatents(*edges, at_end=timeline.backwards)]
        latents, _, info = pipeline._generate_latents(request_for(prompt, conditions), read_for(prompt))
        if pipeline._interrupt and given is not None:
            return
        segment = Segment(latents, shared, timeline.backwards, info).matched(reference, drift_control)
        num_frames += timeline.segment_frames if given is None else timeline.new_frames
        reference = segment.latents.video if reference is None else reference
        given = segment.latents
        yield segment
        if pipeline._interrupt:
            return


def decode_segment(
    pipeline: Any, segment: Segment, delivery: Delivery, generator: torch.Generator | None = None
) -> tuple[Any, torch.Tensor | None]:
    """The new frames and the new samples `[1, channels, N]` of a segment, decoded together with the shared ones."""
    video, audio = segment.latents
    frames = pipeline._decode_video(video.to(pipeline.transformer.dtype), delivery, generator)
    shared = carried_pixel_frames(segment.shared[0]) if segment.shared[0] else 0
    frames = cut_frames(frames, shared, segment.backwards)
    if audio is None:
        return frames, None
    waveform = pipeline._decode_audio(pipeline.audio_vae.denormalize_latents(audio), delivery.output_type)
    trimmed = mel_frames(pipeline, segment.shared[1]) if segment.shared[1] else 0
    samples = round(trimmed * waveform.shape[-1] / mel_frames(pipeline, audio.shape[2]))
    end = waveform.shape[-1] - samples
    return frames, waveform[..., :end] if segment.backwards else waveform[..., samples:]


def mel_frames(pipeline: Any, num_latents: int) -> int:
    """Mel frames of so many audio latents; the first stands for one, every other for as many as the ratio says."""
    return pipeline.audio_vae_temporal_compression_ratio * (num_latents - 1) + 1


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
