"""Language models of folders in the layout of transformers: whole, or as shapes whose weights stay in their files."""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, GenerationConfig, PreTrainedModel

_GENERATION = "generation_config.json"


def language_model_class(folder: str | os.PathLike) -> type[PreTrainedModel]:
    """The class that a folder's configuration names.

    Raises:
        ValueError: If it names none that the library has.
    """
    import transformers

    names = getattr(AutoConfig.from_pretrained(os.fspath(folder)), "architectures", None) or [None]
    kind = getattr(transformers, str(names[0]), None)
    if not isinstance(kind, type) or not issubclass(kind, PreTrainedModel):
        raise ValueError(
            f"the config.json of {os.fspath(folder)!r} names the class {names[0]!r}, which transformers does not have; fetch the "
            "file again, or update transformers"
        )
    return kind


def load_language_model(
    folder: str | os.PathLike, dtype: torch.dtype | None = None, **options: Any
) -> PreTrainedModel:
    """A language model with its weights, in evaluation mode.

    Args:
        folder: Its folder.
        dtype: Data type of its weights, default as stored.
        options: Arguments of its `from_pretrained`, such as `quantization_config`.
    """
    return language_model_class(folder).from_pretrained(os.fspath(folder), dtype=dtype or "auto", **options)


def empty_language_model(folder: str | os.PathLike, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """A language model as shapes alone, on the meta device, with what it computes for itself; in evaluation mode."""
    kind, config = language_model_class(folder), AutoConfig.from_pretrained(os.fspath(folder))
    with init_empty_weights():
        model = kind._from_config(config, dtype=dtype or config.dtype or torch.float32)
    if Path(folder, _GENERATION).is_file():
        model.generation_config = GenerationConfig.from_pretrained(os.fspath(folder))
    model.tie_weights()
    return model.eval()
