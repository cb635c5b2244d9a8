"""Text, pictures and sound to video with a distilled model: few steps, one forward each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.utils import logging

from ...checkpoints.versions import model_kind, model_version
from ...guidance.options import GuidanceOptions
from ...guidance.presets import Preset, preset
from ...guidance.scales import check_negative_is_read
from ...media.frames import Frames
from ..conditions.condition import Condition
from ..conditions.source import Sound
from ..output import LTX2PipelineOutput
from ..staged import LTX2StagedPipeline

logger = logging.get_logger(__name__)


class LTX2DistilledPipeline(LTX2StagedPipeline):
    """Generates with a distilled checkpoint: 8 steps at half the size and 3 at full size, without guidance.

    Also runs a dev checkpoint with its distilled LoRA active. The sampling settings are always those of the distilled
    kind, whatever the scheduler's config says; one of the dev kind without any LoRA is worth a warning.
    """

    @property
    def preset(self) -> Preset:
        """Reference settings of the distilled kind for the loaded checkpoint's version."""
        self._require("transformer")
        return preset(model_version(self.transformer.config), "distilled")

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Frames | None = None,
        conditions: Condition | Sequence[Condition] | None = None,
        reference_conditions: Condition | Sequence[Condition] | None = None,
        audio: Sound | None = None,
        sampling_rate: int | None = None,
        audio_cond_noise_scale: float = 0.0,
        audio_fit: str = "crop",
        audio_start_s: float = 0.0,
        generate_audio: bool = True,
        two_stage: bool = True,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        frame_rate: float = 24.0,
        motion_speed: float = 1.0,
        sigmas: Sequence[float] | None = None,
        stage_2_sigmas: Sequence[float] | None = None,
        stage_1_adapters: Mapping[str, float] | None = None,
        stage_2_adapters: Mapping[str, float] | None = None,
        audio_stage: int = -1,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
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
        sampler: str | None = None,
        guidance_options: GuidanceOptions | None = None,
        negative_prompt: str | list[str] | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
    ) -> LTX2PipelineOutput | tuple:
        """Generate videos with sound, one forward of the network per step.

        There is no classifier-free guidance, so there are no guidance scales. A negative prompt acts through normalized
        attention guidance, for example `guidance_options=GuidanceOptions(nag_scale=5.0)`, at the same number of forwards.
        The other arguments are those of [`LTX2TwoStagePipeline`].

        Args:
            two_stage: Whether to start at half the size and refine at full size (default), or to run 8 steps at full size.
            sigmas: Noise levels of the first stage, in (0, 1] and falling; default the 8 of the distilled models.
            stage_2_sigmas: Noise levels of the second stage; default their 3.
            stage_1_adapters, stage_2_adapters: LoRA strengths by adapter name that a stage adds to the active adapters, or
                changes; 0 takes one out. Default none. An IC-LoRA, which is trained with references beside the video, is best
                taken out of the second stage, which has none: `stage_2_adapters={name: 0}`.
            sampler: Sampler of both stages. Default the preset's in the first, `"euler_ancestral"` for LTX-2.5 and
                `"euler"` before, and `"euler"` in the second.
            negative_prompt, negative_prompt_embeds, negative_prompt_attention_mask: What to steer away from in both stages;
                refused where nothing reads it. Default the empty text.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        call = locals()
        check_negative_is_read(call)
        self._warn_of_dev_weights(call)
        return self._generate_given(call)

    def _warn_of_dev_weights(self, call: Mapping[str, Any]) -> None:
        """Dev weights cannot be told from distilled ones; their scheduler gives a hint."""
        adapters = call["stage_1_adapters"] or self.get_active_adapters()
        if model_kind(self.scheduler.config) == "dev" and not adapters:
            logger.warning(
                "the scheduler is that of a dev checkpoint, and no LoRA is active; dev weights need their distilled LoRA "
                "here (load_lora_weights), or LTX2TwoStagePipeline"
            )
