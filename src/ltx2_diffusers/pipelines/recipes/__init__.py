"""One pipeline per task; what recipes are written with stands here for all of them."""

from ...conditioning import Streams
from ...media.frames import Frames
from ..arguments import Arguments, Delivery, GivenArguments, Request, SoundArguments, StagedArguments, Texts, takes
from ..base import LTX2PipelineBase, extends
from ..engine import check_said, run, stage_list
from ..generation import Generators, LTX2GenerationPipeline, LTX2StagedPipeline, Scheduler, Upsampler
from ..output import Decoded, Info, LTX2PipelineOutput, Result
from ..plan import DEFAULT_SIZE, ClipPlan, ModelSizes, Size
