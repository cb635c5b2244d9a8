"""What the language model makes of the prompts of a request, before anything is generated."""

from dataclasses import replace
from typing import Any, NamedTuple

from ..sampling.denoiser import TextContext
from .request import Request
from .text_stage import TextStates


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


def read_prompts(pipeline: Any, request: Request, with_negative: bool) -> ReadPrompts:
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
