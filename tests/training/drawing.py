"""Random numbers as the reference's trainer draws them, and the sizes of the models of its vectors."""

from collections.abc import Sequence

import torch

from ltx2_diffusers.pipelines.plan import ModelSizes


class GlobalDraws:
    """Draws whole batches from torch's global generator, in the order of the reference's trainer.

    Args:
        chosen: Uniform numbers that the reference has drawn before all others, but that are asked for later.
        before: How often uniform numbers are asked for before those.
    """

    dtype = torch.float32

    def __init__(self, chosen: torch.Tensor | None = None, before: int = 0) -> None:
        self._chosen, self._before = chosen, before
        self._is_video = True

    def normal(self, shape: Sequence[int]) -> torch.Tensor:
        if len(shape) < 3:
            return torch.randn(tuple(shape))
        batch, tokens, features = shape
        if not self._is_video:
            return torch.randn(tuple(shape))
        # Tokens of a video are a view, for which torch draws one by one; those of sound are a copy.
        self._is_video = False
        return torch.empty(batch, features, tokens, dtype=self.dtype).transpose(1, 2).normal_().float()

    def uniform(self, shape: Sequence[int]) -> torch.Tensor:
        self._before -= 1
        if self._chosen is not None and self._before == -1:
            return self._chosen
        return torch.rand(tuple(shape))

    def once(self) -> float:
        return torch.rand(()).item()


class HalfDraws(GlobalDraws):
    """Draws noise in bfloat16, as the reference does for latents of that type."""

    dtype = torch.bfloat16


def sizes(channels: int = 3, audio_channels: int = 2, mel_bins: int = 3) -> ModelSizes:
    """Sizes of the published models with other channels."""
    return ModelSizes(32, 8, channels, 1, False, audio_channels, mel_bins, 16000, 160, 4)
