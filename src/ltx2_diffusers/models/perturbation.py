"""Which branches of which blocks run for which samples.

Guidance compares a prediction with one whose attention is perturbed. What is perturbed is written as a keep mask
`[4, L, B]`: kinds in the order of [`KINDS`], L blocks, B samples; 1 keeps a branch, 0 perturbs it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

KINDS = ("video_self", "audio_self", "a2v", "v2a")
PERTURBATION_MODES = ("skip", "passthrough")

# True: the branch runs; False: perturbed for every sample; `[B, 1, 1]`: the share of it that every sample keeps.
Keep = bool | torch.Tensor


class BlockPlan(NamedTuple):
    """What one block computes.

    Args:
        video_self, audio_self, a2v, v2a (`bool` or `torch.Tensor`): Whether self-attention and the attention between
            the streams are kept, for all samples or as `[B, 1, 1]` per sample.
        video, audio (`bool`): Whether the stream is updated at all.
        passthrough (`bool`): Whether a perturbed self-attention hands its values through; otherwise its whole branch
            is dropped.
    """

    video_self: Keep = True
    audio_self: Keep = True
    a2v: Keep = True
    v2a: Keep = True
    video: bool = True
    audio: bool = True
    passthrough: bool = False

    @property
    def crosses(self) -> bool:
        """Whether one stream attends to the other."""
        return bool(self.directions)

    @property
    def directions(self) -> list[str]:
        """Which stream attends to which: `"a2v"` for video to audio, `"v2a"` for audio to video."""
        return [name for name, keep in (("a2v", self.a2v), ("v2a", self.v2a)) if keep is not False]

    def fingerprint(self) -> tuple[int, ...]:
        """Equal for plans of one call that compute the same."""
        return tuple(id(field) for field in self)


def keep_masks(
    num_layers: int,
    batch_size: int,
    isolate_modalities: bool = False,
    stg_blocks: Sequence[int] | None = None,
    perturbation_mask: torch.Tensor | None = None,
    perturbation_keep_masks: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """All perturbations of one call as a keep mask on the host.

    Args:
        num_layers (`int`): Number of blocks L.
        batch_size (`int`): Number of samples B.
        isolate_modalities (`bool`, defaults to `False`): Perturb the attention between the streams everywhere.
        stg_blocks (`Sequence[int]`, *optional*): Blocks whose self-attention is perturbed in both streams.
        perturbation_mask (`torch.Tensor`, *optional*, defaults to zeros): `[B]` or `[B, 1, 1]`, 0 where `stg_blocks`
            apply and 1 where they do not.
        perturbation_keep_masks (`torch.Tensor`, *optional*): `[4, L, B]`, combined with the other arguments. On a
            device other than the CPU it costs one synchronisation.

    Returns:
        `torch.Tensor`, *optional*: `[4, L, B]` float32 on the CPU; `None` where nothing is perturbed.
    """
    if not (isolate_modalities or stg_blocks or perturbation_keep_masks is not None):
        return None
    keep = torch.ones(len(KINDS), num_layers, batch_size)
    if perturbation_keep_masks is not None:
        shape = tuple(perturbation_keep_masks.shape)
        if shape not in {(len(KINDS), num_layers, batch_size), (len(KINDS), num_layers, 1)}:
            raise ValueError(
                f"perturbation_keep_masks must have the shape (kinds, blocks, samples) = "
                f"{(len(KINDS), num_layers, batch_size)}, got {shape}."
            )
        keep *= perturbation_keep_masks.detach().to("cpu", torch.float32)
    if stg_blocks:
        blocks = [int(index) for index in stg_blocks]
        if not all(0 <= index < num_layers for index in blocks):
            raise ValueError(
                f"spatio_temporal_guidance_blocks must lie between 0 and {num_layers - 1}, got {list(blocks)}."
            )
        keep[:2, blocks] *= _sample_mask(perturbation_mask, batch_size)
    if isolate_modalities:
        keep[2:] = 0
    return keep


def _sample_mask(perturbation_mask: torch.Tensor | None, batch_size: int) -> torch.Tensor:
    if perturbation_mask is None:
        return torch.zeros(batch_size)
    if perturbation_mask.numel() != batch_size:
        raise ValueError(
            f"perturbation_mask must have one value per sample, {batch_size} in all, "
            f"got the shape {tuple(perturbation_mask.shape)}."
        )
    return perturbation_mask.detach().to("cpu", torch.float32).flatten()


def block_plans(
    keeps: Sequence[torch.Tensor | None], base: BlockPlan, num_layers: int, device: torch.device, dtype: torch.dtype
) -> list[list[BlockPlan]]:
    """The plans of all blocks, once for each keep mask.

    Args:
        keeps (`Sequence[torch.Tensor]`): Masks `[4, L, B]` on the CPU, see [`keep_masks`]; `None` perturbs nothing.
        base ([`BlockPlan`]): What would run without perturbations; what it switches off stays off.
        num_layers (`int`): Number of blocks L.
        device, dtype: Of the masks that differ between samples. Equal masks are one tensor.
    """
    masks: dict[tuple[float, ...], Keep] = {}

    def as_keep(samples: list[float]) -> Keep:
        if len(set(samples)) == 1 and samples[0] in (0.0, 1.0):
            return samples[0] == 1.0
        key = tuple(samples)
        if key not in masks:
            masks[key] = torch.tensor(samples, device=device, dtype=dtype)[:, None, None]
        return masks[key]

    def plan(block: list[list[float]]) -> BlockPlan:
        video_self, audio_self, a2v, v2a = (keep and as_keep(row) for keep, row in zip(base[:4], block))
        return base._replace(video_self=video_self, audio_self=audio_self, a2v=a2v, v2a=v2a)

    return [
        [base] * num_layers if keep is None else [plan(block) for block in keep.transpose(0, 1).tolist()]
        for keep in keeps
    ]
