"""The blocks of whole pipelines, put together as `resources/modular/blocks.yaml` says.

Blocks may be exchanged and put in: `blocks.sub_blocks["decode"] = MyDecoder()`.
"""

# mypy: disable-error-code="override"

from typing import Any

# Their blocks are the parts of those below.
from . import decoding, denoising, encoding, preparing, text  # noqa: F401
from .declarations import Conditional, Sequential


class LTX2CoreDenoiseStep(Sequential):
    """Makes a video of text: noise levels, noise, positions, denoising."""


class LTX2Image2VideoCoreDenoiseStep(Sequential):
    """The same with a picture in the place of the first frame."""


class LTX2ConditionCoreDenoiseStep(Sequential):
    """Makes a video that is held to conditions; noise levels follow from all tokens."""


class LTX2InContextCoreDenoiseStep(Sequential):
    """The same with reference videos."""


class LTX2AutoCoreDenoiseStep(Conditional):
    """Makes a video as its inputs say: with references, with conditions, with a first frame, or of text alone."""

    def select_block(
        self, reference_conditions: Any = None, condition_latents: Any = None, image_latents: Any = None
    ) -> str:
        if reference_conditions:
            return "in_context"
        if condition_latents is not None:
            return "condition"
        return "text2video" if image_latents is None else "image2video"


class LTX2Blocks(Sequential):
    """Text to video with sound."""


class LTX2ImageToVideoBlocks(Sequential):
    """Image to video with sound."""


class LTX2ConditionBlocks(Sequential):
    """Video with sound that shows pictures and clips at some place."""


class LTX2InContextBlocks(Sequential):
    """Video with sound that an IC-LoRA derives from reference videos."""


class LTX2AutoBlocks(Sequential):
    """Video with sound, as its inputs say: of text, with a first frame, with conditions, or with references.

    `get_workflow` gives the blocks of one of these alone: `"text2video"`, `"image2video"`, `"condition"`, `"in_context"`.
    """


class LTX25AutoBlocks(LTX2AutoBlocks):
    """The same, decoded by the diffusion decoder of LTX-2.5."""
