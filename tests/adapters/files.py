"""Files of adapters with random weights."""

import json
from pathlib import Path

import torch

from ltx2_diffusers import LTX2Pipeline

LAYER = "transformer_blocks.0.attn1.to_q"
RANK = 2


def save_random_loras(checkpoint: Path, folder: Path, names: tuple[str, ...]) -> None:
    """Write `NAME.safetensors` for each name, all of them different, for the transformer of a checkpoint."""
    config = json.loads((checkpoint / "transformer" / "config.json").read_text())
    width, noise = config["num_attention_heads"] * config["attention_head_dim"], torch.Generator().manual_seed(0)
    for name in names:
        factors = {
            f"{LAYER}.lora_A.weight": torch.randn(RANK, width, generator=noise),
            f"{LAYER}.lora_B.weight": torch.randn(width, RANK, generator=noise),
        }
        LTX2Pipeline.save_lora_weights(folder, factors, weight_name=f"{name}.safetensors")
