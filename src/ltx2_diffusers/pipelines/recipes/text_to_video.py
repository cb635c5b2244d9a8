"""Text to video with sound."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...guidance.options import GuidanceOptions
from ...guidance.scales import PRESET, AudioScale
from ..call_arguments import build_request, guided_stage
from ..generation import LTX2GenerationPipeline
from ..output import LTX2PipelineOutput


class LTX2Pipeline(LTX2GenerationPipeline):
    """Generates a video and its sound from text.

    Takes the components and call arguments of diffusers' pipeline of the same name.
    """

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        min_seconds: float = 1.0,
        max_seconds: float = 20.0,
        frame_rate: float = 24.0,
        motion_speed: float = 1.0,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        timesteps: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        stg_scale: float | None = None,
        modality_scale: float | None = None,
        guidance_rescale: float | None = None,
        audio_guidance_scale: AudioScale = PRESET,
        audio_stg_scale: AudioScale = PRESET,
        audio_modality_scale: AudioScale = PRESET,
        audio_guidance_rescale: AudioScale = PRESET,
        spatio_temporal_guidance_blocks: list[int] | None = None,
        noise_scale: float = 0.0,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        audio_latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        decode_timestep: float | list[float] = 0.0,
        decode_noise_scale: float | list[float] | None = None,
        use_cross_timestep: bool | None = None,
        system_prompt: str | None = None,
        enable_prompt_enhancement: bool = False,
        prompt_max_new_tokens: int | None = None,
        prompt_enhancement_kwargs: dict[str, Any] | None = None,
        prompt_enhancement_seed: int = 10,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 1024,
        sampler: str = "euler",
        guidance_options: GuidanceOptions | None = None,
    ) -> LTX2PipelineOutput | tuple:
        """Generate videos with sound.

        `None` (or `"preset"`) stands for the reference value of the checkpoint's version and kind. Shapes: B videos of the
        batch, T text positions, F latent frames, h and w latent rows and columns, L audio latents, M latent mel bins.

        Args:
            prompt: Text or list of texts. Either this or `prompt_embeds`.
            negative_prompt: Text to steer away from, one for all prompts or one each. Default the empty text. Only read
                with classifier-free or normalized attention guidance.
            height, width: Size in pixels, multiples of 32. Default that of `latents`, else 512 x 768.
            num_frames: Frames, 8 k + 1. Default that of `latents`, else 121.
            min_seconds, max_seconds: Bounds of an automatic duration, which no checkpoint loaded here predicts; other
                values than the defaults are refused.
            frame_rate: Frames per second, above 0. The sound lasts `num_frames / frame_rate` seconds.
            motion_speed: Speed of motion relative to real time, above 0; below 1 is slow motion.
            num_inference_steps: Denoising steps. Not read when `sigmas` or `timesteps` are given.
            sigmas: Noise levels in (0, 1], falling. `LTX2Scheduler` uses them as they are, a FlowMatchEuler scheduler
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
            noise_scale: Noise mixed into given `latents` and `audio_latents`, 0 to 1. Default 0.0.
            num_videos_per_prompt: Videos per prompt.
            generator: Source of noise, or one per video. Noise is drawn on the generator's device, the CPU by default.
            latents: Video latents to start from: un-normalised `[B, C, F, h, w]`, or packed and normalised
                `[B, F * h * w, C]`.
            audio_latents: Audio latents to start from: un-normalised, `[B, C, L, M]` or packed `[B, L, C * M]`.
            prompt_embeds, negative_prompt_embeds: Results of `encode_prompt` `[B, T, ...]`.
            prompt_attention_mask, negative_prompt_attention_mask: Their masks `[B, T]`.
            decode_timestep, decode_noise_scale: Noise level of the decoder and share of noise mixed in, for a VAE with
                timestep conditioning. One value or one per video.
            use_cross_timestep: Whose noise level modulates the exchange between the streams: the other stream's
                (`True`) or its own (`False`). All agree in plain text to video.
            enable_prompt_enhancement: Whether a language model rewrites the prompt before it is encoded; the text is
                returned in `info`. The other arguments are those of `enhance_prompt`.
            system_prompt, prompt_max_new_tokens, prompt_enhancement_kwargs, prompt_enhancement_seed: See there.
            output_type: `"pil"`, `"np"`, `"pt"`, `"uint8"` or `"latent"`; see [`LTX2PipelineOutput`].
            return_dict: Whether to return an [`LTX2PipelineOutput`] instead of the tuple `(frames, audio)`.
            attention_kwargs: Passed to the transformer's attention; `{"scale": s}` scales LoRA adapters.
            callback_on_step_end: Called as `callback(pipeline, step, timestep, tensors)` after each step. A dict it
                returns may replace `latents` and `audio_latents`. Setting `pipeline._interrupt = True` ends the loop.
            callback_on_step_end_tensor_inputs: What `tensors` holds: any of `latents`, `audio_latents`,
                `prompt_embeds`, `negative_prompt_embeds`, and `denoised`, the step's prediction of the clean video as
                normalised latents `[B, C, F, h, w]`.
            max_sequence_length: Text positions T; longer prompts are cut.
            sampler: Name of the sampler; see [`~ltx2_diffusers.sampling.samplers.SAMPLERS`].
            guidance_options: Skipped steps, other formulas, scales by noise level, and a negative prompt without
                classifier-free guidance; see [`~ltx2_diffusers.guidance.GuidanceOptions`].

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        call = locals()
        return self._generate(build_request(call, [guided_stage(call, self.preset)]))
