"""Text, pictures and sound to video with a distilled model: few steps, one forward each."""

from dataclasses import dataclass, field

import torch
from diffusers.utils import logging

from ...checkpoints.versions import model_kind
from ...guidance.scales import check_negative_is_read
from ..arguments import Unguided
from . import Frames, LTX2StagedPipeline, Result, takes
from .two_stage import TwoStageArguments, run_given

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class _PromptAndImage:
    """What comes first."""

    prompt: str | list[str] | None = None
    image: Frames | None = None


@dataclass(frozen=True)
class DistilledArguments(Unguided, TwoStageArguments, _PromptAndImage):
    """What the call takes: no guidance scales.

    Args:
        two_stage: Whether to start at half the size and refine at full size (default), or to run 8 steps at full size.
        sigmas: Noise levels of the first stage, in (0, 1] and falling; default the 8 of the distilled models.
        stage_2_sigmas: Noise levels of the second stage; default their 3.
        stage_1_adapters, stage_2_adapters: LoRA strengths by adapter name that a stage adds to the active adapters, or
            changes; 0 takes one out. Default none. An IC-LoRA, which is trained with references beside the video, is best
            taken out of the second stage, which has none: `stage_2_adapters={name: 0}`.
        sampler: Sampler of both stages. Default the preset's in the first, `"euler_ancestral"` for LTX-2.5 and
            `"euler"` before, and `"euler"` in the second.
        negative_prompt: What to steer away from in both stages; refused where nothing reads it. Default the empty text.
    """

    negative_prompt: str | list[str] | None = field(default=None, kw_only=True)
    negative_prompt_embeds: torch.Tensor | None = field(default=None, kw_only=True)
    negative_prompt_attention_mask: torch.Tensor | None = field(default=None, kw_only=True)
    stages: None = field(init=False, default=None)


class LTX2DistilledPipeline(LTX2StagedPipeline):
    """Generates with a distilled checkpoint: 8 steps at half the size and 3 at full size, without guidance.

    Also runs a dev checkpoint with its distilled LoRA active. The sampling settings are always those of the distilled
    kind, whatever the scheduler's config says; one of the dev kind without any LoRA is worth a warning.
    """

    kind = "distilled"

    @takes(DistilledArguments)
    def __call__(self, call: DistilledArguments) -> Result:
        """Generate videos with sound, one forward of the network per step.

        There is no classifier-free guidance, so there are no guidance scales. A negative prompt acts through normalized
        attention guidance, for example `guidance_options=GuidanceOptions(nag_scale=5.0)`, at the same number of forwards.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        check_negative_is_read(call.negative_prompt, call.negative_prompt_embeds, call.guidance_options)
        # Dev weights cannot be told from distilled ones; their scheduler gives a hint.
        if model_kind(self.scheduler.config) == "dev" and not (call.stage_1_adapters or self.get_active_adapters()):
            logger.warning(
                "the scheduler is that of a dev checkpoint, and no LoRA is active; dev weights need their distilled LoRA "
                "here (load_lora_weights), or LTX2TwoStagePipeline"
            )
        return run_given(self, call)
