"""The files of a pipeline folder in diffusers' layout, around the weights."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusers import __version__ as diffusers_version

from ..atomic import write_json
from ..schedulers.scheduling_ltx2 import OWN_KEYS, LTX2Scheduler
from .class_names import PACKAGE, class_name_for, to_portable
from .json_files import read_object
from .safetensors_io import Entry, write_sharded
from .text_file import is_text_file, load_text_file

# Components that LTX2Pipeline knows and an original checkpoint never has.
_ABSENT = ("duration_head", "processor", "prompt_enhancer", "text_encoder", "tokenizer")
_MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index*.json")
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.json", "chat_template.jinja"),
)
_PROCESSOR_CONFIG = "preprocessor_config.json"
_PROCESSOR_FILES = (_PROCESSOR_CONFIG, "processor_config.json", *_TOKENIZER_FILES)


def write_component(
    folder: Path,
    component: str,
    entries: Mapping[str, Entry],
    config: Mapping[str, Any],
    max_shard_size: int | str,
    on_tensor: Callable[[str], None] | None = None,
) -> None:
    """Writes weights and `config.json` of one component into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_sharded(folder, entries, max_shard_size, on_tensor=on_tensor)
    class_name = portable_pair(component, config)[1]
    write_json(folder / "config.json", {"_class_name": class_name, "_diffusers_version": diffusers_version, **config})


def portable_pair(component: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """The pair of `model_index.json` for a component with the given diffusers config."""
    return to_portable(PACKAGE, class_name_for(component, config))


def is_distilled(checkpoint: str | os.PathLike) -> bool:
    """Whether a checkpoint's file name says that the model runs a fixed list of sigmas."""
    return "distilled" in Path(checkpoint).name.lower()


def new_scheduler(distilled: bool) -> LTX2Scheduler:
    """The scheduler of a dev model, or of a distilled one, whose fixed sigmas must be used as they are."""
    return LTX2Scheduler(use_dynamic_shifting=False, shift_terminal=None) if distilled else LTX2Scheduler()


def write_scheduler(folder: Path, distilled: bool) -> None:
    """Writes `scheduler_config.json` of a dev or a distilled model."""
    folder.mkdir(parents=True, exist_ok=True)
    class_name = to_portable(PACKAGE, "LTX2Scheduler")[1]
    # As published: without the keys that diffusers' scheduler of that name lacks.
    config = {
        name: value
        for name, value in new_scheduler(distilled).config.items()
        if name not in (*OWN_KEYS, "_use_default_values")
    }
    config |= {"_class_name": class_name, "_diffusers_version": diffusers_version}
    write_json(folder / "scheduler_config.json", config)


def write_model_index(folder: Path, components: Mapping[str, tuple[str, str]]) -> None:
    """Writes `model_index.json` of an `LTX2Pipeline`, with empty entries for what the folder lacks."""
    index: dict[str, Any] = {"_class_name": "LTX2Pipeline", "_diffusers_version": diffusers_version}
    index |= {name: [None, None] for name in _ABSENT}
    index["scheduler"] = list(to_portable(PACKAGE, "LTX2Scheduler"))
    index |= {name: list(pair) for name, pair in components.items()}
    write_json(folder / "model_index.json", index)


def copy_text_models(folder: Path, text_encoder: Path | None, tokenizer: Path | None) -> dict[str, tuple[str, str]]:
    """Copies a Gemma folder's files into `text_encoder`, `tokenizer` and, if there is one, `processor`.

    Args:
        folder: The pipeline folder.
        text_encoder: A folder with `config.json` and `model*.safetensors`, or a pipeline folder that has one.
        tokenizer: A folder with the tokenizer's files; by default `text_encoder` itself or its neighbour `tokenizer`.

    Returns:
        The pairs of `model_index.json` for what was copied.
    """
    pairs: dict[str, tuple[str, str]] = {}
    if text_encoder is not None and is_text_file(text_encoder):
        model, own = load_text_file(text_encoder)
        model.save_pretrained(folder / "text_encoder")
        own.save_pretrained(folder / "tokenizer")
        pairs["text_encoder"] = ("transformers", type(model).__name__)
        text_encoder, tokenizer = None, tokenizer or folder / "tokenizer"
    if text_encoder is not None:
        text_encoder = text_encoder_folder(text_encoder)
        tokenizer = tokenizer or _tokenizer_near(text_encoder)
        config = _copy(text_encoder, "text_encoder", "config.json", folder / "text_encoder", _MODEL_FILES)
        if not any((folder / "text_encoder").glob("model*.safetensors")):
            raise ValueError(f"text_encoder={str(text_encoder)!r} has no model*.safetensors")
        pairs["text_encoder"] = ("transformers", config["architectures"][0])
    if tokenizer is not None:
        config = _copy(tokenizer, "tokenizer", "tokenizer_config.json", folder / "tokenizer", _TOKENIZER_FILES)
        pairs["tokenizer"] = ("transformers", config.get("tokenizer_class", "GemmaTokenizer"))
    if text_encoder is not None and (text_encoder / _PROCESSOR_CONFIG).is_file():
        config = _copy(text_encoder, "text_encoder", _PROCESSOR_CONFIG, folder / "processor", _PROCESSOR_FILES)
        pairs["processor"] = ("transformers", config.get("processor_class", "Gemma3Processor"))
    return pairs


def text_encoder_folder(place: Path) -> Path:
    """The folder with the files of a text encoder: the one given, or the one that a pipeline folder has for it."""
    inner = place / "text_encoder"
    return inner if inner.is_dir() else place


def _tokenizer_near(text_encoder: Path) -> Path:
    for candidate in (text_encoder, text_encoder.parent / "tokenizer"):
        if (candidate / "tokenizer_config.json").is_file():
            return candidate
    raise ValueError(
        f"text_encoder={str(text_encoder)!r} has no tokenizer_config.json; give the tokenizer's folder too"
    )


def _copy(source: Path, argument: str, config_name: str, target: Path, patterns: Iterable[str]) -> dict[str, Any]:
    """Copies the files of a folder given as `argument`, and returns the one that says what it holds."""
    config = source / config_name
    if not config.is_file():
        raise ValueError(f"{argument}={str(source)!r} has no {config_name}; give a folder in transformers' layout")
    target.mkdir(parents=True, exist_ok=True)
    for path in (path for pattern in patterns for path in source.glob(pattern) if source != target):
        shutil.copyfile(path, target / path.name)
    return read_object(config)
