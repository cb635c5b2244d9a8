"""One pipeline per task; what recipes are written with stands here for all of them."""

from ...conditioning import Streams
from ...media.frames import Frames
from ..arguments import Arguments, GivenArguments, SoundArguments, StagedArguments, Texts, takes
from ..base import extends
from ..engine import run, stage_list
from ..generation import LTX2GenerationPipeline, LTX2StagedPipeline
from ..output import LTX2PipelineOutput
from ..plan import DEFAULT_SIZE, Size

__all__ = [
    "DEFAULT_SIZE",
    "Arguments",
    "Frames",
    "GivenArguments",
    "LTX2GenerationPipeline",
    "LTX2PipelineOutput",
    "LTX2StagedPipeline",
    "Size",
    "SoundArguments",
    "StagedArguments",
    "Streams",
    "Texts",
    "extends",
    "run",
    "stage_list",
    "takes",
]
