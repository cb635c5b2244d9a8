"""A small Gemma 3 with a tokenizer of real behaviour: byte-fallback BPE, left padding, `<bos>` in front."""

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.normalizers import Replace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GemmaTokenizer,
)

# Gemma's control tokens; the first five have Gemma's own numbers.
SPECIAL_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)
# A layer with a sliding window and a global one.
TEXT_LAYERS = 2
IMAGE_SIZE = 32
PATCH_SIZE = 8
TOKENS_PER_IMAGE = 4

# Turns of a conversation in Gemma's form; the system message stands before the first user message.
CHAT_TEMPLATE = """{{ bos_token }}
{%- set ns = namespace(prefix='') -%}
{%- for message in messages -%}
{%- set text = namespace(value='') -%}
{%- if message['content'] is string -%}{%- set text.value = message['content'] -%}
{%- else -%}{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{%- set text.value = text.value + '<start_of_image>' -%}
{%- else -%}{%- set text.value = text.value + part['text'] -%}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- if message['role'] == 'system' -%}{%- set ns.prefix = text.value + '\\n\\n' -%}
{%- else -%}
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}
{{- ns.prefix + text.value | trim + '<end_of_turn>\\n' }}
{%- set ns.prefix = '' -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""


def build_tokenizer(corpus: Sequence[str], vocabulary_size: int, max_tokens: int) -> GemmaTokenizer:
    """Train the merges on a corpus and dress them as a Gemma tokenizer, which takes texts of so many tokens."""
    trained = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = Replace(" ", "▁")
    # Merges must not cross words, although Gemma itself has no such limit: a corpus is too small for it.
    trained.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=[*SPECIAL_TOKENS, *byte_tokens], show_progress=False
    )
    trained.train_from_iterator(corpus, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = GemmaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        model_max_length=max_tokens,
        padding_side="left",
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(token, special=True) for token in SPECIAL_TOKENS[5:7]]}
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", SPECIAL_TOKENS.index("<bos>"))]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_processor(tokenizer: GemmaTokenizer) -> Gemma3Processor:
    """The processor of image-conditioned prompt enhancement, for pictures of the miniature vision tower."""
    images = Gemma3ImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_seq_length=TOKENS_PER_IMAGE)
    return Gemma3Processor(images, tokenizer, chat_template=CHAT_TEMPLATE, image_seq_length=TOKENS_PER_IMAGE)


def build_text_encoder(
    vocabulary_size: int, width: int, heads: int, max_tokens: int
) -> Gemma3ForConditionalGeneration:
    """A Gemma 3 with one sliding-window and one global layer and a one-layer vision tower; weights as constructed."""
    text = {
        "vocab_size": vocabulary_size,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": width // heads,
        "query_pre_attn_scalar": width // heads,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"],
        "max_position_embeddings": 2 * max_tokens,
        "pad_token_id": SPECIAL_TOKENS.index("<pad>"),
        "eos_token_id": SPECIAL_TOKENS.index("<eos>"),
        "bos_token_id": SPECIAL_TOKENS.index("<bos>"),
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=TOKENS_PER_IMAGE,
        boi_token_index=SPECIAL_TOKENS.index("<start_of_image>"),
        eoi_token_index=SPECIAL_TOKENS.index("<end_of_image>"),
        image_token_index=SPECIAL_TOKENS.index("<image_soft_token>"),
    )
    return Gemma3ForConditionalGeneration(config)
