"""Diffusion fidelity rendering (DFR): single frames are made beside a video, its keyframes, which is then refined from them.

A pass makes a video with its keyframes, from noise or from what earlier passes made; a temporal round doubles the frame rate, in
stretches of time that lie between keyframes.

Shapes: B videos of the batch, C channels, K keyframes, F latent frames, h and w latent rows and columns, L audio latents, M
latent mel bins.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ltx_euler_ancestral_rf import LTXEulerAncestralRFScheduler

from ... import checks, conditioning
from ...conditioning import LTX2DFREpilogueTile, LTX2DFRTemporalTile, Streams, dfr_layout
from ...declared import takes_declared
from ...media import pixels, preprocess
from ...prompts import ReadPrompts
from ...sampling.samplers import EulerAncestralSampler, gaussian_noise
from ...schedulers.levels import unshifted
from ...schedulers.sigmas import DISTILLED_SIGMAS
from .. import engine
from ..arguments import Start, Unguided
from ..conditions import Condition, Conditions, LTX2VideoCondition, Opened, Studio, as_conditions
from ..conditions.condition import Items, ReadyItems
from ..output import LTX2DFRPipelineOutput
from ..plan import ClipPlan, Size, plan_clip
from . import Arguments, Delivery, LTX2GenerationPipeline, Request, Result, Scheduler, Upsampler, extends, takes

UPSAMPLER = "temporal_latent_upsampler"
POSITIONS = "keyframe_positions"
NOISE: dict[str, Any] = {"packed_noise": True, "blend": "clean"}
"""How passes mix noise into what they start from, and give it what they are held to."""
# Seeds of the noise with which keyframes are decoded lie apart from those of the passes.
_REBUILDING_SEED = 4000
# Seeds of the rounds' noise lie this far apart, so that stretches of one round do not reach those of the next.
_SEEDS_PER_ROUND = 1000
_MOST_ROUNDS = 8
# A round needs them, but as in diffusers' call they may be given by name.
_ABSENT: Any = None


@dataclass(frozen=True)
class PassArguments(Unguided, Arguments):
    """What the calls of DFR share.

    Args:
        height, width: Size of this pass in pixels, multiples of 32. Default 704 x 1216.
        sigmas: Noise levels of the pass, in (0, 1] and falling, taken as they are.
        noise_scale: Noise that the pass starts with, 0 to 1. Default the first of `sigmas`.
        use_cross_timestep: Whose noise level modulates the exchange between the streams: the other stream's
            (`True`, default) or its own (`False`).
        return_dict: Whether to return an [`LTX2DFRPipelineOutput`] instead of the tuple `(frames, audio, keyframes,
            keyframe_positions)`.
    """

    height: int = 704
    width: int = 1216
    frame_rate: float = 24.0
    noise_scale: float | None = None
    use_cross_timestep: bool = True
    negative_prompt: None = field(init=False, default=None)
    negative_prompt_embeds: None = field(init=False, default=None)
    negative_prompt_attention_mask: None = field(init=False, default=None)
    motion_speed: float = field(init=False, default=1.0)
    timesteps: None = field(init=False, default=None)
    sampler: str = field(init=False, default="euler")
    guidance_options: None = field(init=False, default=None)


@dataclass(frozen=True)
class _Carried:
    """What comes first, in diffusers' order."""

    prompt: str | list[str] | None = None
    conditions: Conditions = None
    height: int = 704
    width: int = 1216
    num_frames: int | None = None
    frame_rate: float = 24.0
    min_seconds: float = 1.0
    max_seconds: float = 20.0
    latents: torch.Tensor | None = None
    audio_latents: torch.Tensor | None = None
    keyframes_latents: torch.Tensor | None = None
    keyframe_positions: Sequence[int] | None = None
    reference_latents: torch.Tensor | None = None
    reference_downscale_factor: int = 2
    guidance_keyframe_latents: torch.Tensor | None = None
    guidance_keyframe_positions: Sequence[int] | None = None
    guidance_keyframe_strength: float = 1.0
    generate_slots: bool = True
    sigmas: Sequence[float] = DISTILLED_SIGMAS[:-1]
    noise_scale: float | None = None
    freeze_audio: bool = False
    video_tiles: Sequence[LTX2DFREpilogueTile] | None = None


