"""Blocks that encode what the videos show: first frames, conditions, references.

Shapes: see `resources/modular/blocks.yaml`.
"""

# diffusers declares what blocks have more narrowly than it reads it.
# mypy: disable-error-code="assignment, misc, override"

from typing import Any

import torch

from ..pipelines import conditions as held
from ..pipelines.plan import ClipPlan, Size, plan_clip
from .declarations import Auto, Conditional, Leaf

_ALL = [(1.0, 1.0)]


def clip_of(components: Any, b: Any, batch: int = 1, **latents: Any) -> ClipPlan:
    """The sizes of a clip.

    Args:
        components: The pipeline.
        b: State of a block with the sizes, as attributes.
        batch: Videos.
        latents: Given ones, `latents` or `audio_latents`.
    """
    if b.num_frames is None:
        raise ValueError("`num_frames` is None here; give it, or have a block with a `duration_head` predict it")
    rates = (getattr(b, "frame_rate", None) or 24.0, getattr(b, "motion_speed", None) or 1.0)
    return plan_clip(components.sizes, batch, Size(b.height, b.width, b.num_frames, *rates), _ALL, **latents)


def videos_of(b: Any) -> int:
    """How many videos are made of the prompts."""
    return b.batch_size * (getattr(b, "num_videos_per_prompt", None) or 1)


def given_as(kind: type, name: str, given: Any) -> list[Any]:
    """The conditions of an input, which have to be of this kind: states between blocks hold no other."""
    conditions = held.as_conditions(name, given)
    for condition in conditions:
        if not isinstance(condition, kind):
            raise ValueError(
                f"`{name}` of these blocks holds {kind.__name__} but is given {type(condition).__name__}; leave it out, or use "
                "LTX2ConditionPipeline or LTX2InContextPipeline"
            )
    return conditions


class LTX2VaeEncoderStep(Leaf):
    """Encodes the pictures that the videos begin with."""

    def opened(self, components: Any, b: Any) -> tuple[Any, ClipPlan]:
        several = isinstance(b.image, (list, tuple)) or getattr(b.image, "ndim", 3) > 3
        b.num_frames = 1
        plan = clip_of(components, b, len(b.image) if several else 1)
        return held.FirstFrameCondition(b.image, b.image_crf).opened(components, plan), plan

    def check(self, components: Any, b: Any) -> dict[str, Any]:
        return {"image_latents": torch.empty(len(self.opened(components, b)[0].pictures), device="meta")}

    def run(self, components: Any, b: Any) -> None:
        opened, plan = self.opened(components, b)
        b.image_latents = opened.items(plan).video[0].latent


class LTX2AutoVaeEncoderStep(Auto):
    """Encodes pictures if there is an `image`."""


def _place(opened: held.OpenedPictures, stride: int) -> int:
    """The latent frame where a condition goes."""
    start = opened.start
    if opened.replaces != (start == 0) or (start and (start - 1) % stride):
        raise ValueError(
            f"a condition of these blocks is replaced at the start and appended at a later latent frame, but {opened.given!r} "
            "is not; leave its `mode` and `frame` out, or use LTX2ConditionPipeline"
        )
    return (start + stride - 1) // stride


class LTX2ConditionEncoderStep(Leaf):
    """Encodes the pictures and clips that the videos show at some place."""

    def opened(self, components: Any, b: Any) -> tuple[list[held.OpenedPictures], list[int], ClipPlan]:
        plan = clip_of(components, b)
        given = given_as(held.LTX2VideoCondition, "conditions", b.conditions)
        opened = [one.opened(components, plan) for one in given]
        return opened, [_place(one, plan.sizes.temporal_ratio) for one in opened], plan

    def run(self, components: Any, b: Any) -> None:
        opened, b.condition_indices, plan = self.opened(components, b)
        b.condition_latents = [one.encoded(plan) for one in opened]
        b.condition_strengths = [one.given.strength for one in opened]
        b.condition_pixel_frames = [plan.sizes.pixel_frames(latent.shape[2]) for latent in b.condition_latents]


class LTX2AutoConditionEncoderStep(Conditional):
    """Encodes conditions if there are `conditions` or `reference_conditions`."""

    def select_block(self, conditions: Any = None, reference_conditions: Any = None) -> Any:
        return "condition_encoder" if conditions is not None or reference_conditions else None


class LTX2ReferenceEncoderStep(Leaf):
    """Encodes the reference videos that an IC-LoRA follows."""

    def opened(self, components: Any, b: Any) -> tuple[list[held.Opened], ClipPlan]:
        plan = clip_of(components, b)
        given = given_as(held.LTX2ReferenceCondition, "reference_conditions", b.reference_conditions)
        if not given:
            raise ValueError("`reference_conditions` is empty; leave it out, or give a LTX2ReferenceCondition")
        factor = None if b.reference_downscale_factor == 1 else b.reference_downscale_factor
        asked = (factor, b.conditioning_attention_strength, b.conditioning_attention_mask)
        opened = [one.opened(components, plan) for one in held.with_defaults(given, *asked)]
        for one in opened:
            one.check(plan)
        return opened, plan

    def run(self, components: Any, b: Any) -> None:
        opened, plan = self.opened(components, b)
        state = plan.tools.video.create_initial_state(components._execution_device)
        count, b.reference_token_counts = state.num_tokens, []
        for one in opened:
            before = state.num_tokens
            state = one.items(plan).video[0].apply_to(state, plan.tools.video)
            b.reference_token_counts.append(state.num_tokens - before)
        b.reference_latents = state.clean_latent[:, count:]
        b.reference_coords = state.positions[:, :, count:]
        b.reference_cross_mask = None if state.attention_mask is None else state.attention_mask[:, 0, count:]


class LTX2AutoReferenceEncoderStep(Conditional):
    """Encodes reference videos if there are `reference_conditions`."""

    def select_block(self, reference_conditions: Any = None) -> Any:
        return "reference_encoder" if reference_conditions else None
