"""Sound for a given video."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...guidance.options import GuidanceOptions
from ...media.frames import Frames
from ..arguments import Stage
from ..call_arguments import build_request
from ..conditions.pictures import WholeVideoCondition
from ..conditions.source import delivery, read_source, seen_video
from ..output import LTX2PipelineOutput
from ..staged import LTX2StagedPipeline
from ..stages import sound_scales, stage_list


class LTX2VideoToAudioPipeline(LTX2StagedPipeline):
    """Generates the sound of a video, whose pictures are returned untouched; saving copies the packets of a video file."""

    def __call__(
        self,
        video: Frames,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        frame_rate: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        motion_speed: float = 1.0,
        two_stage: bool = False,
        num_inference_steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        stg_scale: float | None = None,
        modality_scale: float | None = None,
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
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 1024,
        sampler: str = "euler",
        guidance_options: GuidanceOptions | None = None,
    ) -> LTX2PipelineOutput | tuple:
        """Generate sounds for a video.

        Steps and guidance arguments are those of [`LTX2Pipeline`] but belong to the sound, the only stream that is generated,
        and take its presets. Of
        `guidance_options`, the skipped steps and bins of the audio are read; those of the video are refused.

        Args:
            video: The video: the name of a file, or frames as in
                [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`].
            frame_rate: Frames per second; default the file's, or 24.0 for frames.
            height, width: Size in pixels at which the network sees the video, multiples of 32 (64 with two stages); default
                the video's own, reduced to the next multiples. The returned pictures keep their size.
            num_frames: Frames to use from the start; default all. The network sees 8 k + 1 of them, the last one repeated
                as needed; the sound ends with the video.
            two_stage: Whether to start with the video at half the size and refine the sound; default `False`.
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
        source = read_source(video, frame_rate, num_frames=num_frames)
        clip, size = seen_video(source, self, call)
        given = [WholeVideoCondition(clip)]
        stages = stage_list(self, call, given, scales=sound_scales(self, call))
        kept = delivery(call, video=source)
        return self._generate(build_request(call, stages, given, size=size, delivery=kept))
