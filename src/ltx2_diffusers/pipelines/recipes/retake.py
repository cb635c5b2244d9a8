"""A stretch of a clip made anew, the rest kept."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ...guidance.options import GuidanceOptions
from ...guidance.scales import PRESET, AudioScale
from ...media.frames import Frames
from ..arguments import Stage
from ..call_arguments import build_request
from ..conditions.condition import Condition
from ..conditions.regions import Mask
from ..conditions.source import Sound, read_source
from ..output import LTX2PipelineOutput
from ..retaken import retaken_streams
from ..staged import LTX2StagedPipeline
from ..stages import stage_list


class LTX2RetakePipeline(LTX2StagedPipeline):
    """Makes a stretch of time of a clip anew, in its pictures, its sound or both; all other latents are kept exactly."""

    def __call__(
        self,
        video: Frames,
        start_s: float,
        end_s: float,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        region: Mask | None = None,
        regenerate_video: bool = True,
        regenerate_audio: bool | None = None,
        audio: Sound | None = None,
        sampling_rate: int | None = None,
        conditions: Condition | Sequence[Condition] | None = None,
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
        """Make a stretch of a clip anew.

        The other arguments are those of [`LTX2TwoStagePipeline`]. A latent frame holds 8 pixel frames (the first one 1) and
        an audio latent 40 ms; those that overlap the stretch are made anew. A stream that is left alone is returned as it
        was given, and copied when a file is saved; of the others, kept latents pass through the decoder once.

        Args:
            video: The clip: the name of a file, or frames as in [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`].
            start_s, end_s: The stretch, in seconds.
            region: Where the pictures are made anew during the stretch: a mask in [0, 1] `[H, W]` or `[F, H, W]`, or an
                image; white is new. Default everywhere.
            regenerate_video: Whether the pictures are made anew. Default `True`.
            regenerate_audio: Whether the sound is made anew. Default `None`: if the clip has sound.
            audio: Sound of the clip, a waveform `[C, N]` or `[B, C, N]` in [-1, 1] or a file name; default that of the file.
            sampling_rate: Samples per second of a waveform.
            conditions: Pictures and clips to show within the stretch, appended keyframes for example.
            frame_rate: Frames per second; default the file's, or 24.0 for frames.
            height, width, num_frames: Size of the result; default the clip's own, which has to be valid: multiples of 32 (64
                with two stages) and 8 k + 1 frames.
            two_stage: Whether to start at half the size and refine at full size; default `False`.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        call = locals()
        source = read_source(video, frame_rate, audio, sampling_rate, num_frames)
        given, changes = retaken_streams(call, source)
        stages = stage_list(self, call, given, changes["streams"])
        return self._generate(build_request(call, stages, given, **changes))
