"""The pipeline of LTX-Video: its components, its call, and what the engine asks of it.

Shapes: B videos of the batch, C channels, F latent frames, h and w latent rows and columns, S text tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ... import checks
from ...adapters.active import DISTILLED_ADAPTER
from ...adapters.strengths import StageStrengths
from ...conditioning import Streams
from ...guidance import NEUTRAL
from ...guidance.presets import Preset
from ...media.frames import FilePath, Frames, rate_to_read, read_frames
from ...pipelines.arguments import Callback, Delivery, Generators, Request, Stage, Start, takes
from ...pipelines.engine import run
from ...pipelines.generation import LTX2GenerationPipeline, Scheduler
from ...pipelines.output import Result
from ...pipelines.plan import ClipPlan, ModelSizes, Size
from ...prompts import Prompts
from .conditions import FrameCondition, LTXVideoCondition, Preparation, resized
from .networks import LTXVideoCodec, LTXVideoNetwork
from .passes import SECOND, UPSAMPLER, Network, Passes, chosen_passes, first_sides, new_token_sampler, stages
from .passes import with_arguments as settled_pass
from .presets import DEFAULT_FRAME_RATE, DEFAULT_SIZE, LTXVideoPreset, PassSettings, SkipBlocks, ltx_video_preset

TEXT_POSITIONS = 256
"""Text positions of the checkpoints' training."""
Conditions = LTXVideoCondition | Sequence[LTXVideoCondition] | None


@dataclass(frozen=True)
class LTXVideoArguments:
    """What the call takes; `None` stands for the value of the checkpoint's preset.

    Args:
        conditions: One or several [`LTXVideoCondition`]: pictures and clips at any frame.
        image, video: A picture or a clip, or a list of them, shown at `frame_index` with `strength`; short for `conditions`.
        frame_index, strength: One for all, or a list. Default 0 and 1.0.
        denoise_strength: Share of the first pass's steps that are made, from the end, 0 to 1: with `media_items` or
            `latents`, how far the result may go from them. Default 1.0.
        prompt, negative_prompt: Texts; the negative one is read with classifier-free guidance. Default the empty text.
        height, width: Size in pixels, multiples of 32. Default that of `latents`, else 704 x 1216.
        num_frames: Frames, 8 k + 1. Default that of `latents`, else 121.
        frame_rate: Frames per second, above 0 and up to 1000. Default 30.0.
        num_inference_steps: Steps of the first pass. Default the preset's.
        timesteps: Noise levels of the first pass times 1000, falling, without a final 0; not beside `num_inference_steps`.
        guidance_scale: Classifier-free guidance of the first pass, on above 1; a number, or one for each of
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
        stg_mode: What spatio-temporal guidance does to blocks.
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

    conditions: Any = None
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
    max_sequence_length: int = TEXT_POSITIONS
    media_items: Any = None
    reference_conditions: Any = None
    multi_scale: bool | None = None
    stg_scale: float | Sequence[float] | None = None
    rescaling_scale: float | Sequence[float] | None = None
    skip_block_list: Any = None
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
