"""What a call may say: every argument once, as a field of a frozen dataclass, and the groups in which they are passed on.

A recipe's `__call__` works on such an object; [`takes`] makes of it the call that users write.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial, wraps
from typing import Any, ClassVar, Concatenate, Literal, ParamSpec, TypeVar

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from .. import checks, declared
from ..adapters.strengths import StageStrengths
from ..conditioning import VIDEO_SCALE_FACTORS, LTX2DFREpilogueTile, Streams, TextContext
from ..guidance import NEUTRAL, GuidanceOptions, Preset, preset
from ..guidance.scales import PRESET, SCALE_ARGUMENTS, AudioScale, GivenScales, Scales, call_scales, sound_scales
from ..media.frames import FilePath, Frames
from ..media.writing import ClipFile
from ..models.duration_head import check_seconds
from ..prompts import Enhancement, Prompts
from ..sampling import Sampler, get_sampler
from ..schedulers.sigmas import check_sigmas, require_steps
from .conditions import Condition, Conditions, Sound
from .plan import Size, check_speed

Callback = Callable[..., dict[str, Any] | None]
Generators = torch.Generator | list[torch.Generator] | None
BOTH = Streams(True, True)

P = ParamSpec("P")
S = TypeVar("S")
A = TypeVar("A")
R = TypeVar("R")


@dataclass(frozen=True)
class Stage:
    """One run of the denoising loop.

    Args:
        spatial_scale, temporal_scale: Size of this stage over that of the finished clip.
        num_inference_steps, sigmas, timesteps: Noise levels; all `None` takes the preset's.
        scales: Guidance scales per stream, a pair of [`MultiModalGuiderParams`]; `None` for a run without guidance.
        stg_blocks: Blocks that spatio-temporal guidance perturbs, default the preset's.
        guidance_options: Ways of guiding beyond the scales.
        sampler: Name of the sampler; default the preset's in the first stage and `"euler"` in the others.
        noise_scale: Noise mixed into the latents that come in, default the first noise level.
        upsampler: Component that enlarges the latents of the stage before.
        adapters: LoRA adapters and strengths that this stage adds to the active ones, or changes: numbers, or one per
            component or part such as `{"style": {"video": 1.0, "audio": 0.0}}`. Strength 0 takes one out. Default `None`: the
            adapters as they are.
        transformer: Component that denoises.
        references: Whether reference videos take part.
        tiles: Windows of the video in which the transformer runs one after another, made with
            [`~ltx2_diffusers.conditioning.epilogue_tiles`]; default `None`, over the whole of it.
        end_sigma: Noise level where it ends, below its last one. Default 0.0; above it, what comes out is still noisy, and
            the next stage has to go on with it.
        goes_on: Whether it goes on with the noisy latents of the stage before, without fresh noise. Default `False`.
        adain_factor: How far enlarged latents take the mean and spread of every channel before, 0 to 1. Default 0.0.
        guiders: Makes the guiders of the streams, in place of `scales`, `stg_blocks` and `guidance_options`. Default `None`.
        network: Makes of the transformer what the denoiser calls. Default `None`, itself.
        new_sampler: Makes the sampler from the generator of the call, in place of a known name. Default `None`.
    """

    spatial_scale: float = 1.0
    temporal_scale: float = 1.0
    num_inference_steps: int | None = None
    sigmas: Sequence[float] | None = None
    timesteps: Sequence[float] | None = None
    scales: Scales | None = None
    stg_blocks: Sequence[int] | None = None
    guidance_options: GuidanceOptions | None = None
    sampler: str | None = None
    noise_scale: float | None = None
    upsampler: str | None = None
    adapters: StageStrengths | None = None
    transformer: str = "transformer"
    references: bool = True
    tiles: Sequence[LTX2DFREpilogueTile] | None = None
    end_sigma: float = 0.0
    goes_on: bool = False
    adain_factor: float = 0.0
    guiders: Callable[[], Streams[Any]] | None = None
    network: Callable[[Any], Any] | None = None
    new_sampler: Callable[[Generators], Sampler] | None = None

    def __post_init__(self) -> None:
        declared.settle(self)


@dataclass(frozen=True)
class Sampling:
    """How a call wants its stages to run.

    Args:
        first: The first stage at the size of the clip, and without its guidance scales.
        scales: Those that the call gives, for a checkpoint with these reference values.
        two_stage, stages, stage_2_sigmas, stage_1_adapters, stage_2_adapters: As in the calls of recipes in stages.
        given_scales: Guidance scales by the stream that their arguments name.
    """

    first: Stage
    scales: Callable[[Preset], Scales]
    two_stage: bool
    stages: Sequence[Stage] | None
    stage_2_sigmas: Sequence[float] | None
    stage_1_adapters: StageStrengths | None
    stage_2_adapters: StageStrengths | None
    given_scales: Streams[GivenScales]

    @property
    def second_stage_arguments(self) -> dict[str, Any]:
        """What is given and means nothing for a single stage."""
        names = ("stage_2_sigmas", "stage_2_adapters")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def stage_arguments(self) -> dict[str, Any]:
        """What is given and means nothing where stages are given; steps are left out beside any list."""
        names = ("sigmas", "timesteps", "sampler", "guidance_options")
        first = {name: getattr(self.first, name) for name in names if getattr(self.first, name) is not None}
        blocks = self.first.stg_blocks
        first |= {} if blocks is None else {"spatio_temporal_guidance_blocks": blocks}
        first |= {} if self.stage_1_adapters is None else {"stage_1_adapters": self.stage_1_adapters}
        return first | self.unguided(Streams(False, False)) | self.second_stage_arguments

    def unguided(self, guided: Streams[bool]) -> dict[str, Any]:
        """Scales that are given for streams that take no guidance, by the names of their arguments, but for neutral ones."""
        pairs = zip(guided, self.given_scales, ("", "audio_"))
        return {
            f"{prefix}{SCALE_ARGUMENTS[name]}": scale
            for is_guided, scales, prefix in pairs
            if not is_guided
            for name, scale in vars(scales).items()
            if scale not in (None, PRESET, getattr(NEUTRAL, name))
        }


@dataclass(frozen=True)
class Start:
    """Where noise comes from and what it is laid over.

    Args:
        generator: Source of noise, or one per video.
        latents, audio_latents: Latents to start from.
        packed_noise: Whether noise is drawn for the packed sequence with its appended tokens and, on the video, always
            scaled by the stage's `noise_scale`, as diffusers does for conditions; or for the target in its own shape
            first and unscaled. Noise over given latents is packed and scaled either way.
        own_shape_renoise: Whether noise over given video latents is drawn in their own shape instead, as diffusers does
            for image to video.
        blend: `"latent"` mixes noise into what conditions give, `"clean"` gives it to the noised latents; see
            [`~ltx2_diffusers.conditioning.GaussianNoiser`].
        noise_first: Whether noise is drawn before conditions are encoded, which then mix with it themselves. Default
            `False`.
        framed_noise: Whether noise for appended tokens is drawn as for further latent frames of the target. Default `False`.
        clip: Video to start from in place of `latents`, pixels `[1, 3, frames, H, W]` in [-1, 1], encoded at the size of
            the first stage.
    """

    generator: Generators = None
    latents: torch.Tensor | None = None
    audio_latents: torch.Tensor | None = None
    packed_noise: bool = False
    own_shape_renoise: bool = False
    blend: Literal["latent", "clean"] = "latent"
    noise_first: bool = False
    framed_noise: bool = False
    clip: torch.Tensor | None = None


@dataclass(frozen=True)
class Delivery:
    """In which form the result is handed over, and who watches on the way.

    Args:
        output_type, return_dict: As in the pipelines' calls.
        callback, callback_inputs: Step function and the tensors it sees.
        decode_timestep, decode_noise_scale: As in the pipelines' calls.
        generator: Source of the decoder's noise, or one per video.
        save_path: As in the pipelines' calls.
        decoder: As in the pipelines' calls.
        tone_map: How far large values of normalised latents are compressed before they are decoded, 0 (default) to 1.
        fit: What is done to decoded pixels `[B, 3, f, H, W]`. Default nothing.
    """

    output_type: str = "pil"
    return_dict: bool = True
    callback: Callback | None = None
    callback_inputs: Sequence[str] = ("latents",)
    decode_timestep: float | list[float] = 0.0
    decode_noise_scale: float | list[float] | None = None
    generator: Generators = None
    save_path: FilePath | None = None
    decoder: str = "vae"
    tone_map: float = 0.0
    fit: Callable[[torch.Tensor], torch.Tensor] | None = None

    @property
    def file(self) -> ClipFile | None:
        """The file to be written, if there is one."""
        path = self.save_path
        return path if path is None or isinstance(path, ClipFile) else ClipFile(path)

    @property
    def wanted(self) -> Sequence[str]:
        """Tensors that somebody watches."""
        return () if self.callback is None else self.callback_inputs


@dataclass(frozen=True)
class Request:
    """A whole generation but for its text.

    Args:
        size, start, delivery: See there.
        stages: Runs of the loop, each working on the result of the one before.
        conditions: What the streams are held to.
        streams: Which streams are generated, `(video, audio)`.
        audio_stage: Index of the stage whose sound is returned, default the last.
        use_cross_timestep: See the pipelines' argument of that name.
        attention_kwargs: Passed to the transformer.
        idle_audio: Whether a sound that is not generated runs along as noise, which the network hears beside the video.
    """

    size: Size
    stages: Sequence[Stage]
    start: Start = Start()
    delivery: Delivery = Delivery()
    conditions: Sequence[Condition] = ()
    streams: Streams[bool] = BOTH
    audio_stage: int = -1
    use_cross_timestep: bool | None = None
    attention_kwargs: dict[str, Any] | None = None
    idle_audio: bool = False

    @property
    def present(self) -> Streams[bool]:
        """Which streams the network sees."""
        return self.streams._replace(audio=self.streams.audio or self.idle_audio)


@dataclass(frozen=True)
class Texts:
    """What every call begins with, unless a recipe puts its own before it."""

    prompt: str | list[str] | None = None
    negative_prompt: str | list[str] | None = None


@dataclass(frozen=True)
class Arguments(Texts):
    """What a call takes; a recipe that takes something else says so in a class of its own.

    `None` (or `"preset"`) stands for the reference value of the checkpoint's version and kind. Shapes: B videos of the
    batch, T text positions, F latent frames, h and w latent rows and columns, L audio latents, M latent mel bins.

    Args:
        prompt: Text or list of texts. Either this or `prompt_embeds`.
        negative_prompt: Text to steer away from, one for all prompts or one each. Default the empty text. Only read
            with classifier-free or normalized attention guidance; as in diffusers it may be given without.
        height, width: Size in pixels, multiples of 32. Default that of `latents`, else 512 x 768.
        num_frames: Frames, 8 k + 1. Default that of `latents`; else what the `duration_head` of the pipeline predicts for the
            prompt, of which there may be one then; else, without a head, 121.
        min_seconds, max_seconds: Bounds of a length that is predicted, in seconds. Defaults 1.0 and 20.0; other values are
            refused where none is.
        frame_rate: Frames per second, above 0 and up to 1000. The sound lasts `num_frames / frame_rate` seconds, at most
            600; a clip shorter than half an audio latent (20 ms) has the sound of one, cut to its length.
        motion_speed: Speed of motion relative to real time, 0.01 to 100; below 1 is slow motion.
        num_inference_steps: Denoising steps. Not read when `sigmas` or `timesteps` are given.
        sigmas: Noise levels from 1e-6 to 1, falling. `LTX2Scheduler` uses them as they are, a FlowMatchEuler scheduler
            shifts them.
        timesteps: Noise levels times 1000, used as they are.
        guidance_scale: Classifier-free guidance of the video; 1 is neutral. Given as 1.0 while no other guidance
            argument is given, it switches all guidance off.
        stg_scale: Spatio-temporal guidance of the video; 0 is neutral.
        modality_scale: Guidance of the video away from a pass without sound; 1 is neutral.
        guidance_rescale: How far the guided prediction takes the spread of the unguided one, 0 to 1.
        audio_guidance_scale, audio_stg_scale, audio_modality_scale, audio_guidance_rescale: The same for the audio;
            `None` takes the video's value, 0.0 means 0.0.
        spatio_temporal_guidance_blocks: Blocks which spatio-temporal guidance perturbs.
        noise_scale: Noise mixed into given `latents` and `audio_latents`, 0 to 1; as in diffusers it may be given without
            them and is not read then. Default 0.0.
        num_videos_per_prompt: Videos per prompt.
        generator: Source of noise, or one per video. Noise is drawn on the generator's device, the CPU by default.
        latents: Video latents to start from: un-normalised `[B, C, F, h, w]`, or packed and normalised
            `[B, F * h * w, C]`.
        audio_latents: Audio latents to start from: un-normalised, `[B, C, L, M]` or packed `[B, L, C * M]`.
        prompt_embeds, negative_prompt_embeds: Results of `encode_prompt` `[B, T, ...]`. They keep their length T
            whatever `max_sequence_length` says, filled up to a multiple of the connectors' registers (128).
        prompt_attention_mask, negative_prompt_attention_mask: Their masks `[B, T]`.
        decode_timestep, decode_noise_scale: Noise level of the decoder and share of noise mixed in, for a VAE with
            timestep conditioning; others do not read it, as in diffusers. One value or one per video, 0 to 1.
        use_cross_timestep: Whose noise level modulates the exchange between the streams: the other stream's
            (`True`) or its own (`False`). All agree in plain text to video.
        enable_prompt_enhancement: Whether a language model rewrites the prompt before it is encoded; the text is
            returned in `info`. The other arguments are those of `enhance_prompt`.
        system_prompt, prompt_max_new_tokens, prompt_enhancement_kwargs, prompt_enhancement_seed: See `enhance_prompt`.
        image_crf: H.264 quality of the round trip that pictures take, 0 (none) to 51. Default the preset's: 33, or 18
            for 2.5. Floats cannot take it.
        output_type: `"pil"`, `"np"`, `"pt"`, `"uint8"` or `"latent"`; see [`LTX2PipelineOutput`].
        return_dict: Whether to return an [`LTX2PipelineOutput`] instead of the tuple `(frames, audio)`.
        attention_kwargs: Passed to the transformer's attention, which takes `{"scale": s}`: it scales LoRA adapters.
        callback_on_step_end: Called as `callback(pipeline, step, timestep, tensors)` after each step. A dict it
            returns may replace `latents` and `audio_latents`. Setting `pipeline._interrupt = True` ends the loop; setting
            `pipeline._guidance_scale` (or another scale, with its underscore) guides the steps that follow by the new value.
        callback_on_step_end_tensor_inputs: What `tensors` holds: any of `latents`, `audio_latents`,
            `prompt_embeds`, `negative_prompt_embeds`, and `denoised`, the step's prediction of the clean video as
            normalised latents `[B, C, F, h, w]`. `None` asks for none. A diffusers `PipelineCallback` says it itself.
        max_sequence_length: Text positions T of texts; longer prompts are cut. Default 1024, or the tokenizer's
            `model_max_length` if that is less.
        sampler: Name of the sampler; see [`~ltx2_diffusers.sampling.samplers.SAMPLERS`]. Default the preset's.
        guidance_options: Skipped steps, other formulas, scales by noise level, and a negative prompt without
            classifier-free guidance; see [`~ltx2_diffusers.guidance.GuidanceOptions`].
        save_path: File to write, ending in `.mp4` or `.mov` (`.wav` for sound alone), as `output.save` writes it; the output
            then holds no frames and no sound but `info["path"]`. A clip whose decoding streams is encoded while the rest of
            it is decoded, and is never in memory as a whole. Of a batch, each clip gets a file, as in `output.save`, and
            `info["path"]` lists them. A file appears only when complete, and not after an error. A [`ClipFile`] in place of the
            name has it grow under another name meanwhile, leaves out the sound, or tells how many frames are encoded.
        decoder: What makes frames of the latents: `"vae"` (default), or `"diffusion"`, the component `diffusion_decoder`, which
            takes noise from `generator` when everything else has; `decode_timestep` and `decode_noise_scale` are not read
            then.
    """

    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    min_seconds: float = 1.0
    max_seconds: float = 20.0
    frame_rate: float | None = 24.0
    motion_speed: float = 1.0
    # What only some calls take is no argument here; they make it one, in its place.
    two_stage: bool = field(init=False, default=False)
    num_inference_steps: int | None = None
    sigmas: Sequence[float] | None = None
    timesteps: Sequence[float] | None = None
    guidance_scale: float | None = None
    stg_scale: float | None = None
    modality_scale: float | None = None
    guidance_rescale: float | None = None
    audio_guidance_scale: AudioScale = PRESET
    audio_stg_scale: AudioScale = PRESET
    audio_modality_scale: AudioScale = PRESET
    audio_guidance_rescale: AudioScale = PRESET
    spatio_temporal_guidance_blocks: list[int] | None = None
    stage_2_sigmas: Sequence[float] | None = field(init=False, default=None)
    stage_1_adapters: StageStrengths | None = field(init=False, default=None)
    stage_2_adapters: StageStrengths | None = field(init=False, default=None)
    stages: Sequence[Stage] | None = field(init=False, default=None)
    audio_stage: int = field(init=False, default=-1)
    noise_scale: float | None = 0.0
    num_videos_per_prompt: int = 1
    generator: Generators = None
    latents: torch.Tensor | None = None
    audio_latents: torch.Tensor | None = None
    prompt_embeds: torch.Tensor | None = None
    prompt_attention_mask: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    negative_prompt_attention_mask: torch.Tensor | None = None
    connector_video_embeds: torch.Tensor | None = field(init=False, default=None)
    connector_audio_embeds: torch.Tensor | None = field(init=False, default=None)
    decode_timestep: float | list[float] = 0.0
    decode_noise_scale: float | list[float] | None = None
    use_cross_timestep: bool | None = None
    system_prompt: str | None = None
    enable_prompt_enhancement: bool = False
    prompt_max_new_tokens: int | None = None
    prompt_enhancement_kwargs: dict[str, Any] | None = None
    prompt_enhancement_seed: int = 10
    image_crf: int | None = field(init=False, default=None)
    output_type: str = "pil"
    return_dict: bool = True
    attention_kwargs: dict[str, Any] | None = None
    callback_on_step_end: Callback | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",)
    max_sequence_length: int = 1024
    sampler: str | None = None
    guidance_options: GuidanceOptions | None = None
    save_path: FilePath | None = None
    decoder: str = "vae"

    frame_stride: ClassVar[int] = VIDEO_SCALE_FACTORS.time
    """Pixel frames that a latent frame stands for, one of which a number of frames may have more."""

    def check(self) -> None:
        """Raise `ValueError` for what is wrong whatever the checkpoint, which need not be loaded to find it.

        Sides and frames are counted as by the autoencoders of all published checkpoints.
        """
        multiple = VIDEO_SCALE_FACTORS.height * (2 if self.two_stage and self.stages is None else 1)
        height, width = (multiple if side is None else side for side in (self.height, self.width))
        checks.check_size(height, width, multiple)
        frames = 1 if self.num_frames is None else self.num_frames
        checks.check_num_frames(frames, self.frame_stride)
        rate = 24.0 if self.frame_rate is None else self.frame_rate
        check_speed(frames, Size(frame_rate=rate, motion_speed=self.motion_speed))
        check_seconds(self.min_seconds, self.max_seconds)
        if self.num_inference_steps is not None:
            require_steps(self.num_inference_steps)
        for name in ("sigmas", "stage_2_sigmas"):
            if getattr(self, name) is not None:
                check_sigmas(getattr(self, name), name)
        if self.sampler is not None:
            get_sampler(self.sampler)
        self.scales(preset("2.0"))
        checks.check_unit(noise_scale=self.noise_scale)
        numbers = {
            "num_videos_per_prompt": self.num_videos_per_prompt,
            "max_sequence_length": self.max_sequence_length,
        }
        checks.check_at_least_one(**numbers)

    def request(
        self,
        stages: Sequence[Stage],
        conditions: Sequence[Condition] = (),
        size: Size | None = None,
        streams: Streams[bool] = BOTH,
        idle_audio: bool = False,
        **noise: Any,
    ) -> tuple[Prompts, Request]:
        """The call in two parts: its text, and everything else.

        Args:
            stages: Runs of the denoising loop.
            conditions: What the streams are held to.
            size: Size of the clip, default what the call says.
            streams: Which streams are generated.
            idle_audio: See [`Request`].
            noise: `packed_noise`, `own_shape_renoise` and `blend` of [`Start`].
        """
        seconds = (self.min_seconds, self.max_seconds)
        check_seconds(*seconds)
        asked = (self.enable_prompt_enhancement, self.system_prompt, self.prompt_max_new_tokens)
        enhancement = Enhancement(*asked, self.prompt_enhancement_kwargs, self.prompt_enhancement_seed)
        embeds = (self.prompt_embeds, self.negative_prompt_embeds)
        masks = (self.prompt_attention_mask, self.negative_prompt_attention_mask)
        count, length = self.num_videos_per_prompt, self.max_sequence_length
        texts = Prompts(self.prompt, self.negative_prompt, embeds, masks, count, length, enhancement, self.contexts)
        if size is None:
            rate = 24.0 if self.frame_rate is None else self.frame_rate
            size = Size(self.height, self.width, self.num_frames, rate, self.motion_speed, seconds)
        start = Start(self.generator, self.latents, self.audio_latents, **noise)
        drawn = (self.decode_timestep, self.decode_noise_scale, self.generator)
        callback, names = watched_by(self.callback_on_step_end, self.callback_on_step_end_tensor_inputs)
        form = (self.output_type, self.return_dict, callback, names)
        delivery = Delivery(*form, *drawn, self.save_path, self.decoder)
        rest = (self.audio_stage, self.use_cross_timestep, self.attention_kwargs, idle_audio)
        request = Request(size, stages, start, delivery, conditions, streams, *rest)
        return texts, request

    @property
    def contexts(self) -> TextContext | None:
        """What stands in place of the prompts, as the streams attend to it."""
        return None

    @property
    def sampling(self) -> Sampling:
        """How the stages run."""
        first = Stage(
            num_inference_steps=self.num_inference_steps,
            sigmas=self.sigmas,
            timesteps=self.timesteps,
            stg_blocks=self.spatio_temporal_guidance_blocks,
            guidance_options=self.guidance_options,
            sampler=self.sampler,
            noise_scale=self.noise_scale,
        )
        adapters = (self.stage_1_adapters, self.stage_2_adapters)
        rest = (self.two_stage, self.stages, self.stage_2_sigmas, *adapters)
        return Sampling(first, self.scales, *rest, self.given_scales)

    @property
    def video_scales(self) -> GivenScales:
        """Guidance scales without a prefix."""
        return GivenScales(self.guidance_scale, self.stg_scale, self.guidance_rescale, self.modality_scale)

    @property
    def given_scales(self) -> Streams[GivenScales]:
        """Guidance scales by the stream that their arguments name."""
        audio = GivenScales(
            self.audio_guidance_scale, self.audio_stg_scale, self.audio_guidance_rescale, self.audio_modality_scale
        )
        return Streams(self.video_scales, audio)

    @property
    def scales(self) -> Callable[[Preset], Scales]:
        """From the reference values of a checkpoint to the guidance scales of both streams."""
        return partial(call_scales, given=self.given_scales, options=self.guidance_options)


@dataclass(frozen=True)
class Unguided:
    """What calls without guidance do not take; to be put before the other bases."""

    num_inference_steps: None = field(init=False, default=None)
    guidance_scale: None = field(init=False, default=None)
    stg_scale: None = field(init=False, default=None)
    modality_scale: None = field(init=False, default=None)
    guidance_rescale: None = field(init=False, default=None)
    audio_guidance_scale: AudioScale = field(init=False, default=PRESET)
    audio_stg_scale: AudioScale = field(init=False, default=PRESET)
    audio_modality_scale: AudioScale = field(init=False, default=PRESET)
    audio_guidance_rescale: AudioScale = field(init=False, default=PRESET)
    spatio_temporal_guidance_blocks: None = field(init=False, default=None)


@dataclass(frozen=True)
class StagedArguments(Arguments):
    """What recipes in several stages take. Height and width are multiples of 64 with two stages.

    Args:
        num_inference_steps: Denoising steps. Not read when `sigmas` are given.
        two_stage: Whether to start at half the size and refine at full size.
        stage_2_sigmas: Noise levels of the second stage, in (0, 1] and falling; default the preset's.
        stage_1_adapters, stage_2_adapters: LoRA strengths by adapter name, as in [`Stage`], that a stage adds to the active
            adapters, or changes; 0 takes one out. On a dev checkpoint the second stage adds `{"distilled": 1.0}` by default, which the
            first stage runs without; `{}` refines with the same weights. With one stage, only the first may be given.
        stages: Stages to run in place of the default ones, see [`~ltx2_diffusers.pipelines.arguments.Stage`]; the
            arguments of sampling, guidance and adapters have to be left out then, and steps are not read.
        audio_stage: Index of the stage whose sound is returned: -1 (default) the refined one, 0 that of the first.
    """

    min_seconds: float = field(init=False, default=1.0)
    max_seconds: float = field(init=False, default=20.0)
    timesteps: None = field(init=False, default=None)
    noise_scale: None = field(init=False, default=None)
    latents: torch.Tensor | None = field(init=False, default=None)
    audio_latents: torch.Tensor | None = field(init=False, default=None)
    two_stage: bool = True
    stage_2_sigmas: Sequence[float] | None = None
    stage_1_adapters: StageStrengths | None = None
    stage_2_adapters: StageStrengths | None = None
    stages: Sequence[Stage] | None = None
    audio_stage: int = -1


@dataclass(frozen=True)
class SoundArguments(StagedArguments):
    """What recipes take that make only sound. Their guidance belongs to the sound and takes its presets.

    Args:
        num_inference_steps: Denoising steps. Not read when `sigmas` are given.
        guidance_scale: Classifier-free guidance; 1 is neutral. Given as 1.0 while no other guidance argument is given, it
            switches all guidance off.
        stg_scale: Spatio-temporal guidance; 0 is neutral.
        modality_scale: Guidance away from a pass without the video; 1 is neutral.
        guidance_options: As in [`LTX2Pipeline`]. The skipped steps and bins of the audio are read; those of the video are
            refused.
    """

    audio_guidance_scale: AudioScale = field(init=False, default=PRESET)
    audio_stg_scale: AudioScale = field(init=False, default=PRESET)
    audio_modality_scale: AudioScale = field(init=False, default=PRESET)
    audio_guidance_rescale: AudioScale = field(init=False, default=PRESET)
    decode_timestep: float | list[float] = field(init=False, default=0.0)
    decode_noise_scale: float | list[float] | None = field(init=False, default=None)
    two_stage: bool = False
    decoder: str = field(init=False, default="vae")

    @property
    def given_scales(self) -> Streams[GivenScales]:
        """None that belong to a stream which takes no guidance."""
        return Streams(GivenScales(), GivenScales())

    @property
    def scales(self) -> Callable[[Preset], Scales]:
        """The same; those without a prefix belong to the sound."""
        return partial(sound_scales, given=self.video_scales, options=self.guidance_options)


@dataclass(frozen=True)
class GivenArguments(Texts):
    """What a clip can be made from beside the text.

    Args:
        image: First frame; short for `conditions=[LTX2VideoCondition(image)]`.
        conditions: Pictures and clips, and any other conditions.
        reference_conditions: Reference videos for an active IC-LoRA; they take part in the first stage only, so the LoRA
            is best taken out of the second one by a strength of 0 in `stage_2_adapters`.
        audio: Sound of the clip: a waveform `[C, N]` or `[B, C, N]` in [-1, 1], or the name of a media file.
        sampling_rate: Samples per second of a waveform.
        audio_cond_noise_scale: 0 keeps the sound exactly and returns it untouched (default), 1 ignores it.
        audio_fit: What happens to sound shorter than the clip: `"crop"` (default) is an error, `"pad"` adds silence,
            `"stretch"` changes the tempo. Longer sound is cropped.
        audio_start_s: Where in the sound the clip begins, in seconds.
        generate_audio: Whether the clip has sound; `False` leaves the audio stream out.
    """

    image: Frames | None = None
    conditions: Conditions = None
    reference_conditions: Conditions = None
    audio: Sound | None = None
    sampling_rate: int | None = None
    audio_cond_noise_scale: float = 0.0
    audio_fit: str = "crop"
    audio_start_s: float = 0.0
    generate_audio: bool = True
    two_stage: bool = True


def texts_of(call: Any, prompt: str | list[str] | None) -> Prompts:
    """A call's texts or their states, with this prompt."""
    embeds = (call.prompt_embeds, call.negative_prompt_embeds)
    masks = (call.prompt_attention_mask, call.negative_prompt_attention_mask)
    return Prompts(prompt, call.negative_prompt, embeds, masks, call.num_videos_per_prompt, call.max_sequence_length)


