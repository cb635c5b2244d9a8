"""A network that runs over a video tile by tile, for clips whose tokens are too many for one pass.

Shapes: B batch, T tokens of the video, A tokens of the audio, D features of a token.
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..conditioning.dfr_layout import LTX2DFRTokenPlan
from ..models.transformer import LTX2AVTransformer3DModel


def check_uncached(transformer: LTX2AVTransformer3DModel) -> None:
    """Raises `ValueError` for a network that keeps between steps what belongs to one tile."""
    if transformer.is_cache_enabled:
        raise ValueError(
            "a cache of the transformer cannot tell tiles apart; call transformer.disable_cache(), or leave out `video_tiles`"
        )


class TiledTransformer:
    """Stands for a transformer before the denoiser, and blends the velocities that it predicts for each tile.

    The clean prediction is affine in the velocity, every tile sees the same noise, and the weights sum to 1, so that blending
    the one blends the other. Tiles run one after another; each sees the whole audio, whose velocities are averaged.

    Args:
        transformer: The network.
        plan: Tokens of each tile.
    """

    def __init__(self, transformer: LTX2AVTransformer3DModel, plan: Sequence[LTX2DFRTokenPlan]) -> None:
        check_uncached(transformer)
        self.transformer, self.plan = transformer, plan

    def __getattr__(self, name: str) -> Any:
        """Everything else that is asked of a transformer."""
        return getattr(self.transformer, name)

    def __call__(
        self,
        *,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        video_coords: torch.Tensor,  # noqa: ARG002 (a plan holds those of its tile)
        perturbation_keep_masks: list[torch.Tensor | None],
        video_keyframes_mask: torch.Tensor | None = None,
        video_self_attention_mask: torch.Tensor | None = None,
        **shared: Any,
    ) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Velocities `[B, T, D]` and `[B, A, D]` for each of the masks, as of [`LTX2AVTransformer3DModel`]."""
        video = [torch.zeros_like(hidden_states, dtype=torch.float32) for _ in perturbation_keep_masks]
        audio: list[torch.Tensor | None] = [None for _ in perturbation_keep_masks]
        for tile in self.plan:
            keep, seen = tile.keep, video_self_attention_mask
            made = self.transformer(
                hidden_states=hidden_states[:, keep],
                # One level for the whole stream has no axis of tokens.
                timestep=timestep if timestep.ndim == 1 else timestep[:, keep],
                video_coords=tile.coords,
                video_keyframes_mask=None if video_keyframes_mask is None else video_keyframes_mask[:, keep],
                video_self_attention_mask=None if seen is None else seen[:, keep][:, :, keep],
                perturbation_keep_masks=perturbation_keep_masks,
                **shared,
            )
            for index, (of_video, of_audio) in enumerate(made):
                video[index].index_add_(1, keep, of_video.float() * tile.weights[:, None])
                if of_audio is not None:
                    share, sum_so_far = of_audio.float() / len(self.plan), audio[index]
                    audio[index] = share if sum_so_far is None else sum_so_far + share
        return list(zip(video, audio))
