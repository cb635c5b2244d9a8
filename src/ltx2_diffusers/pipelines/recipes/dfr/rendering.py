"""One pass of DFR: a video with single frames beside it, from noise or from what earlier passes made.

Shapes: B videos of the batch, C channels, K keyframes, F latent frames, h and w latent rows and columns, L audio latents, M
latent mel bins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import PIL.Image
import torch

from .... import checks, conditioning
from ....conditioning.dfr_layout import LTX2DFREpilogueTile, conditioning_frame_rate
from ....declared import takes_declared
from ....media import pixels, preprocess
from ....prompts import ReadPrompts
from ....schedulers.levels import unshifted
from ....schedulers.sigmas import DISTILLED_SIGMAS
from ... import engine
from ...arguments import Unguided
from ...conditions import Condition, Conditions, Opened, Studio, as_conditions
from ...conditions.condition import Items
from ...output import LTX2DFRPipelineOutput
from .. import Arguments, ClipPlan, Delivery, LTX2GenerationPipeline, Request, Result, Scheduler, Size, extends, takes

POSITIONS = "keyframe_positions"
NOISE: dict[str, Any] = {"packed_noise": True, "blend": "clean"}
"""How passes mix noise into what they start from, and give it what they are held to."""
GIVEN_LATENTS = "this call needs {}, un-normalised"
"""What is said of latents of another shape."""
# Seeds of the noise with which keyframes are decoded lie apart from those of the passes.
_REBUILDING_SEED = 4000


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
        speed = self.frame_rate / (conditioning_frame_rate(self.frame_rate) or 1.0)
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
        check_keyframes(POSITIONS, self.positions(plan), "keyframes_latents", call.keyframes_latents, plan)
        pinned = ("guidance_keyframe_positions", call.guidance_keyframe_positions or ())
        check_keyframes(*pinned, "guidance_keyframe_latents", call.guidance_keyframe_latents, plan)
        return self

    def refitted(self, plan: ClipPlan) -> "KeyframeCarrier":
        """The same, if it fits a shorter clip, too."""
        return self.opened(self.studio, plan)

    def check(self, plan: ClipPlan) -> None:
        """Raise `ValueError` if the reference is not of the size that the call says, or the active LoRAs expect."""
        asked, given, reference = (
            self.studio.reference_factors().downscale,
            self.call.reference_downscale_factor,
            self.call.reference_latents,
        )
        if reference is None:
            return
        if asked not in (1, given):
            raise ValueError(
                f"`reference_downscale_factor` is {given}, but the active LoRA was trained with {asked}; use {asked}"
            )
        shape = (*plan.video[:2], None, plan.video.height // given, plan.video.width // given)
        checks.check_shape("reference_latents", reference, shape, GIVEN_LATENTS)

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
            seeds = call.keyframes_latents
            video.append(
                conditioning.VideoKeyframeSlots(positions, None if seeds is None else normalized(seeds, plan))
            )
        if call.reference_latents is not None:
            reference = normalized(call.reference_latents, plan)
            video.append(conditioning.VideoConditionByReferenceLatent(reference, call.reference_downscale_factor))
        return conditioning.Streams(video, [conditioning.ConditionByInitialLatent()] if call.freeze_audio else [])

    def make(
        self, pipeline: LTX2GenerationPipeline, request: Request, runs: Sequence[engine.StageRun], texts: ReadPrompts
    ) -> engine.Generated:
        """The pass with its keyframes; without slots, with those that it was given."""
        made, call = engine.generate(pipeline, request, runs, texts), self.call
        if call.freeze_audio:
            # diffusers draws noise for a sound that takes none, after which its decoder draws.
            conditioning.GaussianNoiser(call.generator).draw(made.plan.audio, pipeline._execution_device)
        if made.keyframes is not None or call.guidance_keyframe_latents is None:
            return made._replace(keyframe_positions=self.positions(made.plan))
        given = pipeline.normalized_video(call.guidance_keyframe_latents, made.plan)
        return made._replace(keyframes=given, keyframe_positions=call.guidance_keyframe_positions or ())


def pinned(stills: Iterable[tuple[torch.Tensor, int]], strength: float) -> list[conditioning.ConditionItem]:
    """Hold a video to finished keyframes `[B or 1, C, 1, h, w]` at their pixel frames."""
    return [conditioning.VideoConditionByKeyframeIndex(still, position, strength) for still, position in stills]


def check_keyframes(
    places: str, positions: Sequence[int], name: str, latents: torch.Tensor | None, plan: ClipPlan
) -> None:
    """Raise `ValueError` unless keyframes lie within the canvas, and their latents, if given, fit it.

    Args:
        places, name: Names of the arguments that hold positions and latents.
        positions: Pixel frame of each.
        latents: `[B, C, K, h, w]`.
        plan: Sizes of the canvas.
    """
    last = plan.num_frames - 1
    if outside := [position for position in positions if not 0 <= position <= last]:
        raise ValueError(
            f"`{places}` holds {outside[0]}, but the canvas has the pixel frames 0 to {last}; use {0 if outside[0] < 0 else last}"
        )
    if latents is not None:
        checks.check_shape(name, latents, plan.video._replace(frames=len(positions)), GIVEN_LATENTS)


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
        checks.check_shape("keyframe_latents", keyframe_latents, (None,) * 5, GIVEN_LATENTS)
        encoded = []
        for index, still in enumerate(keyframe_latents.to(self._execution_device, torch.float32).split(1, dim=2)):
            generator = torch.Generator(device).manual_seed(seed + _REBUILDING_SEED + index)
            wish = Delivery(
                decode_timestep=decode_timestep, decode_noise_scale=decode_noise_scale, generator=generator
            )
            latent, timestep = engine.with_decoder_noise(self, still, wish)
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
        raise ValueError(
            "`guidance_keyframe_latents` need their `guidance_keyframe_positions`; give a pixel frame for each"
        )
    if call.reference_latents is None:
        engine.check_said("there are no `reference_latents`", call, "reference_downscale_factor")
    if call.freeze_audio and call.audio_latents is None:
        raise ValueError(
            "`freeze_audio` is True, but there are no `audio_latents` to keep; give those of the first pass"
        )
    if call.num_frames is None and call.latents is None and not pipeline.has("duration_head"):
        raise ValueError(
            "`num_frames` is not given, nor `latents` from which it would follow, and there is no `duration_head` to predict it; use "
            "for example 121"
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
