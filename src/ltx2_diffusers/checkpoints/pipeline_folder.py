"""The folder of a pipeline in diffusers' layout, checked as a whole before its first component is loaded."""

import inspect
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel

from ..schedulers.scheduling_ltx2 import FLOW_MATCH_CLASS, LTX2Scheduler
from . import class_names, fit
from .json_files import check_finite, read_config, read_object
from .packaged import PACKAGED
from .safetensors_io import read_weight_map, tensor_names

INDEX = "model_index.json"
_SCHEDULER = "scheduler_config.json"
# What a model that reads texts has beside the parts that do so.
BESIDE_TEXT = r"vision|audio|multi_modal|projector|lm_head"
_CONFIGS = ("config.json", _SCHEDULER)
# What the libraries read of a component beside its weights. Folders hold other files, too: notes, other formats, and what
# file systems leave.
_READ = (
    *(*_CONFIGS, "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("video_preprocessor_config.json", "chat_template.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json"),
)
# Names of weights, without ending: those of transformers and of diffusers.
_STEMS = ("model", "diffusion_pytorch_model")
# What the words of a tokenizer are in, one of them.
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
# Sections of a language model's configuration, and the tensors of its layers.
_LAYERS = {
    "": r"(?!.*vision).*\blayers\.(\d+)\.",
    "text_config": r"(?!.*vision).*\blayers\.(\d+)\.",
    "vision_config": r".*vision.*\blayers\.(\d+)\.",
}


def check_repository_id(source: str) -> None:
    """Raise `ValueError` for what is no folder and cannot be an id of the Hub either."""
    if source in PACKAGED:
        raise ValueError(f"{source!r} comes with the package; its folder is packaged_checkpoint({source!r})")
    try:
        validate_repo_id(source)
    except HFValidationError:
        raise ValueError(
            f"there is no folder {source!r}, nor can a repository of the Hub have that name; give a folder in diffusers' "
            "layout, or an id such as 'Lightricks/LTX-2'"
        ) from None


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
    methods = getattr(given.get("quantization_config"), "quant_mapping", None) or {}
    for name, pair in needed.items():
        check_component(folder / name, pair, given.get("variant"), methods.get(name))


def component_pairs(folder: Path, takes: set[str]) -> dict[str, tuple[str, str]]:
    """Library and class of the components that a pipeline takes and a folder's index lists, empty entries left out."""
    where, index = repr(str(folder / INDEX)), read_object(folder / INDEX)
    check_finite(index, where)
    pairs = {}
    for name, entry in index.items():
        # Other entries are those of another kind of pipeline, or notes.
        if name not in takes:
            continue
        kinds = {type(part) for part in entry} if isinstance(entry, list) and len(entry) == 2 else set()
        if kinds == {str}:
            pairs[name] = (entry[0], entry[1])
        elif kinds != {type(None)}:
            raise ValueError(
                f'{where}: `{name}` has to be ["library", "class"] or [null, null] but is {entry!r}; fetch the file again'
            )
    return pairs


def check_component(folder: Path, pair: tuple[str, str], variant: str | None, quantization_config: Any = None) -> None:
    """Raise `ValueError` if any file of a component is damaged that is going to be read.

    Args:
        folder: The folder of the component.
        pair: Its library and class.
        variant: Which of several weights are loaded.
        quantization_config: That of the component, default none.
    """
    for file in (folder / name for name in _READ):
        if file.is_file():
            (read_config if file.name in _CONFIGS else read_object)(file)
    library, class_name = class_names.to_ours(*pair)
    if library == class_names.PACKAGE and class_name in class_names.COMPONENT_OF:
        import ltx2_diffusers

        fit.check_folder(
            getattr(ltx2_diffusers, class_name), folder, variant=variant, quantization_config=quantization_config
        )
        return
    if (folder / _SCHEDULER).is_file():
        _check_scheduler(folder / _SCHEDULER)
    if "Tokenizer" in class_name:
        _check_words(folder)
    names = [name for file in weight_files(folder, variant) for name in tensor_names(file)]
    if names and (folder / "config.json").is_file():
        _check_layers(folder / "config.json", names)


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors files that are loaded of a folder: those of the variant if there are any, else the plain ones."""
    for infix in ([f".{variant}"] if variant else []) + [""]:
        for stem in _STEMS:
            file, index = folder / f"{stem}{infix}.safetensors", folder / f"{stem}.safetensors.index{infix}.json"
            if file.is_file():
                return [file]
            if index.is_file():
                shards = [folder / name for name in sorted(set(read_weight_map(index).values()))]
                return [shard for shard in shards if shard.is_file()]
    return []


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


def _check_scheduler(file: Path) -> None:
    """Values must give a schedule; diffusers' class would take them at face value until a call."""
    config = read_config(file)
    if config.get("_class_name") not in (FLOW_MATCH_CLASS, LTX2Scheduler.__name__):
        return
    # Calls say what is not implemented here, and another scheduler may take the place of this one until then.
    known = inspect.signature(LTX2Scheduler).parameters.keys() - {"invert_sigmas", "stochastic_sampling"}
    # Anchors of a shift may be empty where there is none.
    empty = () if config.get("use_dynamic_shifting") else (None,)
    values = {name: config[name] for name in known & config.keys() if config[name] not in empty}
    try:
        LTX2Scheduler.from_config({"_class_name": config["_class_name"], **values})
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: {error}") from None


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


def check_language_models(components: Mapping[str, Any], folder: Path) -> None:
    """Raise `ValueError` if weights of a language model were not in its folder: the library draws them and only reports it.

    Parts that reading text does not need, such as the vision tower, may be left out of a folder.

    Args:
        components: What was loaded from the folder of the pipeline, by component.
        folder: The folder of the pipeline.
    """
    for component, model in components.items():
        # Of quantised weights nothing is known.
        if not isinstance(model, PreTrainedModel) or hasattr(model, "hf_quantizer"):
            continue
        parameters = {name: p for name, p in model.named_parameters() if not re.search(BESIDE_TEXT, name)}
        drawn = [name for name, p in parameters.items() if not getattr(p, "_is_hf_initialized", False)]
        # Where no parameter is marked as read, the mark is another one.
        if drawn and len(drawn) < len(parameters):
            raise ValueError(
                f"{str(folder / component)!r} lacks {len(drawn)} of {len(parameters)} tensors of the "
                f"{type(model).__name__}, such as {drawn[0]}; fetch it again"
            )


@contextmanager
def named_errors(folder: Path) -> Iterator[None]:
    """Let what the libraries of text encoders and tokenizers raise for damaged files say which component it is."""
    try:
        yield
    except Exception as error:
        component = _being_loaded(error)
        place = str(folder / component)
        if _is_damage(error):
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            raise ValueError(f"{place!r} cannot be loaded: {reason}; fetch it again") from error
        if component and isinstance(error, ValueError) and place not in str(error):
            raise ValueError(f"{place!r} cannot be loaded: {error}") from error
        raise


def _being_loaded(error: Exception) -> str:
    """The component that diffusers was loading when an error came up, or nothing; its loop calls a function for each."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    loaders = [frame for frame in frames if frame.f_code.co_name == "load_sub_model"]
    return str(loaders[0].f_locals.get("name", "")) if loaders else ""


def _is_damage(error: Exception) -> bool:
    """Whether an error speaks of files: not of a misspelt argument, of memory or of a device."""
    if isinstance(error, TypeError):
        return "keyword argument" not in str(error)
    if isinstance(error, RuntimeError):
        return "mismatch" in str(error)
    return not isinstance(error, (ValueError, OSError, ImportError, MemoryError))
