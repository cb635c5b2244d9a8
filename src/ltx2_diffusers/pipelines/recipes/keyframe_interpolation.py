"""Video that passes through given pictures."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...conditioning.streams import Streams
from ...guidance.options import GuidanceOptions
from ...guidance.scales import PRESET, AudioScale
from ...media.frames import Frames
from ..arguments import Stage
from ..call_arguments import build_request
from ..given import given_keyframes
from ..output import LTX2PipelineOutput
from ..staged import LTX2StagedPipeline
from ..stages import stage_list


class LTX2KeyframeInterpolationPipeline(LTX2StagedPipeline):
    """Generates a video with sound that shows given pictures at given frames and moves between them.

    Every picture, the first frame's too, is shown beside the video as a keyframe, so that it guides without pinning.
    """

    def __call__(
        self,
        images: Sequence[Frames],
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        frame_indices: Sequence[int] | None = None,
        strengths: float | Sequence[float] = 1.0,
        image_crf: int | None = None,
        generate_audio: bool = True,
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
        audio_stage: int = -1,
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
        """Generate videos between pictures.

        The other arguments are those of [`LTX2TwoStagePipeline`].

        Args:
            images: Pictures in any form that [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`] takes.
            frame_indices: Pixel frame of each picture; negative ones count from the end. Default evenly from the first
                frame to the last; a single picture is the first frame.
            strengths: How strongly the pictures are shown, 0 to 1, one number or one each. Default 1.
            image_crf: H.264 quality of the round trip that pictures take, default the checkpoint's; 0 skips it.
            two_stage: Whether to start at half the size and refine at full size (default).
            generate_audio: Whether the clip has sound.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        call = locals()
        keyframes = given_keyframes(call)
        streams = Streams(True, generate_audio)
        stages = stage_list(self, call, keyframes, streams)
        return self._generate(build_request(call, stages, keyframes, streams=streams))
