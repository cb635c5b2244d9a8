"""What a call asks for, grouped: the arguments of every recipe end up in these few frozen objects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..conditioning.streams import Streams
from ..guidance.options import GuidanceOptions
from ..prompts.reading import Prompts
from .plan import Size


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
        conditions: What the streams are held to; see [`~ltx2_diffusers.pipelines.conditions.condition.Condition`].
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


def check_generator(generator: torch.Generator | list[torch.Generator] | None, batch_size: int) -> None:
    """A list of generators needs one per video of the batch."""
    if isinstance(generator, (list, tuple)) and len(generator) != batch_size:
        raise ValueError(f"got {len(generator)} generators for a batch of {batch_size}; give one, or one per video")


def check_per_video(name: str, value: float | list[float] | None, batch_size: int) -> None:
    """A list needs one value per video of the batch."""
    if isinstance(value, list) and len(value) not in (1, batch_size):
        raise ValueError(
            f"got {len(value)} values in `{name}` for a batch of {batch_size}; give one, or one per video"
        )


def check_callback_inputs(names: Sequence[str] | None, allowed: Sequence[str]) -> None:
    """Tensors asked for by a step callback must be known."""
    unknown = [name for name in names or () if name not in allowed]
    if unknown:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` has to be in {list(allowed)} but contains {unknown}")


def check_fixed_duration(min_seconds: float, max_seconds: float) -> None:
    """Bounds of an automatic duration mean nothing without a component that predicts one."""
    if (min_seconds, max_seconds) != (1.0, 20.0):
        raise ValueError(
            f"`min_seconds` ({min_seconds}) and `max_seconds` ({max_seconds}) bound an automatic duration, which needs a "
            "duration head; this pipeline has none, so give `num_frames`"
        )
