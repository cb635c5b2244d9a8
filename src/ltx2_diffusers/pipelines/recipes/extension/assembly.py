"""The way of an extension from its arguments to the finished clip.

Shapes: C channels, F latent frames, h and w latent rows and columns, L audio latents, M mel bins of a latent, N samples.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ....checks import (
    check_at_least_one,
    check_choice,
    check_float_tensors,
    check_num_frames,
    check_positive,
    check_unit,
)
from ....conditioning.streams import Streams
from ....media.streaming import ClipWriter
from ....media.waveforms import fit_audio
from ....prompts.reading import ReadPrompts, read_prompts
from ...arguments import Delivery, Request, Start
from ...call_arguments import build_request, filled
from ...conditions.source import SourceClip, read_source
from ...output import LTX2PipelineOutput
from ...plan import DEFAULT_SIZE, Size
from ...stages import stage_list
from .segments import Segment, Timeline, decode_segment, generate_segments, join_latents
from .source import Extension, edge_latents, given_latents, source_pieces


def plan_extension(pipeline: Any, call: Mapping[str, Any]) -> Extension:
    """Check the arguments that only an extension has, and work out its sizes."""
    check_choice("direction", call["direction"], ("forward", "backward"))
    check_unit(drift_control=call["drift_control"])
    check_at_least_one(num_segments=1 if call["num_segments"] is None else call["num_segments"])
    prompts = _segment_prompts(call["prompt"], call["num_segments"])
    segment_frames = DEFAULT_SIZE[2] if call["num_frames"] is None else call["num_frames"]
    ratio = pipeline.vae_temporal_compression_ratio
    overlap = call["overlap_frames"]
    _check_overlap(overlap, segment_frames, ratio)
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
    if has_sound:
        _check_carried_audio(timeline, num_frames, len(prompts), rate)
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

    for prompt in dict.fromkeys(extension.prompts):
        _, runs = pipeline._prepare_runs(request_for(prompt, []))
    with_negative = pipeline._uses_negative(runs)

    # Segments that follow each other often share their prompt.
    @lru_cache(maxsize=1)
    def read_for(prompt: str) -> ReadPrompts:
        return read_prompts(pipeline, request_for(prompt, []), with_negative)

    writer = _writer(pipeline, call, extension)
    segments = generate_segments(
        pipeline,
        request_for,
        read_for,
        extension.prompts,
        extension.timeline,
        edge_latents(pipeline, extension),
        extension.num_frames,
        call["drift_control"],
    )
    result = _result(pipeline, extension, segments, delivery, start.generator, writer)
    pipeline.maybe_free_model_hooks()
    return result if delivery.return_dict else (result.frames, result.audio)


def _check_overlap(overlap: Any, segment_frames: int, ratio: int) -> None:
    check_num_frames(segment_frames, ratio)
    if segment_frames <= 2 * ratio:
        raise ValueError(
            f"`num_frames` is {segment_frames}, too few to share {ratio + 1} frames and add {ratio}; use {2 * ratio + 1}"
        )
    whole = isinstance(overlap, int)
    if not whole or (overlap - 1) % ratio or not ratio < overlap < segment_frames:
        nearest = min(max((overlap - 1) // ratio, 1), (segment_frames - 1) // ratio - 1) if whole else 1
        raise ValueError(
            f"`overlap_frames` has to be {ratio} k + 1, at least {ratio + 1} and less than `num_frames` {segment_frames}, but "
            f"is {overlap!r}; use {nearest * ratio + 1}"
        )


def _check_carried_audio(timeline: Timeline, num_frames: int, num_segments: int, rate: float) -> None:
    """Every segment that goes on from something must share some of its sound and add some."""
    segment = timeline.audio_at(timeline.segment_frames)
    first = num_frames or timeline.segment_frames
    for index in range(num_segments - (0 if num_frames else 1)):
        shared = timeline.carried_audio(first + index * timeline.new_frames)
        if not 0 < shared < segment:
            raise ValueError(
                f"at `frame_rate` {rate:g}, `num_frames` and `overlap_frames` leave a segment of {segment} audio latents (40 "
                f"ms each) {shared} to share; use more frames for both, or generate_audio=False"
            )


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
    check_positive(frame_rate=rate)
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
    check_float_tensors(latents=latents, audio_latents=call["audio_latents"])
    channels = pipeline.transformer.config.in_channels
    if latents.ndim != 5 or latents.shape[:2] != (1, channels):
        raise ValueError(
            f"`latents` has to be un-normalised [1, {channels}, F, h, w] but has shape {tuple(latents.shape)}"
        )
    num_frames = (latents.shape[2] - 1) * pipeline.vae_temporal_compression_ratio + 1
    audio = call["audio_latents"]
    expected = pipeline._audio_shape(1, num_frames / rate)
    shape = None if audio is None else (*audio.shape[:2], expected.frames, *audio.shape[3:])
    if shape is not None and (shape != expected or abs(audio.shape[2] - expected.frames) > 1):
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


def _pieces(
    pipeline: Any,
    extension: Extension,
    segments: Iterator[Segment],
    delivery: Delivery,
    generator: torch.Generator | None,
    infos: list[dict[str, Any]],
) -> Iterator[tuple[Any, torch.Tensor | None]]:
    """Frames and samples of the finished clip in the order of time."""
    backwards = extension.timeline.backwards
    if not backwards:
        yield from source_pieces(pipeline, extension, delivery, generator)
    # What comes before must be complete before its first frame can be shown; latents are small enough to wait.
    for segment in reversed(list(segments)) if backwards else segments:
        # In the order of making, as the prompts are.
        infos.insert(0 if backwards else len(infos), segment.info)
        yield decode_segment(pipeline, segment, delivery, generator)
    if backwards:
        yield from source_pieces(pipeline, extension, delivery, generator)


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
        frames, audio = _joined(pipeline, extension, segments, infos)
        num_frames = (frames.shape[2] - 1) * pipeline.vae_temporal_compression_ratio + 1
    elif writer is not None:
        with writer:
            streamed = replace(delivery, output_type="uint8")
            for clip, sound in _pieces(pipeline, extension, segments, streamed, generator, infos):
                writer.write(clip[0], None if sound is None else sound[0])
                # Otherwise this piece would live on while the next one is decoded.
                del clip, sound
        num_frames = writer.num_frames
    else:
        clips, sounds = zip(*_pieces(pipeline, extension, segments, delivery, generator, infos))
        frames = _concatenated(clips)
        num_frames = len(frames[0])
        if extension.streams.audio:
            device = sounds[-1].device
            joined = torch.cat([sound.to(device, torch.float32) for sound in sounds], dim=-1)
            audio = fit_audio(joined, num_frames / rate, sampling_rate)
    info = {"output_type": delivery.output_type, "segments": len(infos), "num_frames": num_frames}
    info = (infos[0] if infos else {}) | info
    texts = [text for segment_info in infos for text in segment_info.get("enhanced_prompt", [])]
    info |= {"enhanced_prompt": texts} if texts else {}
    if writer is not None:
        info["path"] = str(writer.path)
    return LTX2PipelineOutput(frames, audio, rate, sampling_rate, info)


def _joined(pipeline: Any, extension: Extension, segments: Iterator[Segment], infos: list[dict[str, Any]]) -> Streams:
    """Un-normalised latents of the whole clip; given ones as they were given."""
    pieces = [] if extension.source is None else [given_latents(pipeline, extension)]
    for segment in segments:
        infos.append(segment.info)
        video, audio = segment.new_latents()
        audio = None if audio is None else pipeline.audio_vae.denormalize_latents(audio)
        pieces.append(Streams(pipeline.vae.denormalize_latents(video), audio))
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
