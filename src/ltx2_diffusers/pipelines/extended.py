"""What an extension goes on from, and the way from its arguments to the finished clip.

Shapes: C channels, F latent frames, h and w latent rows and columns, L audio latents, M mel bins of a latent, N samples.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..conditioning.carry import carried_pixel_frames
from ..media.preprocess import fit_cover, normalize_pixels
from ..media.streaming import ClipWriter
from ..models.audio_vae import conform_latent_length
from ..models.mel import conform_to_stereo, resample
from ..sampling.denoiser import Streams
from . import checks
from .call_arguments import build_request, filled
from .extension import Segment, Timeline, decode_segment, generate_segments, join_latents
from .output import LTX2PipelineOutput, fit_audio
from .plan import DEFAULT_SIZE
from .request import Delivery, Request, Size, Start
from .sources import SourceClip, read_source
from .stage_lists import stage_list


@dataclass(frozen=True)
class Extension:
    """A checked extension.

    Args:
        prompts: One text per segment.
        size: Size of a segment.
        timeline: How segments lie in time.
        source: Clip or un-normalised latents to go on from, or `None`.
        num_frames: Pixel frames of the source.
        streams: Which streams are generated.
    """

    prompts: list[str]
    size: Size
    timeline: Timeline
    source: SourceClip | Streams | None
    num_frames: int
    streams: Streams


def plan_extension(pipeline: Any, call: Mapping[str, Any]) -> Extension:
    """Check the arguments that only an extension has, and work out its sizes."""
    checks.check_choice("direction", call["direction"], ("forward", "backward"))
    checks.check_unit(drift_control=call["drift_control"])
    prompts = _segment_prompts(call["prompt"], call["num_segments"])
    segment_frames = call["num_frames"] or DEFAULT_SIZE[2]
    ratio = pipeline.vae_temporal_compression_ratio
    overlap = call["overlap_frames"]
    checks.check_num_frames(segment_frames, ratio)
    if not isinstance(overlap, int) or (overlap - 1) % ratio or not ratio < overlap < segment_frames:
        raise ValueError(
            f"`overlap_frames` has to be {ratio} k + 1, at least {ratio + 1} and less than `num_frames` {segment_frames}, but "
            f"is {overlap}; use {min(max((int(overlap) - 1) // ratio, 1), (segment_frames - 1) // ratio - 1) * ratio + 1}"
        )
    source, num_frames, rate = _source(pipeline, call)
    if source is not None and num_frames < overlap:
        raise ValueError(f"`overlap_frames` is {overlap}, but the clip has {num_frames} frames; use a smaller overlap")
    height, width = _sides(pipeline, call, source)
    has_sound = (source.audio is not None) if source is not None else call["generate_audio"] is not False
    if call["generate_audio"] is not None and source is not None and call["generate_audio"] != has_sound:
        raise ValueError(
            f"`generate_audio` is {call['generate_audio']}, but the clip has {'sound' if has_sound else 'no sound'} to go on "
            "from; leave it out, or give the clip with the sound it should have"
        )
    timeline = Timeline(
        segment_frames,
        (overlap - 1) // ratio + 1,
        lambda frames: pipeline._audio_shape(1, frames / rate).frames,
        call["direction"] == "backward",
    )
    size = Size(height, width, segment_frames, rate, call["motion_speed"])
    return Extension(prompts, size, timeline, source, num_frames, Streams(True, has_sound))


@torch.no_grad()
def extend(pipeline: Any, call: Mapping[str, Any], extension: Extension) -> LTX2PipelineOutput | tuple:
    """Generate the segments of an extension and put the clip together, in memory or in a file."""
    stages = stage_list(pipeline, call, streams=extension.streams)
    if any(stage.temporal_scale != 1.0 for stage in stages):
        raise ValueError("an extension cannot change the frame rate between `stages`; give all temporal_scale=1.0")
    start, delivery = filled(Start, call, latents=None, audio_latents=None), filled(Delivery, call)

    def request_for(prompt: str, conditions: Any) -> Request:
        fixed = {"size": extension.size, "start": start, "delivery": delivery, "streams": extension.streams}
        return build_request({**call, "prompt": prompt}, stages, conditions, **fixed)

    for prompt in extension.prompts:
        pipeline._prepare_runs(request_for(prompt, []))
    writer = _writer(pipeline, call, extension)
    segments = generate_segments(
        pipeline,
        request_for,
        extension.prompts,
        extension.timeline,
        _edge_latents(pipeline, extension),
        extension.num_frames,
        call["drift_control"],
    )
    result = _result(pipeline, extension, segments, delivery, start.generator, writer)
    pipeline.maybe_free_model_hooks()
    return result if delivery.return_dict else (result.frames, result.audio)


def _segment_prompts(prompt: Any, count: int | None) -> list[str]:
    texts = [prompt] * (1 if count is None else count) if isinstance(prompt, str) else list(prompt or [])
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`prompt` has to be a text, or a list of one text per segment, but is {prompt!r}")
    if count is not None and count != len(texts):
        raise ValueError(f"`num_segments` is {count}, but `prompt` has {len(texts)} texts; leave one of them out")
    return texts


def _source(pipeline: Any, call: Mapping[str, Any]) -> tuple[SourceClip | Streams | None, int, float]:
    """What is given to go on from, its pixel frames and its frame rate."""
    rate, latents = call["frame_rate"], call["latents"]
    checks.check_positive(frame_rate=rate)
    if call["video"] is not None and latents is not None:
        raise ValueError("give either `video` or `latents`, not both")
    if call["video"] is not None:
        if call["output_type"] == "latent":
            raise ValueError(
                'output_type="latent" needs the clip as `latents`; give them, or choose another output type'
            )
        clip = read_source(call["video"], rate, call["audio"], call["sampling_rate"])
        return clip, clip.num_frames, clip.frame_rate
    rate = 24.0 if rate is None else rate
    if call["audio"] is not None or (latents is None and call["audio_latents"] is not None):
        raise ValueError("`audio` belongs to `video`, and `audio_latents` to `latents`; give both of a pair")
    if latents is None:
        return None, 0, rate
    checks.check_float_tensors(latents=latents, audio_latents=call["audio_latents"])
    if latents.ndim != 5 or len(latents) != 1:
        raise ValueError(f"`latents` has to be un-normalised [1, C, F, h, w] but has shape {tuple(latents.shape)}")
    num_frames = (latents.shape[2] - 1) * pipeline.vae_temporal_compression_ratio + 1
    audio = call["audio_latents"]
    expected = pipeline._audio_shape(1, num_frames / rate)
    if audio is not None and (audio.ndim != 4 or abs(audio.shape[2] - expected.frames) > 1):
        raise ValueError(
            f"`audio_latents` has to be un-normalised {tuple(expected)} for {num_frames} frames at {rate:g} per second but "
            f"has shape {tuple(audio.shape)}"
        )
    return Streams(latents, audio), num_frames, rate


def _sides(
    pipeline: Any, call: Mapping[str, Any], source: SourceClip | Streams | None
) -> tuple[int | None, int | None]:
    wished = (call["height"], call["width"])
    if source is None:
        return wished
    if isinstance(source, SourceClip):
        return tuple(side or own for side, own in zip(wished, source.pixels.shape[1:3]))
    own = tuple(side * pipeline.vae_spatial_compression_ratio for side in source.video.shape[3:])
    if any(side not in (None, given) for side, given in zip(wished, own)):
        raise ValueError(f"`height` and `width` are {wished}, but `latents` are those of {own} pixels; leave them out")
    return own


def _edge_latents(pipeline: Any, extension: Extension) -> Streams | None:
    """Normalised latents next to where the clip goes on; only these are encoded of a clip in pixels."""
    source, timeline = extension.source, extension.timeline
    device = pipeline._execution_device
    if source is None:
        return None
    if not isinstance(source, SourceClip):
        audio = None if source.audio is None else source.audio.to(device, torch.float32)
        if audio is not None:
            audio = pipeline.audio_vae.normalize_latents(audio)
            audio = conform_latent_length(audio, timeline.audio_at(extension.num_frames))
        return Streams(pipeline.vae.normalize_latents(source.video.to(device, torch.float32)), audio)
    count = carried_pixel_frames(timeline.overlap)
    pixels = source.pixels[:count] if timeline.backwards else source.pixels[-count:]
    video = pipeline.encode_video(normalize_pixels(fit_cover(pixels, extension.size.height, extension.size.width)))
    if source.audio is None:
        return Streams(video, None)
    latents = timeline.carried_audio(extension.num_frames)
    waveform, rate = source.audio
    waveform = fit_audio(waveform, extension.num_frames / source.frame_rate, rate)
    samples = round(latents / timeline.audio_at(extension.num_frames) * waveform.shape[-1])
    waveform = waveform[..., :samples] if timeline.backwards else waveform[..., waveform.shape[-1] - samples :]
    return Streams(video, conform_latent_length(pipeline.encode_audio(waveform, rate), latents))


def _source_piece(pipeline: Any, extension: Extension, delivery: Delivery) -> tuple[Any, torch.Tensor | None]:
    """The given clip in the wished type: pixels as they are, latents decoded."""
    source = extension.source
    if not isinstance(source, SourceClip):
        whole = Segment(_edge_latents(pipeline, extension), (0, 0), False, {})
        return decode_segment(pipeline, whole, delivery)
    pixels = fit_cover(source.pixels, extension.size.height, extension.size.width)[0].movedim(0, -1)
    frames = pipeline._original_video(pixels, 1, delivery.output_type)
    if source.audio is None:
        return frames, None
    waveform, rate = source.audio
    own = pipeline.vocoder.config.output_sampling_rate
    waveform = resample(conform_to_stereo(waveform.float()), rate, own)
    return frames, fit_audio(waveform, source.num_frames / source.frame_rate, own)


def _pieces(
    pipeline: Any,
    extension: Extension,
    segments: Iterator[Segment],
    delivery: Delivery,
    generator: torch.Generator | None,
    infos: list[dict[str, Any]],
) -> Iterator[tuple[Any, torch.Tensor | None]]:
    """Frames and samples of the finished clip in the order of time."""
    if extension.source is not None and not extension.timeline.backwards:
        yield _source_piece(pipeline, extension, delivery)
    # What comes before must be complete before its first frame can be shown; latents are small enough to wait.
    for segment in reversed(list(segments)) if extension.timeline.backwards else segments:
        infos.append(segment.info)
        yield decode_segment(pipeline, segment, delivery, generator)
    if extension.source is not None and extension.timeline.backwards:
        yield _source_piece(pipeline, extension, delivery)


def _result(
    pipeline: Any,
    extension: Extension,
    segments: Iterator[Segment],
    delivery: Delivery,
    generator: torch.Generator | None,
    writer: ClipWriter | None,
) -> LTX2PipelineOutput:
    rate, infos = extension.size.frame_rate, []
    sampling_rate = pipeline.vocoder.config.output_sampling_rate if extension.streams.audio else None
    frames = audio = None
    if delivery.output_type == "latent":
        latents = _joined(pipeline, extension, segments, infos)
        frames = pipeline.vae.denormalize_latents(latents.video)
        audio = None if latents.audio is None else pipeline.audio_vae.denormalize_latents(latents.audio)
        num_frames = (frames.shape[2] - 1) * pipeline.vae_temporal_compression_ratio + 1
    elif writer is not None:
        with writer:
            streamed = replace(delivery, output_type="uint8")
            for clip, sound in _pieces(pipeline, extension, segments, streamed, generator, infos):
                writer.write(clip[0], None if sound is None else sound[0])
        num_frames = writer.num_frames
    else:
        clips, sounds = zip(*_pieces(pipeline, extension, segments, delivery, generator, infos))
        frames = _concatenated(clips)
        num_frames = len(frames[0])
        if extension.streams.audio:
            device = sounds[-1].device
            joined = torch.cat([sound.to(device, torch.float32) for sound in sounds], dim=-1)
            audio = fit_audio(joined, num_frames / rate, sampling_rate)
    info = {**infos[0], "output_type": delivery.output_type, "segments": len(infos), "num_frames": num_frames}
    if writer is not None:
        info["path"] = str(writer.path)
    return LTX2PipelineOutput(frames, audio, rate, sampling_rate, info)


def _joined(pipeline: Any, extension: Extension, segments: Iterator[Segment], infos: list[dict[str, Any]]) -> Streams:
    """Normalised latents of the whole clip."""
    pieces = [] if extension.source is None else [_edge_latents(pipeline, extension)]
    for segment in segments:
        infos.append(segment.info)
        pieces.append(segment.new_latents())
    backwards = extension.timeline.backwards
    return join_latents(pieces[::-1] if backwards else pieces, backwards)


def _writer(pipeline: Any, call: Mapping[str, Any], extension: Extension) -> ClipWriter | None:
    path = call["save_path"]
    if path is None:
        return None
    if call["output_type"] == "latent":
        raise ValueError('`save_path` is given, but output_type="latent" makes no frames; leave one of them out')
    rate = pipeline.vocoder.config.output_sampling_rate if extension.streams.audio else None
    return ClipWriter(path, extension.size.frame_rate, rate)


def _concatenated(clips: Any) -> Any:
    if isinstance(clips[0], list):
        return [[image for clip in clips for image in clip[0]]]
    return np.concatenate(clips, axis=1) if isinstance(clips[0], np.ndarray) else torch.cat(clips, dim=1)
