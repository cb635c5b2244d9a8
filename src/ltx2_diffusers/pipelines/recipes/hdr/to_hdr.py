"""Video of high dynamic range, as an IC-LoRA makes it of a video of standard range."""

from dataclasses import dataclass, field
from typing import Any

import torch

from .... import checks
from ....conditioning import Streams, TextContext
from ....media.hdr.processor import LTX2VideoHDRProcessor
from ...conditions import Conditions, as_conditions, with_defaults
from ...output import Decoded, LTX2HDRPipelineOutput
from .. import Arguments, LTX2GenerationPipeline, Result, Scheduler, Texts, check_said, extends, takes
from ..condition import LTX2ConditionPipeline, run_conditioned

_CONTEXTS = ("connector_video_embeds", "connector_audio_embeds")
# What is not read beside them.
_REPLACED = (
    *("prompt", "prompt_embeds", "prompt_attention_mask", "max_sequence_length"),
    *("negative_prompt", "negative_prompt_embeds", "negative_prompt_attention_mask"),
    *("enable_prompt_enhancement", "system_prompt", "prompt_max_new_tokens", "prompt_enhancement_kwargs"),
)


@dataclass(frozen=True)
class _References(Texts):
    """What comes first.

    Args:
        reference_conditions: One or several [`LTX2HDRReferenceCondition`].
        reference_downscale_factor: Size of the video over that of the references. Default what the metadata of the
            active LoRAs says, else 1; another value than they say is refused.
    """

    reference_conditions: Conditions = None
    reference_downscale_factor: int | None = None


@dataclass(frozen=True)
class HDRArguments(Arguments, _References):
    """What the call takes beside the arguments of [`LTX2Pipeline`]; there are none of a sound.

    Args:
        num_frames: Frames, 8 k + 1. Default that of `latents`; else, with references, 121.
        num_inference_steps: Denoising steps. Not read when `sigmas` or `timesteps` are given. Default the 8 noise levels of
            distilled checkpoints.
        noise_scale: Noise that the video starts with, 0 to 1. Default the first noise level: the first of `sigmas` or
            `timesteps`, else 1.0.
        latents: Video latents to start from, as in [`LTX2ConditionPipeline`].
        connector_video_embeds, connector_audio_embeds: What the streams attend to in place of a prompt, results of the connectors
            `[B, T, W]`, such as `video_context` and `audio_context` of the file that comes with an HDR IC-LoRA. With
            classifier-free guidance `[2 * B, T, W]`: of all negative prompts, then of all prompts.
        use_cross_timestep: As in [`LTX2Pipeline`]; default `False`.
        output_type: `"pt"` (default), `"np"` or `"latent"`; see [`LTX2HDRPipelineOutput`].
        save_path: File to write, as `output.save` writes it: `.mp4` or `.mov`, 10-bit HEVC in PQ, or a sequence of `.exr` or `.png`;
            an [`HDRFile`] says more. The output then holds no frames but `info["path"]`, the name that was given. A clip whose
            decoding streams is written while the rest of it is decoded.
        use_audio_stream: Whether the network hears a sound beside the video, noise that is never denoised, as in diffusers (default);
            `False` leaves its sound out, as the original code does, which is faster. `connector_audio_embeds` are not read then.
    """

    min_seconds: float = field(init=False, default=1.0)
    max_seconds: float = field(init=False, default=20.0)
    # diffusers' call has not these, so that they come behind all others.
    motion_speed: float = field(default=1.0, kw_only=True)
    system_prompt: str | None = field(default=None, kw_only=True)
    enable_prompt_enhancement: bool = field(default=False, kw_only=True)
    prompt_max_new_tokens: int | None = field(default=None, kw_only=True)
    prompt_enhancement_kwargs: dict[str, Any] | None = field(default=None, kw_only=True)
    prompt_enhancement_seed: int = field(default=10, kw_only=True)
    audio_guidance_scale: None = field(init=False, default=None)
    audio_stg_scale: None = field(init=False, default=None)
    audio_modality_scale: None = field(init=False, default=None)
    audio_guidance_rescale: None = field(init=False, default=None)
    noise_scale: float | None = None
    audio_latents: torch.Tensor | None = field(init=False, default=None)
    connector_video_embeds: torch.Tensor | None = None
    connector_audio_embeds: torch.Tensor | None = None
    use_cross_timestep: bool | None = False
    output_type: str = "pt"
    use_audio_stream: bool = True

    @property
    def contexts(self) -> TextContext | None:
        """What stands in place of the prompts."""
        video, audio = self.connector_video_embeds, self.connector_audio_embeds
        if video is not None and not self.use_audio_stream:
            # What nobody reads has no features.
            audio = video[..., :0]
        return None if video is None or audio is None else TextContext(video, audio)


