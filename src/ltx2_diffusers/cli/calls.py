"""From the options of `ltx2 generate` to the arguments of a pipeline's call, and back in messages."""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from math import ceil
from typing import Any

from .modes import Mode, chosen
from .values import flag

Options = Mapping[str, Any]

# Option -> argument of the same meaning, where the names differ.
_RENAMED = {
    "audio_start": "audio_start_s",
    "overlap": "overlap_frames",
    "duration": "duration_s",
    "num_videos": "num_videos_per_prompt",
    "steps": "num_inference_steps",
    "stg_blocks": "spatio_temporal_guidance_blocks",
    "enhance_prompt": "enable_prompt_enhancement",
    "enhance_tokens": "prompt_max_new_tokens",
}
_SAME = [
    "negative_prompt",
    "system_prompt",
    "max_sequence_length",
    "audio",
    "audio_fit",
    "audio_cond_noise_scale",
    "video",
    "drift_control",
    "width",
    "height",
    "num_frames",
    "frame_rate",
    "motion_speed",
    "sigmas",
    "stage_2_sigmas",
    "sampler",
    "decode_timestep",
    "decode_noise_scale",
    "guidance_scale",
    "stg_scale",
    "modality_scale",
    "guidance_rescale",
    "audio_guidance_scale",
    "audio_stg_scale",
    "audio_modality_scale",
    "audio_guidance_rescale",
]
_ARGUMENTS = {**_RENAMED, **{name: name for name in _SAME}}

# Options that are read elsewhere: while loading, while writing, or for a list of stages.
_NOT_ARGUMENTS = [
    "output",
    "preview",
    "preview_every",
    "seed",
    "checkpoint",
    "text_encoder",
    "no_text_encoder",
    "upsampler",
    "device",
    "dtype",
    "offload",
    "tiling",
    "prompt_cache",
    "lora",
    "distilled_lora",
    "refine_with_same_weights",
    "two_stage",
    "one_stage",
    "image_crf",
]


# Options that make one argument together.
_GUIDANCE = (
    "skip_step",
    "audio_skip_step",
    "cfg_method",
    "apg_eta",
    "apg_norm_threshold",
    "apg_momentum",
    "nag_scale",
    "nag_tau",
    "nag_alpha",
)


def call_arguments(mode: Mode, options: Options) -> dict[str, Any]:
    """Arguments of the call, without generator and callback.

    Raises:
        ValueError: If an option means nothing to the mode's pipeline.
    """
    takes = inspect.signature(mode.pipeline_class.__call__).parameters.keys()
    call: dict[str, Any] = {}
    for option in options:
        found = _arguments_of(option, options, takes)
        if not found.keys() <= takes or (option in _CHOICES and option not in mode.chosen_by):
            raise ValueError(f"{flag(option)} means nothing for {chosen(mode, options)}; leave one of them out")
        call |= found
    if "two_stage" in takes:
        call["two_stage"] = (mode.two_stage or "two_stage" in options) and "one_stage" not in options
    elif "two_stage" in options:
        raise ValueError(f"--two-stage means nothing for {chosen(mode, options)}; leave one of them out")
    if options.get("refine_with_same_weights"):
        call["stage_2_adapters"] = {}
    elif call.get("two_stage") and "stage_2_adapters" in takes and "distilled_lora" in options:
        call["stage_2_adapters"] = {"distilled": options["distilled_lora"][1]}
    return call


def _arguments_of(option: str, options: Options, takes: Collection[str]) -> dict[str, Any]:
    """What one option contributes to a call whose arguments are `takes`."""
    if option in _NOT_ARGUMENTS or option in _CHOICES:
        return {}
    if option in _ARGUMENTS:
        return {_ARGUMENTS[option]: options[option]}
    return _COMPOSED[option](options, takes)


def _prompt(options: Options, _takes: Collection[str]) -> dict[str, Any]:
    texts = options["prompt"]
    return {"prompt": texts[0] if len(texts) == 1 else texts}


def _pictures(options: Options, takes: Collection[str]) -> dict[str, Any]:
    """Pictures and clips in the form that the pipeline takes."""
    from ..pipelines.conditions.pictures import LTX2VideoCondition

    placed = [[0, options["image"], 1.0]] if "image" in options else []
    placed += options.get("image_at", [])
    crf = options.get("image_crf")
    if "images" in takes:
        frames, images, strengths = (list(column) for column in zip(*placed))
        return {"images": images, "frame_indices": frames, "strengths": strengths, "image_crf": crf}
    if "image" in takes and "conditions" not in takes:
        return {"image": options["image"], "image_crf": crf}
    conditions = [
        LTX2VideoCondition(file, frame=frame, strength=strength, crf=crf) for frame, file, strength in placed
    ]
    return {"conditions": conditions}


