"""How a pipeline takes the contexts of its prompts from a cache on disk, and fills it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from ..conditioning.streams import TextContext
from .cache import EncodedBy, PromptCache, PromptKey
from .encoding import TextStates
from .fingerprint import model_fingerprint, tokenizer_fingerprint

_EMBEDS = ("prompt_embeds", "negative_prompt_embeds")


class ReadPrompts(NamedTuple):
    """Prompts as the language model read them.

    Args:
        enhanced: The rewritten texts, if rewriting was asked for.
        contexts: What the streams attend to, of the positive and the negative prompts.
        states: The language-model states they come from.
    """

    enhanced: list[str] | None
    contexts: tuple[TextContext, TextContext | None]
    states: tuple[TextStates | None, TextStates | None]


@dataclass(frozen=True)
class Enhancement:
    """Rewriting of the prompt by a language model; the fields are the arguments of `enhance_prompt`.

    Args:
        enabled: Whether the prompt is rewritten.
        image: First frame of the video, as an image.
        system_prompt, max_new_tokens, generation_kwargs, seed: See `enhance_prompt`.
    """

    enabled: bool = False
    system_prompt: str | None = None
    max_new_tokens: int | None = None
    generation_kwargs: dict[str, Any] | None = None
    seed: int = 10
    image: Any = None


@dataclass(frozen=True)
class Prompts:
    """Texts, or their precomputed language-model states.

    Args:
        prompt, negative_prompt: Texts.
        embeds: `prompt_embeds`, `negative_prompt_embeds` and their two attention masks.
        num_videos_per_prompt: Videos per prompt.
        max_sequence_length: Text positions.
        enhancement: Whether and how the prompt is rewritten first.
    """

    prompt: str | list[str] | None
    negative_prompt: str | list[str] | None = None
    embeds: tuple[torch.Tensor | None, ...] = (None, None, None, None)
    num_videos_per_prompt: int = 1
    max_sequence_length: int = 1024
    enhancement: Enhancement = field(default_factory=Enhancement)


class PromptCaching:
    """The part of a pipeline that remembers prompts; needs what the text stage needs, or a cache that has them all."""

    _prompt_cache: PromptCache | None = None

    @property
    def prompt_cache(self) -> PromptCache | None:
        """The cache in use."""
        return self._prompt_cache

    def enable_prompt_cache(self, folder: str | os.PathLike, max_bytes: int | str | None = None) -> None:
        """Keep the text contexts of prompts in a folder, and take them from there when they are asked for again.

        A call whose prompts are all present runs neither text encoder nor connectors; the pipeline may then be built
        with `text_encoder=None, tokenizer=None, connectors=None`. Entries are told apart by text, tokenizer, text
        encoder, connectors with their active adapters, `max_sequence_length` and data type. With a cache each prompt
        is encoded alone, so that a call gives the same result whether its prompts were present or not. Calls with
        `prompt_embeds`, or with a callback that asks for them, pass the cache by.

        Args:
            folder: Where the entries lie. They hold the prompts as readable text.
            max_bytes: Most bytes in the folder, a number or like `"2GB"`; the least recently used entries are removed.
                Default no limit.
        """
        self._prompt_cache = PromptCache(folder, max_bytes)

    def disable_prompt_cache(self) -> None:
        """Encode every prompt anew again; the folder stays as it is."""
        self._prompt_cache = None

    def _text_contexts(
        self, prompts: Prompts, delivery: Any, with_negative: bool
    ) -> tuple[tuple[TextContext, TextContext | None], tuple[TextStates | None, TextStates | None]]:
        """Contexts of the positive and negative prompts, and the states they come from if no cache was asked."""
        if self._uses_prompt_cache(prompts, delivery):
            return self._cached_contexts(prompts, with_negative), (None, None)
        length, device = prompts.max_sequence_length, self._execution_device
        states = self._encode_states(
            prompts.prompt, prompts.negative_prompt, prompts.embeds, with_negative, length, device
        )
        return self._encode(states, prompts.num_videos_per_prompt, length), states

    def _uses_prompt_cache(self, prompts: Prompts, delivery: Any) -> bool:
        wanted = delivery.callback_inputs if delivery.callback is not None else ()
        given = any(value is not None for value in prompts.embeds)
        return self._prompt_cache is not None and not given and not any(name in wanted for name in _EMBEDS)

    def _check_text_components(self, prompts: Prompts, delivery: Any, with_negative: bool) -> None:
        """Raise if a prompt can neither be encoded nor found in the cache."""
        if prompts.enhancement.enabled:
            self._check_enhancer(prompts.enhancement)
        if not self._uses_prompt_cache(prompts, delivery):
            texts = prompts.prompt is not None or (with_negative and prompts.embeds[1] is None)
            self._require(*(["text_encoder", "tokenizer"] if texts else []), "connectors")
        elif self._absent_text_parts and not prompts.enhancement.enabled:
            by = self._prompt_cache.resolve(self._encoded_by())
            self._check_encodable(_missing(self._from_cache(by, prompts, _texts(prompts, with_negative))))

    def _cached_contexts(self, prompts: Prompts, with_negative: bool) -> tuple[TextContext, TextContext | None]:
        """Contexts of the positive and negative prompts, encoding and storing those that the cache lacks."""
        by = self._prompt_cache.resolve(self._encoded_by())
        texts = _texts(prompts, with_negative)
        contexts = self._from_cache(by, prompts, texts)
        missing = _missing(contexts)
        self._check_encodable(missing)
        # All runs of the language model come first, since under offloading each change of model costs a transfer.
        length = prompts.max_sequence_length
        states = {text: self._text_states([text], length, self._execution_device) for text in missing}
        for text in missing:
            contexts[text] = self._contexts(states.pop(text), length)
            self._prompt_cache.store(by, PromptKey(text, length), contexts[text])
        count = len(texts) // 2 if with_negative else len(texts)
        rows = [contexts[text] for text in texts]
        times = prompts.num_videos_per_prompt
        positive = _stacked(rows[:count]).repeat(times)
        return positive, _stacked(rows[count:]).repeat(times) if with_negative else None

    def _from_cache(self, by: EncodedBy, prompts: Prompts, texts: Sequence[str]) -> dict[str, TextContext | None]:
        """Context `[1, T, W]` of each distinct text on the pipeline's device, `None` where the cache has none."""
        device = self._execution_device
        found = {}
        for text in dict.fromkeys(texts):
            context = self._prompt_cache.load(by, PromptKey(text, prompts.max_sequence_length))
            found[text] = context and TextContext(context.video.to(device), context.audio.to(device))
        return found

    @property
    def _absent_text_parts(self) -> list[str]:
        return [name for name in ("text_encoder", "tokenizer", "connectors") if self._component(name) is None]

    def _check_encodable(self, texts: Sequence[str]) -> None:
        if texts and self._absent_text_parts:
            raise ValueError(
                f"the prompt {texts[0]!r} is not in the prompt cache {os.fspath(self._prompt_cache.folder)!r} and "
                f"cannot be encoded, since the pipeline was built without {self._absent_text_parts}; load them, or fill "
                "the cache with a call of the whole pipeline first"
            )

    def _encoded_by(self) -> EncodedBy:
        """What contexts are computed with, as far as it is loaded."""
        tokenizer, encoder, connectors = (
            self._component(name) for name in ("tokenizer", "text_encoder", "connectors")
        )
        with_encoder = tokenizer is not None and encoder is not None
        return EncodedBy(
            f"{tokenizer_fingerprint(tokenizer)}-{model_fingerprint(encoder)}" if with_encoder else None,
            None if connectors is None else model_fingerprint(connectors),
            str((self.transformer if connectors is None else connectors).dtype),
        )


