"""Long videos: windows that overlap, each shown the end of what there is, made and decoded one after the other.

With two scales, the windows of the second one refine the enlarged whole.

Shapes: C channels, F latent frames, h and w latent rows and columns, n pixel frames.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, cast

import torch

from ... import checks
from ...adapters.strengths import StageStrengths
from ...conditioning import Streams
from ...media.frames import FilePath, check_crf
from ...media.pixels import decoded_frames
from ...media.streaming import ClipWriter
from ...models.latent_filters import adain_filter_latent, tone_map_latents
from ...pipelines import engine
from ...pipelines.arguments import Delivery, Request, Stage, Start, takes, texts_of
from ...pipelines.conditions.condition import Condition, ReadyItems
from ...pipelines.decoding import video_as
from ...pipelines.output import LTX2PipelineOutput, Result
from ...pipelines.plan import ModelSizes, Size
from ...pipelines.recipes.extension.pipeline import concatenated
from ...pipelines.recipes.extension.plan import ClipLatents, Timeline
from ...pipelines.recipes.extension.segments import Carried, Segment, Wanted, generate_segments
from ...prompts import Prompts
from ...sampling.samplers import gaussian_noise
from .conditions import FrameCondition, LTXVideoCondition, OpenedFrames, Preparation, ReferenceCondition, beside
from .passes import SECOND, UPSAMPLER, Network, Passes, chosen_passes, first_sides, stages, with_arguments
from .pipeline import DOWNSCALE_FACTOR, LTXVideoBase, SharedArguments, as_list, delivery_of, pass_arguments, shown_at
from .presets import DEFAULT_FRAME_RATE, PassSettings
from .steps import WindowSampler

# Latent frames that are decoded at a time, and those in which two such pieces fade into each other.
DECODE_TILE, DECODE_OVERLAP = 16, 4
# What the names of a scale's arguments begin with.
SCALES = ("", "stage_2_")
# Noise levels at which a detailer IC-LoRA refines.
DETAILER_LEVELS = (0.99, 0.9094)
Bounds = Sequence[tuple[int, int]]
"""First latent frame of each window, and the one after its last."""


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
        cond_image: Picture that the clip begins with and every window is shown, in any form that `image` of
            [`LTXVideoPipeline`] takes.
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
        conditions: One or several [`LTXVideoCondition`]: pictures and clips at any frame of the whole video, below 0 counted
            from its end. The windows that make these frames are shown them.
        reference_conditions: One or several [`LTXVideoCondition`] at frame 0 with clips at least as long as the video, which
            an IC-LoRA follows: depth, poses, edges. They are read and encoded window by window.
        image_crf, image_blur: As in [`LTXVideoPipeline`].
        multi_scale: Whether windows of about two thirds of the size come first; `latent_upsampler` enlarges the whole, and
            windows of a second scale refine it. Default `False`.
        second_pass: Whole settings of the second scale, in place of the preset's.
        stage_2_adapters: LoRA strengths by adapter name that the second scale adds to the active adapters, or changes; 0 takes
            one out.
        detailer: Whether windows of the second scale are shown the enlarged latents, which a detailer IC-LoRA follows, and
            begin at the noise level 0.99 unless `second_pass` says otherwise. Default `False`.
        stage_2_temporal_tile_size, stage_2_temporal_overlap: Of the second scale. Default 80 and 24.
        stage_2_adain_factor: `adain_factor` of the second scale. Default 0.0.
        save_path: File to write while windows are made, ending in `.mp4` or `.mov`; the output then holds no frames but
            `info["path"]`, and the frames of one piece at a time are in memory.
    """

    conditions: LTXVideoCondition | list[LTXVideoCondition] | None = None
    reference_conditions: LTXVideoCondition | list[LTXVideoCondition] | None = None
    image_crf: int | None = None
    image_blur: bool | None = None
    multi_scale: bool = False
    second_pass: PassSettings | None = None
    stage_2_adapters: StageStrengths | None = None
    detailer: bool = False
    stage_2_temporal_tile_size: int = 80
    stage_2_temporal_overlap: int = 24
    stage_2_adain_factor: float = 0.0
    save_path: FilePath | None = None
    num_videos_per_prompt: int = field(init=False, default=1)

    @property
    def texts(self) -> list[str] | list[None]:
        """Texts in their order; the last one goes on."""
        if self.prompt is None:
            return [None]
        return [text.strip() for text in self.prompt.split("|")] if isinstance(self.prompt, str) else self.prompt

    def listed_conditions(self, preparation: Preparation) -> list[FrameCondition]:
        """The picture that the clip begins with, and what is shown at other frames."""
        first, count = self.cond_image, self.num_frames
        listed = [] if first is None else [LTXVideoCondition(first, strength=self.cond_strength)]
        for one in as_list(self.conditions):
            from_end = -count <= one.frame_index < 0
            listed.append(replace(one, frame_index=one.frame_index + count) if from_end else one)
        return [FrameCondition(one, preparation) for one in listed]


