"""Rewriting a short prompt into a detailed one with the pipeline's own language model."""

from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import torch

# The models were trained on long captions; these texts ask a language model for one in the same manner.
TEXT_SYSTEM_PROMPT = """\
You help a film maker. Turn the idea you are given into one prompt for a model that makes video together with sound.
- Keep everything the idea asks for: style, subjects, actions, camera, sound. Where it is vague, decide: name the light, \
textures, materials and the place; for a person give gender, clothing, hair and expression. Add nobody who was not asked \
for. In a first-person view leave the viewer undescribed.
- Write in the present progressive and in the order in which things happen. If nothing happens, let something natural move.
- Weave the sounds in beside the actions that make them, and name them exactly.
- Let people speak only if the idea has talking or singing. Then quote every word, say how the voice sounds, the language \
if it is not English and the accent if it matters. Leave given lines as they are except for typing errors; otherwise \
invent none.
- You may open with "Style: ..." when a style is clear; cinematic and realistic is the default.
- Describe only what can be seen and heard, in plain and restrained words. No camera motion, cuts or times of your own. \
Do not begin with how the scene opens, nor with a special character.
- An idea that is already detailed and in order stays as it is; add only the sound it lacks.
Answer with one English paragraph without headings, lists or markup. Never ask back. Return an unsafe or meaningless idea \
unchanged.
Example. Idea: a woman takes a call in a café. Answer: Style: cinematic-realistic. In a small café with warm light a woman \
in a green coat is lifting her phone to her ear while cups are clinking behind the counter and rain is pattering against \
the window. "I'm already here," she is saying in a low, amused voice, turning towards the door, whose bell is ringing."""
IMAGE_SYSTEM_PROMPT = """\
You help a film maker. You see the first frame of a video and an idea for what follows. Write one prompt for a model that \
continues the frame with motion and sound.
- Look at the subject, the place, the style and the mood first. Then describe only what changes from this frame on: \
repeating what is visible, or getting it wrong, makes the video cut to something else.
- Where the idea and the frame disagree the idea wins; describe how one becomes the other.
- Write in the present progressive and in the order in which things happen.
- Spread the sounds through the text beside the actions that make them. If people talk and no lines are given, write \
short ones and quote them, with the sound of the voice. Leave given lines as they are.
- Describe only what can be seen and heard, no feelings or intentions. No camera motion, cuts or times of your own.
Answer with one concise English paragraph without headings, lists or markup. Never ask back. Return an unsafe or \
meaningless idea unchanged."""

# Character -> plain twin, for what language models like to write and the text encoder was not trained on.
_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": "-", "–": "-", "\u00a0": " ", "′": "'", "−": "-"})
_LONG_SIDE = 896
_ALIGNMENT = 8


@dataclass(frozen=True)
class EnhancementDefaults:
    """How a language model is asked to write."""

    max_new_tokens: int
    generation: dict[str, Any] = field(default_factory=dict)


OWN_ENCODER = EnhancementDefaults(512, {"do_sample": True, "temperature": 0.7})
DEDICATED_ENHANCER = EnhancementDefaults(600, {"do_sample": False, "no_repeat_ngram_size": 5})


def clean_response(text: str) -> str:
    """Plain quotes, dashes and spaces, starting at the first letter."""
    text = text.translate(_PLAIN)
    start = next((i for i, character in enumerate(text) if character.isalpha()), 0)
    return text[start:]


