"""A temporal round of DFR: twice the frame rate, made in stretches of time that lie between keyframes.

Shapes: B videos of the batch, C channels, K keyframes, F latent frames, h and w latent rows and columns, L audio latents, M
latent mel bins.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ltx_euler_ancestral_rf import LTXEulerAncestralRFScheduler

from .... import checks, conditioning
from ....conditioning import dfr_layout
from ....prompts import ReadPrompts
from ....sampling.samplers import EulerAncestralSampler, gaussian_noise
from ....schedulers.sigmas import DISTILLED_SIGMAS
from ... import engine
from ...arguments import Start
from ...conditions import Condition, Conditions, LTX2VideoCondition, as_conditions
from ...conditions.condition import Items, ReadyItems
from ...output import LTX2DFRPipelineOutput
from ...plan import plan_clip
from .. import ClipPlan, LTX2GenerationPipeline, Request, Result, Size, Streams, Upsampler, extends, takes
from .rendering import GIVEN_LATENTS, NOISE, POSITIONS, PassArguments, check_marks, pinned

UPSAMPLER = "temporal_latent_upsampler"
# What diffusers' pipeline of this name does not take.
_UNTAKEN = ("processor", "prompt_enhancer", "duration_head")
# Seeds of the rounds' noise lie this far apart, so that stretches of one round do not reach those of the next.
_SEEDS_PER_ROUND = 1000
# As in diffusers' call, the first arguments may be given by name.
_NEEDED: Any = None
_MOST_ROUNDS = 8


@dataclass(frozen=True)
class _Before:
    """What comes first, in diffusers' order."""

    prompt: str | list[str] | None = None
    latents: torch.Tensor = _NEEDED
    keyframes_latents: torch.Tensor = _NEEDED
    keyframe_positions: Sequence[int] = _NEEDED
    audio_latents: torch.Tensor = _NEEDED
    conditions: Conditions = None
    height: int = 704
    width: int = 1216
    num_frames: int = 121
    frame_rate: float = 24.0
    source_seconds: float | None = None
    condition_num_frames: int | None = None
    round_index: int = 1
    sigmas: Sequence[float] = DISTILLED_SIGMAS[4:-1]


@dataclass(frozen=True)
class RefineArguments(PassArguments, _Before):
    """What the call takes. All latents are un-normalised, as the pass before returned them; the first four are needed.

    Args:
        latents: Video of the pass before, `[B, C, F, h, w]`.
        keyframes_latents: Its keyframes `[B, C, K, h, w]`.
        keyframe_positions: Pixel frame of each on the canvas of `latents`, rising to its last frame.
        audio_latents: Sound of the first pass, `[B, C, L, M]`, which is kept.
        conditions: [`LTX2VideoCondition`] of the first pass; their places are those of a clip of `condition_num_frames`.
        num_frames: Frames of the canvas of `latents`, 8 k + 1. Default 121.
        frame_rate: Frames per second of `latents`, half of what the round makes.
        source_seconds: Length of the sound. Default `num_frames / frame_rate`.
        condition_num_frames: Frames that the first pass was asked for. Default `num_frames`.
        round_index: Which round this is, from 1 (default); the round makes `2 ** round_index` stretches, as far as there are
            so many segments.
        sigmas: Noise levels of the round, in (0, 1] and falling. Default the last 4 of distilled models.
    """

    latents: torch.Tensor = _NEEDED
    audio_latents: torch.Tensor = _NEEDED
    num_frames: int = 121
    sigmas: Sequence[float] = DISTILLED_SIGMAS[4:-1]
    min_seconds: float = field(init=False, default=1.0)
    max_seconds: float = field(init=False, default=20.0)
    num_videos_per_prompt: int = field(init=False, default=1)
    system_prompt: None = field(init=False, default=None)
    enable_prompt_enhancement: bool = field(init=False, default=False)
    prompt_max_new_tokens: None = field(init=False, default=None)
    prompt_enhancement_kwargs: None = field(init=False, default=None)
    prompt_enhancement_seed: int = field(init=False, default=10)

    @property
    def asked_frames(self) -> int:
        """Frames that the first pass was asked for."""
        return self.num_frames if self.condition_num_frames is None else self.condition_num_frames

    @property
    def first_size(self) -> Size:
        """Size of the clip that the first pass was asked for."""
        checks.check_at_least_one(round_index=self.round_index)
        checks.check_most(_MOST_ROUNDS, round_index=self.round_index)
        return Size(self.height, self.width, self.asked_frames, self.frame_rate / 2 ** (self.round_index - 1))


