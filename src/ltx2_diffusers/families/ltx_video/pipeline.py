"""The pipeline of LTX-Video: its components, its call, and what the engine asks of it.

Shapes: B videos of the batch, C channels, F latent frames, h and w latent rows and columns, S text tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import cycle
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from diffusers.utils import logging
from PIL.Image import Image
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ... import checks
from ...adapters.active import DISTILLED_ADAPTER
from ...adapters.strengths import StageStrengths
from ...conditioning import Streams
from ...guidance import NEUTRAL, Preset
from ...media.frames import FilePath, check_crf, rate_to_read, read_frames
from ...pipelines.arguments import Callback, Delivery, Generators, Request, Start, takes, texts_of, watched_by
from ...pipelines.engine import check_said, check_unread, run
from ...pipelines.generation import LTX2GenerationPipeline, Scheduler
from ...pipelines.output import Result
from ...pipelines.plan import ClipPlan, ModelSizes, Size, check_speed
from ...sampling.samplers import gaussian_noise
from .conditions import FrameCondition, LTXVideoCondition, Preparation, ReferenceCondition, resized
from .loading import LTXVideoLoading
from .media import Extent, canvas_of, degraded, fitted, margins
from .networks import LTXVideoCodec
from .passes import SECOND, UPSAMPLER, Network, Passes, chosen_passes, first_sides, stages, with_arguments
from .presets import DEFAULT_FRAME_RATE, DEFAULT_SIZE, LTXVideoPreset, PassSettings, frozen, ltx_video_preset
from .steps import TokenSampler
from .text import DEFAULT_TEXT_POSITIONS

logger = logging.get_logger(__name__)
Fit = Callable[[torch.Tensor], torch.Tensor]
DOWNSCALE_FACTOR = 0.6666666
"""Size of a first pass over that of the finished clip, as every preset with two scales has it."""

_HELD_NOISE = "image_cond_noise_scale"


@dataclass(frozen=True)
class _First:
    """What comes first."""

    conditions: LTXVideoCondition | list[LTXVideoCondition] | None = None
    image: Any = None
    video: Any = None
    frame_index: int | list[int] = 0
    strength: float | list[float] = 1.0
    denoise_strength: float = 1.0
    prompt: str | list[str] | None = None
    negative_prompt: str | list[str] | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    frame_rate: float = DEFAULT_FRAME_RATE
    num_inference_steps: int | None = None
    timesteps: Sequence[float] | None = None
    guidance_scale: float | Sequence[float] | None = None
    guidance_rescale: float = 0.0
    image_cond_noise_scale: float | None = None
    num_videos_per_prompt: int = 1
    generator: Generators = None
    latents: torch.Tensor | None = None


@dataclass(frozen=True)
class SharedArguments:
    """What every call takes of states of the text, decoding and delivery."""

    prompt_embeds: torch.Tensor | None = None
    prompt_attention_mask: torch.Tensor | None = None
    negative_prompt_embeds: torch.Tensor | None = None
    negative_prompt_attention_mask: torch.Tensor | None = None
    decode_timestep: float | list[float] | None = None
    decode_noise_scale: float | list[float] | None = None
    output_type: str = "pil"
    return_dict: bool = True
    attention_kwargs: dict[str, Any] | None = None
    callback_on_step_end: Callback | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",)
    max_sequence_length: int = DEFAULT_TEXT_POSITIONS


@dataclass(frozen=True)
class LTXVideoArguments(SharedArguments, _First):
    """What the call takes; `None` stands for the value of the checkpoint's preset.

    Args:
        conditions: One or several [`LTXVideoCondition`]: pictures and clips at any frame.
        image, video: A picture or a clip, or a list of them (of pictures in `video`: the frames of one clip), shown at `frame_index` with `strength`; short for `conditions`.
        frame_index, strength: One for all, or a list. Default 0 and 1.0.
        denoise_strength: Share of the first pass's steps that are made, from the end, 0 to 1: with `media_items` or
            `latents`, how far the result may go from them. Default 1.0.
        prompt, negative_prompt: Texts; the negative one is read with classifier-free guidance. Default the empty text.
        height, width: Size in pixels. Default that of `latents`, else 704 x 1216. What is generated has multiples of 32,
            8 k + 1 frames, and the clip of another size in its middle: conditions get a grey border, and decoded frames are cut
            to the size and number that was asked for. Latents stay as large as they are.
        num_frames: Frames. Default those of `latents`, else 121.
        frame_rate: Frames per second, above 0 and up to 1000. Default 30.0.
        num_inference_steps: Steps of the first pass. Default the preset's.
        timesteps: Noise levels of the first pass times 1000, falling, without a final 0; not beside `num_inference_steps`.
        guidance_scale: Classifier-free guidance of the first pass, from 1 (none); a number, or one for each of
            `guidance_timesteps`.
        guidance_rescale: Share in which predictions with classifier-free guidance take the deviation of those without, 0
            (default, none) to 1. It excludes a `rescaling_scale` that acts.
        image_cond_noise_scale: Noise on what conditions hold exactly, 0 to 1. Default 0.15, or 0.0 with references.
        num_videos_per_prompt: Videos per prompt.
        generator: Source of noise, or one per video, drawn on its device, the CPU by default.
        latents: Normalised latents to start from, `[B, C, F, h, w]` of the first pass's size; noise of its first level is
            mixed into them.
        prompt_embeds, negative_prompt_embeds: States of the text encoder `[B, S, W]`.
        prompt_attention_mask, negative_prompt_attention_mask: Their masks `[B, S]`.
        decode_timestep, decode_noise_scale: Noise level at which the video is decoded and share of noise mixed in before, 0
            to 1, for a checkpoint that is told its level. One value or one per video.
        output_type: `"pil"`, `"np"`, `"pt"`, `"uint8"`, or `"latent"`: normalised latents of the last pass's size.
        return_dict: Whether to return an [`LTX2PipelineOutput`] instead of the tuple `(frames,)`.
        attention_kwargs: Passed to the transformer, which takes `{"scale": s}`: it scales LoRA adapters.
        callback_on_step_end, callback_on_step_end_tensor_inputs: As in [`LTX2Pipeline`].
        max_sequence_length: Text positions; longer prompts are cut. Default 256.
        media_items: Clip that the first pass starts from (video to video), as `video`; it needs a first noise level below 1,
            by `denoise_strength` or `timesteps`.
        reference_conditions: One or several [`LTXVideoCondition`] at frame 0 that an IC-LoRA follows: depth, poses, edges.
        multi_scale: Whether a first pass at about two thirds of the size is enlarged by `latent_upsampler`, refined by a
            second one and brought to the asked size. Default as the preset has it.
        stg_scale, rescaling_scale, skip_block_list, guidance_timesteps, guidance_lookup, cfg_star_rescale: Of the first pass,
            see [`PassSettings`].
        stg_mode: What spatio-temporal guidance does to blocks. `"residual"` changes nothing on these networks, as in the
            original.
        stochastic_sampling: Whether a step replaces what is left of the noise by fresh noise.
        first_pass, continued_pass, second_pass: Whole settings of passes, in place of the preset's.
        adain_factor: How far enlarged latents take mean and spread of those before, 0 to 1.
        tone_map_compression_ratio: How far large latent values are compressed before they are decoded, 0 to 1.
        stage_1_adapters, stage_2_adapters: LoRA strengths by adapter name that the first pass, and those after it, add to the
            active adapters, or change; 0 takes one out.
        image_crf: H.264 quality of the round trip that pictures and clips of conditions take, 0 (none) to 51.
        image_blur: Whether they are blurred before.
        packed_noise: Whether noise is drawn in the order of tokens, as the original does; default `False`, in that of latents,
            as diffusers.
        save_path: File to write, as in [`LTX2Pipeline`].
    """

    media_items: Any = None
    reference_conditions: LTXVideoCondition | list[LTXVideoCondition] | None = None
    multi_scale: bool | None = None
    stg_scale: float | Sequence[float] | None = None
    rescaling_scale: float | Sequence[float] | None = None
    skip_block_list: Sequence[int] | Sequence[Sequence[int]] | None = None
    guidance_timesteps: Sequence[float] | None = None
    guidance_lookup: str | None = None
    cfg_star_rescale: bool | None = None
    stg_mode: str | None = None
    stochastic_sampling: bool | None = None
    first_pass: PassSettings | None = None
    continued_pass: PassSettings | None = None
    second_pass: PassSettings | None = None
    adain_factor: float | None = None
    tone_map_compression_ratio: float | None = None
    stage_1_adapters: StageStrengths | None = None
    stage_2_adapters: StageStrengths | None = None
    image_crf: int | None = None
    image_blur: bool | None = None
    packed_noise: bool = False
    save_path: FilePath | None = None

    def check(self) -> None:
        """Raise `ValueError` for what is wrong whatever the checkpoint, which need not be loaded to find it."""
        check_speed(self.size(DEFAULT_SIZE)[2], Size(frame_rate=self.frame_rate))
        checks.check_unit(denoise_strength=self.denoise_strength)
        checks.check_at_least_one(num_videos_per_prompt=self.num_videos_per_prompt)
        if self.image_crf is not None:
            check_crf("image_crf", self.image_crf)
        for name in ("image", "video"):
            if isinstance(given := getattr(self, name), list | tuple) and not given:
                raise ValueError(f"`{name}` is an empty list; give at least one, or leave it out")

    def size(self, usual: Sequence[int]) -> Extent:
        """Height, width and frames of the finished clip: what is said, and else the usual ones."""
        said = (self.height, self.width, self.num_frames)
        height, width, num_frames = (one if given is None else given for given, one in zip(said, usual))
        checks.check_at_least_one(height=height, width=width, num_frames=num_frames)
        checks.check_most(checks.MAX_SIDE, height=height, width=width)
        if self.save_path is not None and (height % 2 or width % 2):
            even = (height + height % 2, width + width % 2)
            raise ValueError(
                f"`height` and `width` have to be even in a file but are {height} and {width}; use {even}"
            )
        return height, width, num_frames

    def check_read(self, settings: LTXVideoPreset, passes: Sequence[PassSettings], is_enlarged: bool) -> None:
        """Raise `ValueError` for what is said and would change nothing.

        Args:
            settings: Of the checkpoint; saying the same asks for nothing.
            passes: Of the call.
            is_enlarged: Whether the last one has twice the size of those before.
        """
        shown = (self.conditions, self.reference_conditions, self.image, self.video)
        is_held, first, perturbs = any(map(as_list, shown)), passes[0], [one.most("stg_scale") > 0 for one in passes]
        no_cfg = "there is no classifier-free guidance (`guidance_scale` 1)"
        no_stg = "there is no spatio-temporal guidance (`stg_scale` 0)"
        read = (
            (is_held, "there is no condition", _HELD_NOISE),
            (is_held or self.media_items is not None, "there is neither picture nor clip", "image_crf", "image_blur"),
            (is_enlarged, "the call has one scale", "adain_factor"),
            (len(passes) > 1, "the call has one pass", "stage_2_adapters"),
            (self.output_type != "latent", "latents are not decoded", "tone_map_compression_ratio"),
            # `guidance_rescale` stays beside scale 1 in calls that go from dev checkpoints to distilled ones.
            (first.most("guidance_scale") > 1, no_cfg, "cfg_star_rescale"),
            (perturbs[0], no_stg, "rescaling_scale", "skip_block_list"),
            (any(perturbs), no_stg, "stg_mode"),
            (first.changes, "no scale of the first pass is a list", "guidance_timesteps", "guidance_lookup"),
        )
        usual = vars(PassSettings()) | vars(settings)
        for is_read, why, *names in read:
            said = {} if is_read else {name: getattr(self, name) for name in names}
            check_unread(why, {name: one for name, one in said.items() if one not in (None, 0, usual.get(name))})

    def preset(self, settings: LTXVideoPreset) -> LTXVideoPreset:
        """Settings of the checkpoint with what the call says instead."""
        names = ("stg_mode", "stochastic_sampling", "adain_factor", "image_crf", "image_blur", _HELD_NOISE)
        said = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.reference_conditions:
            # What an IC-LoRA follows is shown as it is.
            said.setdefault(_HELD_NOISE, 0.0)
        checks.check_unit(image_cond_noise_scale=self.image_cond_noise_scale)
        return replace(settings, **said)

    def clip(self, preset: LTXVideoPreset, size: Extent, canvas: Extent) -> torch.Tensor | None:
        """Pixels `[1, 3, frames, H, W]` of `media_items`, of this height, width and number of frames, on a larger canvas."""
        if self.media_items is None:
            return None
        if self.latents is not None:
            raise ValueError("`media_items` and `latents` are both given to start from; leave one of them out")
        rate = rate_to_read(None, self.media_items, self.frame_rate)
        pixels = read_frames(self.media_items, canvas[2], name="media_items", frame_rate=rate)
        if (count := len(pixels)) < size[2]:
            raise ValueError(f"`media_items` have {count} frames, fewer than the video; use num_frames={count}")
        pixels = torch.cat([pixels, pixels[-1:].expand(canvas[2] - count, -1, -1, -1)])
        frames = degraded(fitted(pixels, *size[:2]), preset.image_crf, preset.image_blur)
        return torch.nn.functional.pad(frames, margins(size, canvas))

    def listed_conditions(self, preparation: Preparation) -> list[FrameCondition]:
        """References first, as in the sequence that IC-LoRAs were trained with, then pictures and clips."""
        references = [ReferenceCondition(one, preparation) for one in as_list(self.reference_conditions)]
        given = as_list(self.conditions)
        if given and (self.image is not None or self.video is not None):
            raise ValueError("`conditions` are given, and `image` or `video` too; put these into the conditions")
        if self.image is None and self.video is None:
            check_said("there is neither `image` nor `video`", self, "frame_index", "strength")
        given = given or self._short_conditions()
        return [*references, *(FrameCondition(one, preparation) for one in given)]

    def _short_conditions(self) -> list[LTXVideoCondition]:
        shown: list[dict[str, Any]] = [{"image": one} for one in as_list(self.image)]
        shown += [{"video": one} for one in ([self.video] if is_frames(self.video) else as_list(self.video))]
        for name in ("frame_index", "strength"):
            values, count = as_list(getattr(self, name)), len(shown)
            if count and len(values) not in (1, count):
                raise ValueError(f"`{name}` has {len(values)} values for {count} pictures and clips; give one each")
            for one, value in zip(shown, cycle(values)):
                one[name] = value
        return [LTXVideoCondition(**one) for one in shown]


def pass_arguments(call: Any) -> dict[str, Any]:
    """What a call says of its first pass, lists as tuples."""
    said = {field.name: frozen(getattr(call, field.name, None)) for field in fields(PassSettings)}
    return said | {"timesteps": call.timesteps and tuple(timestep / 1000 for timestep in call.timesteps)}


def delivery_of(call: Any, preset: LTXVideoPreset, tone_map: float = 0.0, fit: Fit | None = None) -> Delivery:
    """In which form the result of a call is handed over."""
    checks.check_unit(tone_map_compression_ratio=tone_map)
    timestep, share = call.decode_timestep, call.decode_noise_scale
    # As in diffusers, a level that is given alone is the share of noise, too.
    if timestep is None:
        timestep, share = preset.decode_timestep, preset.decode_noise_scale if share is None else share
    form = (call.output_type, call.return_dict)
    watch = watched_by(call.callback_on_step_end, call.callback_on_step_end_tensor_inputs)
    drawn = (timestep, share, call.generator)
    return Delivery(*form, *watch, *drawn, call.save_path, tone_map=tone_map, fit=fit)


def as_list(value: Any) -> list[Any]:
    """What a call gives as one or several."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def is_frames(value: Any) -> bool:
    """Whether a list holds the frames of one clip, and not several clips."""
    return bool(as_list(value)) and all(isinstance(one, Image) or getattr(one, "ndim", 0) == 3 for one in value)


