"""What a pass of DFR carries beside its video: keyframes that are pinned, slots for new ones, a reference, a finished sound.

Shapes: B videos of the batch, C channels, K keyframes, F latent frames, h and w latent rows and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ... import checks, conditioning
from ..plan import ClipPlan
from .condition import Condition, Items, Opened, Streams, Studio


@dataclass(frozen=True)
class ReadyItems(Condition, Opened):
    """Condition items that are made already.

    Args:
        ready: Those of each stream.
    """

    ready: Items

    def opened(self, studio: Studio, plan: ClipPlan) -> "ReadyItems":
        """The same."""
        return self

    def items(self, plan: ClipPlan) -> Items:
        """Those that there are."""
        return self.ready


@dataclass(frozen=True)
class KeyframeCarrier(Condition):
    """Everything that a pass carries; latents are un-normalised.

    Args:
        slots: Whether keyframes are made.
        slot_positions: Their pixel frames, default the ends of the canvas' segments.
        slot_latents: What they start from, `[B, C, K, h, w]`, default nothing.
        pinned_latents: Keyframes to hold to, `[B, C, K, h, w]`, default none.
        pinned_positions: Their pixel frames.
        pinned_strength: How strongly they are held, 0 to 1.
        reference: A video to follow, `[B, C, F, h, w]` of any size, default none.
        downscale_factor: Size of the video over that of the reference.
        freeze_audio: Whether the sound is kept as it is given.
    """

    slots: bool
    slot_positions: Sequence[int] | None
    slot_latents: torch.Tensor | None
    pinned_latents: torch.Tensor | None
    pinned_positions: Sequence[int] | None
    pinned_strength: float
    reference: torch.Tensor | None
    downscale_factor: int
    freeze_audio: bool

    def opened(self, studio: Studio, plan: ClipPlan) -> "OpenedKeyframes":
        """Check that everything fits the clip."""
        checks.check_unit(guidance_keyframe_strength=self.pinned_strength)
        checks.check_at_least_one(reference_downscale_factor=self.downscale_factor)
        positions = self.positions(plan)
        check_keyframes("keyframe_positions", positions, "keyframes_latents", self.slot_latents, plan)
        pinned = ("guidance_keyframe_positions", self.pinned_positions or ())
        check_keyframes(*pinned, "guidance_keyframe_latents", self.pinned_latents, plan)
        if self.reference is not None:
            check_latents("reference_latents", self.reference, (*plan.video[:2], None, None, None))
        return OpenedKeyframes(studio, self, positions)

    def positions(self, plan: ClipPlan) -> list[int]:
        """Pixel frames of the slots."""
        if not self.slots:
            return []
        own = conditioning.resolve_canvas(plan.num_frames, plan.sizes.temporal_ratio)[2]
        return own if self.slot_positions is None else list(self.slot_positions)


@dataclass(frozen=True)
class OpenedKeyframes(Opened):
    """The same, which fits the clip.

    Args:
        studio: Normalises latents.
        given: The condition.
        positions: Pixel frames of the slots.
    """

    studio: Studio
    given: KeyframeCarrier
    positions: list[int]

    def refitted(self, plan: ClipPlan) -> "OpenedKeyframes":
        """The same, if it fits a shorter clip, too."""
        return self.given.opened(self.studio, plan)

    def items(self, plan: ClipPlan) -> Items:
        """Pinned keyframes, slots and the reference, in the order in which the model was trained; the finished sound."""
        given, video = self.given, list[conditioning.ConditionItem]()
        if given.pinned_latents is not None:
            frames = self.studio.normalized_video(given.pinned_latents, plan).split(1, dim=2)
            for frame, position in zip(frames, given.pinned_positions or ()):
                video.append(conditioning.VideoConditionByKeyframeIndex(frame, position, given.pinned_strength))
        if self.positions:
            seeds = given.slot_latents
            seeds = None if seeds is None else self.studio.normalized_video(seeds, plan)
            video.append(conditioning.VideoKeyframeSlots(self.positions, seeds))
        if given.reference is not None:
            reference = self.studio.normalized_video(given.reference, plan)
            video.append(conditioning.VideoConditionByReferenceLatent(reference, given.downscale_factor))
        return Streams(video, [conditioning.ConditionByInitialLatent()] if given.freeze_audio else [])


def check_latents(name: str, latents: torch.Tensor, shape: Sequence[int | None]) -> None:
    """Raise `ValueError` unless latents are finite and of a shape, in which `None` stands for any size."""
    got = tuple(latents.shape)
    if len(got) != len(shape) or any(size not in (None, have) for size, have in zip(shape, got)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"`{name}` has shape {got}, but this call needs ({wanted}), un-normalised")
    checks.check_float_tensors(**{name: latents})


def check_keyframes(
    places: str, positions: Sequence[int], name: str, latents: torch.Tensor | None, plan: ClipPlan
) -> None:
    """Raise `ValueError` unless keyframes lie within the canvas, and their latents, if given, fit it.

    Args:
        places, name: Names of the arguments that hold positions and latents.
        positions: Pixel frame of each.
        latents: `[B, C, K, h, w]`.
        plan: Sizes of the canvas.
    """
    last = plan.num_frames - 1
    for position in positions:
        if not 0 <= position <= last:
            nearest = min(max(position, 0), last)
            raise ValueError(
                f"`{places}` holds {position}, but the canvas has the pixel frames 0 to {last}; use {nearest}"
            )
    if latents is not None:
        check_latents(name, latents, plan.video._replace(frames=len(positions)))