class LTX2DFRTemporalRefinePipeline(LTX2GenerationPipeline):
    """Doubles the frame rate of what a pass of diffusion fidelity rendering has made, and makes keyframes in between.

    Takes the call arguments of diffusers' pipeline of the same name. Loaded from a folder, or made from another pipeline, it has
    the scheduler that it needs, `LTXEulerAncestralRFScheduler(eta=0.5)`, whatever is the checkpoint's.

    Args:
        temporal_latent_upsampler: Doubles the frame rate of latents.
        scheduler, vae, audio_vae, text_encoder, tokenizer, connectors, transformer, vocoder, processor, prompt_enhancer:
            See [`LTX2GenerationPipeline`].
    """

    kind = "distilled"
    output_class = LTX2DFRPipelineOutput
    model_cpu_offload_seq: Any = LTX2GenerationPipeline.model_cpu_offload_seq.replace("->vae", f"->{UPSAMPLER}->vae")
    temporal_latent_upsampler: Upsampler

    @extends(LTX2GenerationPipeline)
    def __init__(self, *, temporal_latent_upsampler: Upsampler, **components: Any) -> None:
        super().__init__(**components)
        self.register_modules(temporal_latent_upsampler=temporal_latent_upsampler)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Load a pipeline as the others do, without what only rewrites prompts or chooses lengths.

        Takes the arguments of diffusers' method. A scheduler that takes no fresh noise is replaced; one that is given by name
        stays.
        """
        kwargs = {**dict.fromkeys(_UNTAKEN), **kwargs}
        return _with_fresh_noise(super().from_pretrained(pretrained_model_name_or_path, **kwargs), kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Build this pipeline on the components of another one, with a scheduler of its own unless one is given by name."""
        return _with_fresh_noise(super().from_pipe(pipeline, **kwargs), kwargs)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load a pipeline from an original checkpoint, as the others do; `temporal_latent_upsampler` has to be given."""
        return _with_fresh_noise(super().from_single_file(pretrained_model_link_or_path, **kwargs), kwargs)

    @takes(RefineArguments)
    def __call__(self, call: RefineArguments) -> Result:
        """Make a round. Its latents are those of the whole canvas; decoded, it ends where the request does.

        Returns:
            [`LTX2DFRPipelineOutput`], or the tuple `(frames, audio, keyframes, keyframe_positions)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        check_components(self)
        # What the round starts from belongs to another canvas than the conditions.
        first = replace(call, latents=None, audio_latents=None)
        prompts, request = first.request([call.sampling.first], as_pictures(call.conditions), call.first_size, **NOISE)
        batch_size = self.prompt_reader.check(prompts, False, watched=request.delivery.wanted)
        temporal_round = TemporalRound(self, call, batch_size)
        temporal_round.check()
        return engine.run(self, prompts, request, temporal_round.make)


def _with_fresh_noise(pipeline: Any, given: Mapping[str, Any]) -> Any:
    """The pipeline with a scheduler that takes fresh noise, unless it has one or was given another by name."""
    if "scheduler" not in given and not isinstance(pipeline.scheduler, LTXEulerAncestralRFScheduler):
        pipeline.register_modules(scheduler=LTXEulerAncestralRFScheduler(eta=dfr_layout.TEMPORAL_ANCESTRAL_ETA))
    return pipeline


def check_components(pipeline: LTX2DFRTemporalRefinePipeline) -> None:
    """Raise `ValueError` for components with which a round would fail, or come out soft."""
    pipeline.require(UPSAMPLER)
    check_marks(pipeline)
    scheduler = pipeline.scheduler
    if not isinstance(scheduler, LTXEulerAncestralRFScheduler) or not scheduler.config["eta"] > 0:
        kind = type(scheduler).__name__ + ("(eta=0)" if isinstance(scheduler, LTXEulerAncestralRFScheduler) else "")
        raise ValueError(
            f"a temporal round needs fresh noise in its steps, which the scheduler {kind} does not take; set pipe.scheduler = "
            f"LTXEulerAncestralRFScheduler(eta={dfr_layout.TEMPORAL_ANCESTRAL_ETA}), or load the pipeline by from_pretrained"
        )
    config = pipeline.temporal_latent_upsampler.config
    if not config["temporal_upsample"] or config["spatial_upsample"]:
        raise ValueError(
            f"`{UPSAMPLER}` has to double the frame rate alone, but its config says otherwise; load another"
        )


def as_pictures(given: Any) -> list[Condition]:
    """Conditions that have a place in time, which the round moves."""
    conditions = as_conditions("conditions", given)
    if others := [type(one).__name__ for one in conditions if not isinstance(one, LTX2VideoCondition)]:
        raise ValueError(f"`conditions` has to hold LTX2VideoCondition but holds {others[0]}")
    return conditions


Placed = tuple[torch.Tensor, int, float]
"""Latents `[B or 1, C, F, h, w]` to hold to, the pixel frame where they begin, and how strongly."""


@dataclass(frozen=True)
class TemporalRound:
    """A round, which makes its stretches one after another.

    Args:
        pipeline: The pipeline.
        call: What is asked for.
        batch_size: Videos of the batch.
    """

    pipeline: LTX2DFRTemporalRefinePipeline
    call: RefineArguments
    batch_size: int

    @cached_property
    def plan(self) -> ClipPlan:
        """Sizes of the canvas, of which as much is handed over as was asked for."""
        call = self.call
        size = Size(call.height, call.width, 2 * (call.num_frames - 1) + 1, 2 * call.frame_rate)
        plan = plan_clip(self.pipeline.sizes, self.batch_size, size, [(1.0, 1.0)])
        audio = plan.audio._replace(frames=call.audio_latents.shape[2])
        asked = (call.asked_frames - 1) * 2**call.round_index + 1
        return replace(plan, audio=audio, kept_frames=min(asked, plan.num_frames))

    @cached_property
    def tiles(self) -> list[dfr_layout.LTX2DFRTemporalTile]:
        """The stretches."""
        ratio, count = self.plan.sizes.temporal_ratio, 2**self.call.round_index
        seams = [2 * position for position in self.call.keyframe_positions]
        return dfr_layout.temporal_tile_plan(seams, self.plan.num_frames, count, ratio)

    @property
    def rate(self) -> float:
        """Frames per second in which the network counts."""
        return dfr_layout.conditioning_frame_rate(self.plan.frame_rate)

    def check(self) -> None:
        """Raise `ValueError` for what is out of range, or does not fit together."""
        call, ratio, positions = self.call, self.pipeline.sizes.temporal_ratio, list(self.call.keyframe_positions)
        checks.check_positive(source_seconds=call.source_seconds)
        checks.check_most(checks.MAX_FRAME_RATE / 2, frame_rate=call.frame_rate)
        checks.check_num_frames(call.num_frames, ratio)
        checks.check_num_frames(call.asked_frames, ratio, "condition_num_frames")
        if call.asked_frames > call.num_frames:
            raise ValueError(
                f"`condition_num_frames` is {call.asked_frames}, more than the canvas of the pass before, {call.num_frames}; give what "
                "the first pass was asked for"
            )
        checks.check_shape("audio_latents", call.audio_latents, (None,) * 4, GIVEN_LATENTS)
        shapes = {
            "latents": self.plan.video._replace(frames=(call.num_frames - 1) // ratio + 1),
            "audio_latents": self.plan.audio,
            "keyframes_latents": self.plan.video._replace(frames=len(positions)),
        }
        for name, shape in shapes.items():
            checks.check_shape(name, getattr(call, name), shape, GIVEN_LATENTS)
        if positions != sorted({*positions}) or positions[0] < 1 or positions[-1] != call.num_frames - 1:
            raise ValueError(
                f"`{POSITIONS}` has to rise from above 0 to the last frame of the canvas, {call.num_frames - 1}, but is {positions}; give "
                "those that the pass before returned"
            )
        # Stretches end at keyframes, which have to end latent frames.
        self.tiles  # noqa: B018

    def make(
        self, pipeline: LTX2GenerationPipeline, request: Request, runs: Sequence[engine.StageRun], texts: ReadPrompts
    ) -> engine.Generated:
        """The stretches as one clip, and all its keyframes; after an interrupt the rest is as the upsampler made it."""
        call, asked, scale = self.call, runs[0].plan, 2**self.call.round_index
        pictures: Any = runs[0].conditions
        placed: list[Placed] = [(one.encoded(asked), one.start * scale, one.given.strength) for one in pictures]
        pipeline.release("vae")
        stills = pipeline.normalized_video(call.keyframes_latents, self.plan).split(1, dim=2)
        anchors = {2 * position: still for position, still in zip(call.keyframe_positions, stills)}
        video = engine.enlarged(pipeline, pipeline.normalized_video(call.latents, self.plan), UPSAMPLER)
        sound: Any = engine.first_latents(pipeline, Start(audio_latents=call.audio_latents), self.plan).audio
        known, pieces = dict(anchors), list[torch.Tensor]()
        for index, tile in enumerate(self.tiles):
            own = video[:, :, tile.interval.cells]
            held = ReadyItems(self.held(tile, own, placed, anchors, sound))
            made: Any = self.stretch(replace(request, conditions=[held]), texts, index, own)
            pieces.append(made.latents.video[:, :, tile.interval.left_ramp :])
            known = dict(zip(tile.slots, made.keyframes.split(1, dim=2))) | known
            if pipeline._interrupt:
                break
        pieces.append(video[:, :, sum(piece.shape[2] for piece in pieces) :])
        positions = sorted(known)
        bag = torch.cat([known[position] for position in positions], dim=2)
        info = {**made.info, "tiles": len(self.tiles), POSITIONS: positions}
        return engine.Generated(Streams(torch.cat(pieces, dim=2), sound), self.plan, info, bag, positions)

    def held(
        self,
        tile: dfr_layout.LTX2DFRTemporalTile,
        own: torch.Tensor,
        placed: Sequence[Placed],
        anchors: Mapping[int, torch.Tensor],
        sound: torch.Tensor,
    ) -> Items:
        """What a stretch is held to: pictures, keyframes of the pass before, slots between them, and its part of the sound."""
        start, call, sizes, packer = tile.pixel_start, self.call, self.plan.sizes, self.plan.tools.audio.patchifier
        items: list[conditioning.ConditionItem] = []
        for latents, position, strength in placed:
            if position == start:
                items.append(conditioning.VideoConditionByLatentIndex(latents[:, :, : own.shape[2]], strength))
            elif start < position <= tile.pixel_end:
                items += pinned([(latents, position - start)], strength)
        local = [(anchors[position], position - start) for position in tile.anchors]
        items += pinned(local, dfr_layout.ANCHOR_KEYFRAME_STRENGTH)
        slots = [position - start for position in tile.slots]
        seeds = own[:, :, [min(round(slot / sizes.temporal_ratio), own.shape[2] - 1) for slot in slots]]
        items.append(conditioning.VideoKeyframeSlots(slots, seeds))
        frames = sizes.pixel_frames(own.shape[2])
        shape = sizes.audio_shape(self.batch_size, frames / self.rate)
        seconds = call.num_frames / call.frame_rate if call.source_seconds is None else call.source_seconds
        span = (start, frames, self.plan.frame_rate, seconds, shape.frames)
        window = packer.unpatchify(dfr_layout.audio_window(packer.patchify(sound), *span), shape)
        return Streams(items, [conditioning.ConditionByWholeLatent(window)])

    def stretch(self, request: Request, texts: ReadPrompts, index: int, video: torch.Tensor) -> engine.Generated:
        """A stretch of the canvas, made from its part `[B, C, F, h, w]` of the enlarged video."""
        tokens = self.plan.tools.video.patchifier.patchify(video)
        size = replace(request.size, num_frames=self.plan.sizes.pixel_frames(video.shape[2]), frame_rate=self.rate)
        request = replace(request, size=size, start=replace(request.start, latents=tokens))
        run = engine.prepare(self.pipeline, request, self.batch_size).runs[0]
        generators, config = request.start.generator, self.pipeline.scheduler.config
        first = generators[0] if isinstance(generators, list) else generators
        seed = (0 if first is None else first.initial_seed()) + _SEEDS_PER_ROUND * self.call.round_index + index
        noise = gaussian_noise(torch.Generator(self.pipeline._execution_device).manual_seed(seed % 2**64))
        run = replace(run, sampler=EulerAncestralSampler(noise, config["eta"], config["s_noise"], hold_given=True))
        start, callback = index * (len(run.sigmas) - 1), request.delivery.callback
        if callback is not None:
            # It counts the steps of all stretches.
            counted = replace(request.delivery, callback=lambda pipe, step, *rest: callback(pipe, start + step, *rest))
            request = replace(request, delivery=counted)
        return engine.generate(self.pipeline, request, [run], texts)
