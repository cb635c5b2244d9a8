"""The text side of the tiny checkpoints: a small Gemma 3 whose tokenizer learned its merges from everyday prompts."""

from transformers import Gemma3ForConditionalGeneration, GemmaTokenizer

from examples.mini_world import text_model

from .configs import TEXT_WIDTH

TEXT_HEADS = 4
VOCABULARY_SIZE = 768
MAX_TEXT_TOKENS = 1024

# What prompts talk about; merges of the tokenizer are learned from it.
CORPUS = (
    "A woman with long brown hair walks along the beach at sunset while waves roll onto the sand.",
    "The camera slowly pans to the left and follows a red car driving through the city at night.",
    "A man in a dark blue coat looks into the camera and says: hello, how are you today?",
    "A small dog runs across a green field towards the camera, barking loudly and wagging its tail.",
    "Close-up of a cup of coffee on a wooden table; steam rises and soft music plays in the background.",
    "An old lighthouse stands on a cliff above the sea, the wind howls and seagulls cry in the distance.",
    "A cat sits on a windowsill and watches the rain fall outside, thunder rumbles far away.",
    "Wide shot of snow-covered mountains under a clear sky, with a river flowing through the valley.",
    "Two children laugh and play with a ball in the garden, birds are singing in the trees.",
    "A chef in a white kitchen cuts vegetables quickly, the sound of the knife on the board is heard.",
    "The scene is captured in real-life footage with natural lighting, realistic colors and sharp detail.",
    "A young musician plays the piano on a stage, warm light falls on her hands, the audience applauds.",
    "Static camera, medium shot, shallow depth of field, cinematic, high quality, smooth motion.",
    "worst quality, inconsistent motion, blurry, jittery, distorted, low contrast, artifacts, off-sync audio",
    "A robot with glowing yellow eyes turns its head, its motors whirring, then it raises one arm.",
    "Aerial view of a forest in autumn with orange, red and yellow leaves, a train passes below.",
)


def build_tokenizer() -> GemmaTokenizer:
    """The tokenizer whose merges are learned from the corpus."""
    return text_model.build_tokenizer(CORPUS, VOCABULARY_SIZE, MAX_TEXT_TOKENS)


def build_text_encoder(vocabulary_size: int) -> Gemma3ForConditionalGeneration:
    """The language model, with weights as constructed."""
    return text_model.build_text_encoder(vocabulary_size, TEXT_WIDTH, TEXT_HEADS, MAX_TEXT_TOKENS)
