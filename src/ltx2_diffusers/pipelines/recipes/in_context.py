"""Video with sound from text and reference videos (IC-LoRA)."""

from dataclasses import dataclass, field, replace

import torch

from ..conditions import Conditions, as_conditions, with_defaults
from . import Arguments, Result, Texts, check_said, takes
from .condition import LTX2ConditionPipeline, run_conditioned


@dataclass(frozen=True)
class _References(Texts):
    """What comes first.

    Args:
        reference_conditions: One or several [`LTX2ReferenceCondition`] or [`LTX2AudioReferenceCondition`].
        conditions: Pictures and clips, as in [`LTX2ConditionPipeline`].
        reference_downscale_factor: Size of the video over that of the references. Default what the metadata of the
            active LoRAs says, else 1; another value than they say is refused.
        conditioning_attention_strength: How far video and references see each other, 0 (not at all) to 1. Default
            1.0.
        conditioning_attention_mask: Where they see each other: pixels `[1, 1, F, H, W]` in [0, 1] with the frames
            of the references, multiplied by the strength. Default everywhere.
    """

    reference_conditions: Conditions = None
    conditions: Conditions = None
    reference_downscale_factor: int | None = None
    conditioning_attention_strength: float = 1.0
    conditioning_attention_mask: torch.Tensor | None = None


@dataclass(frozen=True)
class InContextArguments(Arguments, _References):
    """What the call takes beside the arguments of [`LTX2Pipeline`].

    Args:
        noise_scale: Noise that the video, and given `audio_latents`, start with, 0 to 1. Default the first noise
            level: the first of `sigmas` or `timesteps`, else 1.0.
        latents: Video latents to start from, as in [`LTX2ConditionPipeline`].
        num_frames: Frames, 8 k + 1. Default 121, or that of `latents`; `None` has the `duration_head` predict it.
    """

    num_frames: int | None = 121
    min_seconds: float = field(default=1.0, kw_only=True)
    max_seconds: float = field(default=20.0, kw_only=True)
    noise_scale: float | None = None


class LTX2InContextPipeline(LTX2ConditionPipeline):
    """Generates a video with sound as an IC-LoRA derives it from reference videos, held to pictures and clips.

    Takes the components and call arguments of diffusers' pipeline of the same name. Load the IC-LoRA first, with
    `load_lora_weights`.
    """

    @takes(InContextArguments)
    def __call__(self, call: InContextArguments) -> Result:  # type: ignore[override]  # references come first
        """Generate videos with sound that follow reference videos.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        if call.latents is not None and call.num_frames == InContextArguments.num_frames:
            call = replace(call, num_frames=None)
        given = as_conditions("reference_conditions", call.reference_conditions)
        names = ("reference_downscale_factor", "conditioning_attention_strength", "conditioning_attention_mask")
        if not given:
            check_said("there are no `reference_conditions`", call, *names)
        references = with_defaults(
            given,
            call.reference_downscale_factor,
            call.conditioning_attention_strength,
            call.conditioning_attention_mask,
        )
        # References stand after the keyframes in the sequence, as IC-LoRAs were trained.
        return run_conditioned(self, call, [*as_conditions("conditions", call.conditions), *references])
