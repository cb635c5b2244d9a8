"""What a call asks for, grouped: the arguments of every recipe end up in these few frozen objects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..guidance.options import GuidanceOptions
from ..sampling.denoiser import Streams


@dataclass(frozen=True)
class Enhancement:
    """Rewriting of the prompt by a language model; the fields are the arguments of `enhance_prompt`.

    Args:
        enabled: Whether the prompt is rewritten.
        image: First frame of the video, as an image.
        system_prompt, max_new_tokens, generation_kwargs, seed: See `enhance_prompt`.
    """

    enabled: bool = False
    system_prompt: str | None = None
    max_new_tokens: int | None = None
    generation_kwargs: dict[str, Any] | None = None
    seed: int = 10
    image: Any = None


@dataclass(frozen=True)
class Prompts:
    """Texts, or their precomputed language-model states.

    Args:
        prompt, negative_prompt: Texts.
        embeds: `prompt_embeds`, `negative_prompt_embeds` and their two attention masks.
        num_videos_per_prompt: Videos per prompt.
        max_sequence_length: Text positions.
        enhancement: Whether and how the prompt is rewritten first.
    """

    prompt: str | list[str] | None
    negative_prompt: str | list[str] | None = None
    embeds: tuple[torch.Tensor | None, ...] = (None, None, None, None)
    num_videos_per_prompt: int = 1
    max_sequence_length: int = 1024
    enhancement: Enhancement = field(default_factory=Enhancement)


@dataclass(frozen=True)
class Size:
    """Wished size of the clip; `None` follows given latents or the default."""

    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    frame_rate: float = 24.0
    motion_speed: float = 1.0


@dataclass(frozen=True)
class Stage:
    """One run of the denoising loop.

    Args:
        spatial_scale, temporal_scale: Size of this stage over that of the finished clip.
        num_inference_steps, sigmas, timesteps: Noise levels; all `None` takes the preset's.
        scales: Guidance scales per stream, `None` for a run without guidance.
        stg_blocks: Blocks that spatio-temporal guidance perturbs, default the preset's.
        guidance_options: Ways of guiding beyond the scales.
        sampler: Name of the sampler.
        noise_scale: Noise mixed into the latents that come in, default the first noise level.
        upsampler: Component that enlarges the latents of the stage before.
        adapters: LoRA adapters and strengths that this stage adds to the active ones, or changes; strength 0 takes one
            out. Default `None`: the adapters as they are.
        transformer: Component that denoises.
        references: Whether reference videos take part.
    """

    spatial_scale: float = 1.0
    temporal_scale: float = 1.0
    num_inference_steps: int | None = None
    sigmas: Sequence[float] | None = None
    timesteps: Sequence[float] | None = None
    scales: Streams | None = None
    stg_blocks: Sequence[int] | None = None
    guidance_options: GuidanceOptions | None = None
    sampler: str = "euler"
    noise_scale: float | None = None
    upsampler: str | None = None
    adapters: Mapping[str, float] | None = None
    transformer: str = "transformer"
    references: bool = True


@dataclass(frozen=True)
class Start:
    """Where noise comes from and what it is laid over.

    Args:
        generator: Source of noise, or one per video.
        latents, audio_latents: Latents to start from.
        packed_noise: Whether noise is drawn for the packed sequence with its appended tokens and, on the video, always
            scaled by the stage's `noise_scale`, as diffusers does for conditions; or for the target in its own shape
            first and unscaled. Noise over given latents is packed and scaled either way.
        own_shape_renoise: Whether noise over given video latents is drawn in their own shape instead, as diffusers does
            for image to video.
    """

    generator: torch.Generator | list[torch.Generator] | None = None
    latents: torch.Tensor | None = None
    audio_latents: torch.Tensor | None = None
    packed_noise: bool = False
    own_shape_renoise: bool = False


@dataclass(frozen=True)
class Delivery:
    """In which form the result is handed over, and who watches on the way.

    Args:
        output_type, return_dict, decode_timestep, decode_noise_scale: As in the pipelines' calls.
        callback, callback_inputs: Step function and the tensors it sees.
        originals: What is handed over in the place of decoded latents: pixels `[F, H, W, 3]` in [0, 255] and a pair of
            waveform `[B, C, N]` and sampling rate; `None` for a stream that is decoded.
        sources: Files of the originals, whose packets are copied when the result is saved.
    """

    output_type: str = "pil"
    return_dict: bool = True
    callback: Callable[..., dict[str, Any] | None] | None = None
    callback_inputs: Sequence[str] = ("latents",)
    decode_timestep: float | list[float] = 0.0
    decode_noise_scale: float | list[float] | None = None
    originals: Streams = field(default_factory=lambda: Streams(None, None))
    sources: Streams = field(default_factory=lambda: Streams(None, None))


@dataclass(frozen=True)
class Request:
    """A whole generation.

    Args:
        prompts, size, start, delivery: See there.
        stages: Runs of the loop, each working on the result of the one before.
        conditions: What the streams are held to; see [`~ltx2_diffusers.pipelines.conditions.Condition`].
        streams: Which streams are generated, `(video, audio)`.
        audio_stage: Index of the stage whose sound is returned, default the last.
        use_cross_timestep: See the pipelines' argument of that name.
        attention_kwargs: Passed to the transformer.
    """

    prompts: Prompts
    size: Size
    stages: Sequence[Stage]
    start: Start = field(default_factory=Start)
    delivery: Delivery = field(default_factory=Delivery)
    conditions: Sequence[Any] = ()
    streams: Streams = field(default_factory=lambda: Streams(True, True))
    audio_stage: int = -1
    use_cross_timestep: bool | None = None
    attention_kwargs: dict[str, Any] | None = None
