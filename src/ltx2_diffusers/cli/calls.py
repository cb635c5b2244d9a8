"""What options become in the call of a pipeline, where that is more than the value of one option.

Each function takes all options and the arguments that the call takes, and returns arguments of the call.
"""

from collections.abc import Callable, Collection
from dataclasses import fields
from math import ceil, inf
from pathlib import Path
from typing import Any

from ..checks import check_positive
from .values import Options

Arguments = dict[str, Any]
Becomes = Callable[[Options, Collection[str]], Arguments]


def prompts(options: Options, _takes: Collection[str]) -> Arguments:
    """One text, or a list of several."""
    texts = options["prompt"]
    return {"prompt": texts[0] if len(texts) == 1 else texts}


def pictures(options: Options, takes: Collection[str]) -> Arguments:
    """Pictures and clips in the form that the pipeline takes."""
    from .. import LTX2VideoCondition, LTXVideoCondition
    from ..families.ltx_video.presets import DEFAULT_SIZE

    crf = options.get("image_crf")
    placed = [[0, options["image"], 1.0]] if "image" in options else []
    placed += options.get("image_at", [])
    if "media_items" in takes:
        _check_by_time(options)
        count = options.get("num_frames", DEFAULT_SIZE[2])
        placed = [[n + count if -count <= n < 0 else n, f, s] for n, f, s in placed]
        items = [LTXVideoCondition(**_as_frames(f), frame_index=n, strength=s) for n, f, s in placed]
        return {"conditions": items} if crf is None else {"conditions": items, "image_crf": crf}
    if "images" in takes:
        frames, images, strengths = (list(column) for column in zip(*placed))
        return {"images": images, "frame_indices": frames, "strengths": strengths, "image_crf": crf}
    if "image" in takes and "conditions" not in takes:
        return {"image": options["image"], "image_crf": crf}
    rate = _read_at(options)
    conditions = [LTX2VideoCondition(f, frame=n, strength=s, crf=crf, frame_rate=rate) for n, f, s in placed]
    return {"conditions": conditions}


def _as_frames(file: Path) -> Arguments:
    """A file as what it is: a picture or a clip."""
    from ..media.images import is_clip

    return {"video" if is_clip(file) else "image": file}


def _check_by_time(options: Options) -> None:
    if "frame_by_frame" in options:
        raise ValueError("--frame-by-frame is for checkpoints of LTX-2; frames of clips are taken by their times")


def source(options: Options, takes: Collection[str]) -> Arguments:
    """The clip to work on; LTX-Video takes one to start from."""
    return {"media_items" if "media_items" in takes else "video": options["video"]}


def scales(options: Options, takes: Collection[str]) -> Arguments:
    """Whether a clip is made at once, or small first and then refined."""
    return {"multi_scale" if "multi_scale" in takes else "two_stage": "two_stage" in options}


def references(options: Options, takes: Collection[str]) -> Arguments:
    """Clips and sounds that the result follows."""
    from .. import LTX2AudioReferenceCondition, LTX2HDRReferenceCondition, LTX2ReferenceCondition, LTXVideoCondition

    if "media_items" in takes and "reference_audio" not in options:
        _check_by_time(options)
        return {
            "reference_conditions": [LTXVideoCondition(**_as_frames(f), strength=s) for f, s in options["reference"]]
        }
    rate, clip = _read_at(options), LTX2HDRReferenceCondition if "hdr" in options else LTX2ReferenceCondition
    clips = [clip(f, strength=s, frame_rate=rate) for f, s in options.get("reference", [])]
    sounds = [LTX2AudioReferenceCondition(file, strength=s) for file, s in options.get("reference_audio", [])]
    return {"reference_conditions": [*clips, *sounds]}


def _read_at(options: Options) -> str | None:
    """The rate at which given clips are read: their own, frame by frame, or that of what is made."""
    return "source" if "frame_by_frame" in options else None


def guidance(options: Options, _takes: Collection[str]) -> Arguments:
    """Ways of guiding beyond the scales; the options are called like their fields."""
    from .. import GuidanceOptions

    names = [field.name for field in fields(GuidanceOptions) if field.name in options]
    return {"guidance_options": GuidanceOptions(**{name: options[name] for name in names})}


def refining_lora(options: Options, _takes: Collection[str]) -> Arguments:
    """The LoRA that the second stage adds, if there is one."""
    from ..adapters.active import DISTILLED_ADAPTER

    weight = options["distilled_lora"][1]
    return {} if "one_stage" in options else {"stage_2_adapters": {DISTILLED_ADAPTER: weight}}


def retake(options: Options, _takes: Collection[str]) -> Arguments:
    """Both ends of the stretch."""
    return dict(zip(("start_s", "end_s"), options["retake"]))


def region(options: Options, _takes: Collection[str]) -> Arguments:
    """The mask as a picture; a file name would be read as a clip."""
    from ..media.reading import read_image

    return {"region": read_image(options["region"])}


def sound_alone(options: Options, _takes: Collection[str]) -> Arguments:
    """That pictures stay, for a clip with sound to make anew."""
    from ..media.reading import probe

    if "audio" not in options and probe(options["video"]).sampling_rate is None:
        raise ValueError(
            f"--keep-video leaves nothing to be made anew: --video {str(options['video'])!r} has no sound; use --add-sound "
            "to give it one"
        )
    return {"regenerate_video": False}


def length_bounds(options: Options) -> tuple[float, float]:
    """Shortest and longest length that may be predicted, in seconds."""
    from ..models.duration_head import SECONDS

    return options.get("min_seconds", SECONDS[0]), options.get("max_seconds", SECONDS[1])


def predicted_length(options: Options, _takes: Collection[str]) -> Arguments:
    """No number of frames, and the bounds of the one that is predicted."""
    return {"num_frames": None, **dict(zip(("min_seconds", "max_seconds"), length_bounds(options)))}


def segments(options: Options, _takes: Collection[str]) -> Arguments:
    """How many parts an extension makes, and how many frames each has, those it shares included.

    The parts are of one length, the given one or the shortest that will do; several prompts say how many they are.
    """
    from ..application.chunks import fewest_parts, shortest_part
    from ..conditioning.shapes import VIDEO_SCALE_FACTORS
    from ..guidance.presets import DEFAULT_SIZE
    from ..media.files import exact_frame_rate
    from ..media.reading import probe

    stride = VIDEO_SCALE_FACTORS.time
    seconds, overlap = options["extend"], options.get("overlap", 25)
    longest = options.get("num_frames", DEFAULT_SIZE[2])
    own_rate = probe(options["video"]).frame_rate if "video" in options else None
    rate = options.get("frame_rate", float(own_rate or 24.0))
    check_positive(frame_rate=rate)
    exact_frame_rate(rate)
    if not 0 < seconds * rate < inf:
        limit = " and finite" if seconds > 0 else ""
        raise ValueError(f"--extend has to be more than 0 seconds{limit} but is {seconds}; use 1.0")
    if not 0 < overlap < longest:
        raise ValueError(f"--overlap has to be less than --num-frames {longest} but is {overlap}; use 9")
    frames = stride * ceil(seconds * rate / stride) + (overlap if "video" in options else 1)
    texts = len(options["prompt"])
    count = texts if texts > 1 else fewest_parts(frames, longest, overlap)
    part = shortest_part(frames, count, overlap)
    if part > longest:
        raise ValueError(
            f"--extend {seconds:g} in {count} parts needs {part} frames a part, more than {longest}; give more prompts, or "
            f"--num-frames {part}"
        )
    return {"num_segments": count, "num_frames": options.get("num_frames", part)}
