"""Components of a pipeline as folders in diffusers' layout, in bfloat16."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Gemma3ForConditionalGeneration, GemmaTokenizer

from ltx2_diffusers.atomic import write_json
from ltx2_diffusers.checkpoints.folder import portable_pair, write_component
from ltx2_diffusers.checkpoints.safetensors_io import Entry

from .text_model import build_processor

DTYPE = torch.bfloat16


def write_model(folder: Path, component: str, model: nn.Module, kind: str = "") -> tuple[str, str]:
    """Write a network under diffusers' class name; return its pair of `model_index.json`.

    Args:
        folder: Of the pipeline.
        component: Name of the network's folder.
        model: The network.
        kind: Kind of component, where its folder has another name.
    """
    kind = kind or component
    state = {name: tensor.to(DTYPE) for name, tensor in model.state_dict().items()}
    entries = {name: Entry(DTYPE, tuple(tensor.shape), lambda tensor=tensor: tensor) for name, tensor in state.items()}
    config: dict[str, Any] = {key: value for key, value in model.config.items() if not key.startswith("_")}
    write_component(folder / component, kind, entries, config, "5GB")
    return portable_pair(kind, config)


def write_text_models(
    folder: Path, text_encoder: Gemma3ForConditionalGeneration, tokenizer: GemmaTokenizer
) -> dict[str, tuple[str, str]]:
    """Write text encoder, tokenizer and processor; return their pairs of `model_index.json`."""
    text_encoder.to(DTYPE).save_pretrained(folder / "text_encoder")
    # Transformers loads in the dtype of the config, diffusers in float32: without a dtype, all components must agree.
    change_json(folder / "text_encoder" / "config.json", dtype="float32")
    tokenizer.save_pretrained(folder / "tokenizer")
    build_processor(tokenizer).save_pretrained(folder / "processor")
    return {
        "text_encoder": ("transformers", "Gemma3ForConditionalGeneration"),
        "tokenizer": ("transformers", "GemmaTokenizer"),
        "processor": ("transformers", "Gemma3Processor"),
    }


def change_json(file: Path, **values: Any) -> None:
    """Set keys of the object that a file holds."""
    write_json(file, json.loads(file.read_text()) | values)
