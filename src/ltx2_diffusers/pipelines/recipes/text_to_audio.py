"""Sound from text, without a video stream."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...guidance.options import GuidanceOptions
from ..arguments import Stage
from ..call_arguments import build_request, only
from ..output import LTX2PipelineOutput
from ..plan import Size
from ..staged import LTX2StagedPipeline
from ..stages import sound_scales, stage_list


class LTX2TextToAudioPipeline(LTX2StagedPipeline):
    """Generates sound alone; `output.save("sound.wav")` writes it."""

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        duration_s: float = 5.0,
        two_stage: bool = False,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        stg_scale: float | None = None,
        guidance_rescale: float | None = None,
        spatio_temporal_guidance_blocks: list[int] | None = None,
        stage_2_sigmas: Sequence[float] | None = None,
        stage_1_adapters: Mapping[str, float] | None = None,
        stage_2_adapters: Mapping[str, float] | None = None,
        stages: Sequence[Stage] | None = None,
        audio_stage: int = -1,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
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
        callback_on_step_end_tensor_inputs: Sequence[str] = ("audio_latents",),
        max_sequence_length: int = 1024,
        sampler: str = "euler",
        guidance_options: GuidanceOptions | None = None,
    ) -> LTX2PipelineOutput | tuple:
        """Generate sounds from text.

        Steps and guidance arguments are those of [`LTX2Pipeline`] but belong to the sound and take its presets; without a
        video there is nothing for modality guidance to isolate it from. Of
        `guidance_options`, the skipped steps and bins of the audio are read; those of the video are refused.

        Args:
            duration_s: Length in seconds, at least one audio latent (0.04 s). The sound has the nearest number of latents.
            two_stage: Whether to refine the sound in a second stage; default `False`, as in the reference.
            stage_2_sigmas: Noise levels of the second stage, in (0, 1] and falling; default the preset's.
            stage_1_adapters, stage_2_adapters: LoRA strengths by adapter name that a stage adds to the active adapters, or
                changes; 0 takes one out. On a dev checkpoint the second stage adds `{"distilled": 1.0}` by default, which the
                first stage runs without; `{}` refines with the same weights.
            stages: Stages to run in place of the default ones, see [`~ltx2_diffusers.pipelines.arguments.Stage`]; the arguments
                of steps, guidance and adapters are not read then.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        call = locals()
        if not duration_s >= 0.04:
            raise ValueError(
                f"`duration_s` has to be at least 0.04, the length of an audio latent, but is {duration_s}; use 0.04"
            )
        # The length of the sound follows from a clip of one frame that lasts as long; no video is made.
        size = Size(num_frames=1, frame_rate=1 / duration_s)
        streams = only("audio")
        stages = stage_list(self, call, streams=streams, scales=sound_scales(self, call))
        return self._generate(build_request(call, stages, streams=streams, size=size))