def watched_by(callback: Callback | None, names: Sequence[str] | None) -> tuple[Callback | None, Sequence[str]]:
    """A callback and the tensors that it wants to see."""
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        names = callback.tensor_inputs
    return callback, names or ()


def takes(arguments: Callable[P, A]) -> Callable[[Callable[[S, A], R]], Callable[Concatenate[S, P], R]]:
    """Make of a method that works on an arguments object the call that takes the arguments themselves.

    The call has the object's fields as its signature, and their documentation as its own.

    Args:
        arguments: The dataclass.
    """
    parameters = list(inspect.signature(arguments).parameters.values())

    def decorate(method: Callable[[S, A], R]) -> Callable[Concatenate[S, P], R]:
        own = inspect.signature(method)
        signature = own.replace(parameters=[own.parameters["self"], *parameters])

        @wraps(method)
        def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                signature.bind(self, *args, **kwargs)
            except TypeError as error:
                known = list(signature.parameters)[1:]
                raise TypeError(f"{type(self).__name__}.__call__() {_explained(str(error), kwargs, known)}") from None
            given = arguments(*args, **kwargs)
            declared.settle(given)
            return method(self, given)

        call.__dict__["__signature__"] = signature
        call.__dict__["arguments"] = arguments
        call.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": own.return_annotation}
        call.__doc__ = _documented(method.__doc__ or "", arguments, [parameter.name for parameter in parameters])
        return call

    return decorate


def _explained(error: str, given: Iterable[str], known: list[str]) -> str:
    """What is wrong with the names of a call, and what it takes."""
    wrong = next((name for name in given if name not in known), None)
    meant = get_close_matches(wrong or "", known, n=1, cutoff=0.8)
    hint = f"; did you mean `{meant[0]}`?" if meant else "."
    return f"{error}{hint} It takes {', '.join(known)}"


def _documented(text: str, arguments: Any, names: list[str]) -> str:
    """A method's docstring with the descriptions of its arguments put before what it returns."""
    described: dict[str, str] = {}
    for kind in reversed(arguments.__mro__):
        entries = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")[2]
        for entry in re.split(r"\n(?=    \w)", entries):
            described |= dict.fromkeys(entry.partition(":")[0].strip().split(", "), entry.rstrip())
    read = dict.fromkeys(described[name] for name in names if name in described)
    head, returns, tail = inspect.cleandoc(text).partition("Returns:")
    return f"{head}Args:\n{chr(10).join(read)}\n\n{returns}{tail}"