class PromptEnhancer:
    """The prompt-rewriting part of a pipeline; needs `tokenizer` and `text_encoder`, or `prompt_enhancer`."""

    @torch.no_grad()
    def enhance_prompt(
        self,
        prompt: str | list[str],
        system_prompt: str | None = None,
        max_new_tokens: int | None = None,
        seed: int = 10,
        generator: torch.Generator | list[torch.Generator] | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        device: torch.device | None = None,
        image: PIL.Image.Image | None = None,
    ) -> list[str]:
        """Rewrite prompts; the same seed gives the same text, and the global random state stays untouched.

        Args:
            prompt: Text or texts.
            system_prompt: Instructions to the language model, default this package's for text or for an image.
            max_new_tokens: Length of the answer, default 512 (600 with a dedicated `prompt_enhancer`).
            seed: Seed of the sampling; a `generator` given replaces it by its own initial seed.
            generator: See `seed`.
            generation_kwargs: Replaces the sampling settings (temperature 0.7, or greedy for a dedicated model).
            device: Where to compute, default the pipeline's device.
            image: First frame of the video, which the text is to continue. Needs the component `processor`.

        Returns:
            One rewritten text per prompt.
        """
        dedicated = self._component("prompt_enhancer") is not None
        model = self.prompt_enhancer if dedicated else self.text_encoder
        defaults = DEDICATED_ENHANCER if dedicated else OWN_ENCODER
        device = torch.device(device or self._execution_device)
        if isinstance(generator, list):
            generator = generator[0]
        seed = seed if generator is None else generator.initial_seed()
        if system_prompt is None:
            system_prompt = TEXT_SYSTEM_PROMPT if image is None else IMAGE_SYSTEM_PROMPT
        options = {
            "max_new_tokens": max_new_tokens or defaults.max_new_tokens,
            **(defaults.generation if generation_kwargs is None else generation_kwargs),
        }
        answers = []
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            for text in [prompt] if isinstance(prompt, str) else prompt:
                inputs = self._chat_inputs(text, system_prompt, image)
                inputs = {name: value.to(device) for name, value in _aligned(inputs, self._chat_pad_token).items()}
                sequence = model.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
                answers.append(clean_response(self._chat_tokenizer.decode(sequence, skip_special_tokens=True)))
        return answers

    @property
    def _chat_tokenizer(self) -> Any:
        processor = self._component("processor")
        return self.tokenizer if processor is None else processor.tokenizer

    @property
    def _chat_pad_token(self) -> int:
        return self._chat_tokenizer.pad_token_id or 0

    def _chat_inputs(self, text: str, system_prompt: str, image: PIL.Image.Image | None) -> dict[str, torch.Tensor]:
        """Tokens of the conversation, and the pixels of the image if there is one."""
        content: Any = f"user prompt: {text}"
        if image is not None:
            if self._component("processor") is None:
                raise ValueError(
                    "rewriting a prompt for an image needs the component `processor`; load the processor of the text "
                    "encoder and pass it to the pipeline, or rewrite from the text alone"
                )
            content = [{"type": "image"}, {"type": "text", "text": f"User Raw Input Prompt: {text}."}]
        if self._chat_tokenizer.chat_template is None:
            raise ValueError(
                "the tokenizer has no chat template, so its language model cannot rewrite prompts; use the tokenizer of "
                "an instruction-tuned Gemma or leave `enable_prompt_enhancement` off"
            )
        messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": content}]
        rendered = self._chat_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if self._component("processor") is not None:
            picture = None if image is None else _shrunk(image.convert("RGB"))
            return dict(self.processor(text=rendered, images=picture, return_tensors="pt"))
        # The template already writes the tokens that begin a text.
        return dict(self.tokenizer(rendered, add_special_tokens=False, return_tensors="pt"))


def _shrunk(image: PIL.Image.Image) -> PIL.Image.Image:
    scale = _LONG_SIDE / max(image.size)
    return image.resize([int(side * scale) for side in image.size], PIL.Image.Resampling.BICUBIC)


def _aligned(inputs: dict[str, torch.Tensor], pad_token: int) -> dict[str, torch.Tensor]:
    """Pad token sequences on the left to a multiple of 8, so that the answer still follows the question."""
    missing = -inputs["input_ids"].shape[1] % _ALIGNMENT
    fill = {"input_ids": pad_token, "attention_mask": 0, "token_type_ids": 0}
    return {
        name: torch.nn.functional.pad(value, (missing, 0), value=fill[name]) if name in fill else value
        for name, value in inputs.items()
    }