def window_bounds(num_latents: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """The [`Bounds`] of a clip's windows, all in latent frames."""
    starts = range(0, num_latents, max(tile - overlap, 1))
    count = next(k for k, start in enumerate(starts, start=1) if start + tile >= num_latents)
    return [(start, min(start + tile, num_latents)) for start in starts[:count]]


def windows_of(frame: int, count: int, bounds: Bounds, overlap: int) -> Iterator[tuple[int, int]]:
    """The windows to which pixel frames are shown, and where these begin there: below 0, in an earlier one.

    Args:
        frame, count: Where they begin in the whole, and how many there are.
        bounds, overlap: The windows, and what two of them share, in latent frames.
    """
    # What two windows share, the earlier one makes.
    first = max(frame // 8 - overlap, 0) // (bounds[0][1] - overlap)
    for window, (start, _) in enumerate(bounds[first:], start=first):
        # Later ones are shown what lies behind the end of the one before.
        if window == first or frame + count > 8 * bounds[window - 1][1] - 7:
            yield window, frame - 8 * start


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
        strength: How strongly it is held to the end of what there is.
    """

    strength: float = 0.5

    def taken_over(self, carried: Carried | None) -> tuple[list[Condition], tuple[int, int]]:
        """The end of what there is, beside the window."""
        if carried is None:
            return [], (0, 0)
        # The first latent frame of a later window stands for a single frame, and is left out.
        return [beside(carried.latents.video, 0, self.strength)], (1, 0)

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
    fades into the other. With two scales, the whole of what the windows make is enlarged and refined by windows again, those of
    `stage_2_transformer`, if there is one.
    """

    @property
    def sizes(self) -> ModelSizes:
        """As in one pass, but for tokens that conditions hold: they follow the run by shares."""
        return replace(super().sizes, tokens_wait=False)

    @takes(LongArguments)
    def __call__(self, call: LongArguments) -> Result:
        """Generate a long video.

        Decoding goes piece by piece: where two pieces meet, frames of both fade into each other, which differs a little from
        decoding the whole clip at once. Setting `pipeline._interrupt = True` in a callback ends the clip with the window before;
        at the first of two scales, the windows of that one are handed over in the asked size.

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
    video = planned(pipeline, call)
    writer = None if call.save_path is None else ClipWriter(call.save_path, call.frame_rate)
    pieces, windows = video.pieces(), [len(bounds) for bounds, _ in video.bounds]
    pixels = streamed_pixels(pipeline, pieces, video.request.delivery)
    info: dict[str, Any] = {"preset": pipeline.settings.name, "output_type": call.output_type}
    info["windows"] = windows if call.multi_scale else windows[0]
    frames: Any = None
    if call.output_type == "latent":
        frames = torch.cat(list(pieces), dim=2)
    elif writer is None:
        frames = concatenated([video_as(pipeline, piece, call.output_type) for piece in pixels])
    else:
        with writer:
            for piece in pixels:
                writer.write(torch.cat(list(decoded_frames(piece[0]))))
        info["path"] = str(writer.path)
    pipeline.maybe_free_model_hooks()
    output = LTX2PipelineOutput(frames, None, call.frame_rate, None, info)
    return output if call.return_dict else (output.frames,)


@dataclass(frozen=True)
class LongVideo:
    """A long video in which everything is checked; lists have an entry for each scale.

    Args:
        pipeline, call: The pipeline and its call.
        texts: What windows of the first scale read, the last one all that are left.
        request: All else for the whole.
        runs: The pass of every window, and the sizes of the whole.
        bounds: Where windows lie, and the latent frames that a window shares with the one before.
        shown: Pictures and clips.
        references: What an IC-LoRA follows at the first scale.
    """

    pipeline: LTXVideoLongPipeline
    call: LongArguments
    texts: Sequence[Prompts]
    request: Request
    runs: Sequence[engine.StageRun]
    bounds: Sequence[tuple[Bounds, int]]
    shown: Sequence[OpenedFrames]
    references: Sequence[ReferenceCondition]

    def pieces(self) -> Iterator[torch.Tensor]:
        """Latents of the clip one piece after the other; those of the first scale if that is interrupted."""
        pieces = self._made(0)
        if not self.call.multi_scale:
            return pieces
        whole = torch.cat(list(pieces), dim=2)
        if self.pipeline._interrupt:
            return iter([whole])
        larger = engine.enlarged(self.pipeline, whole, UPSAMPLER)
        return self._made(1, adain_filter_latent(larger, whole, self.request.stages[1].adain_factor))

    def _made(self, scale: int, latents: torch.Tensor | None = None) -> Iterator[torch.Tensor]:
        factor = getattr(self.call, f"{SCALES[scale]}adain_factor")
        segments = generate_segments(self.pipeline, self.windows(scale, latents), None, factor)
        return finished(segments, self.bounds[scale][1])

    def windows(self, scale: int, latents: torch.Tensor | None = None) -> list[Window]:
        """The windows of a scale; those of the second one begin with latents of the enlarged whole."""
        call, run, (bounds, overlap), made = self.call, self.runs[scale], self.bounds[scale], list[Window]()
        # The whole is enlarged between the windows of two scales, and not by their stages.
        stage, plan = replace(run.stage, spatial_scale=1.0, upsampler=None, adain_factor=0.0), run.plan
        seed = torch.seed() if call.generator is None else call.generator.initial_seed()
        device = "cpu" if call.generator is None else call.generator.device
        for (start, end), held in zip(bounds, self._held(scale, latents)):
            # Each scale has noise of its own.
            generator = torch.Generator(device).manual_seed((seed + start + scale * plan.video.frames) % 2**63)
            own = Start(generator, None if latents is None else latents[:, :, start:end], framed_noise=True)
            size = Size(plan.height, plan.width, plan.sizes.pixel_frames(end - start), plan.frame_rate)
            request = replace(self.request, size=size, stages=[stage], start=own, conditions=held)
            # Windows of the second scale read what those of the first did at their time.
            text = self.texts[sum(first <= start for first, _ in self.bounds[0][0][: len(self.texts)]) - 1]
            timeline, strength = Timeline(0, overlap, lambda _: 0), call.temporal_overlap_cond_strength
            made.append(Window(text, request, timeline, strength=strength))
        return made

    def _held(self, scale: int, latents: torch.Tensor | None) -> list[list[Condition]]:
        """What each window is shown but for the end of the one before, encoded at the size of a scale."""
        held, call, plan = list[list[Condition]](), self.call, self.runs[scale].plan
        bounds, overlap = self.bounds[scale]
        for start, end in bounds:
            guides = [(latents[:, :, start:end], 1.0)] if latents is not None and call.detailer else []
            for one in () if scale else self.references:
                guides.append((self.pipeline.encode_video(one.part(plan, start, end)), one.given.strength))
            held.append([beside(guide, 0, strength, overlap if start else 0) for guide, strength in guides])
        for index, picture in enumerate(self.shown):
            latent = picture.latents(plan)
            if index == 0 and call.cond_image is not None and call.negative_index_strength:
                for window in held:
                    # Before the window's time, so that it shows what all of them have in common.
                    window.append(beside(latent, -8, call.negative_index_strength))
            frames = (picture.condition.given.frame_index, picture.pixels.shape[2])
            for number, frame in windows_of(*frames, bounds, overlap):
                held[number].append(ReadyItems(picture.held(latent, plan, frame)))
        return held


def planned(pipeline: LTXVideoLongPipeline, call: LongArguments) -> LongVideo:
    """Check a call and work out its windows."""
    bounds, sides = _bounds(pipeline, call), (call.height, call.width)
    passes, made = _passes(pipeline, call, [one[0][1] for one, _ in bounds])
    preset, tone_map = passes.preset, passes.settings[-1].tone_map_compression_ratio
    check_crf("image_crf", preset.image_crf)
    engine.check_save_path(call.save_path, call.output_type)
    # Frames are handed over from outside of the windows.
    fit = partial(shown_at, canvas=(*sides, call.num_frames), size=(*sides, call.num_frames))
    delivery = replace(delivery_of(call, preset, tone_map, fit), save_path=None)
    preparation = Preparation(sides, preset.image_crf, preset.image_blur)
    size, conditions = Size(*passes.last_sides, call.num_frames, call.frame_rate), call.listed_conditions(preparation)
    rest: Any = {"streams": Streams(True, False), "attention_kwargs": call.attention_kwargs}
    request = Request(size, made, Start(framed_noise=True), delivery, conditions, **rest)
    texts, with_negative = [texts_of(call, text) for text in call.texts], engine.reads_negative(pipeline, request)
    for text in texts:
        if pipeline.prompt_reader.check(text, with_negative, watched=delivery.wanted) != 1:
            raise ValueError("a long video is made one at a time; give states [1, S, W], and one text for each window")
    runs, shown = engine.prepare(pipeline, request, batch_size=1)
    references = [ReferenceCondition(one, preparation) for one in as_list(call.reference_conditions)]
    for one in references:
        one.check_length(runs[0].plan)
    checks.check_generator(call.generator, 1, torch.device(pipeline._execution_device))
    return LongVideo(pipeline, call, texts, request, runs, bounds, cast(list[OpenedFrames], shown), references)


def _bounds(pipeline: LTXVideoLongPipeline, call: LongArguments) -> list[tuple[Bounds, int]]:
    """Where the windows of each scale lie and what they share, if the arguments that only a long video has are right."""
    stride, made = pipeline.vae_temporal_compression_ratio, list[tuple[Bounds, int]]()
    checks.check_size(call.height, call.width, pipeline.vae_spatial_compression_ratio)
    checks.check_num_frames(call.num_frames, stride)
    shares = ("_strength", "adain_factor")
    checks.check_unit(**{name: value for name, value in vars(call).items() if name.endswith(shares)})
    if not call.temporal_overlap_cond_strength:
        raise ValueError("`temporal_overlap_cond_strength` is 0, so that windows know nothing of each other; use 0.5")
    for prefix in SCALES[: 1 + call.multi_scale]:
        names = (f"{prefix}temporal_tile_size", f"{prefix}temporal_overlap")
        frames = [getattr(call, name) for name in names]
        tile, overlap = (count // stride for count in frames)
        if not 1 <= overlap < tile:
            raise ValueError(
                f"`{names[1]}` has to be from {stride} and less than `{names[0]}` ({frames[0]}) by {stride} but is {frames[1]}; use "
                f"{stride * max(1, tile // 3)} and {stride * max(2, tile)}"
            )
        made.append((window_bounds((call.num_frames - 1) // stride + 1, tile, overlap), overlap))
    if call.cond_image is None:
        engine.check_said("there is no `cond_image`", call, "cond_strength", "negative_index_strength")
    if not call.multi_scale:
        own = [name for name in vars(call) if name.startswith(SCALES[1])]
        engine.check_said("the video has one scale (multi_scale=False)", call, "second_pass", "detailer", *own)
    count = len(made[0][0])
    if not 1 <= len(call.texts) <= count:
        raise ValueError(f"`prompt` holds {len(call.texts)} texts for {count} windows; give 1 to {count}")
    return made


def _passes(pipeline: LTXVideoLongPipeline, call: LongArguments, tiles: list[int]) -> tuple[Passes, list[Stage]]:
    """The passes of windows of so many latent frames, one at each scale."""
    ratio, sides = pipeline.vae_spatial_compression_ratio, (call.height, call.width)
    preset = with_arguments(pipeline.settings, {"image_crf": call.image_crf, "image_blur": call.image_blur})
    first, *others = chosen_passes(preset, (None, None, call.second_pass), call.multi_scale)
    if len(others) > call.multi_scale:
        raise ValueError(
            f"windows are made in one pass at each scale, but {preset.name} has two at the first; load the checkpoint with "
            f'preset="{preset.name.replace("mix", "dev")}"'
        )
    if call.detailer:
        if not (call.stage_2_adapters or pipeline.get_active_adapters()):
            raise ValueError("`detailer` is True, but no LoRA is active; load a detailer IC-LoRA, or leave it out")
        others = [call.second_pass or with_arguments(others[0], {"timesteps": DETAILER_LEVELS})]
    settings = [with_arguments(first, pass_arguments(call)), *others]
    own = first_sides(*sides, preset.downscale_factor or DOWNSCALE_FACTOR, ratio) if others else sides
    # Some schedules shift by the tokens of a window.
    passes = [Passes(preset, settings, own, len(settings), tile, ratio) for tile in tiles]
    second = SECOND if pipeline.has(SECOND) else "transformer"
    names = [("transformer", None), (second, call.stage_2_adapters)][: len(settings)]
    networks: list[Network] = [(name, getattr(pipeline, name).config.num_layers, given) for name, given in names]
    parts = (networks, [one.levels(index) for index, one in enumerate(passes)], call.guidance_rescale)
    made = stages(passes[0], *parts, lambda generator: WindowSampler(gaussian_noise(generator)))
    return passes[0], [replace(one, sampler="euler_ancestral") for one in made]


def streamed_pixels(
    pipeline: LTXVideoBase, pieces: Iterable[torch.Tensor], delivery: Delivery
) -> Iterator[torch.Tensor]:
    """Pixels `[1, 3, n, H, W]` in [-1, 1] of normalised latents `[1, C, f, h, w]`, both piece by piece."""
    fit = delivery.fit or (lambda pixels: pixels)
    held, waiting, before = DECODE_OVERLAP * pipeline.vae_temporal_compression_ratio, None, None
    for piece in chain(pieces, [None]):
        if piece is not None:
            noised, timestep = engine.with_decoder_noise(pipeline, piece, delivery)
            noised = tone_map_latents(noised, delivery.tone_map)
            waiting = noised if waiting is None else torch.cat([waiting, noised], dim=2)
        while waiting is not None and (waiting.shape[2] > DECODE_TILE or piece is None):
            tile = pipeline.codec.denormalize_latents(waiting[:, :, :DECODE_TILE]).to(pipeline.vae.dtype)
            pixels = pipeline.vae.decode(tile, timestep, return_dict=False)[0].float()
            if before is not None:
                # The first latent of a tile is decoded to a single frame, which is right only at the start of the clip.
                pixels = faded(before, pixels[:, :, 1:], held)
            if waiting.shape[2] <= DECODE_TILE:
                yield fit(pixels)
                return
            yield fit(pixels[:, :, :-held])
            before, waiting = pixels[:, :, -held:], waiting[:, :, DECODE_TILE - DECODE_OVERLAP - 1 :]
