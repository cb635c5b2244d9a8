"""Video with sound from text and reference videos (IC-LoRA)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...guidance.options import GuidanceOptions
from ...guidance.scales import PRESET, AudioScale
from ..conditioned import LTX2ConditionedPipeline
from ..conditions.condition import Condition, listed_conditions
from ..conditions.references import with_defaults
from ..output import LTX2PipelineOutput


class LTX2InContextPipeline(LTX2ConditionedPipeline):
    """Generates a video with sound as an IC-LoRA derives it from reference videos, held to pictures and clips.

    Takes the components and call arguments of diffusers' pipeline of the same name. Load the IC-LoRA first, with
    `load_lora_weights`.
    """

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        reference_conditions: Condition | Sequence[Condition] | None = None,
        conditions: Condition | Sequence[Condition] | None = None,
        reference_downscale_factor: int | None = None,
        conditioning_attention_strength: float = 1.0,
        conditioning_attention_mask: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
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
        noise_scale: float | None = None,
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
        """Generate videos with sound that follow reference videos.

        The other arguments are those of [`LTX2Pipeline`] and [`LTX2ConditionPipeline`].

        Args:
            reference_conditions: One or several [`LTX2ReferenceCondition`] or [`LTX2AudioReferenceCondition`].
            conditions: Pictures and clips, as in [`LTX2ConditionPipeline`].
            reference_downscale_factor: Size of the video over that of the references. Default what the metadata of the
                active LoRAs says, else 1; another value than they say is refused.
            conditioning_attention_strength: How far video and references see each other, 0 (not at all) to 1. Default
                1.0.
            conditioning_attention_mask: Where they see each other: pixels `[1, 1, F, H, W]` in [0, 1] with the frames
                of the references, multiplied by the strength. Default everywhere.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        call = locals()
        references = with_defaults(
            listed_conditions("reference_conditions", reference_conditions),
            downscale_factor=reference_downscale_factor,
            attention_strength=conditioning_attention_strength,
            attention_mask=conditioning_attention_mask,
        )
        # References stand after the keyframes in the sequence, as IC-LoRAs were trained.
        return self._generate_conditioned(call, [*listed_conditions("conditions", conditions), *references])
