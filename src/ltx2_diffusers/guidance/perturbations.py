"""Which attention a guided pass leaves out, per sample and block.

Shapes: B batch, L transformer blocks. The kinds of attention are counted in the order of `PerturbationType`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import torch


class PerturbationType(Enum):
    """Attention that can be perturbed."""

    SKIP_VIDEO_SELF_ATTN = "skip_video_self_attn"
    SKIP_AUDIO_SELF_ATTN = "skip_audio_self_attn"
    SKIP_A2V_CROSS_ATTN = "skip_a2v_cross_attn"
    SKIP_V2A_CROSS_ATTN = "skip_v2a_cross_attn"


@dataclass(frozen=True)
class Perturbation:
    """One kind of attention left out in some blocks.

    Args:
        type: What is left out.
        blocks: Indices of the blocks, default None (all).
    """

    type: PerturbationType
    blocks: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.type, PerturbationType):
            names = [kind.name for kind in PerturbationType]
            raise ValueError(f"type must be a PerturbationType, one of {names}, got {self.type!r}.")
        if self.blocks is not None:
            if any(block < 0 for block in self.blocks):
                raise ValueError(f"blocks must be indices from 0 on, got {list(self.blocks)}.")
            object.__setattr__(self, "blocks", tuple(self.blocks))

    def touches(self, kind: PerturbationType, block: int) -> bool:
        """Whether this kind of attention is left out in this block."""
        return kind is self.type and (self.blocks is None or block in self.blocks)


@dataclass(frozen=True)
class PerturbationConfig:
    """Everything that is left out for one sample.

    Args:
        perturbations: Perturbations, joined; default none.
    """

    perturbations: Sequence[Perturbation] = ()

    def touches(self, kind: PerturbationType, block: int) -> bool:
        """Whether this kind of attention is left out in this block."""
        return any(perturbation.touches(kind, block) for perturbation in self.perturbations)


@dataclass(frozen=True)
class BatchedPerturbationConfig:
    """What is left out for each sample of a batch.

    Args:
        perturbations: One config per sample; a single one stands for every sample.
    """

    perturbations: Sequence[PerturbationConfig]

    @classmethod
    def empty(cls, batch_size: int) -> "BatchedPerturbationConfig":
        """A config that leaves nothing out."""
        return cls([PerturbationConfig()] * batch_size)

    def keep_masks(
        self, num_layers: int, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """All perturbations as one mask `[4, L, B]`: 1 keeps the attention, 0 leaves it out.

        Args:
            num_layers: Blocks L of the transformer.
            device: Where the mask is made, default CPU, which is where the transformer reads it without waiting.
            dtype: Of the mask.
        """
        last = num_layers - 1
        for perturbation in (one for config in self.perturbations for one in config.perturbations):
            if beyond := [block for block in perturbation.blocks or () if block > last]:
                kind = perturbation.type.name
                raise ValueError(f"blocks must lie in [0, {last}], got {beyond} for {kind}; use {last}.")
        keep = [
            [[not config.touches(kind, block) for config in self.perturbations] for block in range(num_layers)]
            for kind in PerturbationType
        ]
        return torch.tensor(keep, device=device, dtype=dtype)


def stg_perturbations(
    batch_size: int, video_blocks: Sequence[int] | None = (), audio_blocks: Sequence[int] | None = ()
) -> BatchedPerturbationConfig:
    """What spatio-temporal guidance leaves out: self-attention in some blocks of either stream.

    Args:
        batch_size: Batch size B.
        video_blocks: Blocks without video self-attention; None means all, default none.
        audio_blocks: Blocks without audio self-attention; None means all, default none.
    """
    kinds = (PerturbationType.SKIP_VIDEO_SELF_ATTN, PerturbationType.SKIP_AUDIO_SELF_ATTN)
    wanted = zip(kinds, (video_blocks, audio_blocks))
    left_out = tuple(Perturbation(kind, blocks) for kind, blocks in wanted if blocks is None or len(blocks) > 0)
    return BatchedPerturbationConfig([PerturbationConfig(left_out)] * batch_size)


def isolating_perturbations(batch_size: int) -> BatchedPerturbationConfig:
    """What modality guidance leaves out: attention between the streams in every block."""
    kinds = (PerturbationType.SKIP_A2V_CROSS_ATTN, PerturbationType.SKIP_V2A_CROSS_ATTN)
    left_out = tuple(Perturbation(kind) for kind in kinds)
    return BatchedPerturbationConfig([PerturbationConfig(left_out)] * batch_size)
