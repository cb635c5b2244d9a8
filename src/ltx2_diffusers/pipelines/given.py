"""What recipes are given beside the text, turned into conditions."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch

from ..media.frames import first_picture
from .conditions.condition import Condition, listed_conditions
from .conditions.pictures import LTX2VideoCondition
from .conditions.sounds import AudioCondition
from .plan import DEFAULT_SIZE


def given_sound(call: Mapping[str, Any]) -> AudioCondition | None:
    """The sound of a call with the arguments `audio`, `sampling_rate` and `audio_*`, or `None`."""
    if call["audio"] is None:
        return None
    if not call.get("generate_audio", True):
        raise ValueError("`audio` is given but `generate_audio` is False; leave one of them out")
    return AudioCondition(
        call["audio"],
        call["sampling_rate"],
        noise_scale=call["audio_cond_noise_scale"],
        fit=call["audio_fit"],
        start_s=call["audio_start_s"],
    )


def given_conditions(call: dict[str, Any], sound: AudioCondition | None = None) -> list[Condition]:
    """Conditions of a call with the arguments `image`, `conditions` and `reference_conditions`, sound last.

    A picture among them is also shown to the language model, if it is to rewrite the prompt.
    """
    first = [] if call["image"] is None else [LTX2VideoCondition(call["image"])]
    pictures = [*first, *listed_conditions("conditions", call["conditions"])]
    # References stand after the keyframes in the sequence, as IC-LoRAs were trained.
    references = listed_conditions("reference_conditions", call["reference_conditions"])
    show_to_language_model(call, pictures)
    return [*pictures, *references, *([] if sound is None else [sound])]


def given_keyframes(call: dict[str, Any]) -> list[Condition]:
    """Keyframes of a call with the arguments `images`, `frame_indices`, `strengths` and `image_crf`."""
    images = call["images"]
    if not isinstance(images, (list, tuple, np.ndarray, torch.Tensor)) or not len(images):
        raise ValueError(f"`images` has to be a list of at least one picture but is {images!r}; use [image]")
    indices, strengths = call["frame_indices"], call["strengths"]
    if indices is None:
        count = call["num_frames"] or DEFAULT_SIZE[2]
        indices = np.linspace(0, count - 1, len(images)).round().astype(int).tolist()
    strengths = [strengths] * len(images) if isinstance(strengths, Real) else list(strengths)
    for name, values in (("frame_indices", indices), ("strengths", strengths)):
        if len(values) != len(images):
            raise ValueError(f"`{name}` has {len(values)} entries for {len(images)} `images`; give one each")
    keyframes = [
        LTX2VideoCondition(image, frame=index, strength=strength, crf=call["image_crf"], mode="append")
        for image, index, strength in zip(images, indices, strengths)
    ]
    show_to_language_model(call, keyframes)
    return keyframes


def show_to_language_model(call: dict[str, Any], conditions: list[Condition]) -> None:
    """Add the first picture among the conditions to a call whose prompt is to be rewritten."""
    pictures = (condition.frames for condition in conditions if isinstance(condition, LTX2VideoCondition))
    picture = next(pictures, None) if call["enable_prompt_enhancement"] else None
    call["enhancement_image"] = None if picture is None else first_picture(picture)
