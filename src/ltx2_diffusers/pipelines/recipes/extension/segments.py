"""Clips made longer: segments that share latents with what is there, and the pieces that they add to it.

Shapes: C channels, F latent frames, h and w latent rows and columns, L audio latents, M mel bins of a latent, N samples.
A segment of F latent frames that shares K of them with its neighbour adds 8 (F - K) pixel frames.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from .... import conditioning
from ....adapters.active import added_adapters, held_adapters
from ....media import preprocess, waveforms
from ....models import audio_vae, latent_filters, mel
from ....prompts import Prompts
from ...conditions import Condition, Opened, SourceClip, Studio, held_streams
from ...decoding import original_frames
from ...engine import decode_audio, decode_video, generate, prepare, reads_negative
from .. import ClipPlan, Decoded, Delivery, Info, LTX2GenerationPipeline, LTX2StagedPipeline, Request, Streams
from .plan import ClipLatents, Extension, Timeline


@dataclass(frozen=True)
class Segment:
    """A generated segment.

    Args:
        latents: Normalised latents, the shared ones included; audio `None` without sound.
        shared: Latent frames and audio latents it shares with its neighbour, 0 for the first one of a clip.
        backwards: Whether the neighbour comes after it.
        info: How it was made.
    """

    latents: ClipLatents
    shared: tuple[int, int]
    backwards: bool
    info: Info

    def new_latents(self) -> ClipLatents:
        """What the segment adds to joined latents.

        Before a clip, the last new latent takes the place of the clip's first one, which stands for a single frame.
        """
        (video, audio), shared = self.latents, self.shared
        return ClipLatents(self._new(video, shared[0]), None if audio is None else self._new(audio, shared[1]))

    def _new(self, latents: torch.Tensor, shared: int) -> torch.Tensor:
        if not shared:
            return latents
        return latents[:, :, : latents.shape[2] - shared + 1] if self.backwards else latents[:, :, shared:]

    def matched(self, reference: torch.Tensor | None, factor: float) -> "Segment":
        """The segment with the channel statistics of its new video latents moved towards those of a reference."""
        if reference is None or not factor:
            return self
        video, new = self.latents.video, self.new_latents().video
        moved, count = latent_filters.adain_filter_latent(new, reference, factor), new.shape[2]
        parts = [moved, video[:, :, count:]] if self.backwards else [video[:, :, : video.shape[2] - count], moved]
        return replace(self, latents=self.latents._replace(video=torch.cat(parts, dim=2)))


@dataclass(frozen=True)
class Wanted:
    """A segment to make.

    Args:
        prompts: Its text.
        request: All else that is asked for but what the segment takes over from its neighbour.
        timeline: How it lies in time.
        adapters: LoRA strengths by name that it adds to the active adapters, or changes.
    """

    prompts: Prompts
    request: Request
    timeline: Timeline
    adapters: Mapping[str, float] = field(default_factory=dict)

    def taken_over(self, carried: "Carried | None") -> tuple[list[Condition], tuple[int, int]]:
        """What holds it to its neighbour, and how many latents of both streams they share."""
        if carried is None:
            return [], (0, 0)
        (video, audio), shared = carried.latents, self.timeline.overlap
        if audio is None:
            return [CarriedLatents(self.timeline.edge(video, shared), None, self.timeline.backwards)], (shared, 0)
        heard = self.timeline.carried_audio(carried.num_frames)
        edges = self.timeline.edge(video, shared), self.timeline.edge(audio, heard)
        return [CarriedLatents(*edges, self.timeline.backwards)], (shared, heard)

    def carried_on(self, carried: "Carried | None", segment: Segment) -> "Carried":
        """What the next one goes on from."""
        if carried is None:
            return Carried(segment.latents, self.timeline.segment_frames, segment.latents.video)
        return replace(carried, latents=segment.latents, num_frames=carried.num_frames + self.timeline.new_frames)


@dataclass(frozen=True)
class Carried:
    """What there is of a clip when its next segment is made.

    Args:
        latents: Normalised latents, at least the shared ones at the edge; without audio, none is taken over.
        num_frames: Pixel frames.
        reference: Normalised video latents to whose statistics drift control holds.
    """

    latents: ClipLatents
    num_frames: int
    reference: torch.Tensor


def generate_segments(
    pipeline: LTX2GenerationPipeline, wanted: Iterable[Wanted], carried: Carried | None, drift_control: float = 0.0
) -> Iterator[Segment]:
    """Generate one segment after the other, holding no more of them than what the next one shares.

    Args:
        pipeline: The pipeline; setting its `_interrupt` ends the series without the segment in progress, unless there is
            nothing else.
        wanted: The segments.
        carried: What there is already; `None` to begin from nothing.
        drift_control: How far the statistics of new video latents are moved to those of the first ones. Default 0.0.
    """
    read, texts = None, None
    for one in wanted:
        with held_adapters(pipeline, if_loaded=True), added_adapters(pipeline, one.adapters):
            # Segments that follow each other often share their prompt, which adapters may read in another way.
            if texts is None or (one.prompts, one.adapters) != read:
                read, watched = (one.prompts, one.adapters), one.request.delivery.wanted
                with_negative, generator = reads_negative(pipeline, one.request), one.request.start.generator
                texts = pipeline.prompt_reader.read(one.prompts, with_negative, generator, watched=watched)
            taken, shared = one.taken_over(carried)
            request = replace(one.request, conditions=[*taken, *one.request.conditions])
            made = generate(pipeline, request, prepare(pipeline, request, 1).runs, texts)
        video, audio = made.latents
        if video is None or (pipeline._interrupt and carried is not None):
            return
        # A sound that is given as a whole is nothing that segments hand over.
        kept = ClipLatents(video, None if held_streams(request.conditions).audio else audio)
        segment = Segment(kept, shared, one.timeline.backwards, made.info)
        segment = segment.matched(None if carried is None else carried.reference, drift_control)
        carried = one.carried_on(carried, segment)
        yield segment
        if pipeline._interrupt:
            return


def decode_segment(
    pipeline: LTX2StagedPipeline, segment: Segment, delivery: Delivery
) -> tuple[Decoded, torch.Tensor | None]:
    """The new frames and the new samples `[1, channels, N]` of a segment, decoded together with the shared ones."""
    video, audio = segment.latents
    frames = decode_video(pipeline, video.to(pipeline.transformer.dtype), delivery, delivery.file)
    shared = conditioning.carried_pixel_frames(segment.shared[0]) if segment.shared[0] else 0
    frames = cut_frames(frames, shared, segment.backwards)
    if audio is None or (delivery.file is not None and not delivery.file.sound):
        return frames, None
    waveform = decode_audio(pipeline, audio, delivery.output_type)
    trimmed = pipeline.sizes.mel_frames(segment.shared[1]) if segment.shared[1] else 0
    samples = round(trimmed * waveform.shape[-1] / pipeline.sizes.mel_frames(audio.shape[2]))
    end = waveform.shape[-1] - samples
    return frames, waveform[..., :end] if segment.backwards else waveform[..., samples:]


def cut_frames(frames: Decoded, count: int, at_end: bool) -> Decoded:
    """Decoded clips without `count` frames at their start or end."""
    if isinstance(frames, list):
        return [clip[: len(clip) - count] if at_end else clip[count:] for clip in frames]
    return frames[:, : frames.shape[1] - count] if at_end else frames[:, count:]


def join_latents(pieces: Sequence[torch.Tensor], backwards: bool) -> torch.Tensor:
    """Latents of pieces, of which each but the first one made is only its new part, as those of one clip."""
    if backwards:
        # A segment before a clip brings that clip's first latent along.
        pieces = [pieces[-1], *(piece[:, :, 1:] for piece in pieces[-2::-1])]
    return torch.cat(list(pieces), dim=2)


# Frames of a given clip that are converted at a time, so that a long one is never held as floats.
_FRAMES_PER_PIECE = 8


def given_latents(pipeline: LTX2StagedPipeline, extension: Extension, given: ClipLatents) -> ClipLatents:
    """Given latents as they are, with as many of the sound as the video lasts."""
    video, audio = given.video.to(pipeline._execution_device, torch.float32), given.audio
    if audio is None:
        return ClipLatents(video, None)
    audio = audio.to(video.device, torch.float32)
    length = extension.timeline.audio_at(extension.num_frames)
    if audio.shape[2] < length:
        # Only normalised latents may be filled up with zeros.
        filler = pipeline.audio_vae.denormalize_latents(torch.zeros_like(audio))
        audio = torch.cat([audio, filler[:, :, : length - audio.shape[2]]], dim=2)
    return ClipLatents(video, audio[:, :, :length])


def edge_latents(pipeline: LTX2StagedPipeline, extension: Extension) -> ClipLatents | None:
    """Normalised latents next to where the clip goes on; only these are encoded of a clip in pixels."""
    source, timeline = extension.source, extension.timeline
    if source is None:
        return None
    if not isinstance(source, SourceClip):
        latents, audio = given_latents(pipeline, extension, source)
        audio = None if audio is None else pipeline.audio_vae.normalize_latents(audio)
        return ClipLatents(pipeline.vae.normalize_latents(latents), audio)
    count = conditioning.carried_pixel_frames(timeline.overlap)
    first = 0 if timeline.backwards else source.num_frames - count
    shared = range(first, first + count)
    video = pipeline.encode_video(preprocess.fitted_frames(source.pixels, shared, *extension.sides))
    if source.audio is None:
        return ClipLatents(video, None)
    num_latents = timeline.carried_audio(extension.num_frames)
    rate = source.audio.rate
    waveform = waveforms.fit_audio(source.audio.samples, extension.num_frames / source.frame_rate, rate)
    # What these latents decode to at the start of a clip is cut from a segment, which goes on just behind it.
    duration_s = pipeline.sizes.mel_frames(num_latents) * pipeline.audio_hop_length / pipeline.audio_sampling_rate
    samples = min(round(duration_s * rate), waveform.shape[-1])
    waveform = waveform[..., :samples] if timeline.backwards else waveform[..., waveform.shape[-1] - samples :]
    return ClipLatents(video, audio_vae.conform_latent_length(pipeline.encode_audio(waveform, rate), num_latents))


def carried_source(pipeline: LTX2StagedPipeline, extension: Extension) -> Carried | None:
    """What an extension goes on from, if it does not begin from nothing."""
    latents = edge_latents(pipeline, extension)
    return None if latents is None else Carried(latents, extension.num_frames, latents.video)


def source_pieces(
    pipeline: LTX2StagedPipeline, extension: Extension, delivery: Delivery
) -> Iterator[tuple[Decoded, torch.Tensor | None]]:
    """The given clip in the wished type, piece by piece, its sound with the first: pixels as they are, latents decoded."""
    source = extension.source
    if not isinstance(source, SourceClip):
        latents = edge_latents(pipeline, extension)
        if latents is not None:
            yield decode_segment(pipeline, Segment(latents, (0, 0), False, {}), delivery)
        return
    sound = None
    if source.audio is not None:
        own = pipeline.vocoder.config.output_sampling_rate
        waveform = mel.resample(mel.conform_to_stereo(source.audio.samples.float()), source.audio.rate, own)
        sound = waveforms.fit_audio(waveform, source.num_frames / source.frame_rate, own)
    for part in source.pixels.split(_FRAMES_PER_PIECE):
        pixels = preprocess.fit_cover(part, *extension.sides)[0].movedim(0, -1)
        yield original_frames(pipeline, pixels, 1, delivery.output_type), sound
        sound = None if sound is None else sound[..., :0]


@dataclass(frozen=True)
class CarriedLatents(Condition):
    """Latents of another clip that this one overlaps with, for extending it.

    The first latent of a clip stands for a single frame. Carried to the end of this clip it would lie where latents
    stand for eight; there it is shown as a keyframe at its pixel frame instead, and the first audio latent is left out.

    Args:
        video: Normalised latents `[1, C, K, h, w]` of the finished size.
        audio: Normalised latents `[1, C, A, M]`, or `None`.
        at_end: Whether the other clip follows this one; default `False`, it comes before.
    """

    video: torch.Tensor
    audio: torch.Tensor | None = None
    at_end: bool = False

    def opened(self, studio: Studio, plan: ClipPlan) -> "OpenedLatents":  # noqa: ARG002 (latents need no encoder)
        """Nothing has to be read."""
        return OpenedLatents(self, plan.num_frames - 1 if self.at_end else 0)


@dataclass(frozen=True)
class OpenedLatents(Opened):
    """Carried latents.

    Args:
        given: The condition.
        frame: The pixel frame of the clip that they claim.
    """

    given: CarriedLatents
    frame: int

    @property
    def places(self) -> list[str]:
        """The start of the video, or its end."""
        return [f"video frame {self.frame}"]

    def check(self, plan: ClipPlan) -> None:
        """Raise `ValueError` if more is carried than the stage is long."""
        lengths = (("video", self.given.video, plan.video.frames), ("audio", self.given.audio, plan.audio.frames))
        for name, latents, frames in lengths:
            if latents is not None and latents.shape[2] >= frames:
                raise ValueError(
                    f"{latents.shape[2]} carried {name} latents leave nothing new in a clip of {frames}; carry fewer or "
                    "make the clip longer"
                )

    def items(self, plan: ClipPlan) -> Streams[Sequence[conditioning.ConditionItem]]:
        """The latents, resized to the stage."""
        audio = self.given.audio
        video = conditioning.resize_latent(self.given.video, plan.video.height, plan.video.width)
        if not self.given.at_end:
            sounds = [] if audio is None else [conditioning.AudioConditionByLatentIndex(audio)]
            return Streams([conditioning.VideoConditionByLatentIndex(video)], sounds)
        first = (plan.video.frames - video.shape[2]) * plan.sizes.temporal_ratio
        items: list[conditioning.ConditionItem] = [conditioning.VideoConditionByKeyframeIndex(video[:, :, :1], first)]
        return Streams(
            _at_end(conditioning.VideoConditionByLatentIndex, video, plan.video.frames) + items,
            [] if audio is None else _at_end(conditioning.AudioConditionByLatentIndex, audio, plan.audio.frames),
        )


def _at_end(
    kind: type[conditioning.VideoConditionByLatentIndex] | type[conditioning.AudioConditionByLatentIndex],
    latents: torch.Tensor,
    frames: int,
) -> list[conditioning.ConditionItem]:
    """All latents but the first one as the last of a stream of so many frames."""
    rest = latents[:, :, 1:]
    return [kind(rest, latent_idx=frames - rest.shape[2])] if rest.shape[2] else []
