"""Pretraining a text encoder: the next token of captions.

Shapes: B batch, T text positions, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .step import Losses, TrainingStep, weighted


class TextEncoderStep(TrainingStep):
    """Predicts every token of a text from those before it.

    A batch holds `input_ids` `[B, T]` and `attention_mask` `[B, T]`, 1 for tokens, see [`tokenized`].

    Args:
        text_encoder: A causal language model; parts that text does not reach, such as a vision tower, get no gradient.
    """

    def __init__(self, text_encoder: PreTrainedModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The language model."""
        return {"text_encoder": self.text_encoder}

    def forward(self, batch: Mapping[str, Any]) -> Losses:
        """`tokens`: mean cross entropy of the tokens in nats; the first one of a text is not predicted."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        logits = self.text_encoder(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return weighted({"tokens": next_token_loss(logits, ids, mask)}, {"tokens": 1.0})


def next_token_loss(logits: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean cross entropy of each token given those before it.

    Args:
        logits: `[B, T, V]`, those at a position say the next token.
        input_ids: `[B, T]`.
        attention_mask: 1 for tokens, 0 for padding, `[B, T]`.
    """
    # Padding has no next token either, so a first token behind it is not predicted.
    counts = (attention_mask[:, 1:] * attention_mask[:, :-1]).bool()
    wanted = input_ids[:, 1:].masked_fill(~counts, -100)
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten())


def tokenized(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> dict[str, Tensor]:
    """A batch of texts, whose end is learned too: `input_ids` and `attention_mask` `[B, T]`, padded to the longest."""
    ended = [text + (tokenizer.eos_token or "") for text in texts]
    tokens = tokenizer(ended, padding=True, return_tensors="pt")
    return {name: torch.as_tensor(tokens[name]) for name in ("input_ids", "attention_mask")}
