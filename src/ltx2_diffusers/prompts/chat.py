"""Asking an instruction-tuned language model for a text: conversation in, cleaned answer out.

Shapes: N tokens of the conversation, H and W rows and columns of pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import torch

from ..memory.on_demand import kind_of, loaded, session
from ..memory.streaming import streamer_of

# Character -> plain twin, for what language models like to write and the text encoder was not trained on.
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": "-", "–": "-", "\u00a0": " ", "′": "'", "−": "-"})
# Long side in pixels of a picture, the input size of Gemma's vision tower.
_LONG_SIDE = 896
# Kind of language model that LTX-2.5 has fine-tuned.
_ENCODES_ONLY = "gemma4_unified"
# Sequence lengths that attention kernels like.
_ALIGNMENT = 8


@dataclass(frozen=True)
class ChatDefaults:
    """How a language model is asked to write."""

    max_new_tokens: int
    generation: dict[str, Any] = field(default_factory=dict)


OWN_ENCODER = ChatDefaults(512, {"do_sample": True, "temperature": 0.7})
DEDICATED_ENHANCER = ChatDefaults(600, {"do_sample": False, "no_repeat_ngram_size": 5})


@dataclass(frozen=True)
class ChatModel:
    """A language model with what turns text and pictures into its inputs.

    Args:
        model: The language model, also one that is on demand.
        tokenizer: Its tokenizer, with a chat template. May be `None` with a `processor`.
        processor: Its multimodal processor; needed for pictures.
        defaults: Length and sampling of its answers.
    """

    model: Any
    tokenizer: Any
    processor: Any = None
    defaults: ChatDefaults = OWN_ENCODER

    def check(self, with_image: bool = False) -> None:
        """Raise `ValueError` if the parts cannot hold a conversation."""
        if with_image and self.processor is None:
            raise ValueError(
                "rewriting a prompt for an image needs the component `processor`; load the processor of the text "
                "encoder and pass it to the pipeline, or call `enhance_prompt` without an image and pass on its result"
            )
        if self.model is None or self._words is None:
            raise ValueError(
                "rewriting prompts needs a language model and its tokenizer, which the pipeline was built without; "
                "load `text_encoder` and `tokenizer`, or leave `enable_prompt_enhancement` off"
            )
        if not hasattr(kind_of(self.model), "generate"):
            raise ValueError(
                f"{kind_of(self.model).__name__} cannot write text, so it cannot rewrite prompts; load the text encoder "
                "as Gemma3ForConditionalGeneration or leave `enable_prompt_enhancement` off"
            )
        kind = getattr(getattr(self.model, "config", None), "model_type", None)
        if kind == _ENCODES_ONLY and self.defaults is OWN_ENCODER:
            raise ValueError(
                "the text encoder of LTX-2.5 was trained to encode prompts and cannot rewrite them; load an instruction-tuned "
                "Gemma 4 as `prompt_enhancer` with its `processor`, or leave `enable_prompt_enhancement` off"
            )
        if self._template_owner is None:
            raise ValueError(
                "the tokenizer has no chat template, so its language model cannot rewrite prompts; use the tokenizer "
                "of an instruction-tuned Gemma or leave `enable_prompt_enhancement` off"
            )

    @torch.no_grad()
    def answer(
        self,
        system_prompt: str,
        text: str,
        *,
        seed: int,
        device: torch.device,
        image: PIL.Image.Image | None = None,
        max_new_tokens: int | None = None,
        generation_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """The model's cleaned answer; equal for equal seeds.

        Args:
            system_prompt: Instructions.
            text: What the user says.
            seed: Seed of the sampling; the global random state stays untouched.
            device: Where to compute.
            image: Picture shown before the text.
            max_new_tokens: Length of the answer, default that of `defaults`.
            generation_kwargs: Replaces the sampling settings of `defaults`.
        """
        self.check(image is not None)
        inputs = _aligned(self._inputs(system_prompt, text, image), self._words.pad_token_id or 0)
        inputs = {name: value.to(device) for name, value in inputs.items()}
        options = {
            "max_new_tokens": self.defaults.max_new_tokens if max_new_tokens is None else max_new_tokens,
            **(self.defaults.generation if generation_kwargs is None else generation_kwargs),
        }
        with session(self.model), seeded_sampling(seed, device):
            model = loaded(self.model, device)
            hook, streamer = getattr(model, "_hf_hook", None), streamer_of(model)
            # `generate` runs the vision tower before the forward to which offloading and streaming are tied.
            if hook is not None:
                hook.pre_forward(model)
            with nullcontext() if streamer is None else streamer.running():
                sequence = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        return clean_response(self._words.decode(sequence, skip_special_tokens=True))

    @property
    def _words(self) -> Any:
        return self.tokenizer if self.processor is None else self.processor.tokenizer

    @property
    def _template_owner(self) -> Any:
        candidates = (self._words, self.processor)
        return next((part for part in candidates if getattr(part, "chat_template", None) is not None), None)

    def _inputs(self, system_prompt: str, text: str, image: PIL.Image.Image | None) -> dict[str, torch.Tensor]:
        """Tokens `[1, N]` of the conversation, and the pixels `[1, 3, H, W]` of the picture if there is one."""
        content = text if image is None else [{"type": "image"}, {"type": "text", "text": text}]
        messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": content}]
        rendered = self._template_owner.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # The template already writes the tokens that begin a text.
        if image is None:
            return dict(self._words(rendered, add_special_tokens=False, return_tensors="pt"))
        picture = shrunk(image.convert("RGB"))
        return dict(self.processor(text=rendered, images=picture, add_special_tokens=False, return_tensors="pt"))


def clean_response(text: str) -> str:
    """Plain quotes, dashes and spaces, starting at the first letter."""
    text = text.translate(_PLAIN)
    start = next((i for i, character in enumerate(text) if character.isalpha()), 0)
    return text[start:]


def shrunk(image: PIL.Image.Image) -> PIL.Image.Image:
    """The picture with a long side of 896 pixels and its aspect kept."""
    scale = _LONG_SIDE / max(image.size)
    return image.resize([max(1, int(side * scale)) for side in image.size], PIL.Image.Resampling.BICUBIC)


@contextmanager
def seeded_sampling(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the default random generators of the CPU and of `device` for a block, and put them back after it."""
    generators = [torch.default_generator]
    if device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    elif device.type != "cpu":
        backend = torch.get_device_module(device)
        backend.init()
        index = backend.current_device() if device.index is None else device.index
        generators.append(backend.default_generators[index])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states):
            generator.set_state(state)


def _aligned(inputs: dict[str, torch.Tensor], pad_token: int) -> dict[str, torch.Tensor]:
    """Pad token sequences on the left to a multiple of 8, so that the answer still follows the question."""
    missing = -inputs["input_ids"].shape[1] % _ALIGNMENT
    fill = {"input_ids": pad_token, "attention_mask": 0, "token_type_ids": 0, "mm_token_type_ids": 0}
    return {
        name: torch.nn.functional.pad(value, (missing, 0), value=fill[name]) if name in fill else value
        for name, value in inputs.items()
    }
