"""From prompts to the text contexts of the two streams.

Shapes: B prompts, N tokens of the longest prompt, T padded text positions, C language-model width, L its states.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch

from ..conditioning.streams import TextContext


@dataclass(frozen=True)
class TextStates:
    """Language-model states `hidden` `[B, N, C, L]` and the `mask` `[B, N]` of valid tokens (1), left-padded."""

    hidden: torch.Tensor
    mask: torch.Tensor

    def padded(self, length: int) -> "TextStates":
        """The states with zeros in front, up to `length` positions."""
        missing = length - self.mask.shape[1]
        hidden = torch.nn.functional.pad(self.hidden, (0, 0, 0, 0, missing, 0))
        return TextStates(hidden, torch.nn.functional.pad(self.mask, (missing, 0)))


class TextStage:
    """The prompt-encoding part of a pipeline; needs the components `tokenizer`, `text_encoder`, `connectors`."""

    def _text_states(
        self, prompts: list[str], max_sequence_length: int, device: torch.device, dtype: torch.dtype | None = None
    ) -> TextStates:
        """Run the language model over the valid tokens of `prompts`.

        Causal attention makes the states of a token independent of the padding in front of it, so only as many
        positions as the longest prompt needs are computed, at the places which they have in the padded sequence.
        """
        self._require("tokenizer", "text_encoder")
        tokens = self.tokenizer(
            [prompt.strip() for prompt in prompts],
            truncation=True,
            max_length=max_sequence_length,
            add_special_tokens=True,
        ).input_ids
        length = max(1, max(len(ids) for ids in tokens))
        pad = next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)
        input_ids = torch.tensor([[pad] * (length - len(ids)) + ids for ids in tokens], device=device)
        mask = torch.tensor([[0] * (length - len(ids)) + [1] * len(ids) for ids in tokens], device=device)
        positions = torch.arange(max_sequence_length - length, max_sequence_length, device=device)
        extra = {}
        if "logits_to_keep" in inspect.signature(self.text_encoder.forward).parameters:
            # The vocabulary projection over zero positions costs nothing. The model is still called as a whole,
            # because that is where offloading hooks sit.
            extra["logits_to_keep"] = torch.empty(0, dtype=torch.long, device=device)
        outputs = self.text_encoder(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions.expand(len(prompts), -1),
            output_hidden_states=True,
            use_cache=False,
            **extra,
        )
        hidden = torch.stack(outputs.hidden_states, dim=-1).masked_fill(mask[:, :, None, None] == 0, 0)
        return TextStates(hidden.to(dtype or self.text_encoder.dtype), mask)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        max_sequence_length: int = 1024,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Encode prompts into language-model states that can be passed to the pipeline as `prompt_embeds`.

        Args:
            prompt: Text or texts. Not needed with `prompt_embeds`.
            negative_prompt: Text or texts to steer away from; `None` means the empty text.
            do_classifier_free_guidance: Whether to encode the negative prompt too.
            num_videos_per_prompt: Each prompt's result is repeated this often, one after the other.
            prompt_embeds, negative_prompt_embeds: States `[B, T, C * L]` from an earlier call, returned repeated.
            prompt_attention_mask, negative_prompt_attention_mask: Their masks `[B, T]`.
            max_sequence_length: Padded length `T` in tokens; longer prompts are cut.
            device: Where to compute; default the pipeline's device.
            dtype: Type of the states; default the text encoder's.

        Returns:
            `(prompt_embeds, prompt_attention_mask, negative_prompt_embeds, negative_prompt_attention_mask)`; the last
            two are `None` without guidance. Positions in front of a prompt hold zeros: nothing reads them.
        """
        device = device or self._execution_device
        positive, negative = self._encode_states(
            prompt,
            negative_prompt,
            (prompt_embeds, negative_prompt_embeds, prompt_attention_mask, negative_prompt_attention_mask),
            do_classifier_free_guidance,
            max_sequence_length,
            device,
            dtype,
        )
        results = []
        for states in (positive, negative):
            if states is None:
                results += [None, None]
                continue
            states = states.padded(max(max_sequence_length, states.mask.shape[1]))
            results += [
                states.hidden.flatten(2).repeat_interleave(num_videos_per_prompt, 0),
                states.mask.repeat_interleave(num_videos_per_prompt, 0),
            ]
        return tuple(results)

    @property
    def _num_text_states(self) -> int:
        return self.connectors.config.text_proj_in_factor if self.connectors is not None else 49

    def _encode_states(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        embeds: tuple[torch.Tensor | None, ...],
        with_negative: bool,
        max_sequence_length: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> tuple[TextStates, TextStates | None]:
        """States of the positive and (if wanted) negative prompts; what is not given is encoded in one batch.

        `embeds` holds positive and negative states, then their masks.
        """
        positive, negative = (_as_states(*given, self._num_text_states) for given in zip(embeds[:2], embeds[2:]))
        texts: list[str] = []
        if positive is None:
            texts += [prompt] if isinstance(prompt, str) else prompt
        count = len(texts) or len(positive.mask)
        if with_negative and negative is None:
            negative_prompt = negative_prompt or ""
            texts += [negative_prompt] * count if isinstance(negative_prompt, str) else negative_prompt
        if texts:
            states = self._text_states(texts, max_sequence_length, device, dtype)
            if positive is None:
                positive = TextStates(states.hidden[:count], states.mask[:count])
            if with_negative and negative is None:
                negative = TextStates(states.hidden[-count:], states.mask[-count:])
        return positive, negative if with_negative else None

    def _contexts(self, states: TextStates, length: int) -> TextContext:
        """Run the connectors; `length` is the number of text positions which the streams attend to."""
        video, audio, _ = self.connectors(
            states.hidden.to(self.connectors.dtype), states.mask, padding_side="left", target_length=length
        )
        return TextContext(video, audio)


def _as_states(embeds: torch.Tensor | None, mask: torch.Tensor | None, num_states: int) -> TextStates | None:
    if embeds is None:
        return None
    return TextStates(embeds.unflatten(2, (-1, num_states)) if embeds.ndim == 3 else embeds, mask)


def check_prompts(
    prompt: str | list[str] | None,
    negative_prompt: str | list[str] | None,
    prompt_embeds: torch.Tensor | None,
    negative_prompt_embeds: torch.Tensor | None,
    prompt_attention_mask: torch.Tensor | None,
    negative_prompt_attention_mask: torch.Tensor | None,
) -> int:
    """Check prompts and precomputed embeddings against each other and return the number of prompts."""
    if (prompt is None) == (prompt_embeds is None):
        raise ValueError("provide either `prompt` or `prompt_embeds`, and not both")
    if prompt is not None:
        _check_texts("prompt", prompt)
        batch_size = 1 if isinstance(prompt, str) else len(prompt)
    else:
        batch_size = _check_embeds("prompt", prompt_embeds, prompt_attention_mask)
    if negative_prompt_embeds is not None:
        if negative_prompt is not None:
            raise ValueError("provide either `negative_prompt` or `negative_prompt_embeds`, and not both")
        _check_embeds("negative_prompt", negative_prompt_embeds, negative_prompt_attention_mask)
        if prompt_embeds is not None and prompt_embeds.shape != negative_prompt_embeds.shape:
            raise ValueError(
                f"`prompt_embeds` and `negative_prompt_embeds` must have the same shape but are "
                f"{tuple(prompt_embeds.shape)} and {tuple(negative_prompt_embeds.shape)}"
            )
        if negative_prompt_embeds.shape[0] != batch_size:
            raise ValueError(
                f"got {negative_prompt_embeds.shape[0]} `negative_prompt_embeds` for {batch_size} prompts"
            )
    elif negative_prompt is not None:
        _check_texts("negative_prompt", negative_prompt)
        if not isinstance(negative_prompt, str) and len(negative_prompt) != batch_size:
            raise ValueError(
                f"`negative_prompt` has {len(negative_prompt)} entries for {batch_size} prompts; give one text for all "
                "or one per prompt"
            )
    return batch_size


def _check_texts(name: str, texts: Any) -> None:
    if isinstance(texts, str):
        return
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`{name}` has to be a `str` or a list of `str` but is {texts!r}")
    if not texts:
        raise ValueError(f"`{name}` is an empty list; give at least one text")


def _check_embeds(name: str, embeds: torch.Tensor, mask: torch.Tensor | None) -> int:
    if mask is None:
        raise ValueError(f"`{name}_embeds` need their `{name}_attention_mask`")
    if embeds.ndim not in (3, 4) or not embeds.is_floating_point():
        raise ValueError(
            f"`{name}_embeds` have to be floating-point text-encoder states [B, T, C * L] or [B, T, C, L] but are "
            f"{embeds.dtype} {tuple(embeds.shape)}"
        )
    if tuple(mask.shape) != tuple(embeds.shape[:2]):
        raise ValueError(
            f"`{name}_attention_mask` has shape {tuple(mask.shape)}, but `{name}_embeds` need {tuple(embeds.shape[:2])}"
        )
    return embeds.shape[0]


def check_text_width(width: int, **embeds: torch.Tensor | None) -> None:
    """Given text-encoder states must have the width that the connectors take, flat or stacked."""
    for name, tensor in embeds.items():
        if tensor is not None and tensor.shape[2:].numel() != width:
            raise ValueError(
                f"`{name}` has {tensor.shape[2:].numel()} values per token, but this checkpoint's connectors take {width}; "
                "encode the prompt with this pipeline's `encode_prompt`"
            )


def check_enhancement(enabled: bool, prompt: str | list[str] | None, system_prompt: str | None) -> None:
    """Only a prompt can be rewritten, and instructions for rewriting need the switch."""
    if enabled and prompt is None:
        raise ValueError("`enable_prompt_enhancement` needs `prompt`; precomputed `prompt_embeds` cannot be rewritten")
    if system_prompt is not None and not enabled:
        raise ValueError("`system_prompt` is only read with `enable_prompt_enhancement=True`; set it or leave it out")
