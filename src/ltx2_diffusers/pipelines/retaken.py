"""From the arguments of a retake to what is kept of each stream, and how."""

from collections.abc import Mapping
from typing import Any

from ..conditioning.streams import Streams
from .conditions.condition import Condition, listed_conditions
from .conditions.pictures import WholeVideoCondition
from .conditions.regions import RetakeCondition
from .conditions.source import SourceClip, delivery, sized


def retaken_streams(call: Mapping[str, Any], source: SourceClip) -> tuple[list[Condition], dict[str, Any]]:
    """Conditions of a retake, and the fields of the request that follow from the source.

    Args:
        call: Arguments of the call.
        source: The clip to work on.
    """
    video, audio = call["regenerate_video"], call["regenerate_audio"]
    has_sound = source.audio is not None
    audio = has_sound if audio is None else audio
    if audio and not has_sound:
        raise ValueError(
            "`regenerate_audio` is True, but the clip has no sound to keep around the stretch; pass `audio`, or make sound "
            "for the whole clip with LTX2VideoToAudioPipeline"
        )
    if not (video or audio):
        raise ValueError("`regenerate_video` and `regenerate_audio` are both False; set at least one to True")
    if call["region"] is not None and not video:
        raise ValueError("`region` marks pictures, but `regenerate_video` is False; leave one of them out")
    size = sized(source, call, source.pixels.shape[1:3], source.num_frames)
    retake = RetakeCondition(
        call["start_s"],
        call["end_s"],
        source.pixels if video else None,
        source.audio if audio else None,
        call["region"],
    )
    kept = ([] if video else [WholeVideoCondition(source.frames)]) + (
        [source.sound()] if has_sound and not audio else []
    )
    handed_over = delivery(call, None if video else source, source if has_sound and not audio else None)
    given = [retake, *kept, *listed_conditions("conditions", call["conditions"])]
    return given, {"size": size, "streams": Streams(True, has_sound), "delivery": handed_over}
