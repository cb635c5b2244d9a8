"""Write the packaged checkpoint `ltx-video-tiny`: `python -m scripts.build_ltx_video_tiny MODEL UPSCALER`.

MODEL and UPSCALER are tiny checkpoints in the original layout, with random weights. A T5 encoder as small, and a tokenizer of a few
hundred pieces, are drawn here.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from ltx2_diffusers.checkpoints.original import OriginalCheckpoint
from ltx2_diffusers.families.ltx_video.pipeline import LTXVideoPipeline

NAME = "ltx-video-tiny"
OUTPUT = Path(__file__).parents[1] / "src" / "ltx2_diffusers" / "resources" / "checkpoints" / NAME
MAX_BYTES = 3_000_000
PIECES = 400
# Words of prompts, from which pieces are learned.
CORPUS = (
    "A woman with long brown hair walks along the beach at sunset while waves roll onto the sand.",
    "The camera slowly pans to the left and follows a red car driving through the city at night.",
    "A small dog runs across a green field towards the camera, barking loudly and wagging its tail.",
    "A red circle bounces on a blue background; a lighthouse stands on a cliff above the sea.",
    "worst quality, inconsistent motion, blurry, jittery, distorted, low contrast, artifacts",
    "Static camera, medium shot, shallow depth of field, cinematic, high quality, smooth motion.",
)
CARD = f"""\
---
language: en
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
tags:
- ltx-video
- ltx2-diffusers
---

# {NAME}

A tiny checkpoint of LTX-Video with random weights, made for the package ltx2-diffusers. It has the structure of the 2B distilled model
of 0.9.8, its spatial upsampler among it, and runs on CPUs in seconds; its clips show nothing.

The weights come with the package and are under its licence, Apache 2.0.
"""


def build_tokenizer() -> T5TokenizerFast:
    """A tokenizer of T5's kind; single letters make up what it has no piece for."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.UnigramTrainer(
        vocab_size=PIECES, special_tokens=special, unk_token="<unk>", initial_alphabet=letters, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    pieces = [tuple(piece) for piece in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=256)


def build_text_encoder(num_pieces: int, width: int) -> T5EncoderModel:
    """An encoder of one layer, with weights as drawn."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=num_pieces,
        d_model=width,
        d_kv=width // 3,
        d_ff=2 * width,
        num_layers=1,
        num_heads=3,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return T5EncoderModel(config).eval().to(torch.bfloat16)


def main() -> None:
    """Write the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("upscaler", type=Path)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    tokenizer = build_tokenizer()
    width = OriginalCheckpoint(options.model).config("transformer", "ltx_video")["caption_channels"]
    pipe = LTXVideoPipeline.from_single_file(
        options.model,
        text_encoder=build_text_encoder(len(tokenizer), width),
        tokenizer=tokenizer,
        latent_upsampler=options.upscaler,
    )
    facts = dict(pipe.transformer.config["_ltx_video"]) | {"name": NAME}
    pipe.transformer.register_to_config(_ltx_video=facts)
    shutil.rmtree(options.output, ignore_errors=True)
    pipe.save_pretrained(options.output)
    index = json.loads((options.output / "model_index.json").read_text())
    # Where it was made from is of no use to others.
    index = {name: value for name, value in index.items() if name not in ("_name_or_path", "preset")}
    (options.output / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    (options.output / "README.md").write_text(CARD)
    size = sum(file.stat().st_size for file in options.output.rglob("*") if file.is_file())
    print(f"{options.output}: {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        raise SystemExit(f"that is more than {MAX_BYTES / 1e6:g} MB")


if __name__ == "__main__":
    main()
