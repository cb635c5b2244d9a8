"""Long videos: windows that overlap, each shown the end of what there is, made and decoded one after the other.

Shapes: C channels, F latent frames, h and w latent rows and columns, n pixel frames.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch

from ... import checks, conditioning
from ...conditioning import ConditionItem
from ...media.frames import FilePath, read_frames
from ...media.pixels import decoded_frames
from ...media.streaming import ClipWriter
from ...pipelines.arguments import Delivery, Request, Stage, Start, takes, texts_of
from ...pipelines.conditions.condition import Condition, ReadyItems
from ...pipelines.decoding import video_as
from ...pipelines.engine import check_said, check_save_path, prepare, reads_negative, with_decoder_noise
from ...pipelines.output import LTX2PipelineOutput, Result
from ...pipelines.plan import ModelSizes, Size
from ...pipelines.recipes.extension.pipeline import concatenated
from ...pipelines.recipes.extension.plan import ClipLatents, Timeline
from ...pipelines.recipes.extension.segments import Carried, Segment, Wanted, generate_segments
from ...sampling.samplers import gaussian_noise
from .conditions import FramesBeside, Preparation, resized
from .passes import Passes, alone, stages, with_arguments
from .pipeline import LTXVideoBase, SharedArguments, delivery_of, pass_arguments
from .presets import DEFAULT_FRAME_RATE
from .steps import WindowSampler

# Latent frames that are decoded at a time, and those in which two such pieces fade into each other.
DECODE_TILE, DECODE_OVERLAP = 16, 4


@dataclass(frozen=True)
class _First:
    """What comes first."""

    prompt: str | list[str] | None = None
    negative_prompt: str | None = None
    height: int = 512
    width: int = 704
    num_frames: int = 161
    frame_rate: float = DEFAULT_FRAME_RATE
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    num_inference_steps: int | None = None
    timesteps: Sequence[float] | None = None
    generator: torch.Generator | None = None
    cond_image: Any = None
    cond_strength: float = 0.5
    negative_index_strength: float = 1.0
    temporal_tile_size: int = 80
    temporal_overlap: int = 24
    temporal_overlap_cond_strength: float = 0.5
    adain_factor: float = 0.25


@dataclass(frozen=True)
class LongArguments(SharedArguments, _First):
    """What the call takes; `None` stands for the value of the checkpoint's preset.

    Args:
        prompt: Text, or a list with one for each window, or texts with bars between them (`"a | b"`); the last one holds for
            all windows that are left.
        negative_prompt: Text to steer away from, read with classifier-free guidance. Default the empty text.
        height, width: Size in pixels, multiples of 32. Default 512 x 704.
        num_frames: Frames of the whole clip, 8 k + 1. Default 161.
        frame_rate: Frames per second, above 0 and up to 1000. Default 30.0.
        guidance_scale: Classifier-free guidance of every step, on above 1.
        guidance_rescale: As in [`LTXVideoPipeline`]. Default 0.0.
        num_inference_steps, timesteps: Steps of every window, or their noise levels times 1000. Default the levels that the
            checkpoint was distilled for, or those of its first pass.
        generator: Its initial seed, and where a window begins, seed the noise of the window; default a random one.
        cond_image: Picture that the clip begins with, in any form that `image` of [`LTXVideoPipeline`] takes.
        cond_strength: How strongly the first window is held to it, 0 to 1. Default 0.5.
        negative_index_strength: How exactly every window is shown it, before its own time, 0 (not at all) to 1. Default 1.0.
        temporal_tile_size: Pixel frames of a window; whole latent frames of 8 are taken. Default 80.
        temporal_overlap: Pixel frames that a window shares with the one before, from 8 and less than a window. Default 24.
        temporal_overlap_cond_strength: How strongly a window follows the end of what there is, above 0 to 1. Default 0.5.
        adain_factor: How far mean and spread of the channels of every window are moved to those of the first, 0 to 1. Default
            0.25.
        prompt_embeds, negative_prompt_embeds: States of the text encoder `[1, S, W]` for all windows.
        prompt_attention_mask, negative_prompt_attention_mask: Their masks `[1, S]`.
        decode_timestep, decode_noise_scale: As in [`LTXVideoPipeline`].
        output_type, return_dict, attention_kwargs, max_sequence_length: As in [`LTXVideoPipeline`].
        callback_on_step_end, callback_on_step_end_tensor_inputs: As in [`LTX2Pipeline`]; they see one window at a time.
        save_path: File to write while windows are made, ending in `.mp4` or `.mov`; the output then holds no frames but
            `info["path"]`, and the frames of one piece at a time are in memory.
    """

    save_path: FilePath | None = None
    num_videos_per_prompt: int = field(init=False, default=1)

    @property
    def texts(self) -> list[str] | list[None]:
        """Texts in their order; the last one goes on."""
        if self.prompt is None:
            return [None]
        return [text.strip() for text in self.prompt.split("|")] if isinstance(self.prompt, str) else self.prompt


def window_bounds(num_latents: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """First latent frame of each window of a clip, and the one after its last."""
    starts = range(0, num_latents, max(tile - overlap, 1))
    count = next(k for k, start in enumerate(starts, start=1) if start + tile >= num_latents)
    return [(start, min(start + tile, num_latents)) for start in starts[:count]]


def faded(before: torch.Tensor, after: torch.Tensor, overlap: int) -> torch.Tensor:
    """Latents or pixels `[1, C, F, ...]` joined, the last `overlap` frames of one fading into the first of the other."""
    if not overlap:
        return torch.cat([before, after], dim=2)
    weight = torch.linspace(1, 0, overlap + 2)[1:-1].to(before).view(1, 1, -1, 1, 1)
    mixed = weight * before[:, :, -overlap:] + (1 - weight) * after[:, :, :overlap]
    return torch.cat([before[:, :, :-overlap], mixed, after[:, :, overlap:]], dim=2)


@dataclass(frozen=True)
class Window(Wanted):
    """A window to make.

    Args:
        image: Normalised latents `[1, C, 1, h, w]` of the clip's picture, or `None`.
        strengths: How strongly it is held to the picture in the first window, to the end of what there is, and to the picture
            before its time.
    """

    image: torch.Tensor | None = None
    strengths: tuple[float, float, float] = (0.5, 0.5, 1.0)

    def taken_over(self, carried: Carried | None) -> tuple[list[Condition], tuple[int, int]]:
        """The end of what there is and the picture, both beside the window; in the first window the picture begins it."""
        items: list[ConditionItem] = []
        if carried is not None:
            items.append(
                conditioning.VideoConditionByReferenceLatent(carried.latents.video, strength=self.strengths[1])
            )
        elif self.image is not None:
            items.append(conditioning.VideoConditionByLatentIndex(self.image, self.strengths[0]))
        if self.image is not None and self.strengths[2]:
            # Before the window's time, so that it shows what all of them have in common.
            items.append(FramesBeside(self.image, -8, self.strengths[2]))
        # The first latent frame of a later window stands for a single frame, and is left out.
        return [ReadyItems(conditioning.Streams(items, []))], (int(carried is not None), 0)

    def carried_on(self, carried: Carried | None, segment: Segment) -> Carried:
        """The end of what there is, and the first window."""
        new = segment.new_latents().video
        whole = new if carried is None else faded(carried.latents.video, new, self.timeline.overlap - 1)
        tail = ClipLatents(whole[:, :, -self.timeline.overlap :], None)
        return Carried(tail, 0, new) if carried is None else replace(carried, latents=tail)


def finished(segments: Iterable[Segment], overlap: int) -> Iterator[torch.Tensor]:
    """Latents `[1, C, f, h, w]` that no later window changes, piece by piece."""
    held = None
    for segment in segments:
        new = segment.new_latents().video
        whole = new if held is None else faded(held, new, overlap - 1)
        done = whole.shape[2] - (overlap - 1)
        held = whole[:, :, done:]
        if done:
            yield whole[:, :, :done]
    if held is not None and held.shape[2]:
        yield held


class LTXVideoLongPipeline(LTXVideoBase):
    """Generates videos of any length with a checkpoint of LTX-Video, in windows that overlap.

    Takes the components of [`LTXVideoPipeline`]. Each window is shown the end of what there is; where two windows overlap, one
    fades into the other.
    """

    @property
    def sizes(self) -> ModelSizes:
        """As in one pass, but for tokens that conditions hold: they follow the run by shares."""
        return replace(super().sizes, tokens_wait=False)

    @takes(LongArguments)
    def __call__(self, call: LongArguments) -> Result:
        """Generate a long video.

        Decoding goes piece by piece: where two pieces meet, frames of both fade into each other, which differs a little from
        decoding the whole clip at once. Setting `pipeline._interrupt = True` in a callback ends the clip with the window before.

        Returns:
            [`LTX2PipelineOutput`] without sound, or the tuple `(frames,)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        self.require("transformer", "vae")
        return long_video(self, call)


@torch.no_grad()
def long_video(pipeline: LTXVideoLongPipeline, call: LongArguments) -> Result:
    """Generate the windows and put the clip together, in memory or in a file."""
    bounds, delivery = _bounds(pipeline, call), delivery_of(call, pipeline.settings)
    check_save_path(call.save_path, call.output_type)
    writer = None if call.save_path is None else ClipWriter(call.save_path, call.frame_rate)
    windows = _windows(pipeline, call, bounds, delivery)
    segments = generate_segments(pipeline, windows, None, call.adain_factor)
    pieces = finished(segments, windows[0].timeline.overlap)
    info = {"preset": pipeline.settings.name, "windows": len(bounds), "output_type": call.output_type}
    frames: Any = None
    if call.output_type == "latent":
        frames = torch.cat(list(pieces), dim=2)
    elif writer is None:
        pixels = streamed_pixels(pipeline, pieces, delivery)
        frames = concatenated([video_as(pipeline, piece, call.output_type) for piece in pixels])
    else:
        with writer:
            for piece in streamed_pixels(pipeline, pieces, delivery):
                writer.write(torch.cat(list(decoded_frames(piece[0]))))
        info["path"] = str(writer.path)
    pipeline.maybe_free_model_hooks()
    output = LTX2PipelineOutput(frames, None, call.frame_rate, None, info)
    return output if call.return_dict else (output.frames,)


def _bounds(pipeline: LTXVideoLongPipeline, call: LongArguments) -> list[tuple[int, int]]:
    """Where the windows lie, if the arguments that only a long video has are right."""
    stride = pipeline.vae_temporal_compression_ratio
    checks.check_num_frames(call.num_frames, stride)
    names = ("cond_strength", "negative_index_strength", "temporal_overlap_cond_strength", "adain_factor")
    checks.check_unit(**{name: getattr(call, name) for name in names})
    if not call.temporal_overlap_cond_strength:
        raise ValueError("`temporal_overlap_cond_strength` is 0, so that windows know nothing of each other; use 0.5")
    tile, overlap = call.temporal_tile_size // stride, call.temporal_overlap // stride
    if not 1 <= overlap < tile:
        raise ValueError(
            f"`temporal_overlap` has to be from {stride} and less than `temporal_tile_size` ({call.temporal_tile_size}) by {stride} "
            f"but is {call.temporal_overlap}; use {stride * max(1, tile // 3)} and {stride * max(2, tile)}"
        )
    if call.cond_image is None:
        check_said("there is no `cond_image`", call, "cond_strength", "negative_index_strength")
    bounds = window_bounds((call.num_frames - 1) // stride + 1, tile, overlap)
    if not 1 <= len(call.texts) <= len(bounds):
        raise ValueError(f"`prompt` holds {len(call.texts)} texts for {len(bounds)} windows; give 1 to {len(bounds)}")
    return bounds


def _windows(
    pipeline: LTXVideoLongPipeline, call: LongArguments, bounds: Sequence[tuple[int, int]], delivery: Delivery
) -> list[Window]:
    """The windows of a call in which everything is checked."""
    latents, stride = bounds[0][1], pipeline.vae_temporal_compression_ratio
    size = Size(call.height, call.width, (latents - 1) * stride + 1, call.frame_rate)
    stage = _stage(pipeline, call, latents)
    rest: Any = {"streams": conditioning.Streams(True, False), "attention_kwargs": call.attention_kwargs}
    # Frames are handed over from outside of the windows.
    request = Request(size, [stage], Start(framed_noise=True), replace(delivery, save_path=None), **rest)
    texts, with_negative = [texts_of(call, text) for text in call.texts], reads_negative(pipeline, request)
    for text in texts:
        if pipeline.prompt_reader.check(text, with_negative, watched=delivery.wanted) != 1:
            raise ValueError("a long video is made one at a time; give states [1, S, W], and one text for each window")
    prepare(pipeline, request, batch_size=1)
    checks.check_generator(call.generator, 1, torch.device(pipeline._execution_device))
    image, seed = _image(pipeline, call), torch.seed() if call.generator is None else call.generator.initial_seed()
    device = "cpu" if call.generator is None else call.generator.device
    made = []
    for index, (start, end) in enumerate(bounds):
        own = Start(torch.Generator(device).manual_seed((seed + start) % 2**63), framed_noise=True)
        there = replace(request, size=replace(size, num_frames=(end - start - 1) * stride + 1), start=own)
        text, timeline = texts[min(index, len(texts) - 1)], Timeline(0, call.temporal_overlap // stride, lambda _: 0)
        strengths = (call.cond_strength, call.temporal_overlap_cond_strength, call.negative_index_strength)
        made.append(Window(text, there, timeline, image=image, strengths=strengths))
    return made


def _stage(pipeline: LTXVideoLongPipeline, call: LongArguments, latent_frames: int) -> Stage:
    """The pass of every window."""
    preset, layers = pipeline.settings, pipeline.transformer.config.num_layers
    settings = with_arguments(alone(preset.first_pass, preset), pass_arguments(call))
    sides, ratio = (call.height, call.width), pipeline.vae_spatial_compression_ratio
    passes = Passes(preset, [settings], sides, 1, latent_frames, ratio)
    made = (passes, [("transformer", layers, None)], [passes.levels(0)], call.guidance_rescale)
    (stage,) = stages(*made, lambda generator: WindowSampler(gaussian_noise(generator)))
    return replace(stage, sampler="euler_ancestral")


def _image(pipeline: LTXVideoLongPipeline, call: LongArguments) -> torch.Tensor | None:
    """Normalised latents of the picture."""
    if call.cond_image is None:
        return None
    pixels = Preparation((call.height, call.width)).prepared(read_frames(call.cond_image, 1, name="cond_image"))
    return pipeline.encode_video(resized(pixels, call.height, call.width))


def streamed_pixels(
    pipeline: LTXVideoBase, pieces: Iterable[torch.Tensor], delivery: Delivery
) -> Iterator[torch.Tensor]:
    """Pixels `[1, 3, n, H, W]` in [-1, 1] of normalised latents `[1, C, f, h, w]`, both piece by piece."""
    held, waiting, before = DECODE_OVERLAP * pipeline.vae_temporal_compression_ratio, None, None
    for piece in chain(pieces, [None]):
        if piece is not None:
            noised, timestep = with_decoder_noise(pipeline, piece, delivery)
            waiting = noised if waiting is None else torch.cat([waiting, noised], dim=2)
        while waiting is not None and (waiting.shape[2] > DECODE_TILE or piece is None):
            tile = pipeline.codec.denormalize_latents(waiting[:, :, :DECODE_TILE]).to(pipeline.vae.dtype)
            pixels = pipeline.vae.decode(tile, timestep, return_dict=False)[0].float()
            if before is not None:
                # The first latent of a tile is decoded to a single frame, which is right only at the start of the clip.
                pixels = faded(before, pixels[:, :, 1:], held)
            if waiting.shape[2] <= DECODE_TILE:
                yield pixels
                return
            yield pixels[:, :, :-held]
            before, waiting = pixels[:, :, -held:], waiting[:, :, DECODE_TILE - DECODE_OVERLAP - 1 :]