class LTX2HDRPipeline(LTX2ConditionPipeline):
    """Makes a video of high dynamic range of a video of standard range, with an HDR IC-LoRA.

    Takes the components and call arguments of diffusers' pipeline of the same name; `audio_vae` and `vocoder` may be `None`. Load
    the IC-LoRA first, with `load_lora_weights`. Highlights and gradients are best decoded in float32: `pipe.vae.to(torch.float32)`.
    The sampling settings are those of distilled checkpoints, whatever the scheduler's config says.

    Args:
        hdr_transform: Curve of the signal that the model makes, `"logc3"` or `"acescct"`. Default what the metadata of the active
            LoRAs say, else `"logc3"`; another one than they say is refused in calls.
        audio_scheduler: As in [`LTX2ConditionPipeline`].
        scheduler, vae, audio_vae, text_encoder, tokenizer, connectors, transformer, vocoder, processor, prompt_enhancer:
            See [`LTX2GenerationPipeline`].
    """

    _optional_components = [*LTX2ConditionPipeline._optional_components, "audio_vae", "vocoder"]  # noqa: RUF012
    kind = "distilled"
    # As in diffusers.
    marks_keyframes = False
    output_class = LTX2HDRPipelineOutput

    @extends(LTX2GenerationPipeline)
    def __init__(
        self, *, audio_scheduler: Scheduler | None = None, hdr_transform: str | None = None, **components: Any
    ) -> None:
        # Knows which there are.
        LTX2VideoHDRProcessor(hdr_transform=hdr_transform or "logc3")
        self._hdr_transform = hdr_transform
        super().__init__(audio_scheduler=audio_scheduler, **components)

    @property
    def hdr_transform(self) -> str:
        """Curve of the signal.

        Raises:
            ValueError: If the metadata of the active LoRAs contradict each other or the pipeline.
        """
        told = self.lora_hdr_transform()
        if None not in (told, self._hdr_transform) and told != self._hdr_transform:
            raise ValueError(
                f"`hdr_transform` of the pipeline is {self._hdr_transform!r}, but the active LoRA was trained with {told!r}; leave it out"
            )
        return self._hdr_transform or told or "logc3"

    @property
    def hdr_video_processor(self) -> LTX2VideoHDRProcessor:
        """From and to pixels, with the curve of the signal.

        Raises:
            ValueError: As [`hdr_transform`], or if there is no such curve.
        """
        return LTX2VideoHDRProcessor(self.vae_spatial_compression_ratio, hdr_transform=self.hdr_transform)

    def shown(self, video: torch.Tensor, output_type: str) -> Decoded:
        """Pixels `[B, 3, F, H, W]` in [-1, 1], as a decoder returns them, as linear light."""
        return self.hdr_video_processor.postprocess_hdr_video(video, output_type)

    @takes(HDRArguments)
    def __call__(self, call: HDRArguments) -> Result:  # type: ignore[override]  # references come first
        """Make videos of high dynamic range.

        Returns:
            [`LTX2HDRPipelineOutput`], or the tuple `(frames, None)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        references = as_conditions("reference_conditions", call.reference_conditions)
        if not references:
            check_said("there are no `reference_conditions`", call, "reference_downscale_factor")
        _check_streams(self, call)
        # Refuses a curve that it does not know.
        self.hdr_video_processor  # noqa: B018
        references = with_defaults(references, call.reference_downscale_factor, 1.0, None)
        return run_conditioned(self, call, references, streams=Streams(True, False), idle_audio=call.use_audio_stream)


def _check_streams(pipeline: LTX2HDRPipeline, call: HDRArguments) -> None:
    """What stands in place of prompts must be whole, stand alone and have the widths that the streams of the network read."""
    needed = _CONTEXTS if call.use_audio_stream else _CONTEXTS[:1]
    if not call.use_audio_stream:
        check_said("there is no audio stream (use_audio_stream=False)", call, "modality_scale", "use_cross_timestep")
    given = [name for name in _CONTEXTS if getattr(call, name) is not None]
    if not given:
        return
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"`{given[0]}` is given without `{missing[0]}`; give both")
    check_said(f"`{_CONTEXTS[0]}` takes its place", call, *_REPLACED)
    pipeline.require("transformer")
    config = pipeline.transformer.config
    own = ("cross_attention_dim", "audio_cross_attention_dim")
    rule = "this transformer reads {}; give results of the connectors of this checkpoint"
    for name, width in zip(needed, ("caption_channels",) * 2 if config.use_prompt_embeddings else own):
        checks.check_shape(name, getattr(call, name), (None, None, config[width]), rule)
