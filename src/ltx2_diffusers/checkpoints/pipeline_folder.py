"""The folder of a pipeline in diffusers' layout, checked as a whole before its first component is loaded."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import class_names, fit
from .json_files import check_finite, read_config, read_object
from .safetensors_io import read_weight_map, tensor_names

INDEX = "model_index.json"
_CONFIGS = ("config.json", "scheduler_config.json")
# What the words of a tokenizer are in, one of them.
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
# Sections of a language model's configuration, and the tensors of its layers.
_LAYERS = {
    "": r"(?!.*vision).*\blayers\.(\d+)\.",
    "text_config": r"(?!.*vision).*\blayers\.(\d+)\.",
    "vision_config": r".*vision.*\blayers\.(\d+)\.",
}


def check_pipeline_folder(folder: Path, given: Mapping[str, Any], takes: set[str], required: set[str]) -> None:
    """Raise `ValueError` for the first component that is missing, damaged, or another model than its weights are.

    Args:
        folder: The folder of the pipeline.
        given: Arguments of `from_pretrained`; components among them replace those of the folder.
        takes: Names of the components that the pipeline takes.
        required: Those among them without which it cannot be built.
    """
    pairs, index = component_pairs(folder, takes), read_object(folder / INDEX)
    listed = pairs.keys() | {name for name in takes - index.keys() if (folder / name / "config.json").is_file()}
    if unlisted := sorted(required - given.keys() - listed):
        raise ValueError(
            f"{str(folder)!r} holds no {', '.join(unlisted)}; complete the checkpoint, or pass them by name (None to do "
            "without)"
        )
    needed = {name: pair for name, pair in pairs.items() if name not in given}
    if missing := [name for name in needed if not (folder / name).is_dir()]:
        raise ValueError(
            f"{folder} has no folder for the components {missing}, which its {INDEX} lists; complete the checkpoint, or "
            "pass them by name (None to do without)"
        )
    for name, pair in needed.items():
        check_component(folder / name, pair, given.get("variant"))


def component_pairs(folder: Path, takes: set[str]) -> dict[str, tuple[str, str]]:
    """Library and class of the components that a folder's index lists, empty entries left out."""
    where, index = repr(str(folder / INDEX)), read_object(folder / INDEX)
    check_finite(index, where)
    pairs = {}
    for name, entry in index.items():
        if name.startswith("_") or not (name in takes or isinstance(entry, list)):
            continue
        kinds = {type(part) for part in entry} if isinstance(entry, list) and len(entry) == 2 else set()
        if kinds == {str}:
            pairs[name] = (entry[0], entry[1])
        elif kinds != {type(None)}:
            raise ValueError(
                f'{where}: `{name}` has to be ["library", "class"] or [null, null] but is {entry!r}; fetch the file again'
            )
    return pairs


def check_component(folder: Path, pair: tuple[str, str], variant: str | None) -> None:
    """Raise `ValueError` if a component's folder is damaged.

    Args:
        folder: The folder of the component.
        pair: Its library and class.
        variant: Which of several weights are loaded.
    """
    for file in folder.glob("*.json"):
        (read_config if file.name in _CONFIGS else read_object)(file)
    library, class_name = class_names.to_ours(*pair)
    if library == class_names.PACKAGE and class_name in class_names.COMPONENT_OF:
        import ltx2_diffusers

        fit.check_folder(getattr(ltx2_diffusers, class_name), folder, variant=variant)
        return
    if "Tokenizer" in class_name:
        _check_words(folder)
    for index in folder.glob("*.safetensors.index*.json"):
        read_weight_map(index)
    names = [name for file in folder.glob("*.safetensors") for name in tensor_names(file)]
    if names and (folder / "config.json").is_file():
        _check_layers(folder / "config.json", names)


def _check_words(folder: Path) -> None:
    """A tokenizer must know words; the library makes one of a folder without any, to which all prompts are alike."""
    file = folder / "tokenizer.json"
    if not any(any(folder.glob(pattern)) for pattern in _VOCABULARIES):
        raise ValueError(f"{str(folder)!r} holds no vocabulary; complete it with tokenizer.json or tokenizer.model")
    content = read_object(file) if file.is_file() else {}
    model, added = content.get("model"), content.get("added_tokens") or []
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if file.is_file() and not (isinstance(vocabulary, (dict, list)) and len(vocabulary) > len(added)):
        raise ValueError(f"{str(file)!r} has no words, so that all prompts would read alike; fetch the file again")


def _check_layers(file: Path, names: list[str]) -> None:
    """A language model's numbers of layers must be those of its weights; the library would draw what is missing."""
    config = read_config(file)
    for section, pattern in _LAYERS.items():
        part = config.get(section) if section else config
        count = part.get("num_hidden_layers") if isinstance(part, dict) else None
        layers = {match[1] for name in names if (match := re.match(pattern, name))}
        if count is not None and layers and count != len(layers):
            key = f"{section}.num_hidden_layers" if section else "num_hidden_layers"
            raise ValueError(
                f"{str(file)!r}: `{key}` is {count!r}, but the weights have {len(layers)} of these layers; use {len(layers)}"
            )


@contextmanager
def named_errors(folder: Path) -> Iterator[None]:
    """Let what the libraries of text encoders and tokenizers raise for damaged files say which checkpoint it is."""
    try:
        yield
    except Exception as error:
        if _is_damage(error):
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ValueError(f"{str(folder)!r} cannot be loaded: {reason}; fetch it again") from error
        raise


def _is_damage(error: Exception) -> bool:
    """Whether an error speaks of files: not of a misspelt argument, of memory or of a device."""
    if isinstance(error, TypeError):
        return "keyword argument" not in str(error)
    if isinstance(error, RuntimeError):
        return "mismatch" in str(error)
    return not isinstance(error, (ValueError, OSError, ImportError, MemoryError))
