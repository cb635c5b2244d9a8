"""One pass of DFR: a video with single frames beside it, from noise or from what earlier passes made.

Shapes: B videos of the batch, C channels, K keyframes, F latent frames, h and w latent rows and columns, L audio latents, M
latent mel bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import PIL.Image
import torch

from .... import checks, conditioning
from ....conditioning.dfr_layout import LTX2DFREpilogueTile, conditioning_frame_rate
from ....declared import takes_declared
from ....media import pixels, preprocess
from ....schedulers.levels import FlowMatchEulerDiscreteScheduler, LTX2Scheduler
from ....schedulers.sigmas import DISTILLED_SIGMAS
from ... import engine
from ...arguments import Stage, Unguided
from ...conditions import Condition, Conditions, Opened, Studio, as_conditions
from ...conditions.condition import Items
from ...output import LTX2DFRPipelineOutput
from .. import Arguments, ClipPlan, Delivery, LTX2GenerationPipeline, Result, Size, Streams, check_said, extends, takes

POSITIONS = "keyframe_positions"
NOISE: dict[str, Any] = {"packed_noise": True, "blend": "clean"}
"""How passes mix noise into what they start from, and give it what they are held to."""
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
    sampler: None = field(init=False, default=None)
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
        speed = self.frame_rate / conditioning_frame_rate(self.frame_rate)
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
        if call.reference_latents is not None:
            check_latents("reference_latents", call.reference_latents, (*plan.video[:2], None, None, None))
        return self

    def refitted(self, plan: ClipPlan) -> "KeyframeCarrier":
        """The same, if it fits a shorter clip, too."""
        return self.opened(self.studio, plan)

    def check(self, _: ClipPlan) -> None:
        """Raise `ValueError` if the active LoRAs were trained with references of another size."""
        asked, given = self.studio.reference_factors().downscale, self.call.reference_downscale_factor
        if self.call.reference_latents is not None and asked not in (1, given):
            raise ValueError(
                f"`reference_downscale_factor` is {given}, but the active LoRA was trained with {asked}; use {asked}"
            )

    def positions(self, plan: ClipPlan) -> list[int]:
        """Pixel frames of the slots."""
        if not self.call.generate_slots:
            return []
        own = conditioning.resolve_canvas(plan.num_frames, plan.sizes.temporal_ratio)[2]
        return own if self.call.keyframe_positions is None else list(self.call.keyframe_positions)

    def items(self, plan: ClipPlan) -> Items:
        """Pinned keyframes, slots and the reference, in the order in which the model was trained; the finished sound."""
        call, video = self.call, list[conditioning.ConditionItem]()
        names = ("guidance_keyframe_latents", "keyframes_latents", "reference_latents")
        given = (getattr(call, name) for name in names)
        pinned, seeds, reference = (None if one is None else self.studio.normalized_video(one, plan) for one in given)
        if pinned is not None:
            for frame, position in zip(pinned.split(1, dim=2), call.guidance_keyframe_positions or ()):
                strength = call.guidance_keyframe_strength
                video.append(conditioning.VideoConditionByKeyframeIndex(frame, position, strength))
        if positions := self.positions(plan):
            video.append(conditioning.VideoKeyframeSlots(positions, seeds))
        if reference is not None:
            factor = call.reference_downscale_factor
            video.append(conditioning.VideoConditionByReferenceLatent(reference, factor))
        return Streams(video, [conditioning.ConditionByInitialLatent()] if call.freeze_audio else [])


def check_latents(name: str, latents: torch.Tensor, shape: Sequence[int | None]) -> None:
    """Raise `ValueError` unless latents are finite and of a shape, in which `None` stands for any size."""
    got = tuple(latents.shape)
    if len(got) != len(shape) or any(size not in (None, have) for size, have in zip(shape, got)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"`{name}` has shape {got}, but this call needs ({wanted}), un-normalised")
    checks.check_float_tensors(**{name: latents})


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
    for position in positions:
        if not 0 <= position <= last:
            nearest = min(max(position, 0), last)
            raise ValueError(
                f"`{places}` holds {position}, but the canvas has the pixel frames 0 to {last}; use {nearest}"
            )
    if latents is not None:
        check_latents(name, latents, plan.video._replace(frames=len(positions)))


class LTX2DFRPipeline(LTX2GenerationPipeline):
    """Makes one pass of diffusion fidelity rendering: a video, its sound and single frames beside it, the keyframes.

    A call at half the size begins, one at full size refines what an upsampler has enlarged, and a last one may go beyond that in
    tiles; [`LTX2DFRTemporalRefinePipeline`] doubles the frame rate in between. Takes the components and call arguments of
    diffusers' pipeline of the same name; there is no guidance, so that the weights have to be distilled ones, or have their
    distilled LoRA active. Noise levels are taken as they are given, whatever the scheduler's config says.
    """

    kind = "distilled"

    @extends(LTX2GenerationPipeline)
    def __init__(self, **components: Any) -> None:
        scheduler = components["scheduler"]
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            components["scheduler"] = LTX2Scheduler.from_config(dict(scheduler.config))
        super().__init__(**components)

    @takes(DFRArguments)
    def __call__(self, call: DFRArguments) -> Result:
        """Make a pass. Its latents are those of a canvas of whole segments; decoded, it is as long as `num_frames`.

        Returns:
            [`LTX2DFRPipelineOutput`], or the tuple `(frames, audio, keyframes, keyframe_positions)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        check_pass(self, call)
        conditions = [*as_conditions("conditions", call.conditions), KeyframeCarrier(call, self)]
        stage = Stage(sigmas=call.sigmas, noise_scale=call.noise_scale, sampler="euler", tiles=call.video_tiles)
        prompts, request = call.request([stage], conditions, call.size, **NOISE)

        def hand_over(_: Any, made: engine.Generated, delivery: Delivery, originals: engine.Originals) -> Result:
            made, positions = _passed_on(self, call, made)
            return handed_over(self, made, delivery, originals, positions)

        return engine.run(self, prompts, request, hand_over=hand_over)

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
        if keyframe_latents.ndim != 5:
            raise ValueError(
                f"`keyframe_latents` has to be [B, C, K, h, w] but has shape {tuple(keyframe_latents.shape)}; add the axis of keyframes"
            )
        encoded = []
        for index, frame in enumerate(keyframe_latents.to(self._execution_device, torch.float32).split(1, dim=2)):
            generator = torch.Generator(device).manual_seed(seed + _REBUILDING_SEED + index)
            wish = Delivery("latent", True, None, (), decode_timestep, decode_noise_scale, generator)
            latent, timestep = engine.with_decoder_noise(self, frame, wish)
            clips = self.vae.decode(latent.to(self.vae.dtype), timestep, return_dict=False)[0]
            large = torch.stack([_enlarged(clip) for clip in clips])
            encoded.append(self.vae.encode(large.to(clips)).latent_dist.mode())
        self.maybe_free_model_hooks()
        return torch.cat(encoded, dim=2).to(device, dtype)


def check_pass(pipeline: LTX2DFRPipeline, call: DFRArguments) -> None:
    """Raise `ValueError` for what a pass is given and does not read, or reads and is not given."""
    if not isinstance(pipeline.scheduler, LTX2Scheduler | FlowMatchEulerDiscreteScheduler):
        raise ValueError(
            f"a pass takes no fresh noise in its steps, as {type(pipeline.scheduler).__name__} would; set pipe.scheduler = "
            "LTX2Scheduler(), or make a temporal round with LTX2DFRTemporalRefinePipeline"
        )
    if call.generate_slots:
        check_marks(pipeline)
    else:
        check_said("generate_slots=False makes no keyframes", call, "keyframes_latents", POSITIONS)
    if call.guidance_keyframe_latents is None:
        names = ("guidance_keyframe_positions", "guidance_keyframe_strength")
        check_said("there are no `guidance_keyframe_latents`", call, *names)
    elif call.guidance_keyframe_positions is None:
        raise ValueError(
            "`guidance_keyframe_latents` need their `guidance_keyframe_positions`; give a pixel frame for each"
        )
    if call.reference_latents is None:
        check_said("there are no `reference_latents`", call, "reference_downscale_factor")
    if call.freeze_audio and call.audio_latents is None:
        raise ValueError(
            "`freeze_audio` is True, but there are no `audio_latents` to keep; give those of the first pass"
        )
    if call.num_frames is None and call.latents is None and not pipeline.has("duration_head"):
        raise ValueError(
            "`num_frames` is not given, nor `latents` from which it would follow, and there is no `duration_head` to predict it; use "
            "for example 121"
        )


def _passed_on(
    pipeline: LTX2DFRPipeline, call: DFRArguments, made: engine.Generated
) -> tuple[engine.Generated, list[int]]:
    """The pass with its keyframes, and their pixel frames; without slots, with those that it was given."""
    if call.freeze_audio:
        # diffusers draws noise for a sound that takes none, after which its decoder draws.
        conditioning.GaussianNoiser(call.generator).draw(made.plan.audio, pipeline._execution_device)
    if made.keyframes is not None or call.guidance_keyframe_latents is None:
        return made, KeyframeCarrier(call, pipeline).positions(made.plan)
    given = pipeline.normalized_video(call.guidance_keyframe_latents, made.plan)
    return made._replace(keyframes=given), list(call.guidance_keyframe_positions or ())


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


@torch.no_grad()
def handed_over(
    pipeline: LTX2GenerationPipeline,
    made: engine.Generated,
    delivery: Delivery,
    originals: engine.Originals,
    given: Sequence[int],
) -> Result:
    """Decode and wrap up a pass; its keyframes are handed over beside latents alone, as nothing goes on from frames.

    Args:
        pipeline: The pipeline.
        made: The pass, with its keyframes.
        delivery: How it is handed over.
        originals: What is handed over as it was given.
        given: Pixel frames of the keyframes.
    """
    frames: torch.Tensor | None = None
    if delivery.output_type == "latent" and made.keyframes is not None:
        frames = pipeline.vae.denormalize_latents(made.keyframes)
    output = engine.deliver(pipeline, made, replace(delivery, return_dict=True), originals)
    shared = {one.name: getattr(output, one.name) for one in fields(output)}
    output = LTX2DFRPipelineOutput(**shared, keyframes=frames, keyframe_positions=None if frames is None else [*given])
    if delivery.return_dict:
        return output
    return output.frames, output.audio, output.keyframes, output.keyframe_positions
