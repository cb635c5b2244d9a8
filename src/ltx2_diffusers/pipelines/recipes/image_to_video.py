"""Image to video with sound."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...guidance.options import GuidanceOptions
from ...guidance.scales import PRESET, AudioScale
from ...media.frames import Frames
from ..arguments import Start
from ..call_arguments import build_request, filled, guided_stage
from ..conditions.pictures import FirstFrameCondition
from ..generation import LTX2GenerationPipeline
from ..output import LTX2PipelineOutput


class LTX2ImageToVideoPipeline(LTX2GenerationPipeline):
    """Generates a video with sound that begins with a given picture.

    Takes the components and call arguments of diffusers' pipeline of the same name.
    """

    def __call__(
        self,
        image: Frames | None = None,
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
        image_crf: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 1024,
        sampler: str = "euler",
        guidance_options: GuidanceOptions | None = None,
    ) -> LTX2PipelineOutput | tuple:
        """Generate videos with sound whose first frame is a picture.

        The picture is scaled to cover the frame and cropped to its centre, so that it keeps its aspect ratio. The other
        arguments are those of [`LTX2Pipeline`].

        Args:
            image: One picture for all videos, or a list with one per prompt or per video; each an image, a file name,
                an array `[H, W, 3]` or a tensor `[3, H, W]` of bytes or floats in [0, 1]. `None` is allowed with
                `latents`, whose first frame is kept then.
            noise_scale: Noise mixed into given `latents` (after the first frame) and `audio_latents`, 0 to 1. Default
                0.0.
            latents: Video latents to start from. Their first frame is replaced by that of `image`.
            image_crf: H.264 quality of the round trip that the picture takes, 0 (none) to 51. Default the preset's: 33,
                or 18 for 2.5. Floats cannot take it.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        call = locals()
        first = FirstFrameCondition(image, image_crf, latents, num_videos_per_prompt)
        start = filled(Start, call, own_shape_renoise=True)
        call["enhancement_image"] = first.picture() if enable_prompt_enhancement else None
        return self._generate(build_request(call, [guided_stage(call, self.preset)], [first], start=start))
