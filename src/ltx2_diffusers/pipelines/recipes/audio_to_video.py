"""Video for a given sound."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...guidance.options import GuidanceOptions
from ...guidance.scales import PRESET, AudioScale
from ...media.frames import Frames
from ..arguments import Stage
from ..conditions.condition import Condition
from ..conditions.source import Sound
from ..output import LTX2PipelineOutput
from ..staged import LTX2StagedPipeline


class LTX2AudioToVideoPipeline(LTX2StagedPipeline):
    """Generates a video to a sound, which is returned untouched and copied into the saved file where its codec allows."""

    def __call__(
        self,
        audio: Sound,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        sampling_rate: int | None = None,
        audio_start_s: float = 0.0,
        audio_cond_noise_scale: float = 0.0,
        audio_fit: str = "crop",
        image: Frames | None = None,
        conditions: Condition | Sequence[Condition] | None = None,
        reference_conditions: Condition | Sequence[Condition] | None = None,
        two_stage: bool = True,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        frame_rate: float = 24.0,
        motion_speed: float = 1.0,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        stg_scale: float | None = None,
        modality_scale: float | None = None,
        guidance_rescale: float | None = None,
        audio_guidance_scale: AudioScale = PRESET,
        audio_stg_scale: AudioScale = PRESET,
        audio_modality_scale: AudioScale = PRESET,
        audio_guidance_rescale: AudioScale = PRESET,
        spatio_temporal_guidance_blocks: list[int] | None = None,
        stage_2_sigmas: Sequence[float] | None = None,
        stage_1_adapters: Mapping[str, float] | None = None,
        stage_2_adapters: Mapping[str, float] | None = None,
        stages: Sequence[Stage] | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
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
        """Generate videos to a sound.

        The sound is held in every stage and takes no guidance. The other arguments are those of [`LTX2TwoStagePipeline`].

        Args:
            audio: The sound: a waveform `[C, N]` or `[B, C, N]` in [-1, 1] of any rate, or the name of a media file. The clip
                takes the window from `audio_start_s` on that is as long as the video.
            audio_cond_noise_scale: 0 keeps the sound exactly and returns the given samples (default). Above it, up to 1, the
                sound is a hint, and a new one is generated and returned; the audio's guidance arguments are only read then.
            two_stage: Whether to start at half the size and refine at full size (default).

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        call = locals()
        if audio is None:
            raise ValueError(
                "`audio` is None; give the sound, or use LTX2TwoStagePipeline for a video without a given one"
            )
        return self._generate_given(call)
