"""Whether a tokenizer and a language model belong together; a wrong pair gives equal clips for all prompts, or fails late."""

from collections.abc import Iterable
from typing import Any


def check_vocabulary(tokenizer: Any, where: str = "the tokenizer") -> None:
    """Refuse a tokenizer that knows no words, as the library makes one of a folder without files.

    Args:
        tokenizer: A tokenizer of the transformers library.
        where: What messages call it.
    """
    size = getattr(tokenizer, "vocab_size", None)
    special = len(getattr(tokenizer, "all_special_ids", ()))
    if isinstance(size, int) and size <= special:
        raise ValueError(
            f"{where} has no words, only {special} special tokens, so that all prompts would read alike; complete its "
            "folder with tokenizer.json or tokenizer.model"
        )


def check_tokens(tokens: Iterable[Iterable[int]], model: Any) -> None:
    """Refuse tokens that the language model has no embedding for, before it runs.

    Args:
        tokens: Token numbers of each prompt.
        model: A language model of the transformers library.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max((number for ids in tokens for number in ids), default=0)
    if largest >= rows:
        raise ValueError(
            f"the tokenizer gives `prompt` the token {largest}, but the text encoder has embeddings for 0 to {rows - 1}; "
            "load both from one checkpoint"
        )