@dataclass(frozen=True)
class DFRArguments(PassArguments, _Carried):
    """What the call takes. All latents are un-normalised, as the call returns them.

    Args:
        conditions: Pictures and clips, as in [`LTX2ConditionPipeline`]; their places are those of a clip of `num_frames`.
        num_frames: Frames, 8 k + 1 and at least 9; the pass pads them to its canvas, which is that of `latents` if there are
            any. Default that of `latents`, else what the `duration_head` predicts.
        frame_rate: Frames per second, above 0 and up to 1000. The network counts positions at 60 for any above 30.
        latents: Video to refine, `[B, C, F, h, w]` of the whole canvas, as the pass before returned it.
        audio_latents: Sound to refine or to keep, `[B, C, L, M]`.
        keyframes_latents: What the slots start from, `[B, C, K, h, w]`.
        keyframe_positions: Pixel frames of the slots. Default the ends of the canvas' segments.
        reference_latents: A video to follow, mostly that of the first pass `[B, C, F, h, w]`, with an IC-LoRA loaded.
        reference_downscale_factor: Size of this pass over that of the reference. Default 2.
        guidance_keyframe_latents: Finished keyframes to hold to, `[B, C, K, h, w]`.
        guidance_keyframe_positions: Their pixel frames.
        guidance_keyframe_strength: How strongly they are held, 0 to 1. Default 1.0.
        generate_slots: Whether keyframes are made beside the video. Default `True`.
        sigmas: Noise levels of the pass, in (0, 1] and falling, taken as they are. Default the 8 of distilled models.
        freeze_audio: Whether `audio_latents` are kept. Default `False`.
        video_tiles: Windows in which the transformer runs one after another, made with
            [`~ltx2_diffusers.conditioning.epilogue_tiles`]. Default `None`, over the whole video.
    """

    sigmas: Sequence[float] = DISTILLED_SIGMAS[:-1]

    @property
    def size(self) -> Size:
        """Size of the clip, which is padded to whole segments."""
        # Where the rate is none, which the plan refuses, there is nothing to divide by.
        speed = self.frame_rate / (dfr_layout.conditioning_frame_rate(self.frame_rate) or 1.0)
        seconds = (self.min_seconds, self.max_seconds)
        return Size(self.height, self.width, self.num_frames, self.frame_rate, speed, seconds, in_segments=True)


