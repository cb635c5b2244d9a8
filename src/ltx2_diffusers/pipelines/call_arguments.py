"""From the arguments of a call to a [`Request`]: the one place that knows how they are grouped."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..conditioning.streams import Streams
from ..guidance.presets import Preset
from ..guidance.scales import PRESET, resolve_scales, with_bins
from ..prompts.reading import Enhancement, Prompts
from .arguments import Delivery, Request, Stage, Start, check_fixed_duration
from .plan import Size

# Arguments whose name differs from the field they fill.
_NAMES = {
    "enabled": "enable_prompt_enhancement",
    "image": "enhancement_image",
    "max_new_tokens": "prompt_max_new_tokens",
    "generation_kwargs": "prompt_enhancement_kwargs",
    "seed": "prompt_enhancement_seed",
    "callback": "callback_on_step_end",
    "callback_inputs": "callback_on_step_end_tensor_inputs",
    "stg_blocks": "spatio_temporal_guidance_blocks",
}
_EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask")
_SCALES = ("guidance_scale", "stg_scale", "guidance_rescale", "modality_scale")


def build_request(
    call: Mapping[str, Any], stages: Sequence[Stage], conditions: Sequence[Any] = (), **changes: Any
) -> Request:
    """Group the arguments of a call.

    Args:
        call: Arguments by name; what a recipe does not take keeps its default.
        stages: Runs of the denoising loop.
        conditions: What the streams are held to.
        changes: Further fields of the request.
    """
    check_fixed_duration(call.get("min_seconds", 1.0), call.get("max_seconds", 20.0))
    prompts = filled(
        Prompts, call, embeds=tuple(call.get(name) for name in _EMBEDS), enhancement=filled(Enhancement, call)
    )
    given = {"size": Size, "start": Start, "delivery": Delivery}
    groups = {name: filled(kind, call) for name, kind in given.items() if name not in changes}
    return filled(Request, call, prompts=prompts, stages=stages, conditions=conditions, **groups, **changes)


def filled(kind: type, call: Mapping[str, Any], **changes: Any) -> Any:
    """An object of a dataclass whose fields come from the arguments of a call, as far as the call has them."""
    names = {field.name: _NAMES.get(field.name, field.name) for field in fields(kind)}
    values = {field: call[name] for field, name in names.items() if name in call and field not in changes}
    return kind(**values, **changes)


def guided_stage(call: Mapping[str, Any], preset: Preset, **changes: Any) -> Stage:
    """A stage with the guidance and sampling arguments of a call."""
    video = [call.get(name) for name in _SCALES]
    audio = [call.get(f"audio_{name}", PRESET) for name in _SCALES]
    scales = with_bins(resolve_scales(preset, video, audio), call.get("guidance_options"), Streams(video, audio))
    sampler = call.get("sampler") or preset.sampler
    return filled(Stage, call, **{"scales": scales, "sampler": sampler, **changes})


def only(stream: str) -> Streams:
    """Streams of a generation that has only `"video"` or only `"audio"`."""
    return Streams(stream == "video", stream == "audio")
