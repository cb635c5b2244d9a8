"""From text to what the streams read."""

from .cache import PromptCache
from .chat import DEDICATED_ENHANCER, OWN_ENCODER, ChatModel
from .encoding import Contexts, Enhancement, Prompts, TextEncoder, check_prompts, encode_prompt
from .enhancement import enhance
from .reading import PromptReader, ReadPrompts
