"""From prompts to what LTX-Video attends to: the states of a T5 encoder, with the mask of their tokens.

Shapes: B prompts, N text positions, C width of the states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import logging

from ...conditioning import TextContext
from ...memory.on_demand import loaded
from ...prompts import Contexts, TextEncoder, encoding
from ...prompts.encoding import TextStates
from ...prompts.vocabulary import check_tokens, check_vocabulary

logger = logging.get_logger(__name__)

DEFAULT_TEXT_POSITIONS = 256
"""Those that the models were trained with; tokenizers of published folders would stop at 128."""


@dataclass(frozen=True)
class T5TextEncoder(TextEncoder):
    """A T5 encoder and its tokenizer, without connectors.

    Args:
        text_width: Values of a token that the transformer takes, `None` if that is not known.
    """

    text_width: int | None = None

    num_states = 1
    # Nothing comes between the encoder and the transformer.
    projection = ("none", None)

    @property
    def absent(self) -> list[str]:
        """Names of the components that are not loaded."""
        return [name for name in super().absent if name != "connectors"]

    def tokens(self, texts: Sequence[str], longest: int, shortest: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of texts and which of them are valid (1), both `[B, N]`, padded at the end to `longest` positions."""
        check_vocabulary(self.tokenizer)
        self.check_length(longest)
        stripped = [text.strip() for text in texts]
        options: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": max(shortest, longest)}
        found = self.tokenizer(stripped, return_tensors="pt", **options)
        check_tokens(found.input_ids.tolist(), loaded(self.model, self.device))
        for text, ids in zip(stripped, self.tokenizer(stripped, verbose=False).input_ids):
            if len(ids) > longest:
                logger.warning(f"a prompt is cut to {longest} tokens, which leaves out the end of {text!r}")
        return found.input_ids.to(self.device), found.attention_mask.to(self.device)

    def run(
        self,
        input_ids: torch.Tensor,
        mask: torch.Tensor,
        max_sequence_length: int,  # noqa: ARG002 (positions are relative)
        dtype: torch.dtype | None = None,
    ) -> TextStates:
        """Run the encoder over tokens `[B, N]`; padding is hidden from it."""
        model = loaded(self.model, self.device)
        # With gradients, other kernels would round differently.
        with torch.no_grad():
            hidden = model(input_ids=input_ids, attention_mask=mask).last_hidden_state
        return TextStates(hidden[..., None].to(dtype or model.dtype), mask)

    def contexts(self, states: tuple[TextStates, TextStates | None], length: int) -> Contexts:
        """The states as contexts of the video; there is no other stream."""
        positive, negative = states
        length = max(length, *(part.length for part in states if part is not None))
        return _context(positive.padded(length)), None if negative is None else _context(negative.padded(length))

    def given_length(self, longest: int) -> int:
        """Text positions of given states: their own."""
        return longest

    def fitting_length(self, length: int) -> int:
        """Text positions: those asked for, whatever the tokenizer's folder says; LTX-2's default stands for that of LTX-Video."""
        return DEFAULT_TEXT_POSITIONS if length == encoding.DEFAULT_TEXT_POSITIONS else length

    def check_length(self, length: int) -> None:  # noqa: ARG002
        """Any number of positions will do, but the encoder has to compute in a type that holds its values."""
        if self.model is not None and getattr(self.model, "dtype", None) == torch.float16:
            raise ValueError(
                "the T5 text encoder is in float16, in which its values overflow; load it with dtype=torch.bfloat16 or torch.float32"
            )


def _context(states: TextStates) -> TextContext:
    hidden = states.hidden.flatten(2)
    return TextContext(hidden, hidden[..., :0], states.mask)
