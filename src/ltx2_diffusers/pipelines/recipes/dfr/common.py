"""What both pipelines of DFR share: arguments, what they need of a checkpoint, and how they hand over."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from ....schedulers.levels import FlowMatchEulerDiscreteScheduler, LTX2Scheduler
from ...arguments import Unguided
from ...engine import Generated, Originals, deliver
from ...output import LTX2DFRPipelineOutput
from .. import Arguments, Delivery, LTX2GenerationPipeline, Result

POSITIONS = "keyframe_positions"


@dataclass(frozen=True)
class PassArguments(Unguided, Arguments):
    """What the calls of DFR share.

    Args:
        height, width: Size of this pass in pixels, multiples of 32. Default 704 x 1216.
        sigmas: Noise levels of the pass, in (0, 1] and falling, taken as they are.
        noise_scale: Noise that the pass starts with, 0 to 1. Default the first of `sigmas`.
        use_cross_timestep: Whose noise level modulates the exchange between the streams: the other stream's
            (`True`, default) or its own (`False`).
        return_dict: Whether to return an [`LTX2DFRPipelineOutput`] instead of the tuple `(frames, audio, keyframes,
            keyframe_positions)`.
    """

    height: int = 704
    width: int = 1216
    noise_scale: float | None = None
    use_cross_timestep: bool = True
    negative_prompt: None = field(init=False, default=None)
    negative_prompt_embeds: None = field(init=False, default=None)
    negative_prompt_attention_mask: None = field(init=False, default=None)
    motion_speed: float = field(init=False, default=1.0)
    timesteps: None = field(init=False, default=None)
    sampler: None = field(init=False, default=None)
    guidance_options: None = field(init=False, default=None)


def listed(components: dict[str, Any]) -> dict[str, Any]:
    """The components of a pipeline, with a scheduler that takes listed noise levels as they are.

    Those of DFR are fixed and must not be shifted.
    """
    scheduler = components["scheduler"]
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        scheduler = LTX2Scheduler.from_config(dict(scheduler.config))
    return {**components, "scheduler": scheduler}


def check_marks(pipeline: LTX2GenerationPipeline) -> None:
    """Raise `ValueError` for a transformer that cannot tell keyframes from the frames of a video."""
    pipeline.require("transformer")
    if not pipeline.transformer.config.use_keyframes_abs_pos_embedding:
        raise ValueError(
            "DFR makes keyframes, which a transformer only knows with `use_keyframes_abs_pos_embedding`, as in LTX-2.5; load one, "
            "or pass generate_slots=False to LTX2DFRPipeline"
        )


@torch.no_grad()
def handed_over(
    pipeline: LTX2GenerationPipeline, made: Generated, delivery: Delivery, originals: Originals, given: Sequence[int]
) -> Result:
    """Decode and wrap up a pass; its keyframes are handed over beside latents alone, as nothing goes on from frames.

    Args:
        pipeline: The pipeline.
        made: The pass, with its keyframes.
        delivery: How it is handed over.
        originals: What is handed over as it was given.
        given: Pixel frames of the keyframes.
    """
    frames: torch.Tensor | None = None
    if delivery.output_type == "latent" and made.keyframes is not None:
        frames = pipeline.vae.denormalize_latents(made.keyframes)
    output = deliver(pipeline, made, replace(delivery, return_dict=True), originals)
    shared = {one.name: getattr(output, one.name) for one in fields(output)}
    output = LTX2DFRPipelineOutput(**shared, keyframes=frames, keyframe_positions=None if frames is None else [*given])
    if delivery.return_dict:
        return output
    return output.frames, output.audio, output.keyframes, output.keyframe_positions
