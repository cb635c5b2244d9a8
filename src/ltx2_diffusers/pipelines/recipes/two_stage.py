"""Text, pictures, sound and references to video with sound, in two stages."""

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


class LTX2TwoStagePipeline(LTX2StagedPipeline):
    """Generates at half the size with guidance, enlarges the latents, and refines both streams at full size.

    Everything that other pipelines condition on may be given, and combined: it is encoded anew at each stage's size.
    Components are those of [`LTX2Pipeline`], `latent_upsampler` and optionally `temporal_upsampler` and
    `stage_2_transformer`.
    """

    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
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
        """Generate videos with sound in two stages.

        The other arguments are those of [`LTX2Pipeline`]; steps and guidance belong to the first stage, a checkpoint of
        the distilled kind runs both stages without guidance. Height and width are multiples of 64.

        Args:
            image: First frame; short for `conditions=[LTX2VideoCondition(image)]`.
            conditions: Pictures and clips, and any other conditions.
            reference_conditions: Reference videos for an active IC-LoRA; they take part in the first stage only, so the LoRA
                is best taken out of the second one by a strength of 0 in `stage_2_adapters`.
            audio: Sound of the clip: a waveform `[C, N]` or `[B, C, N]` in [-1, 1], or the name of a media file.
            sampling_rate: Samples per second of a waveform.
            audio_cond_noise_scale: 0 keeps the sound exactly and returns it untouched (default), 1 ignores it.
            audio_fit: What happens to sound shorter than the clip: `"crop"` (default) is an error, `"pad"` adds silence,
                `"stretch"` changes the tempo. Longer sound is cropped.
            audio_start_s: Where in the sound the clip begins, in seconds.
            generate_audio: Whether the clip has sound; `False` leaves the audio stream out.
            two_stage: `False` runs the guided stage alone, at full size.
            stage_2_sigmas: Noise levels of the second stage, in (0, 1] and falling; default the preset's.
            stage_1_adapters, stage_2_adapters: LoRA strengths by adapter name that a stage adds to the active adapters, or
                changes; 0 takes one out. On a dev checkpoint the second stage adds `{"distilled": 1.0}` by default, which the
                first stage runs without; `{}` refines with the same weights.
            stages: Stages to run in place of the default ones, see [`~ltx2_diffusers.pipelines.arguments.Stage`]; the arguments
                of steps, guidance and adapters are not read then.
            audio_stage: Index of the stage whose sound is returned: -1 (default) the refined one, 0 that of the first.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        return self._generate_given(locals())
