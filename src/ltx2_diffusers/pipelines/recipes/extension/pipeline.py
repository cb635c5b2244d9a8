"""A clip made longer, segment by segment, by handing over latents."""

from ...arguments import takes
from ...output import LTX2PipelineOutput
from ...staged import LTX2StagedPipeline
from .assembly import extend
from .plan import ExtendArguments, plan_extension


class LTX2ExtendPipeline(LTX2StagedPipeline):
    """Makes a clip longer, forwards or backwards, or makes a long clip from nothing.

    Each segment takes over the last latents of both streams of the one before, so that nothing is decoded and encoded
    again on the way, and the frames that both show are cut exactly. The sound is counted from the start of the whole clip:
    its length agrees with the video's to one audio latent, however many segments there are.
    """

    @takes(ExtendArguments)
    def __call__(self, call: ExtendArguments) -> LTX2PipelineOutput | tuple:
        """Extend a clip.

        Steps, guidance and adapters hold for every segment; one clip is made per call.
        Setting `pipeline._interrupt = True` in a callback ends the series at once: the segment in progress is left out, unless
        there is nothing else, and a file that is being written is completed with what there is. After an exception no file
        is left.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        self.require("transformer")
        return extend(self, call, plan_extension(self.sizes, call))
