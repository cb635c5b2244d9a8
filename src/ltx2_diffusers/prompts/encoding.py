"""From prompts to the text contexts of the two streams.

Shapes: B prompts, N tokens of the longest prompt, T padded text positions, C language-model width, L its states.
"""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoints.fingerprint import model_fingerprint
from ..checks import check_at_least_one, check_float_tensors, check_loaded, check_most, check_seed
from ..conditioning.streams import TextContext
from ..memory.on_demand import OnDemandModel, loaded, session
from ..models.connectors import LTX2TextConnectors
from .vocabulary import check_tokens, check_vocabulary

Contexts = tuple[TextContext, TextContext | None]
"""What the streams attend to, of the positive and the negative prompts."""
MAX_VIDEOS = 1000
EMBEDS = ("prompt_embeds", "negative_prompt_embeds")


DEFAULT_TEXT_POSITIONS = 1024
"""Of the published models, which were trained with it."""


@dataclass(frozen=True)
class Enhancement:
    """Rewriting of the prompt by a language model; the fields are the arguments of `enhance_prompt`.

    Args:
        enabled: Whether the prompt is rewritten.
        system_prompt, max_new_tokens, generation_kwargs, seed: See `enhance_prompt`.
    """

    enabled: bool = False
    system_prompt: str | None = None
    max_new_tokens: int | None = None
    generation_kwargs: dict[str, Any] | None = None
    seed: int = 10


@dataclass(frozen=True)
class Prompts:
    """Texts, or their precomputed language-model states.

    Args:
        prompt, negative_prompt: Texts.
        embeds, masks: `prompt_embeds` and `negative_prompt_embeds`, and their attention masks.
        num_videos_per_prompt: Videos per prompt.
        max_sequence_length: Text positions of texts, see [`TextEncoder.fitting_length`]; given states keep theirs.
        enhancement: Whether and how the prompt is rewritten first.
        contexts: What the streams attend to, `[B, T, W]`, in place of all of these; with guidance the rows of the negative prompts
            stand before those of the prompts.
    """

    prompt: str | list[str] | None
    negative_prompt: str | list[str] | None = None
    embeds: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    masks: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    num_videos_per_prompt: int = 1
    max_sequence_length: int = DEFAULT_TEXT_POSITIONS
    enhancement: Enhancement = Enhancement()
    contexts: TextContext | None = None

    @property
    def as_states(self) -> bool:
        """Whether any are given as states."""
        return any(embeds is not None for embeds in self.embeds)

    @property
    def texts(self) -> list[str]:
        """The texts, if no states are given instead."""
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt or ())

    def negative_texts(self, count: int) -> list[str]:
        """As many texts to steer away from."""
        given = self.negative_prompt or ""
        return [given] * count if isinstance(given, str) else list(given)


@dataclass(frozen=True)
class TextStates:
    """Language-model states `hidden` `[B, N, C, L]` and the `mask` `[B, N]` of valid tokens (1), left-padded."""

    hidden: torch.Tensor
    mask: torch.Tensor

    @property
    def length(self) -> int:
        """Text positions N."""
        return self.mask.shape[1]

    def padded(self, length: int) -> "TextStates":
        """The states with zeros in front, up to `length` positions."""
        missing = length - self.length
        hidden = torch.nn.functional.pad(self.hidden, (0, 0, 0, 0, missing, 0))
        return TextStates(hidden, torch.nn.functional.pad(self.mask, (missing, 0)))


