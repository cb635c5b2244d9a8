"""Latents in place of the target's own: images, clips and carried-over ends, by latent index.

Shapes: B batch, C channels, F latent frames, h latent height, w latent width, L audio latents, M mel bins of a latent.
"""

from dataclasses import dataclass

import torch

from ...checks import check_share
from ..state import LatentState
from ..tools import LatentTools
from .base import ConditionItem, check_index, check_latent, place_latent


@dataclass(frozen=True)
class _ConditionByLatentIndex(ConditionItem):
    latent: torch.Tensor
    strength: float = 1.0
    latent_idx: int = 0

    def apply_to(self, state: LatentState, tools: LatentTools) -> LatentState:
        """The state with the latent's tokens in place of the target's."""
        check_share(strength=self.strength)
        check_latent("latent", self.latent, tools, free_axes=("frames",))
        count, most = self.latent.shape[2], tools.target_shape.frames
        if count > most:
            raise ValueError(f"latent must have at most {most} frames, got {count}.")
        check_index("latent_idx", self.latent_idx, most - count, f" so that {count} latent frames fit")
        return place_latent(state, tools, self.latent, self.latent_idx * tools.tokens_per_frame, self.strength)


class VideoConditionByLatentIndex(_ConditionByLatentIndex):
    """Holds latent frames to given ones: a first image, a clip, or the end of the clip before (extension).

    Args:
        latent: Encoded frames `[B or 1, C, F, h, w]` in the target's size.
        strength: 1 keeps them exactly (default), 0 lets them be denoised fully.
        latent_idx: Latent frame of the target where the first of them goes, default 0.
    """


class AudioConditionByLatentIndex(_ConditionByLatentIndex):
    """Holds audio latents to given ones, such as the end of the clip before (extension).

    Args:
        latent: Encoded audio `[B or 1, C, L, M]`.
        strength: 1 keeps it exactly (default), 0 lets it be denoised fully.
        latent_idx: Latent of the target where the first of them goes, default 0.
    """