def _texts(prompts: Prompts, with_negative: bool) -> list[str]:
    """The positive texts, then as many negative ones, without the surrounding blanks that no encoder sees."""
    positive = [prompts.prompt] if isinstance(prompts.prompt, str) else list(prompts.prompt)
    negative = prompts.negative_prompt or ""
    negative = [negative] * len(positive) if isinstance(negative, str) else list(negative)
    return [text.strip() for text in (positive + negative if with_negative else positive)]


def _missing(contexts: dict[str, TextContext | None]) -> list[str]:
    return [text for text, context in contexts.items() if context is None]


def _stacked(rows: Sequence[TextContext]) -> TextContext:
    return TextContext(torch.cat([row.video for row in rows]), torch.cat([row.audio for row in rows]))


def read_prompts(pipeline: Any, request: Any, with_negative: bool) -> ReadPrompts:
    """Rewrite the prompts, if that is asked for, and encode them."""
    prompts, wish = request.prompts, request.prompts.enhancement
    enhanced = None
    if wish.enabled:
        enhanced = pipeline.enhance_prompt(
            prompts.prompt,
            wish.system_prompt,
            wish.max_new_tokens,
            wish.seed,
            request.start.generator,
            wish.generation_kwargs,
            image=wish.image,
        )
        prompts = replace(prompts, prompt=enhanced)
    return ReadPrompts(enhanced, *pipeline._text_contexts(prompts, request.delivery, with_negative))