@dataclass(frozen=True)
class TextEncoder:
    """The parts that turn texts into contexts; those that are not loaded are `None`, and `absent` names them.

    Args:
        tokenizer: Tokenizer of the language model.
        model: The language model, also one that is on demand, within whose session texts are read.
        connectors: From its states to the contexts of the two streams.
        device: Where to compute.
        begins_with_bos: Whether texts begin with `<bos>` also where the tokenizer does not put it there. Default with Gemma 4.
    """

    tokenizer: PreTrainedTokenizerBase
    model: PreTrainedModel | OnDemandModel
    connectors: LTX2TextConnectors
    device: torch.device
    begins_with_bos: bool | None = None

    def states(
        self, prompts: Prompts, with_negative: bool, dtype: torch.dtype | None = None
    ) -> tuple[TextStates, TextStates | None]:
        """States of the positive and (if wanted) negative prompts; what is not given is encoded in one batch."""
        positive, negative = map(self._stacked, prompts.embeds, prompts.masks)
        texts = prompts.texts if positive is None else []
        count = len(texts) if positive is None else len(positive.mask)
        others = prompts.negative_texts(count) if with_negative and negative is None else []
        if positive is None or others:
            self.require("tokenizer", "text_encoder")
            length = self.fitting_length(prompts.max_sequence_length)
            states = self.run(*self.tokens(texts + others, length), length, dtype)
            hidden, masks = (part.split([len(texts), len(others)]) for part in (states.hidden, states.mask))
        if positive is None:
            positive = TextStates(hidden[0], masks[0])
        if others:
            negative = TextStates(hidden[1], masks[1])
        return positive, negative if with_negative else None

    def _stacked(self, embeds: torch.Tensor | None, mask: torch.Tensor | None) -> TextStates | None:
        """States that a caller gives, flat or stacked."""
        if embeds is None or mask is None:
            return None
        stacked = embeds.unflatten(2, (-1, self.num_states)) if embeds.ndim == 3 else embeds
        return TextStates(stacked.to(self.device), mask.to(self.device))

    def tokens(self, texts: Sequence[str], longest: int, shortest: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens of texts and which of them are valid (1), both `[B, N]`, left-padded to the longest of the texts.

        Args:
            texts: B of them.
            longest: Longer texts are cut off.
            shortest: N is at least as much.
        """
        check_vocabulary(self.tokenizer)
        stripped = [text.strip() for text in texts]
        tokens = self.tokenizer(stripped, truncation=True, max_length=longest, add_special_tokens=True).input_ids
        model, bos = loaded(self.model, self.device), getattr(self.tokenizer, "bos_token_id", None)
        is_added = (
            model.config.model_type.startswith("gemma4") if self.begins_with_bos is None else self.begins_with_bos
        )
        if is_added and bos is not None:
            tokens = [ids if ids[:1] == [bos] else [bos, *ids][:longest] for ids in tokens]
        check_tokens(tokens, model)
        length = max([shortest, *map(len, tokens)])
        pad = next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)
        input_ids = torch.tensor([[pad] * (length - len(ids)) + ids for ids in tokens], device=self.device)
        return input_ids, torch.tensor(
            [[0] * (length - len(ids)) + [1] * len(ids) for ids in tokens], device=self.device
        )

    def run(
        self, input_ids: torch.Tensor, mask: torch.Tensor, max_sequence_length: int, dtype: torch.dtype | None = None
    ) -> TextStates:
        """Run the language model over tokens `[B, N]`.

        Causal attention makes the states of a token independent of the padding in front of it, so only as many
        positions as the longest prompt needs are computed, at the places which they have in the padded sequence.
        """
        model = loaded(self.model, self.device)
        positions = torch.arange(max_sequence_length - mask.shape[1], max_sequence_length, device=self.device)
        extra = {}
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            # The vocabulary projection over zero positions costs nothing. The model is still called as a whole,
            # because that is where offloading hooks sit.
            extra["logits_to_keep"] = torch.empty(0, dtype=torch.long, device=self.device)
        outputs = model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions.expand(len(mask), -1),
            output_hidden_states=True,
            use_cache=False,
            **extra,
        )
        hidden = torch.stack(outputs.hidden_states, dim=-1).masked_fill(mask[:, :, None, None] == 0, 0)
        return TextStates(hidden.to(dtype or model.dtype), mask)

    def contexts(self, states: tuple[TextStates, TextStates | None], length: int) -> Contexts:
        """Contexts of the positive and negative prompts, both in one batch.

        Args:
            states: States of the prompts.
            length: Text positions which the streams attend to.
        """
        present = [part for part in states if part is not None]
        padded = [part.padded(max(part.length for part in present)) for part in present]
        video, audio, _ = self.connectors(
            torch.cat([part.hidden for part in padded]).to(self.connectors.dtype),
            torch.cat([part.mask for part in padded]),
            padding_side="left",
            target_length=length,
        )
        contexts = TextContext(video, audio).split([len(part.mask) for part in present])
        return contexts[0], contexts[1] if len(contexts) == 2 else None

    @property
    def num_states(self) -> int:
        """States L of the language model that a token has; without connectors nothing reads them stacked."""
        return 1 if "connectors" in self.absent else self.connectors.config.text_proj_in_factor

    @property
    def text_width(self) -> int | None:
        """Values C * L of a token that the connectors take, `None` without them."""
        return None if "connectors" in self.absent else self.connectors.config.caption_channels * self.num_states

    @property
    def projection(self) -> tuple[str | None, str | None]:
        """A name of what makes contexts of the states, and the data type of those; `None` for each without connectors."""
        if "connectors" in self.absent:
            return None, None
        return model_fingerprint(self.connectors), str(self.connectors.dtype)

    def given_length(self, longest: int) -> int:
        """Text positions of given states, the longest of which have so many."""
        return self.connectors.fitting_length(longest)

    def fitting_length(self, length: int) -> int:
        """Text positions: those of `length`, or of the tokenizer's `model_max_length` if that is below the default."""
        return min(length, self._longest_text) if length == DEFAULT_TEXT_POSITIONS else length

    @property
    def _longest_text(self) -> int:
        return getattr(self.tokenizer, "model_max_length", sys.maxsize)

    def check_length(self, length: int) -> None:
        """Texts get as many positions as whole sets of registers fill, and no more than the models know."""
        multiple = longest = 1
        if "connectors" not in self.absent:
            multiple, longest = self.connectors.fitting_length(1), self.connectors.config.connector_rope_base_seq_len
        if "text_encoder" not in self.absent:
            text_config = self.model.config.get_text_config()
            longest = min(longest, getattr(text_config, "max_position_embeddings", longest))
        longest = min(longest, self._longest_text)
        if length % multiple or (multiple > 1 and length > longest):
            lower = min(length, longest) // multiple * multiple
            nearest = [number for number in (lower, lower + multiple) if 0 < number <= longest]
            raise ValueError(
                f"`max_sequence_length` has to be a multiple of {multiple}, the registers of this checkpoint's connectors, up "
                f"to {longest} but is {length}; use {' or '.join(map(str, nearest))}"
            )

    @property
    def absent(self) -> list[str]:
        """Names of the components that are not loaded."""
        parts = {"text_encoder": self.model, "tokenizer": self.tokenizer, "connectors": self.connectors}
        return [name for name, part in parts.items() if part is None]

    def require(self, *names: str) -> None:
        """Raise if a component that a call needs was not loaded."""
        check_loaded([name for name in names if name in self.absent])


def encode_prompt(
    encoder: TextEncoder, prompts: Prompts, with_negative: bool, dtype: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """States and masks of the positive and the negative prompts, in the form that callers can hand over again."""
    # A text beside its states is not read, as in diffusers.
    given = zip((prompts.prompt, prompts.negative_prompt), prompts.embeds)
    prompt, negative_prompt = (text if embeds is None else None for text, embeds in given)
    check_prompts(replace(prompts, prompt=prompt, negative_prompt=negative_prompt))
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"`dtype` has to be a floating-point type but is {dtype}; use torch.float32")
    with session(encoder.model):
        positive, negative = encoder.states(prompts, with_negative, dtype)
    # Given states keep their length, and a text beside them takes it.
    length = max(part.length for part in (positive, negative) if part is not None)
    length = length if prompts.as_states else max(encoder.fitting_length(prompts.max_sequence_length), length)

    def repeated(states: TextStates) -> tuple[torch.Tensor, torch.Tensor]:
        states, times = states.padded(length), prompts.num_videos_per_prompt
        return states.hidden.flatten(2).repeat_interleave(times, 0), states.mask.repeat_interleave(times, 0)

    embeds, mask = repeated(positive)
    return embeds, mask, *(repeated(negative) if negative is not None else (None, None))


def check_prompts(prompts: Prompts) -> int:
    """Check texts and precomputed states against each other and return the number of prompts."""
    counts, given_texts = {}, (prompts.prompt, prompts.negative_prompt)
    for name, given, embeds, mask in zip(("prompt", "negative_prompt"), given_texts, prompts.embeds, prompts.masks):
        if name == "prompt" and (given is None) == (embeds is None):
            raise ValueError("provide either `prompt` or `prompt_embeds`, and not both")
        if given is not None and embeds is not None:
            raise ValueError(f"provide either `{name}` or `{name}_embeds`, and not both")
        if embeds is None and mask is not None:
            raise ValueError(f"`{name}_attention_mask` belongs to `{name}_embeds`, which are not given; leave it out")
        if embeds is not None:
            counts[name] = _check_embeds(name, embeds, mask)
        elif given is not None:
            if not isinstance(given, str):
                if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
                    raise ValueError(f"`{name}` has to be a `str` or a list of `str` but is {given!r}")
                if not given:
                    raise ValueError(f"`{name}` is an empty list; give at least one text")
            counts[name] = 1 if isinstance(given, str) else len(given)
    _check_together(prompts.embeds, counts, isinstance(prompts.negative_prompt, str))
    check_at_least_one(max_sequence_length=prompts.max_sequence_length)
    check_videos(prompts.num_videos_per_prompt)
    wish = prompts.enhancement
    if wish.enabled and prompts.prompt is None:
        raise ValueError("`enable_prompt_enhancement` needs `prompt`; precomputed `prompt_embeds` cannot be rewritten")
    unread = {
        "system_prompt": wish.system_prompt,
        "prompt_max_new_tokens": wish.max_new_tokens,
        "prompt_enhancement_kwargs": wish.generation_kwargs,
    }
    if given := [name for name, value in unread.items() if value is not None and not wish.enabled]:
        raise ValueError(f"`{given[0]}` is only read with `enable_prompt_enhancement=True`; set it or leave it out")
    if wish.max_new_tokens is not None:
        check_at_least_one(prompt_max_new_tokens=wish.max_new_tokens)
    check_seed("prompt_enhancement_seed", wish.seed)
    return counts["prompt"]


def check_videos(count: int) -> int:
    """Check how many videos a prompt makes, and return it."""
    check_at_least_one(num_videos_per_prompt=count)
    check_most(MAX_VIDEOS, num_videos_per_prompt=count)
    return count


def check_contexts(contexts: TextContext, with_negative: bool) -> int:
    """Check how many contexts are given, and return the number of prompts."""
    rows = len(contexts.video)
    if rows != len(contexts.audio) or contexts.video.shape[1] != contexts.audio.shape[1]:
        shapes = tuple(contexts.video.shape), tuple(contexts.audio.shape)
        raise ValueError(
            f"`connector_video_embeds` {shapes[0]} and `connector_audio_embeds` {shapes[1]} must have as many rows and positions "
            "[B, T]; give those of the same prompts"
        )
    if with_negative and rows % 2:
        raise ValueError(
            f"`connector_video_embeds` has {rows} rows, but a guided call reads two per prompt: those of all negative prompts, "
            "then those of all prompts; give both, or set `guidance_scale=1.0`"
        )
    return rows // 2 if with_negative else rows


def _check_embeds(name: str, embeds: torch.Tensor, mask: torch.Tensor | None) -> int:
    if mask is None:
        raise ValueError(f"`{name}_embeds` need their `{name}_attention_mask`")
    if embeds.ndim not in (3, 4) or not embeds.is_floating_point():
        raise ValueError(
            f"`{name}_embeds` have to be floating-point text-encoder states [B, T, C * L] or [B, T, C, L] but are "
            f"{embeds.dtype} {tuple(embeds.shape)}"
        )
    check_float_tensors(**{f"{name}_embeds": embeds})
    if tuple(mask.shape) != tuple(embeds.shape[:2]):
        raise ValueError(
            f"`{name}_attention_mask` has shape {tuple(mask.shape)}, but `{name}_embeds` need {tuple(embeds.shape[:2])}"
        )
    if mask.is_meta or mask.is_complex() or not ((mask == 0) | (mask == 1)).all() or not mask.any(dim=1).all():
        raise ValueError(
            f"`{name}_attention_mask` has to hold 1 for tokens and 0 for padding, at least one token per text; pass that "
            "which `encode_prompt` returned"
        )
    return embeds.shape[0]


def _check_together(
    embeds: tuple[torch.Tensor | None, torch.Tensor | None], counts: dict[str, int], one_for_all: bool
) -> None:
    """As many negative prompts as positive ones, and states of one shape."""
    positive, negative = embeds
    if positive is not None and negative is not None and positive.shape != negative.shape:
        raise ValueError(
            f"`prompt_embeds` and `negative_prompt_embeds` must have the same shape but are "
            f"{tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    count, others = counts["prompt"], counts.get("negative_prompt", counts["prompt"])
    if count != others and negative is not None:
        raise ValueError(f"got {others} `negative_prompt_embeds` for {count} prompts")
    if count != others and not one_for_all:
        raise ValueError(
            f"`negative_prompt` has {others} entries for {count} prompts; give one text for all or one per prompt"
        )


def check_text_width(width: int | None, embeds: Sequence[torch.Tensor | None]) -> None:
    """Given text-encoder states must have the width that the connectors take, flat or stacked; `None` is not known."""
    for name, tensor in zip(EMBEDS, embeds):
        if width is not None and tensor is not None and tensor.shape[2:].numel() != width:
            raise ValueError(
                f"`{name}` has {tensor.shape[2:].numel()} values per token, but this checkpoint's connectors take {width}; "
                "encode the prompt with this pipeline's `encode_prompt`"
            )
