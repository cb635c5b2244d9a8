"""What a generation can be held to."""

from .condition import Condition, Conditions, Opened, Studio, as_conditions, check_conflicts, check_heard, held_streams
from .pictures import (
    FirstFrameCondition,
    ImageCondition,
    LTX2HDRReferenceCondition,
    LTX2ReferenceCondition,
    LTX2VideoCondition,
    OpenedPictures,
    keyframes,
    with_defaults,
)
from .sounds import AudioCondition, LTX2AudioReferenceCondition, Sound, Waveform
from .source import Mask, SourceClip, WholeVideoCondition, read_source, retake_conditions
