"""Latents of one clip carried into the next, at its start or at its end.

Shapes: B clips, C channels, K carried latent frames, h and w latent rows and columns, A carried audio latents, M mel
bins of a latent.
"""

from dataclasses import dataclass
from typing import Any

import torch

from ...conditioning.carry import resize_latent
from ...conditioning.items.appended import VideoConditionByKeyframeIndex
from ...conditioning.items.latent_index import AudioConditionByLatentIndex, VideoConditionByLatentIndex
from ...conditioning.shapes import VIDEO_SCALE_FACTORS
from ...conditioning.streams import Streams
from ..plan import GenerationPlan


@dataclass(frozen=True)
class CarriedLatents:
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

    is_reference = False

    def check(self, pipeline: Any, plan: GenerationPlan) -> None:
        """Raise `ValueError` if more is carried than the clip is long."""
        lengths = (("video", self.video, plan.video.frames), ("audio", self.audio, plan.audio.frames))
        for name, latents, frames in lengths:
            if latents is not None and latents.shape[2] >= frames:
                raise ValueError(
                    f"{latents.shape[2]} carried {name} latents leave nothing new in a clip of {frames}; carry fewer or "
                    "make the clip longer"
                )

    def places(self, plan: GenerationPlan) -> list[str]:
        """The start of the video, or its end."""
        return [f"video frame {plan.num_frames - 1 if self.at_end else 0}"]

    def items(self, pipeline: Any, plan: GenerationPlan) -> Streams:
        """The latents, resized to the stage."""
        video = resize_latent(self.video, plan.video.height, plan.video.width)
        if not self.at_end:
            audio = [] if self.audio is None else [AudioConditionByLatentIndex(self.audio)]
            return Streams([VideoConditionByLatentIndex(video)], audio)
        first = (plan.video.frames - video.shape[2]) * VIDEO_SCALE_FACTORS.time
        items = [VideoConditionByKeyframeIndex(video[:, :, :1], first)]
        return Streams(
            _at_end(VideoConditionByLatentIndex, video, plan.video.frames) + items,
            [] if self.audio is None else _at_end(AudioConditionByLatentIndex, self.audio, plan.audio.frames),
        )


def _at_end(kind: type, latents: torch.Tensor, frames: int) -> list[Any]:
    """All latents but the first one as the last of a stream of so many frames."""
    rest = latents[:, :, 1:]
    return [kind(rest, latent_idx=frames - rest.shape[2])] if rest.shape[2] else []