@dataclass(frozen=True)
class KeyframeCarrier(Condition, Opened):
    """Everything that a pass carries beside its video: pinned keyframes, slots for new ones, a reference, a finished sound.

    Args:
        call: The pass.
        studio: Normalises latents.
    """

    call: DFRArguments
    studio: Studio

    def opened(self, _: Studio, plan: ClipPlan) -> "KeyframeCarrier":
        """Check that everything fits the clip; nothing has to be read."""
        call = self.call
        checks.check_unit(guidance_keyframe_strength=call.guidance_keyframe_strength)
        checks.check_at_least_one(reference_downscale_factor=call.reference_downscale_factor)
        self.check_keyframes(plan, POSITIONS, self.positions(plan), "keyframes_latents")
        pinned = ("guidance_keyframe_positions", call.guidance_keyframe_positions or ())
        self.check_keyframes(plan, *pinned, "guidance_keyframe_latents")
        return self

    def refitted(self, plan: ClipPlan) -> "KeyframeCarrier":
        """The same, if it fits a shorter clip, too."""
        return self.opened(self.studio, plan)

    def check(self, plan: ClipPlan) -> None:
        """Raise `ValueError` if the reference is not of the size that the call says, or the active LoRAs expect."""
        call, asked = self.call, self.studio.reference_factors().downscale
        if call.reference_latents is None:
            return
        factor, (batch, channels, _, rows, columns) = call.reference_downscale_factor, plan.video
        if asked not in (1, factor):
            raise ValueError(
                f"`reference_downscale_factor` is {factor}, but the active LoRA was trained with {asked}; use {asked}"
            )
        shape = (batch, channels, None, rows // factor, columns // factor)
        check_latents("reference_latents", call.reference_latents, shape)

    def check_keyframes(self, plan: ClipPlan, places: str, positions: Sequence[int], name: str) -> None:
        """Raise `ValueError` unless keyframes lie within the canvas, and their latents, if given, fit it.

        Args:
            plan: Sizes of the canvas.
            places, name: Names of the arguments that hold positions and latents.
            positions: Pixel frame of each.
        """
        last, latents = plan.num_frames - 1, getattr(self.call, name)
        for position in positions:
            if not 0 <= position <= last:
                raise ValueError(
                    f"`{places}` holds {position}, but the canvas has the pixel frames 0 to {last}; use {min(max(position, 0), last)}"
                )
        if latents is not None:
            check_latents(name, latents, plan.video._replace(frames=len(positions)))

    def positions(self, plan: ClipPlan) -> list[int]:
        """Pixel frames of the slots."""
        if not self.call.generate_slots:
            return []
        own = conditioning.resolve_canvas(plan.num_frames, plan.sizes.temporal_ratio)[2]
        return own if self.call.keyframe_positions is None else list(self.call.keyframe_positions)

    def items(self, plan: ClipPlan) -> Items:
        """Pinned keyframes, slots and the reference, in the order in which the model was trained; the finished sound."""
        call, normalized = self.call, self.studio.normalized_video
        video: list[conditioning.ConditionItem] = []
        if call.guidance_keyframe_latents is not None:
            stills = normalized(call.guidance_keyframe_latents, plan).split(1, dim=2)
            placed = zip(stills, call.guidance_keyframe_positions or ())
            video += pinned(placed, call.guidance_keyframe_strength)
        if positions := self.positions(plan):
            given = call.keyframes_latents
            seeds = None if given is None else normalized(given, plan)
            video.append(conditioning.VideoKeyframeSlots(positions, seeds))
        if call.reference_latents is not None:
            reference = normalized(call.reference_latents, plan)
            video.append(conditioning.VideoConditionByReferenceLatent(reference, call.reference_downscale_factor))
        return Streams(video, [conditioning.ConditionByInitialLatent()] if call.freeze_audio else [])

    def make(self, pipeline: LTX2GenerationPipeline, *given: Any) -> engine.Generated:
        """The pass with its keyframes; without slots, with those that it was given."""
        made, call = engine.generate(pipeline, *given), self.call
        if call.freeze_audio:
            # diffusers draws noise for a sound that takes none, after which its decoder draws.
            conditioning.GaussianNoiser(call.generator).draw(made.plan.audio, pipeline._execution_device)
        if made.keyframes is not None or call.guidance_keyframe_latents is None:
            return made._replace(keyframe_positions=self.positions(made.plan))
        finished = pipeline.normalized_video(call.guidance_keyframe_latents, made.plan)
        return made._replace(keyframes=finished, keyframe_positions=call.guidance_keyframe_positions or ())


def pinned(stills: Iterable[tuple[torch.Tensor, int]], strength: float) -> list[conditioning.ConditionItem]:
    """Hold a video to finished keyframes `[B or 1, C, 1, h, w]` at their pixel frames."""
    return [conditioning.VideoConditionByKeyframeIndex(still, position, strength) for still, position in stills]


def check_latents(name: str, latents: torch.Tensor, shape: Sequence[int | None]) -> None:
    """Raise `ValueError` unless latents are finite and of a shape, in which `None` stands for any size."""
    checks.check_shape(name, latents, shape, "this call needs {}, un-normalised")


class LTX2DFRPipeline(LTX2GenerationPipeline):
    """Makes one pass of diffusion fidelity rendering: a video, its sound and single frames beside it, the keyframes.

    A call at half the size begins, one at full size refines what an upsampler has enlarged, and a last one may go beyond that in
    tiles; [`LTX2DFRTemporalRefinePipeline`] doubles the frame rate in between. Takes the components and call arguments of
    diffusers' pipeline of the same name; there is no guidance, so that the weights have to be distilled ones, or have their
    distilled LoRA active. Noise levels are taken as they are given, whatever the scheduler's config says.
    """

    kind = "distilled"
    output_class = LTX2DFRPipelineOutput

    @extends(LTX2GenerationPipeline)
    def __init__(self, **components: Any) -> None:
        super().__init__(**{**components, "scheduler": unshifted(components["scheduler"])})

    @takes(DFRArguments)
    def __call__(self, call: DFRArguments) -> Result:
        """Make a pass. Its latents are those of a canvas of whole segments; decoded, it is as long as `num_frames`.

        Returns:
            [`LTX2DFRPipelineOutput`], or the tuple `(frames, audio, keyframes, keyframe_positions)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        check_pass(self, call)
        carrier = KeyframeCarrier(call, self)
        conditions = [*as_conditions("conditions", call.conditions), carrier]
        stage = replace(call.sampling.first, tiles=call.video_tiles)
        return engine.run(self, *call.request([stage], conditions, call.size, **NOISE), carrier.make)

    @takes_declared
    @torch.no_grad()
    def rebuild_epilogue_keyframes(
        self,
        keyframe_latents: torch.Tensor,
        decode_timestep: float,
        decode_noise_scale: float | None,
        seed: int,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Keyframes at twice their height and width, by way of pixels, for the `guidance_keyframe_latents` of a last pass.

        Each is decoded, enlarged by Lanczos' filter and encoded alone: they are stills, and a causal decoder would let one run
        into the next.

        Args:
            keyframe_latents: Un-normalised latents `[B, C, K, h, w]`.
            decode_timestep, decode_noise_scale: As in the call.
            seed: Seed of the decoder's noise; each keyframe has noise of its own.
            device, dtype: Of the result, and where the decoder's noise is drawn.

        Returns:
            Un-normalised latents `[B, C, K, 2 h, 2 w]`.
        """
        self.require("vae")
        check_latents("keyframe_latents", keyframe_latents, (None,) * 5)
        checks.check_unit(decode_timestep=decode_timestep, decode_noise_scale=decode_noise_scale)
        encoded, wish = [], Delivery(decode_timestep=decode_timestep, decode_noise_scale=decode_noise_scale)
        for index, still in enumerate(keyframe_latents.to(self._execution_device, torch.float32).split(1, dim=2)):
            generator = torch.Generator(device).manual_seed(seed + _REBUILDING_SEED + index)
            latent, timestep = engine.with_decoder_noise(self, still, replace(wish, generator=generator))
            clips = self.vae.decode(latent.to(self.vae.dtype), timestep, return_dict=False)[0]
            large = torch.stack([_enlarged(clip) for clip in clips])
            encoded.append(self.vae.encode(large.to(clips)).latent_dist.mode())
        self.maybe_free_model_hooks()
        return torch.cat(encoded, dim=2).to(device, dtype)


def check_pass(pipeline: LTX2DFRPipeline, call: DFRArguments) -> None:
    """Raise `ValueError` for what a pass is given and does not read, or reads and is not given."""
    if not isinstance(pipeline.scheduler, Scheduler):
        raise ValueError(
            f"a pass takes no fresh noise in its steps, as {type(pipeline.scheduler).__name__} would; set pipe.scheduler = "
            "LTX2Scheduler(), or make a temporal round with LTX2DFRTemporalRefinePipeline"
        )
    if call.generate_slots:
        check_marks(pipeline)
    else:
        engine.check_said("generate_slots=False makes no keyframes", call, "keyframes_latents", POSITIONS)
    if call.guidance_keyframe_latents is None:
        names = ("guidance_keyframe_positions", "guidance_keyframe_strength")
        engine.check_said("there are no `guidance_keyframe_latents`", call, *names)
    elif call.guidance_keyframe_positions is None:
        raise ValueError("`guidance_keyframe_latents` need their `guidance_keyframe_positions`; give one each")
    if call.reference_latents is None:
        engine.check_said("there are no `reference_latents`", call, "reference_downscale_factor")
    if call.freeze_audio and call.audio_latents is None:
        raise ValueError("`freeze_audio` is True, but there are no `audio_latents` to keep; give the first pass's")
    if call.num_frames is None and call.latents is None and not pipeline.has("duration_head"):
        raise ValueError(
            "`num_frames` is not given, and follows from no `latents` and no `duration_head`; use for example 121"
        )


def _enlarged(clip: torch.Tensor) -> torch.Tensor:
    """A frame `[3, 1, H, W]` in [-1, 1] at twice its size."""
    image = PIL.Image.fromarray(next(pixels.decoded_frames(clip))[0].numpy())
    image = image.resize((2 * image.width, 2 * image.height), PIL.Image.Resampling.LANCZOS)
    return preprocess.normalize_pixels(torch.from_numpy(np.array(image)).movedim(-1, 0)[:, None].float())


def check_marks(pipeline: LTX2GenerationPipeline) -> None:
    """Raise `ValueError` for a transformer that cannot tell keyframes from the frames of a video."""
    pipeline.require("transformer")
    if not pipeline.transformer.config.use_keyframes_abs_pos_embedding:
        raise ValueError(
            "DFR makes keyframes, which a transformer only knows with `use_keyframes_abs_pos_embedding`, as in LTX-2.5; load one, "
            "or pass generate_slots=False to LTX2DFRPipeline"
        )


@dataclass(frozen=True)
class _Before:
    """What comes first, in diffusers' order."""

    prompt: str | list[str] | None = None
    latents: torch.Tensor = _ABSENT
    keyframes_latents: torch.Tensor = _ABSENT
    keyframe_positions: Sequence[int] = _ABSENT
    audio_latents: torch.Tensor = _ABSENT
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

    latents: torch.Tensor = _ABSENT
    audio_latents: torch.Tensor = _ABSENT
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
        kwargs = {"processor": None, "prompt_enhancer": None, "duration_head": None, **kwargs}
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
        first = replace(call, latents=_ABSENT, audio_latents=_ABSENT)
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
            f"`{UPSAMPLER}` has to double the frame rate alone, which its config does not say; load another"
        )


