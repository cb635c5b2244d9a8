"""Reading the prompts of a call: checked, rewritten if that is asked for, encoded or taken from a cache on disk."""

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import PIL.Image
import torch

from ..checks import check_at_least_one
from ..conditioning.streams import TextContext
from .cache import EncodedBy, PromptCache, PromptKey
from .chat import ChatModel
from .encoding import Prompts, TextEncoder, check_prompts, check_text_width
from .enhancement import enhance
from .fingerprint import model_fingerprint, tokenizer_fingerprint

_EMBEDS = ("prompt_embeds", "negative_prompt_embeds")


class ReadPrompts(NamedTuple):
    """Prompts as the language model read them.

    Args:
        enhanced: The rewritten texts, if rewriting was asked for.
        contexts: What the streams attend to, of the positive and the negative prompts.
        embeds: The language-model states that somebody watches, by the name of the argument that takes them.
    """

    enhanced: list[str] | None
    contexts: tuple[TextContext, TextContext | None]
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
        count, wish = check_prompts(prompts), prompts.enhancement
        if self.encoder.connectors is not None:
            config = self.encoder.connectors.config
            check_text_width(config.caption_channels * config.text_proj_in_factor, prompts.embeds)
        if wish.enabled:
            if wish.max_new_tokens is not None:
                check_at_least_one(prompt_max_new_tokens=wish.max_new_tokens)
            self.chat.check(with_picture)
        if not self._uses_cache(prompts.embeds, watched):
            has_texts = prompts.prompt is not None or (with_negative and prompts.embeds[1] is None)
            self.encoder.require(*(["text_encoder", "tokenizer"] if has_texts else []), "connectors")
        elif self.encoder.absent and not wish.enabled:
            by = self.cache.resolve(self._encoded_by())
            self._check_encodable(_missing(self._from_cache(by, prompts, with_negative)))
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
        enhanced = None
        if prompts.enhancement.enabled:
            texts = [prompts.prompt] if isinstance(prompts.prompt, str) else prompts.prompt
            enhanced = enhance(self.chat, texts, prompts.enhancement, self.encoder.device, generator, picture)
            prompts = replace(prompts, prompt=enhanced)
        if self._uses_cache(prompts.embeds, watched):
            positive, negative = self._cached(prompts, with_negative)
            embeds = {}
        else:
            states = self.encoder.states(prompts, with_negative)
            widths = [part.mask.shape[1] for part in states if part is not None]
            length = prompts.max_sequence_length
            if any(given is not None for given in prompts.embeds):
                length = self.encoder.connectors.fitting_length(max(widths))
            positive, negative = self.encoder.contexts(states, length)
            embeds = {
                name: None if part is None else part.padded(max(length, *widths)).hidden.flatten(2)
                for name, part in zip(_EMBEDS, states)
                if name in watched
            }
        times = prompts.num_videos_per_prompt
        return ReadPrompts(enhanced, (positive.repeat(times), negative and negative.repeat(times)), embeds)

    def _uses_cache(self, embeds: Sequence[torch.Tensor | None], watched: Collection[str]) -> bool:
        given = any(value is not None for value in embeds)
        return self.cache is not None and not given and not any(name in watched for name in _EMBEDS)

    def _cached(self, prompts: Prompts, with_negative: bool) -> tuple[TextContext, TextContext | None]:
        """Contexts of the positive and negative prompts, encoding and storing those that the cache lacks."""
        by = self.cache.resolve(self._encoded_by())
        contexts = self._from_cache(by, prompts, with_negative)
        missing = _missing(contexts)
        self._check_encodable(missing)
        # All runs of the language model come first, since under offloading each change of model costs a transfer.
        length = prompts.max_sequence_length
        states = {text: self.encoder.states(Prompts(text, max_sequence_length=length), False) for text in missing}
        for text in missing:
            contexts[text], _ = self.encoder.contexts(states.pop(text), length)
            self.cache.store(by, PromptKey(text, length), contexts[text])
        rows = [contexts[text] for text in _texts(prompts, with_negative)]
        count = len(rows) // 2 if with_negative else len(rows)
        return _stacked(rows[:count]), _stacked(rows[count:]) if with_negative else None

    def _from_cache(self, by: EncodedBy, prompts: Prompts, with_negative: bool) -> dict[str, TextContext | None]:
        """Context `[1, T, W]` of each distinct text on the device, `None` where the cache has none."""
        device = self.encoder.device
        found = {}
        for text in dict.fromkeys(_texts(prompts, with_negative)):
            context = self.cache.load(by, PromptKey(text, prompts.max_sequence_length))
            found[text] = context and TextContext(context.video.to(device), context.audio.to(device))
        return found

    def _check_encodable(self, texts: Sequence[str]) -> None:
        if texts and self.encoder.absent:
            raise ValueError(
                f"the prompt {texts[0]!r} is not in the prompt cache {os.fspath(self.cache.folder)!r} and "
                f"cannot be encoded, since the pipeline was built without {self.encoder.absent}; load them, or fill "
                "the cache with a call of the whole pipeline first"
            )

    def _encoded_by(self) -> EncodedBy:
        """What contexts are computed with, as far as it is loaded."""
        tokenizer, model, connectors = self.encoder.tokenizer, self.encoder.model, self.encoder.connectors
        with_encoder = tokenizer is not None and model is not None
        return EncodedBy(
            f"{tokenizer_fingerprint(tokenizer)}-{model_fingerprint(model)}" if with_encoder else None,
            None if connectors is None else model_fingerprint(connectors),
            str(self.dtype if connectors is None else connectors.dtype),
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