def _references(options: Options, _takes: Collection[str]) -> dict[str, Any]:
    from ..pipelines.conditions.references import LTX2ReferenceCondition
    from ..pipelines.conditions.sounds import LTX2AudioReferenceCondition

    clips = [LTX2ReferenceCondition(*given) for given in options.get("reference", [])]
    sounds = [
        LTX2AudioReferenceCondition(file, strength=strength) for file, strength in options.get("reference_audio", [])
    ]
    return {"reference_conditions": [*clips, *sounds]}


def _guidance(options: Options, _takes: Collection[str]) -> dict[str, Any]:
    from ..guidance.options import GuidanceOptions

    return {"guidance_options": GuidanceOptions(**{name: options[name] for name in _GUIDANCE if name in options})}


def _retake(options: Options, _takes: Collection[str]) -> dict[str, Any]:
    return {"start_s": options["retake"][0], "end_s": options["retake"][1]}


def _region(options: Options, _takes: Collection[str]) -> dict[str, Any]:
    from ..media.reading import read_image

    return {"region": read_image(options["region"])}


def _segments(options: Options, _takes: Collection[str]) -> dict[str, Any]:
    """How many parts an extension makes, and how many frames each has, those it shares included.

    The parts are of one length, the given one or the shortest that will do; several prompts say how many they are.
    """
    from ..media.reading import probe
    from ..pipelines.plan import DEFAULT_SIZE

    seconds, overlap = options["extend"], options.get("overlap", 25)
    longest = options.get("num_frames", DEFAULT_SIZE[2])
    rate = options.get("frame_rate")
    if rate is None:
        rate = float(probe(options["video"]).frame_rate or 24.0) if "video" in options else 24.0
    if not seconds > 0:
        raise ValueError(f"--extend has to be more than 0 seconds but is {seconds}; use 1.0")
    if not 0 < overlap < longest:
        raise ValueError(f"--overlap has to be less than --num-frames {longest} but is {overlap}; use 9")
    frames = 8 * ceil(seconds * rate / 8) + (overlap if "video" in options else 1)
    texts = len(options["prompt"])
    count = texts if texts > 1 else max(1, ceil((frames - overlap) / (longest - overlap)))
    part = 8 * ceil(((frames + (count - 1) * overlap) / count - 1) / 8) + 1
    if part > longest:
        raise ValueError(
            f"--extend {seconds:g} in {count} parts needs {part} frames a part, more than {longest}; give more prompts, or "
            f"--num-frames {part}"
        )
    return {"num_segments": count, "num_frames": options.get("num_frames", part)}


# Options that make arguments of another form, or several.
_COMPOSED: dict[str, Callable[[Options, Collection[str]], dict[str, Any]]] = {
    "prompt": _prompt,
    "image": _pictures,
    "image_at": _pictures,
    "reference": _references,
    "reference_audio": _references,
    "retake": _retake,
    "region": _region,
    "keep_video": lambda _options, _takes: {"regenerate_video": False},
    "keep_audio": lambda _options, _takes: {"regenerate_audio": False},
    "extend": _segments,
    "backwards": lambda _options, _takes: {"direction": "backward"},
    "no_audio": lambda _options, _takes: {"generate_audio": False},
    **dict.fromkeys(_GUIDANCE, _guidance),
}
# Options that only choose a mode.
_CHOICES = ("audio_only", "add_sound", "interpolate", "distilled")


def in_options(message: str) -> str:
    """A message of a pipeline with its arguments named as options of the command line."""
    names = {argument: flag(option) for option, argument in _ARGUMENTS.items()}
    names |= {option: flag(option) for option in _GUIDANCE}
    names |= {"generate_audio": "--no-audio", "start_s": "--retake", "end_s": "--retake", "region": "--region"}
    names |= {
        "images": "--image-at",
        "frame": "--image-at",
        "num_segments": "--extend",
        "text_encoder": "--text-encoder",
    }
    message = re.sub(
        r'`?\b(\w+)="?([\w.]+)"?`?', lambda m: f"{names[m[1]]} {m[2]}" if m[1] in names else m[0], message
    )
    return re.sub(r"`(\w+)`", lambda m: names.get(m[1], m[0]), message)