def as_pictures(given: Any) -> list[Condition]:
    """Conditions that have a place in time, which the round moves."""
    conditions = as_conditions("conditions", given)
    if others := [type(one).__name__ for one in conditions if not isinstance(one, LTX2VideoCondition)]:
        raise ValueError(f"`conditions` has to hold LTX2VideoCondition but holds {others[0]}")
    return conditions


class Material(NamedTuple):
    """What the stretches of a round are made from.

    Args:
        video: Enlarged video of the pass before, normalised latents `[B, C, F, h, w]`.
        sound: The sound, normalised latents `[B, C, L, M]`.
        anchors: Its keyframes, normalised latents `[B, C, 1, h, w]` by pixel frame.
        pictures: Normalised latents `[B or 1, C, F, h, w]` of conditions, the pixel frames where they begin, and the conditions.
    """

    video: torch.Tensor
    sound: torch.Tensor
    anchors: dict[int, torch.Tensor]
    pictures: list[tuple[torch.Tensor, int, LTX2VideoCondition]]


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
        asked = (call.asked_frames - 1) * 2**call.round_index + 1
        return replace(plan, kept_frames=min(asked, plan.num_frames))

    @cached_property
    def tiles(self) -> list[LTX2DFRTemporalTile]:
        """The stretches."""
        ratio, count = self.plan.sizes.temporal_ratio, 2**self.call.round_index
        seams = [2 * position for position in self.call.keyframe_positions]
        return dfr_layout.temporal_tile_plan(seams, self.plan.num_frames, count, ratio)

    def check(self) -> None:
        """Raise `ValueError` for what is out of range, or does not fit together."""
        call, ratio, positions = self.call, self.pipeline.sizes.temporal_ratio, list(self.call.keyframe_positions)
        checks.check_positive(source_seconds=call.source_seconds)
        checks.check_most(checks.MAX_FRAME_RATE / 2, frame_rate=call.frame_rate)
        checks.check_num_frames(call.num_frames, ratio)
        checks.check_num_frames(call.asked_frames, ratio, "condition_num_frames")
        if call.asked_frames > call.num_frames:
            raise ValueError(
                f"`condition_num_frames` is {call.asked_frames}, more than the canvas of the pass before, {call.num_frames}; give that of the first pass"
            )
        plan = self.plan
        check_latents("latents", call.latents, plan.video._replace(frames=(call.num_frames - 1) // ratio + 1))
        check_latents("audio_latents", call.audio_latents, (*plan.audio[:2], None, *plan.audio[3:]))
        check_latents("keyframes_latents", call.keyframes_latents, plan.video._replace(frames=len(positions)))
        last = call.num_frames - 1
        if positions != sorted({*positions}) or positions[0] < 1 or positions[-1] != last:
            raise ValueError(
                f"`{POSITIONS}` has to rise from above 0 to the last frame of the canvas, {last}, but is {positions}; give those of the pass before"
            )
        # Stretches end at keyframes, which have to end latent frames.
        self.tiles  # noqa: B018

    def make(
        self, pipeline: LTX2GenerationPipeline, request: Request, runs: Sequence[engine.StageRun], texts: ReadPrompts
    ) -> engine.Generated:
        """The stretches as one clip, and all its keyframes; after an interrupt the rest is as the upsampler made it."""
        call, asked, scale = self.call, runs[0].plan, 2**self.call.round_index
        given: Any = runs[0].conditions
        pictures = [(one.encoded(asked), one.start * scale, one.given) for one in given]
        pipeline.release("vae")
        stills = pipeline.normalized_video(call.keyframes_latents, self.plan).split(1, dim=2)
        anchors = {2 * position: still for position, still in zip(call.keyframe_positions, stills)}
        video = engine.enlarged(pipeline, pipeline.normalized_video(call.latents, self.plan), UPSAMPLER)
        sound: Any = engine.first_latents(pipeline, Start(audio_latents=call.audio_latents), self.plan).audio
        known, pieces, material = anchors, list[torch.Tensor](), Material(video, sound, anchors, pictures)
        for index, tile in enumerate(self.tiles):
            made: Any = self.stretch(request, texts, index, material)
            pieces.append(made.latents.video[:, :, tile.interval.left_ramp :])
            # Of two stretches that make the same keyframe, the first one counts.
            known = dict(zip(tile.slots, made.keyframes.split(1, dim=2))) | known
            if pipeline._interrupt:
                break
        pieces.append(video[:, :, sum(piece.shape[2] for piece in pieces) :])
        positions = sorted(known)
        keyframes = torch.cat([known[position] for position in positions], dim=2)
        info = {**made.info, "tiles": len(self.tiles), POSITIONS: positions}
        return engine.Generated(Streams(torch.cat(pieces, dim=2), sound), self.plan, info, keyframes, positions)

    def stretch(self, request: Request, texts: ReadPrompts, index: int, material: Material) -> engine.Generated:
        """A stretch of the canvas, made from its part of the enlarged video."""
        plan, tile, start = self.plan, self.tiles[index], request.start
        video = material.video[:, :, tile.interval.cells]
        frames, rate = plan.sizes.pixel_frames(video.shape[2]), dfr_layout.conditioning_frame_rate(plan.frame_rate)
        size = replace(request.size, num_frames=frames, frame_rate=rate)
        start = replace(start, latents=plan.tools.video.patchifier.patchify(video))
        request = replace(request, size=size, start=start, conditions=())
        run = engine.prepare(self.pipeline, request, self.batch_size).runs[0]
        given = start.generator if isinstance(start.generator, list) else [start.generator]
        offset, device = _SEEDS_PER_ROUND * self.call.round_index + index, self.pipeline._execution_device
        seeds = [(0 if one is None else one.initial_seed()) + offset for one in given]
        noise = gaussian_noise([torch.Generator(device).manual_seed(seed % 2**64) for seed in seeds])
        config, held = self.pipeline.scheduler.config, [ReadyItems(self.held(tile, run.plan, video, material))]
        sampler = EulerAncestralSampler(noise, config["eta"], config["s_noise"], hold_given=True)
        run = replace(run, conditions=held, sampler=sampler)
        steps, callback = index * (len(run.sigmas) - 1), request.delivery.callback
        if callback is not None:
            # It counts the steps of all stretches.
            counted = replace(request.delivery, callback=lambda pipe, step, *rest: callback(pipe, steps + step, *rest))
            request = replace(request, delivery=counted)
        return engine.generate(self.pipeline, request, [run], texts)

    def held(self, tile: LTX2DFRTemporalTile, plan: ClipPlan, video: torch.Tensor, material: Material) -> Items:
        """What a stretch is held to: pictures, keyframes of the pass before, slots between them, and its part of the sound.

        Args:
            tile, plan: The stretch and its sizes.
            video: Its part of the enlarged video.
            material: What all stretches are made from.
        """
        start, count, call, packer = tile.pixel_start, video.shape[2], self.call, plan.tools.audio.patchifier
        items: list[conditioning.ConditionItem] = []
        for latents, position, picture in material.pictures:
            if position == start and picture.mode != "append":
                items.append(conditioning.VideoConditionByLatentIndex(latents[:, :, :count], picture.strength))
            elif start <= position <= tile.pixel_end:
                items += pinned([(latents, position - start)], picture.strength)
        anchors = [(material.anchors[position], position - start) for position in tile.anchors]
        items += pinned(anchors, dfr_layout.ANCHOR_KEYFRAME_STRENGTH)
        slots = [position - start for position in tile.slots]
        seeds = video[:, :, [min(round(slot / plan.sizes.temporal_ratio), count - 1) for slot in slots]]
        items.append(conditioning.VideoKeyframeSlots(slots, seeds))
        seconds = call.num_frames / call.frame_rate if call.source_seconds is None else call.source_seconds
        span = (start, plan.num_frames, self.plan.frame_rate, seconds, plan.audio.frames)
        window = packer.unpatchify(dfr_layout.audio_window(packer.patchify(material.sound), *span), plan.audio)
        return Streams(items, [conditioning.ConditionByWholeLatent(window)])
