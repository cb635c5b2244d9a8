"""What the options of `ltx2 generate` ask for, as far as a plan of memory has to know it."""

from math import ceil
from pathlib import Path
from typing import Any

from ..values import Options

# Sides of the smallest picture that every video autoencoder decodes, for sound alone.
_LEAST = 64
# Modes that read a clip and give the video autoencoder all of it.
_WITH_CLIP = ("video", "reference")


def wish(options: Options) -> dict[str, Any]:
    """Arguments of [`plan_memory`] that say what is generated.

    Args:
        options: The options, defaults filled in.
    """
    two_stage = "two_stage" in options or ("distilled" in options and "one_stage" not in options)
    asked: dict[str, Any] = {
        "two_stage": two_stage,
        "image": "image" in options or "image_at" in options,
        "num_videos": options.get("num_videos", 1),
        **_size(options, 64 if two_stage else 32),
        **({"decoder": options["decoder"]} if "decoder" in options else {}),
    }
    if "extend" not in options:
        # The prompts of an extension are those of its parts.
        asked["num_videos"] *= len(options["prompt"])
    if "distilled" in options:
        asked["guided"] = False
    elif "steps" in options:
        asked["num_inference_steps"] = options["steps"]
    if not options.keys().isdisjoint(_WITH_CLIP) or _is_clip_placed(options):
        asked["given_frames"] = asked["num_frames"]
    return asked


def _size(options: Options, multiple: int) -> dict[str, Any]:
    """Sizes of what is made: those of the options, else of the clip to work on, else what is usual."""
    from ...conditioning.shapes import VIDEO_SCALE_FACTORS, snap_frames
    from ...guidance.presets import DEFAULT_SIZE
    from ...media.reading import probe
    from ...models.duration_head import frames_within
    from .. import calls

    names = ("height", "width", "num_frames", "frame_rate")
    size: dict[str, Any] = dict(zip(names, (*DEFAULT_SIZE, 24.0)))
    if "video" in options:
        clip = probe(options["video"])
        rate = options.get("frame_rate", float(clip.frame_rate or 24))
        # Less than a thousandth of a frame comes from rounding.
        frames = snap_frames(max(ceil(clip.duration_s * rate - 0.001), 1))
        sides = [max(side // multiple, 2) * multiple for side in (clip.height, clip.width)]
        size = dict(zip(names, (*sides, frames, rate)))
    size |= {name: options[name] for name in names if name in options}
    if "auto_length" in options:
        bounds = calls.length_bounds(options)
        size["num_frames"] = frames_within(bounds[1], size["frame_rate"], VIDEO_SCALE_FACTORS.time, *bounds)
    if "extend" in options:
        size["num_frames"] = calls.segments(options, names)["num_frames"]
    if "audio_only" in options:
        frames = snap_frames(round(options["duration"] * size["frame_rate"]) + 8)
        size |= {"height": _LEAST, "width": _LEAST, "num_frames": frames}
    return size


def _is_clip_placed(options: Options) -> bool:
    """Whether `--image-at` places a clip."""
    from ...media.writing import VIDEO_SUFFIXES

    return any(Path(file).suffix.lower() in VIDEO_SUFFIXES for _, file, _ in options.get("image_at", []))
