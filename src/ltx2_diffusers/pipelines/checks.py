"""Checks of call arguments. Each raises `ValueError` with the value and the nearest valid one, before any compute."""

from collections.abc import Sequence
from typing import Any

import torch


def check_size(height: int, width: int, multiple: int) -> None:
    """`height` and `width` must be positive multiples of `multiple` pixels."""
    for name, value in (("height", height), ("width", width)):
        if not isinstance(value, int) or value <= 0 or value % multiple:
            raise ValueError(
                f"`{name}` has to be divisible by {multiple} but is {value}; use {_neighbours(value, multiple)}"
            )


def check_decodable_size(height: int, width: int, minimum: int) -> None:
    """A decoder that pads by reflection needs more than one latent a side."""
    for name, value in (("height", height), ("width", width)):
        if value < minimum:
            raise ValueError(
                f"`{name}` is {value}, but this checkpoint's video VAE decodes no less than {minimum} pixels a side; use "
                f"{minimum}"
            )


def check_num_frames(num_frames: int, stride: int, name: str = "num_frames") -> None:
    """A number of frames must be `stride * k + 1`, since a latent frame after the first one holds `stride` frames."""
    if not isinstance(num_frames, int) or num_frames < 1 or (num_frames - 1) % stride:
        raise ValueError(
            f"`{name}` has to be {stride} * k + 1 but is {num_frames}; use {_neighbours(num_frames, stride, 1)}"
        )


def _neighbours(value: Any, multiple: int, offset: int = 0) -> str:
    lower = (int(value) - offset) // multiple * multiple + offset
    valid = [number for number in (lower, lower + multiple) if number > 0]
    return " or ".join(str(number) for number in valid) or str(multiple + offset)


def check_positive(**values: float | None) -> None:
    """Every given value must be a number above zero."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"`{name}` has to be greater than 0 but is {value}")


def check_from_zero(**values: float) -> None:
    """Every value must be a number from zero on."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"`{name}` has to be at least 0 but is {value}; use 0")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """`value` must be one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` has to be one of {', '.join(map(repr, choices))} but is {value!r}")


def check_prompts(
    prompt: str | list[str] | None,
    negative_prompt: str | list[str] | None,
    prompt_embeds: torch.Tensor | None,
    negative_prompt_embeds: torch.Tensor | None,
    prompt_attention_mask: torch.Tensor | None,
    negative_prompt_attention_mask: torch.Tensor | None,
) -> int:
    """Check prompts and precomputed embeddings against each other and return the number of prompts."""
    if (prompt is None) == (prompt_embeds is None):
        raise ValueError("provide either `prompt` or `prompt_embeds`, and not both")
    if prompt is not None:
        _check_texts("prompt", prompt)
        batch_size = 1 if isinstance(prompt, str) else len(prompt)
    else:
        batch_size = _check_embeds("prompt", prompt_embeds, prompt_attention_mask)
    if negative_prompt_embeds is not None:
        if negative_prompt is not None:
            raise ValueError("provide either `negative_prompt` or `negative_prompt_embeds`, and not both")
        _check_embeds("negative_prompt", negative_prompt_embeds, negative_prompt_attention_mask)
        if prompt_embeds is not None and prompt_embeds.shape != negative_prompt_embeds.shape:
            raise ValueError(
                f"`prompt_embeds` and `negative_prompt_embeds` must have the same shape but are "
                f"{tuple(prompt_embeds.shape)} and {tuple(negative_prompt_embeds.shape)}"
            )
        if negative_prompt_embeds.shape[0] != batch_size:
            raise ValueError(
                f"got {negative_prompt_embeds.shape[0]} `negative_prompt_embeds` for {batch_size} prompts"
            )
    elif negative_prompt is not None:
        _check_texts("negative_prompt", negative_prompt)
        if not isinstance(negative_prompt, str) and len(negative_prompt) != batch_size:
            raise ValueError(
                f"`negative_prompt` has {len(negative_prompt)} entries for {batch_size} prompts; give one text for all "
                "or one per prompt"
            )
    return batch_size


def _check_texts(name: str, texts: Any) -> None:
    if isinstance(texts, str):
        return
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{name}` has to be a `str` or a list of `str` but is {texts!r}")
    if not texts:
        raise ValueError(f"`{name}` is an empty list; give at least one text")


def _check_embeds(name: str, embeds: torch.Tensor, mask: torch.Tensor | None) -> int:
    if mask is None:
        raise ValueError(f"`{name}_embeds` need their `{name}_attention_mask`")
    if embeds.ndim not in (3, 4) or not embeds.is_floating_point():
        raise ValueError(
            f"`{name}_embeds` have to be floating-point text-encoder states [B, T, C * L] or [B, T, C, L] but are "
            f"{embeds.dtype} {tuple(embeds.shape)}"
        )
    if tuple(mask.shape) != tuple(embeds.shape[:2]):
        raise ValueError(
            f"`{name}_attention_mask` has shape {tuple(mask.shape)}, but `{name}_embeds` need {tuple(embeds.shape[:2])}"
        )
    return embeds.shape[0]


