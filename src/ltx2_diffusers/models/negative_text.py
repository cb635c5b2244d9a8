"""Normalized attention guidance (Chen et al. 2025, arXiv:2505.21179): a negative prompt inside the attention to the text.

Shapes: B batch, S tokens, T text tokens, C width of a text context, I inner width of an attention layer.
"""

from typing import NamedTuple

import torch

from .text_cache import KeyValueSlot, TextCache

# The authors' values for how far the guided values may reach, and for their share.
NAG_TAU, NAG_ALPHA = 2.5, 0.25


class NagWeights(NamedTuple):
    """How strongly a negative prompt acts.

    Args:
        scale (`float`): How far attended values are pushed away from the negative ones; 1 is neutral.
        tau (`float`, defaults to 2.5): Longest allowed L1 norm of a token's values, relative to the positive ones.
        alpha (`float`, defaults to 0.25): Share of the guided values in the result.
    """

    scale: float
    tau: float = NAG_TAU
    alpha: float = NAG_ALPHA


class NegativeText(NamedTuple):
    """A negative prompt for a forward pass.

    Args:
        video, audio (`torch.Tensor`): Text features of each stream `[B, T, ...]`, as the positive ones are given, all
            of which are attended to; `None` for an absent stream.
        weights ([`NagWeights`]): How strongly it acts.
        cache ([`TextCache`], *optional*): Keeps what depends on this prompt alone, under the same conditions as
            `text_cache`.
    """

    video: torch.Tensor | None
    audio: torch.Tensor | None
    weights: NagWeights
    cache: TextCache | None = None


class NegativeContext(NamedTuple):
    """What an attention to the text reads of a negative prompt.

    Args:
        context (`torch.Tensor`): `[B, T, C]`.
        weights ([`NagWeights`]): How strongly it acts.
        slot ([`KeyValueSlot`], *optional*): Where keys and values are kept.
    """

    context: torch.Tensor
    weights: NagWeights
    slot: KeyValueSlot | None = None


def normalized_attention_guidance(positive: torch.Tensor, negative: torch.Tensor, weights: NagWeights) -> torch.Tensor:
    """Attended values `[B, S, I]` away from those of a negative prompt, computed in float32.

    Args:
        positive, negative (`torch.Tensor`): `[B, S, I]`, from the same queries.
        weights ([`NagWeights`]): How strongly the negative ones act.
    """
    plain, scale = positive.float(), weights.scale
    guided = plain * scale - negative.float() * (scale - 1)
    longest = weights.tau * plain.abs().sum(-1, keepdim=True)
    # Values of zero stay zero, whatever they are divided by.
    norm = guided.abs().sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    guided = guided * (longest / norm).clamp(max=1.0)
    return (guided * weights.alpha + plain * (1 - weights.alpha)).to(positive.dtype)
