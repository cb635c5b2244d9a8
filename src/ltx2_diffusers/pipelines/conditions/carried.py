"""Latents of one clip carried into the next, at its start or at its end.

Shapes: B clips, C channels, K carried latent frames, h and w latent rows and columns, A carried audio latents, M mel
bins of a latent.
"""

from dataclasses import dataclass

import torch

from ...conditioning.carry import resize_latent
from ...conditioning.items.appended import VideoConditionByKeyframeIndex
from ...conditioning.items.base import ConditionItem
from ...conditioning.items.latent_index import AudioConditionByLatentIndex, VideoConditionByLatentIndex
from ...conditioning.streams import Streams
from ..plan import ClipPlan
from .condition import Condition, Opened, Studio


@dataclass(frozen=True)
class CarriedLatents(Condition):
    """Latents of another clip that this one overlaps with, for extending it.

    The first latent of a clip stands for a single frame. Carried to the end of this clip it would lie where latents
    stand for eight; there it is shown as a keyframe at its pixel frame instead, and the first audio latent is left out.

    Args:
        video: Normalised latents `[1, C, K, h, w]` of the finished size.
        audio: Normalised latents `[1, C, A, M]`, or `None`.
        at_end: Whether the other clip follows this one; default `False`, it comes before.
    """

    video: torch.Tensor
    audio: torch.Tensor | None = None
    at_end: bool = False

    def opened(self, studio: Studio, plan: ClipPlan) -> "OpenedLatents":
        """Nothing has to be read."""
        return OpenedLatents(self, plan.num_frames - 1 if self.at_end else 0)


@dataclass(frozen=True)
class OpenedLatents(Opened):
    """Carried latents.

    Args:
        given: The condition.
        frame: The pixel frame of the clip that they claim.
    """

    given: CarriedLatents
    frame: int

    @property
    def places(self) -> list[str]:
        """The start of the video, or its end."""
        return [f"video frame {self.frame}"]

    def check(self, plan: ClipPlan) -> None:
        """Raise `ValueError` if more is carried than the stage is long."""
        lengths = (("video", self.given.video, plan.video.frames), ("audio", self.given.audio, plan.audio.frames))
        for name, latents, frames in lengths:
            if latents is not None and latents.shape[2] >= frames:
                raise ValueError(
                    f"{latents.shape[2]} carried {name} latents leave nothing new in a clip of {frames}; carry fewer or "
                    "make the clip longer"
                )

    def items(self, plan: ClipPlan) -> Streams:
        """The latents, resized to the stage."""
        audio = self.given.audio
        video = resize_latent(self.given.video, plan.video.height, plan.video.width)
        if not self.given.at_end:
            sounds = [] if audio is None else [AudioConditionByLatentIndex(audio)]
            return Streams([VideoConditionByLatentIndex(video)], sounds)
        first = (plan.video.frames - video.shape[2]) * plan.sizes.temporal_ratio
        items = [VideoConditionByKeyframeIndex(video[:, :, :1], first)]
        return Streams(
            _at_end(VideoConditionByLatentIndex, video, plan.video.frames) + items,
            [] if audio is None else _at_end(AudioConditionByLatentIndex, audio, plan.audio.frames),
        )


def _at_end(
    kind: type[VideoConditionByLatentIndex] | type[AudioConditionByLatentIndex], latents: torch.Tensor, frames: int
) -> list[ConditionItem]:
    """All latents but the first one as the last of a stream of so many frames."""
    rest = latents[:, :, 1:]
    return [kind(rest, latent_idx=frames - rest.shape[2])] if rest.shape[2] else []
