"""From prompts to what the transformer reads."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch

from ...conditioning import TextContext
from ...prompts import Prompts, ReadPrompts
from ...prompts.encoding import EMBEDS, check_prompts


@dataclass(frozen=True)
class TextReader:
    """Reads prompts with the T5 encoder.

    Args:
        tokenizer, model: The encoder, or `None`.
        device: Where to compute.
    """

    tokenizer: Any
    model: Any
    device: torch.device

    def check(
        self, prompts: Prompts, with_negative: bool, with_picture: bool = False, watched: Collection[str] = ()
    ) -> int:
        """Check the prompts of a call; return how many videos they make."""
        return check_prompts(prompts) * prompts.num_videos_per_prompt

    def read(
        self,
        prompts: Prompts,
        with_negative: bool,
        generator: Any = None,
        picture: PIL.Image.Image | None = None,
        watched: Collection[str] = (),
    ) -> ReadPrompts:
        """Encode the prompts."""
        contexts = [
            None
            if embeds is None
            else TextContext(embeds.to(self.device), embeds.new_zeros(len(embeds), 0, 0), mask.to(self.device))
            for embeds, mask in zip(prompts.embeds, prompts.masks)
        ]
        times = prompts.num_videos_per_prompt
        positive, negative = (context and context.repeat(times) for context in contexts)
        return ReadPrompts(None, (positive, negative if with_negative else None), dict(zip(EMBEDS, prompts.embeds)))
