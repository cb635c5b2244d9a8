"""A clip made longer: the call, and the way from its plan to the finished clip.

Shapes: C channels, F latent frames, h and w latent rows and columns, L audio latents, M mel bins of a latent, N samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from ....media import streaming, waveforms
from ...engine import prepare, reads_negative
from .. import Decoded, Delivery, Info, LTX2PipelineOutput, LTX2StagedPipeline, Result, stage_list, takes
from . import segments as parts
from .plan import ClipLatents, ExtendArguments, Extension, plan_extension


class LTX2ExtendPipeline(LTX2StagedPipeline):
    """Makes a clip longer, forwards or backwards, or makes a long clip from nothing.

    Each segment takes over the last latents of both streams of the one before, so that nothing is decoded and encoded
    again on the way, and the frames that both show are cut exactly. The sound is counted from the start of the whole clip:
    its length agrees with the video's to one audio latent, however many segments there are.
    """

    @takes(ExtendArguments)
    def __call__(self, call: ExtendArguments) -> Result:
        """Extend a clip.

        Steps, guidance and adapters hold for every segment; one clip is made per call.
        Setting `pipeline._interrupt = True` in a callback ends the series at once: the segment in progress is left out, unless
        there is nothing else, and a file that is being written is completed with what there is. After an exception no file
        is left.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        self.require("transformer")
        return extend(self, call, plan_extension(self.sizes, call))


@torch.no_grad()
def extend(pipeline: LTX2StagedPipeline, call: ExtendArguments, extension: Extension) -> Result:
    """Generate the segments of an extension and put the clip together, in memory or in a file."""
    writer = _writer(pipeline, call, extension)
    stages = stage_list(pipeline, call.sampling, streams=extension.streams)
    if any(stage.temporal_scale != 1.0 for stage in stages):
        raise ValueError("an extension cannot change the frame rate between `stages`; give all temporal_scale=1.0")
    prompts, request = call.request(stages, size=extension.size, streams=extension.streams)
    # The clip that is extended stands in no segment's way; segments begin from noise.
    request = replace(request, start=replace(request.start, latents=None, audio_latents=None))
    with_negative, delivery = reads_negative(pipeline, request), request.delivery
    for prompt in dict.fromkeys(extension.prompts):
        pipeline.prompt_reader.check(replace(prompts, prompt=prompt), with_negative, watched=delivery.wanted)
    prepare(pipeline, request, batch_size=1)
    wanted = [parts.Wanted(replace(prompts, prompt=text), request, extension.timeline) for text in extension.prompts]
    carried = parts.carried_source(pipeline, extension)
    segments = parts.generate_segments(pipeline, wanted, carried, extension.drift_control)
    result = _result(pipeline, extension, segments, delivery, writer)
    pipeline.maybe_free_model_hooks()
    return result if delivery.return_dict else (result.frames, result.audio)


def _pieces(
    pipeline: LTX2StagedPipeline,
    extension: Extension,
    segments: Iterator[parts.Segment],
    delivery: Delivery,
    infos: list[Info],
) -> Iterator[tuple[Decoded, torch.Tensor | None]]:
    """Frames and samples of the finished clip in the order of time."""
    backwards = extension.timeline.backwards
    if not backwards:
        yield from parts.source_pieces(pipeline, extension, delivery)
    # What comes before must be complete before its first frame can be shown; latents are small enough to wait.
    for segment in reversed(list(segments)) if backwards else segments:
        # In the order of making, as the prompts are.
        infos.insert(0 if backwards else len(infos), segment.info)
        yield parts.decode_segment(pipeline, segment, delivery)
    if backwards:
        yield from parts.source_pieces(pipeline, extension, delivery)


def _result(
    pipeline: LTX2StagedPipeline,
    extension: Extension,
    segments: Iterator[parts.Segment],
    delivery: Delivery,
    writer: streaming.ClipWriter | None,
) -> LTX2PipelineOutput:
    rate, sampling_rate = extension.size.frame_rate, _sampling_rate(pipeline, extension)
    infos: list[Info] = []
    frames: Decoded | None = None
    audio = None
    if delivery.output_type == "latent":
        latents, audio = _joined(pipeline, extension, segments, infos)
        frames, num_frames = latents, pipeline.sizes.pixel_frames(latents.shape[2])
    elif writer is not None:
        with writer:
            streamed = replace(delivery, output_type="uint8")
            for clip, sound in _pieces(pipeline, extension, segments, streamed, infos):
                writer.write(clip[0], None if sound is None else sound[0])
                # Otherwise this piece would live on while the next one is decoded.
                del clip, sound
        num_frames = writer.num_frames
    else:
        clips, sounds = zip(*_pieces(pipeline, extension, segments, delivery, infos))
        frames = concatenated(clips)
        num_frames = len(frames[0])
        if sampling_rate is not None:
            device = sounds[-1].device
            joined = torch.cat([sound.to(device, torch.float32) for sound in sounds], dim=-1)
            audio = waveforms.fit_audio(joined, num_frames / rate, sampling_rate)
    info = {"output_type": delivery.output_type, "segments": len(infos), "num_frames": num_frames}
    info = (infos[0] if infos else {}) | info
    texts = [text for segment_info in infos for text in segment_info.get("enhanced_prompt", [])]
    info |= {"enhanced_prompt": texts} if texts else {}
    if writer is not None:
        info["path"] = str(writer.path)
    return LTX2PipelineOutput(frames, audio, rate, sampling_rate, info)


def _joined(
    pipeline: LTX2StagedPipeline, extension: Extension, segments: Iterator[parts.Segment], infos: list[Info]
) -> ClipLatents:
    """Un-normalised latents of the whole clip; given ones as they were given."""
    given, backwards = extension.source, extension.timeline.backwards
    pieces = [parts.given_latents(pipeline, extension, given)] if isinstance(given, ClipLatents) else []
    for segment in segments:
        infos.append(segment.info)
        video, audio = segment.new_latents()
        audio = None if audio is None else pipeline.audio_vae.denormalize_latents(audio)
        pieces.append(ClipLatents(pipeline.vae.denormalize_latents(video), audio))
    sounds = [piece.audio for piece in pieces if piece.audio is not None]
    joined = parts.join_latents([piece.video for piece in pieces], backwards)
    return ClipLatents(joined, parts.join_latents(sounds, backwards) if sounds else None)


def _writer(pipeline: LTX2StagedPipeline, call: ExtendArguments, extension: Extension) -> streaming.ClipWriter | None:
    if call.save_path is None:
        return None
    if call.output_type == "latent":
        raise ValueError('`save_path` is given, but output_type="latent" makes no frames; leave one of them out')
    return streaming.ClipWriter(call.save_path, extension.size.frame_rate, _sampling_rate(pipeline, extension))


def _sampling_rate(pipeline: LTX2StagedPipeline, extension: Extension) -> int | None:
    return pipeline.vocoder.config.output_sampling_rate if extension.streams.audio else None


def concatenated(clips: Sequence[Decoded]) -> Decoded:
    """Frames of the pieces of a clip as those of the whole."""
    images = [image for clip in clips if isinstance(clip, list) for image in clip[0]]
    arrays = [clip for clip in clips if isinstance(clip, np.ndarray)]
    if images or arrays:
        return [images] if images else np.concatenate(arrays, axis=1)
    return torch.cat([clip for clip in clips if isinstance(clip, torch.Tensor)], dim=1)
