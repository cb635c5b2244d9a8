"""A clip made longer, segment by segment, by handing over latents."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ....guidance.options import GuidanceOptions
from ....guidance.scales import PRESET, AudioScale
from ....media.frames import Frames
from ...arguments import Stage
from ...conditions.source import Sound
from ...output import LTX2PipelineOutput
from ...staged import LTX2StagedPipeline
from .assembly import extend, plan_extension


class LTX2ExtendPipeline(LTX2StagedPipeline):
    """Makes a clip longer, forwards or backwards, or makes a long clip from nothing.

    Each segment takes over the last latents of both streams of the one before, so that nothing is decoded and encoded
    again on the way, and the frames that both show are cut exactly. The sound is counted from the start of the whole clip:
    its length agrees with the video's to one audio latent, however many segments there are.
    """

    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | None = None,
        video: Frames | None = None,
        audio: Sound | None = None,
        sampling_rate: int | None = None,
        latents: torch.Tensor | None = None,
        audio_latents: torch.Tensor | None = None,
        num_segments: int | None = None,
        overlap_frames: int = 25,
        direction: str = "forward",
        drift_control: float = 0.0,
        save_path: str | os.PathLike | None = None,
        generate_audio: bool | None = None,
        two_stage: bool = False,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        frame_rate: float | None = None,
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
        generator: torch.Generator | None = None,
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
        """Extend a clip.

        The other arguments are those of [`LTX2TwoStagePipeline`] and hold for every segment; one clip is made per call.
        Setting `pipeline._interrupt = True` in a callback ends the series at once: the segment in progress is left out, unless
        there is nothing else, and a file that is being written is completed with what there is. After an exception no file
        is left.

        Args:
            prompt: Text for all segments, or a list with one text per segment, in the order in which they are made.
            video: Clip to extend: the name of a file, or frames as in
                [`~ltx2_diffusers.pipelines.conditions.pictures.LTX2VideoCondition`]. Only its overlap is encoded, and its own frames
                are part of the result untouched. Without `video` and `latents` the first segment is made from text alone.
            audio: Sound of `video`, a waveform `[C, N]` or `[B, C, N]` in [-1, 1] or a file name; default that of the file.
            sampling_rate: Samples per second of a waveform.
            latents, audio_latents: Clip to extend as un-normalised latents `[1, C, F, h, w]` and `[1, C, L, M]`, which a call
                with `output_type="latent"` returns.
            num_segments: Segments to make; default one, or one per prompt.
            overlap_frames: Pixel frames that a segment shares with its neighbour, 8 k + 1. K = k + 1 latent frames are handed
                over, and each segment adds `num_frames - overlap_frames` frames. Default 25.
            direction: `"forward"` (default) goes on at the end, `"backward"` at the start.
            drift_control: How far mean and spread of the latent channels of what a segment adds are moved to those of the given
                latents (of `video`, its overlap), or of the first segment, 0 (default, not at all) to 1. It keeps long clips
                from drifting in colour and contrast, and changes what the model made.
            save_path: File to write while segments are made, ending in `.mp4` or `.mov`; the output then holds no frames and
                no sound but `info["path"]`, and the frames of one segment at a time are in memory. Backwards, the latents of
                all segments are kept until the first one in time is there.
            generate_audio: Whether the clip has sound; default as the given clip, or yes.
            height, width: Size in pixels; default the given clip's, which has to be valid.
            num_frames: Pixel frames of a segment, overlap included. Default 121.
            frame_rate: Frames per second; default the file's, or 24.0.
            two_stage: Whether each segment starts at half the size and is refined at full size; default `False`.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        call = locals()
        return extend(self, call, plan_extension(self, call))
