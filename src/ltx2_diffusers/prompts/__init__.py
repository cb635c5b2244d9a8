"""From text to what the streams read."""

from .cache import PromptCache
from .chat import DEDICATED_ENHANCER, OWN_ENCODER, ChatModel
from .encoding import Contexts, Enhancement, Prompts, TextEncoder, encode_prompt
from .enhancement import enhance
from .reading import PromptReader, ReadPrompts

__all__ = [
    "DEDICATED_ENHANCER",
    "OWN_ENCODER",
    "ChatModel",
    "Contexts",
    "Enhancement",
    "PromptCache",
    "PromptReader",
    "Prompts",
    "ReadPrompts",
    "TextEncoder",
    "encode_prompt",
    "enhance",
]
