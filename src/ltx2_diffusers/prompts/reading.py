"""Reading the prompts of a call: checked, rewritten if that is asked for, encoded or taken from a cache on disk."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import PIL.Image
import torch

from ..checkpoints.fingerprint import tokenizer_fingerprint
from ..conditioning import TextContext
from ..memory.on_demand import fingerprint_of, session
from .cache import EncodedBy, PromptCache, PromptKey
from .chat import ChatModel
from .encoding import (
    EMBEDS,
    Contexts,
    Prompts,
    TextEncoder,
    check_contexts,
    check_prompts,
    check_text_width,
    check_videos,
)
from .enhancement import enhance


class ReadPrompts(NamedTuple):
    """Prompts as the language model read them.

    Args:
        enhanced: The rewritten texts, if rewriting was asked for.
        contexts: What the streams attend to, of the positive and the negative prompts.
        embeds: The language-model states that somebody watches, by the name of the argument that takes them.
    """

    enhanced: list[str] | None
    contexts: Contexts
    embeds: dict[str, torch.Tensor | None]


@dataclass(frozen=True)
class PromptReader:
    """Reads prompts with what a pipeline has loaded.

    Args:
        encoder: From texts to contexts.
        chat: Rewrites prompts.
        cache: Where contexts are kept, or `None`.
        dtype: Data type of the contexts, where the connectors are not loaded.
    """

    encoder: TextEncoder
    chat: ChatModel
    cache: PromptCache | None
    dtype: torch.dtype | None

    def check(
        self, prompts: Prompts, with_negative: bool, with_picture: bool = False, watched: Collection[str] = ()
    ) -> int:
        """Check the prompts of a call, and that each can be encoded or found in the cache; return how many videos they make.

        Args:
            prompts: Texts or their states.
            with_negative: Whether the negative prompts are read, too.
            with_picture: Whether they are rewritten for a picture.
            watched: Names of tensors that somebody watches.
        """
        if prompts.contexts is not None:
            return check_contexts(prompts.contexts, with_negative) * check_videos(prompts.num_videos_per_prompt)
        count, wish, asked = check_prompts(prompts), prompts.enhancement, prompts.max_sequence_length
        check_text_width(self.encoder.text_width, prompts.embeds)
        if wish.enabled:
            self.chat.check(with_picture)
        cache = self._cache_for(prompts.as_states, watched)
        has_texts = prompts.prompt is not None or (with_negative and prompts.embeds[1] is None)
        if has_texts:
            self.encoder.check_length(self.encoder.fitting_length(asked))
        if cache is None:
            self.encoder.require(*(["text_encoder", "tokenizer"] if has_texts else []), "connectors")
        elif self.encoder.absent and not wish.enabled:
            self._looked_up(cache, _texts(prompts, with_negative), asked)
        return count * prompts.num_videos_per_prompt

    def read(
        self,
        prompts: Prompts,
        with_negative: bool,
        generator: torch.Generator | list[torch.Generator] | None = None,
        picture: PIL.Image.Image | None = None,
        watched: Collection[str] = (),
    ) -> ReadPrompts:
        """Rewrite the prompts, if that is asked for, and encode them or take them from the cache.

        Args:
            prompts, with_negative, watched: As in [`check`].
            generator: Its initial seed takes the place of the enhancement's.
            picture: First picture of the video, which a rewritten prompt continues.
        """
        if prompts.contexts is not None:
            return self._given(prompts, prompts.contexts, with_negative, watched)
        enhanced, embeds = None, {}
        with session(self.encoder.model):
            if prompts.enhancement.enabled:
                wish, device = prompts.enhancement, self.encoder.device
                enhanced = enhance(self.chat, prompts.texts, wish, device, generator, picture)
                prompts = replace(prompts, prompt=enhanced)
            cache = self._cache_for(prompts.as_states, watched)
            if cache is not None:
                positive, negative = self._cached(cache, prompts, with_negative)
            else:
                states = self.encoder.states(prompts, with_negative)
                length = self.encoder.fitting_length(prompts.max_sequence_length)
                longest = max(part.length for part in states if part is not None)
                if prompts.as_states:
                    length = self.encoder.given_length(longest)
                positive, negative = self.encoder.contexts(states, length)
                for name, part in zip(EMBEDS, states):
                    if name in watched:
                        embeds[name] = None if part is None else part.padded(max(length, longest)).hidden.flatten(2)
        times = prompts.num_videos_per_prompt
        return ReadPrompts(enhanced, (positive.repeat(times), negative and negative.repeat(times)), embeds)

    def _given(
        self, prompts: Prompts, contexts: TextContext, with_negative: bool, watched: Collection[str]
    ) -> ReadPrompts:
        """Contexts as they are given, of no states that anybody could watch."""
        parts = (part.to(self.encoder.device, self.dtype) for part in (contexts.video, contexts.audio))
        kinds = 1 + with_negative
        split = TextContext(*parts).split([len(contexts.video) // kinds] * kinds)
        *negative, positive = (part.repeat(prompts.num_videos_per_prompt) for part in split)
        unknown: dict[str, torch.Tensor | None] = {name: None for name in EMBEDS if name in watched}
        return ReadPrompts(None, (positive, negative[0] if negative else None), unknown)

    def _cache_for(self, as_states: bool, watched: Collection[str]) -> PromptCache | None:
        """The cache, unless states are given or watched."""
        return None if as_states or any(name in watched for name in EMBEDS) else self.cache

    def _cached(self, cache: PromptCache, prompts: Prompts, with_negative: bool) -> Contexts:
        """Contexts of the positive and negative prompts, encoding and storing those that the cache lacks.

        They are kept under the text positions asked for: a pipeline without a tokenizer does not know its limit.
        """
        texts, asked = _texts(prompts, with_negative), prompts.max_sequence_length
        by, contexts, missing = self._looked_up(cache, texts, asked)
        length = self.encoder.fitting_length(asked)
        # All runs of the language model come first, since under offloading each change of model costs a transfer.
        states = {text: self.encoder.states(Prompts(text, max_sequence_length=asked), False) for text in missing}
        for text in missing:
            contexts[text], _ = self.encoder.contexts(states.pop(text), length)
            cache.store(by, PromptKey(text, asked), contexts[text])
        rows = [contexts[text] for text in texts]
        count = len(rows) // 2 if with_negative else len(rows)
        return _stacked(rows[:count]), _stacked(rows[count:]) if with_negative else None

    def _looked_up(
        self, cache: PromptCache, texts: Sequence[str], length: int
    ) -> tuple[EncodedBy, dict[str, TextContext], list[str]]:
        """Who encoded, contexts `[1, T, W]` on the device of the texts that the cache has, and those to encode."""
        by, device, found, missing = cache.resolve(self._encoded_by()), self.encoder.device, {}, []
        for text in dict.fromkeys(texts):
            context = cache.load(by, PromptKey(text, length))
            if context is None:
                missing.append(text)
            else:
                found[text] = context.on(device)
        if missing and self.encoder.absent:
            raise ValueError(
                f"the prompt {missing[0]!r} is not in the prompt cache {os.fspath(cache.folder)!r} and "
                f"cannot be encoded, since the pipeline was built without {self.encoder.absent}; load them, or fill "
                "the cache with a call of the whole pipeline first"
            )
        return by, found, missing

    def _encoded_by(self) -> EncodedBy:
        """What contexts are computed with, as far as it is loaded."""
        encoder = self.encoder
        has_model, (connectors, dtype) = not {"tokenizer", "text_encoder"} & {*encoder.absent}, encoder.projection
        setting = "" if encoder.begins_with_bos is None else f"-bos {encoder.begins_with_bos}"
        return EncodedBy(
            f"{tokenizer_fingerprint(encoder.tokenizer)}{setting}-{fingerprint_of(encoder.model)}"
            if has_model
            else None,
            connectors,
            dtype or str(self.dtype),
        )


def _texts(prompts: Prompts, with_negative: bool) -> list[str]:
    """The positive texts, then as many negative ones, without the surrounding blanks that no encoder sees."""
    negative = prompts.negative_texts(len(prompts.texts)) if with_negative else []
    return [text.strip() for text in prompts.texts + negative]


def _stacked(rows: Sequence[TextContext]) -> TextContext:
    return TextContext.joined(rows)