class LTXVideoBase(LTXVideoLoading):
    """The components of a checkpoint of LTX-Video, and what the engine asks of them.

    Args:
        scheduler: Noise schedule of a folder; a call takes its levels from the preset.
        vae: Video autoencoder.
        text_encoder: T5 encoder.
        tokenizer: Its tokenizer.
        transformer: The denoising network.
        latent_upsampler: Doubles height and width between two passes; needed with `multi_scale`.
        stage_2_transformer: Transformer of the passes after the first one: a smaller one that refines, or the distilled one
            of a mix.
        preset: Name of the checkpoint's settings, see [`ltx_video_preset`]. Default what the networks tell of them.
    """

    # diffusers' own networks.
    vae: Any
    transformer: Any
    model_cpu_offload_seq: Any = "text_encoder->transformer->latent_upsampler->stage_2_transformer->vae"
    _optional_components = [UPSAMPLER, SECOND]  # noqa: RUF012 (diffusers reads a list)
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds", "denoised"]  # noqa: RUF012
    _lora_loadable_modules = ["transformer"]  # noqa: RUF012

    # Parts of LTX-2 alone.
    audio_vae = vocoder = connectors = processor = prompt_enhancer = None  # type: ignore[assignment]

    def __init__(
        self,
        scheduler: Scheduler,
        vae: AutoencoderKLLTXVideo,
        text_encoder: T5EncoderModel,
        tokenizer: PreTrainedTokenizerBase,
        transformer: LTXVideoTransformer3DModel,
        latent_upsampler: LTXLatentUpsamplerModel | None = None,
        stage_2_transformer: LTXVideoTransformer3DModel | None = None,
        preset: str | None = None,
    ) -> None:
        super(LTX2GenerationPipeline, self).__init__()
        text = {"text_encoder": text_encoder, "tokenizer": tokenizer}
        optional = {UPSAMPLER: latent_upsampler, SECOND: stage_2_transformer}
        self._register(vae=vae, **text, transformer=transformer, scheduler=scheduler, **optional)
        self.register_to_config(preset=preset)
        if preset is not None:
            ltx_video_preset(preset)
        self.reset(Streams(NEUTRAL, NEUTRAL), None)

    def enable_parallelism(self, what: str = "tokens") -> None:
        """Refused: a call is made by one process."""
        raise ValueError(f"calls of LTX-Video cannot share their work (what={what!r}); run one process for each video")

    @property
    def codec(self) -> LTXVideoCodec:
        """The video autoencoder with the methods of this package's."""
        return LTXVideoCodec(self.vae)

    @property
    def preset(self) -> Preset:
        """What a stage takes where it says nothing; stages of this pipeline say everything."""
        own = self.settings
        return Preset(own.version, own.kind, 1, NEUTRAL, NEUTRAL, 0, "own", own.image_crf)

    @property
    def sizes(self) -> ModelSizes:
        """What the networks make of pixels and frames; there is no sound."""
        spatial, temporal = self.vae_spatial_compression_ratio, self.vae_temporal_compression_ratio
        channels, causal = self.transformer.config.in_channels, self.settings.causal_temporal_positioning
        return ModelSizes(spatial, temporal, channels, 1, False, *(1, 1, 1, 1, 1), causal=causal, tokens_wait=True)

    def encode_video(self, pixels: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Normalised float32 latents `[B, C, F, h, w]` of pixels `[B, 3, frames, H, W]` in [-1, 1].

        Args:
            pixels: The pixels.
            generator: Draws one of the latents that the autoencoder allows for. Default `None`, the likeliest ones.
        """
        self.require("vae")
        found = self.vae.encode(pixels.to(self._execution_device, self.vae.dtype)).latent_dist
        latents = found.mode() if generator is None else found.sample(generator)
        return self.codec.normalize_latents(latents.float())

    def normalized_video(self, latents: torch.Tensor, plan: ClipPlan) -> torch.Tensor:
        """Normalised float32 latents `[B, C, F, h, w]` of those that a call gives, which may be packed."""
        latents = latents.to(self._execution_device, torch.float32)
        return latents if latents.ndim == 5 else plan.tools.video.patchifier.unpatchify(latents, plan.video)

    def returned_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """What a call hands over as latents, and takes: normalised ones."""
        return latents


class LTXVideoPipeline(LTXVideoBase):
    """Generates videos with a checkpoint of LTX-Video, 0.9.0 to 0.9.8.

    Args:
        scheduler, vae, text_encoder, tokenizer, transformer, latent_upsampler, stage_2_transformer, preset: See
            [`~ltx2_diffusers.families.ltx_video.pipeline.LTXVideoBase`].
    """

    @takes(LTXVideoArguments)
    def __call__(self, call: LTXVideoArguments) -> Result:
        """Generate videos.

        Returns:
            [`LTX2PipelineOutput`] without sound, or the tuple `(frames,)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        result = run(self, texts_of(call, call.prompt), self.request(call))
        return result if call.return_dict else result[:1]

    def request(self, call: LTXVideoArguments) -> Request:
        """The call but for its text."""
        self.require("transformer", "vae")
        call.check()
        preset = call.preset(self.settings)
        size = self._size(call)
        canvas = canvas_of(*size)
        passes = self._passes(call, preset, canvas)
        preparation = Preparation(size[:2], preset.image_crf, preset.image_blur, call.generator, canvas[:2], size[2])
        conditions = call.listed_conditions(preparation)
        steps = (preset.stochastic_sampling, preset.image_cond_noise_scale if conditions else 0.0)
        networks, levels = self._networks_of_passes(call, passes), self._levels(call, passes)
        how = (call.guidance_rescale, lambda generator: TokenSampler(gaussian_noise(generator), *steps))
        made = stages(passes, networks, levels, *how)
        call.check_read(self.settings, passes.settings, passes.scale == 2)
        order: Any = {"packed_noise": call.packed_noise, "own_shape_renoise": True, "noise_first": True}
        start = Start(call.generator, call.latents, **order, clip=call.clip(preset, size, canvas))
        # An interrupt in a first pass hands over frames that are smaller.
        fit = None if passes.scale == 1 and canvas == size else partial(shown_at, canvas=canvas, size=size)
        tone_map = passes.settings[-1].tone_map_compression_ratio
        tone_map = tone_map if call.tone_map_compression_ratio is None else call.tone_map_compression_ratio
        made_size, streams = Size(*passes.last_sides, canvas[2], call.frame_rate), Streams(True, False)
        delivery = delivery_of(call, preset, tone_map, fit)
        return Request(made_size, made, start, delivery, conditions, streams, attention_kwargs=call.attention_kwargs)

    def _size(self, call: LTXVideoArguments) -> Extent:
        """Height and width of the finished clip, and its frames: what is said, what latents of it have, or the defaults."""
        ratio, latents, own = self.vae_spatial_compression_ratio, call.latents, DEFAULT_SIZE
        if latents is not None and latents.ndim == 5:
            sides = own[:2] if self._is_multi_scale(call) else [side * ratio for side in latents.shape[3:]]
            own = (*sides, self.sizes.pixel_frames(latents.shape[2]))
        return call.size(own)

    def _is_multi_scale(self, call: LTXVideoArguments) -> bool:
        has_second = self.settings.second_pass is not None or call.second_pass is not None
        return has_second if call.multi_scale is None else call.multi_scale

    def _passes(self, call: LTXVideoArguments, preset: LTXVideoPreset, canvas: Extent) -> Passes:
        multi_scale, ratio = self._is_multi_scale(call), self.vae_spatial_compression_ratio
        if multi_scale and not self.has(UPSAMPLER):
            raise ValueError(
                f"{preset.name} generates at two scales, which needs the component `{UPSAMPLER}`; give it to the constructor or "
                "to from_pretrained, or pass multi_scale=False"
            )
        first, *others = chosen_passes(preset, (call.first_pass, call.continued_pass, call.second_pass), multi_scale)
        settings = [with_arguments(first, pass_arguments(call)), *others]
        factor = preset.downscale_factor or DOWNSCALE_FACTOR
        own = first_sides(*canvas[:2], factor, ratio) if multi_scale else canvas[:2]
        frames = (canvas[2] - 1) // self.vae_temporal_compression_ratio + 1
        return Passes(preset, settings, own, 2 if multi_scale else 1, frames, ratio)

    def _levels(self, call: LTXVideoArguments, passes: Passes) -> list[list[float]]:
        """Noise levels of the passes, the first of which may begin in the middle if there is something to begin with."""
        share, name, allowed = call.denoise_strength, passes.preset.name, passes.preset.allowed_inference_steps
        levels = [passes.levels(index) for index in range(len(passes.settings))]
        if allowed and any(all(abs(one - known) > 1e-4 for known in allowed) for one in levels[0]):
            logger.warning(f"{name} was distilled for the noise levels {allowed}, and sees others in this call")
        count = len(levels[0])
        levels[0] = levels[0][count - int(count * share) :]
        if not levels[0]:
            raise ValueError(f"`denoise_strength` {share} leaves no step; use at least {1 / count:.2f}")
        is_given, shortened = call.media_items is not None or call.latents is not None, levels[0][0] < 1
        if call.media_items is not None and not shortened:
            raise ValueError(
                "nothing is left of `media_items` at the first noise level of 1; use denoise_strength=0.8"
            )
        if (share < 1 or passes.settings[0].skip_initial_inference_steps) and not is_given:
            raise ValueError(
                f"`denoise_strength` ({share}) or skipped steps begin the first pass at the noise level "
                f"{levels[0][0]:g}, but there is nothing to begin with; give `media_items` or `latents`, or leave them out"
            )
        return levels

    def _networks_of_passes(self, call: LTXVideoArguments, passes: Passes) -> list[Network]:
        """What each pass runs: the first one the transformer, and the others the second transformer, if there is one."""
        count, second = len(passes.settings), SECOND if self.has(SECOND) else "transformer"
        first_adapters, adapters = call.stage_1_adapters, call.stage_2_adapters
        if passes.preset.kind == "mix" and not self.has(SECOND) and adapters is None:
            if DISTILLED_ADAPTER not in self.lora_metadata:
                raise ValueError(
                    f"{passes.preset.name} goes on with a distilled model; give it as `{SECOND}`, or load its LoRA with "
                    f'load_lora_weights(..., adapter_name="{DISTILLED_ADAPTER}"), or pass stage_2_adapters={{}}'
                )
            first_adapters = {DISTILLED_ADAPTER: 0.0, **(first_adapters or {})}
            adapters = {DISTILLED_ADAPTER: 1.0}
        names = [("transformer", first_adapters), *[(second, adapters)] * (count - 1)]
        return [(name, getattr(self, name).config.num_layers, given) for name, given in names]


def shown_at(pixels: torch.Tensor, canvas: Extent, size: Extent) -> torch.Tensor:
    """Decoded pixels `[B, 3, n, H, W]` at the size of the canvas, and of them the middle, height and width, and first frames.

    What is too bright or dark is cut off before.
    """
    frames = resized(pixels[:, :, : size[2]].clamp(-1, 1), *canvas[:2])
    return torch.nn.functional.pad(frames, [-side for side in margins(size, canvas)])