def check_generator(generator: torch.Generator | list[torch.Generator] | None, batch_size: int) -> None:
    """A list of generators needs one per video of the batch."""
    if isinstance(generator, (list, tuple)) and len(generator) != batch_size:
        raise ValueError(f"got {len(generator)} generators for a batch of {batch_size}; give one, or one per video")


def check_float_tensors(**tensors: Any) -> None:
    """Everything given must be a floating-point tensor."""
    for name, tensor in tensors.items():
        if tensor is not None and not (isinstance(tensor, torch.Tensor) and tensor.is_floating_point()):
            raise ValueError(
                f"`{name}` has to be a floating-point tensor but is {getattr(tensor, 'dtype', type(tensor).__name__)}"
            )


def check_fractions(**values: float | None) -> None:
    """Every given value must lie between 0 and 1."""
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"`{name}` has to be between 0 and 1 but is {value}; use {min(max(value, 0.0), 1.0)}")


def check_text_width(width: int, **embeds: torch.Tensor | None) -> None:
    """Given text-encoder states must have the width that the connectors take, flat or stacked."""
    for name, tensor in embeds.items():
        if tensor is not None and tensor.shape[2:].numel() != width:
            raise ValueError(
                f"`{name}` has {tensor.shape[2:].numel()} values per token, but this checkpoint's connectors take {width}; "
                "encode the prompt with this pipeline's `encode_prompt`"
            )


def check_per_video(name: str, value: float | list[float] | None, batch_size: int) -> None:
    """A list needs one value per video of the batch."""
    if isinstance(value, list) and len(value) not in (1, batch_size):
        raise ValueError(
            f"got {len(value)} values in `{name}` for a batch of {batch_size}; give one, or one per video"
        )


def check_latents(name: str, latents: torch.Tensor | None, shape: Sequence[int], packed_shape: Sequence[int]) -> None:
    """Given latents must have `shape` unpacked or `packed_shape` packed."""
    if latents is None:
        return
    if tuple(latents.shape) not in (tuple(shape), tuple(packed_shape)):
        raise ValueError(
            f"`{name}` has shape {tuple(latents.shape)}; this call needs {tuple(shape)} (un-normalised) or "
            f"{tuple(packed_shape)} (packed)"
        )


def check_callback_inputs(names: Sequence[str] | None, allowed: Sequence[str]) -> None:
    """Tensors asked for by a step callback must be known."""
    unknown = [name for name in names or () if name not in allowed]
    if unknown:
        raise ValueError(f"`callback_on_step_end_tensor_inputs` has to be in {list(allowed)} but contains {unknown}")


def check_blocks(name: str, blocks: Sequence[int], num_layers: int) -> None:
    """Block indices must exist in the model."""
    wrong = [block for block in blocks if not 0 <= block < num_layers]
    if wrong:
        raise ValueError(f"`{name}` contains {wrong}, but the transformer has blocks 0 to {num_layers - 1}")


def check_fixed_duration(min_seconds: float, max_seconds: float) -> None:
    """Bounds of an automatic duration mean nothing without a component that predicts one."""
    if (min_seconds, max_seconds) != (1.0, 20.0):
        raise ValueError(
            f"`min_seconds` ({min_seconds}) and `max_seconds` ({max_seconds}) bound an automatic duration, which needs a "
            "duration head; this pipeline has none, so give `num_frames`"
        )


def check_enhancement(enabled: bool, prompt: str | list[str] | None, system_prompt: str | None) -> None:
    """Only a prompt can be rewritten, and instructions for rewriting need the switch."""
    if enabled and prompt is None:
        raise ValueError("`enable_prompt_enhancement` needs `prompt`; precomputed `prompt_embeds` cannot be rewritten")
    if system_prompt is not None and not enabled:
        raise ValueError("`system_prompt` is only read with `enable_prompt_enhancement=True`; set it or leave it out")


def check_at_least_one(**values: int) -> None:
    """Every value must be a whole number from 1."""
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` has to be a whole number of at least 1 but is {value!r}; use 1")


def check_conflicts(conditions: Sequence[Any], plan: Any) -> None:
    """No two conditions may claim the same place of a stream."""
    claimed: dict[Any, Any] = {}
    for condition in conditions:
        for place in condition.places(plan):
            if place in claimed:
                raise ValueError(f"two conditions claim {place}; keep one of them, or move the other to a free frame")
            claimed[place] = condition


def check_heard(conditions: Sequence[Any], streams: Any) -> None:
    """A condition on the sound needs a sound that is generated."""
    silent = [c for c in conditions if getattr(c, "stream", None) == "audio" and not streams.audio]
    if silent:
        raise ValueError(
            f"{type(silent[0]).__name__} is given, but this call makes no sound; leave it out, or pass generate_audio=True"
        )


def check_unit(**values: float) -> None:
    """Every value must lie in [0, 1]."""
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"`{name}` has to be between 0 and 1 but is {value}; use {min(max(value, 0.0), 1.0)}")
