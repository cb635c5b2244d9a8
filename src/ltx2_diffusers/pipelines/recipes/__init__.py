"""One pipeline per task; what recipes are written with stands here for all of them."""

from ...conditioning import Streams
from ...media.frames import Frames
from ..arguments import Arguments, Delivery, GivenArguments, Request, SoundArguments, StagedArguments, Texts, takes
from ..base import extends
from ..engine import run, stage_list
from ..generation import LTX2GenerationPipeline, LTX2StagedPipeline, Scheduler, Upsampler
from ..output import Decoded, Info, LTX2PipelineOutput
from ..plan import DEFAULT_SIZE, ClipPlan, ModelSizes, Size

__all__ = [
    "DEFAULT_SIZE",
    "Arguments",
    "ClipPlan",
    "Decoded",
    "Delivery",
    "Frames",
    "GivenArguments",
    "Info",
    "LTX2GenerationPipeline",
    "LTX2PipelineOutput",
    "LTX2StagedPipeline",
    "ModelSizes",
    "Request",
    "Scheduler",
    "Size",
    "SoundArguments",
    "StagedArguments",
    "Streams",
    "Texts",
    "Upsampler",
    "extends",
    "run",
    "stage_list",
    "takes",
]
