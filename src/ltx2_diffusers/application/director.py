"""A language model that carries a story from one part of a long video to the next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import logging

from ..checks import check_at_least_one

logger = logging.get_logger(__name__)

DIRECTOR_SYSTEM_PROMPT = """\
You direct a long video that is made part by part; each part begins with the very last picture of the one before. You \
are given the idea of the whole video, the prompt of the part that was just made, and which part comes next. Write \
the prompt of the next part.
- Go on from the moment at which the last part ends. Do not tell it again and do not start over.
- Keep what is seen and heard as it was: the same people with the same looks, clothes and voices, the same place, \
light, style and sound, unless the idea changes them. Name them again, since the prompt is read without the \
earlier ones.
- Move the idea on by as much as one part of the whole holds: leave enough for the parts that follow, and bring it to \
its end in the last one.
- Write in the present progressive and in the order in which things happen, with the sounds beside the actions that \
make them. Add no persons, cuts or camera motion that the idea does not have. Quote a line only if the idea has \
people talk, and none that was already said.
- Describe only what can be seen and heard, in plain words.
Answer with one English paragraph without headings, lists or markup. Never ask back."""


@dataclass(frozen=True)
class PromptDirector:
    """Writes the prompt of each part of a long video, from the idea of the whole and the prompt of the part before.

    Give it to a pipeline as the function that it asks for the next prompt. The same seed gives the same prompts, and
    the global random state stays untouched.

    Args:
        pipeline: Pipeline whose language model writes; see [`enhance_prompt`].
        prompt: Idea of the whole video; it is the prompt of the first part.
        num_chunks: Parts of the video, at least 1.
        system_prompt: Instructions to the language model, default this package's.
        seed: Seed of the first part; every further part adds 1. Default 10.
        max_new_tokens: Length of an answer, default 512 (600 with a dedicated `prompt_enhancer`).
        generation_kwargs: Replaces the sampling settings (temperature 0.7, or greedy for a dedicated model).
        parts: What each part is to show, one text per part. Default `None`: the idea alone says it.
    """

    pipeline: Any
    prompt: str
    num_chunks: int
    system_prompt: str = DIRECTOR_SYSTEM_PROMPT
    seed: int = 10
    max_new_tokens: int | None = None
    generation_kwargs: dict[str, Any] | None = None
    parts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_at_least_one(num_chunks=self.num_chunks)
        if self.max_new_tokens is not None:
            check_at_least_one(max_new_tokens=self.max_new_tokens)
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError(f"`prompt` has to be the idea of the whole video but is {self.prompt!r}; give a text")
        if self.parts is not None and len(self.parts) != self.num_chunks:
            raise ValueError(f"`parts` has {len(self.parts)} texts for {self.num_chunks} parts; give one for each")
        if self.num_chunks > 1:
            self.pipeline.chat_model.check()

    def __call__(self, index: int, previous: str | None = None) -> str:
        """The prompt of part `index`, counted from 0, after a part made with the prompt `previous`.

        Raises:
            ValueError: If there is no such part, or a later one has no `previous`.
        """
        if not 0 <= index < self.num_chunks:
            raise ValueError(
                f"`index` {index} lies outside the video of {self.num_chunks} parts; use 0 to {self.num_chunks - 1}"
            )
        if index == 0:
            return self.prompt if self.parts is None else self.parts[0]
        if not previous:
            raise ValueError(f"part {index} needs the prompt of the part before as `previous`")
        answer = self.pipeline.chat_model.answer(
            self.system_prompt,
            self._question(index, previous),
            seed=self.seed + index,
            device=torch.device(self.pipeline._execution_device),
            max_new_tokens=self.max_new_tokens,
            generation_kwargs=self.generation_kwargs,
        )
        if answer.strip():
            return answer
        logger.warning(f"the language model gave no prompt for part {index}, which goes on with {previous!r}")
        return previous

    def _question(self, index: int, previous: str) -> str:
        last = " It is the last one." if index == self.num_chunks - 1 else ""
        shown = "" if self.parts is None else f"what part {index + 1} is to show: {self.parts[index]}\n"
        return (
            f"idea of the whole video: {self.prompt}\n"
            f"prompt of part {index} of {self.num_chunks}, just made: {previous}\n"
            f"{shown}Write the prompt of part {index + 1} of {self.num_chunks}.{last}"
        )
