"""All components of a pipeline out of one original checkpoint file."""

import inspect
import os
from pathlib import Path
from typing import Any

import torch

from ..quantization.configs import TRANSFORMERS, as_pipeline_config
from .class_names import OPTIONAL_COMPONENTS, PIPELINE_COMPONENTS, class_name_for
from .folder import is_distilled, new_scheduler
from .origin import origin_at, remember
from .original import OriginalCheckpoint
from .pipeline_folder import check_component, named_errors
from .several_files import Files, component_files
from .single_file import load_component
from .text_file import is_text_file, load_text_file
from .versions import check_gemma

_TEXT_MODELS = {"text_encoder": "PreTrainedModel", "tokenizer": "PreTrainedTokenizer"}
_HUB_OPTIONS = ("revision", "cache_dir", "local_files_only", "token", "force_download")


def load_pipeline_components(
    pipeline_class: type,
    path_or_link: Files,
    text_encoder: Any,
    tokenizer: Any = None,
    torch_dtype: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    quantization_config: Any = None,
    **given: Any,
) -> dict[str, Any]:
    """The constructor arguments of a pipeline, read from original files and a Gemma folder.

    Args:
        pipeline_class: Class of the pipeline.
        path_or_link: The safetensors file, or a Hub link to one; or several of them, see [`component_files`].
        text_encoder: A language model, or a folder or Hub id to load it (and the tokenizer) from; `None` for none.
        tokenizer: Its tokenizer; needed if `text_encoder` is a model.
        torch_dtype, dtype: Data type of the components; `dtype` wins. Default as stored.
        quantization_config: As [`~ltx2_diffusers.checkpoints.single_file.load_component`] takes it, for the transformer; or
            diffusers' `PipelineQuantizationConfig` with a `quant_mapping`, which may name the text encoder, too.
        given: Components that replace the file's, and options of the download (`revision`, `cache_dir`, ...).
    """
    import ltx2_diffusers

    dtype = torch_dtype if dtype is None else dtype
    hub = {name: given.pop(name) for name in _HUB_OPTIONS if name in given}
    known = [name for name in inspect.signature(pipeline_class).parameters if name not in _TEXT_MODELS]
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"{pipeline_class.__name__}.from_single_file does not know {unknown}; besides `text_encoder`, `tokenizer`, `dtype` and "
            f"`quantization_config` it takes the components {', '.join(known)}, and the options {', '.join(_HUB_OPTIONS)}"
        )
    files = component_files(path_or_link, **hub)
    needed = [name for name in PIPELINE_COMPONENTS if name not in given]
    if missing := [name for name in needed if name not in files]:
        places = dict.fromkeys(str(path) for paths in files.values() for path in paths)
        raise ValueError(
            f"{' and '.join(map(repr, places)) or repr(path_or_link)} holds {', '.join(files) or 'no LTX-2 component'}, but a "
            f"pipeline also needs {', '.join(missing)}; give the files that hold them, or pass them as arguments"
        )
    needed += [name for name in OPTIONAL_COMPONENTS if name in files and name in known and name not in given]
    methods = _methods(quantization_config, [*needed, "text_encoder"])
    of_text = {"quantization_config": methods["text_encoder"]} if "text_encoder" in methods else {}
    text_encoder, tokenizer = load_text_encoder(text_encoder, tokenizer, dtype, **of_text, **hub)
    components = {"text_encoder": text_encoder, "tokenizer": tokenizer, **given}
    for name in needed:
        place = files[name][0] if len(files[name]) == 1 else files[name]
        model_class = getattr(ltx2_diffusers, class_name_for(name, OriginalCheckpoint(place).config(name)))
        components[name] = load_component(model_class, place, dtype=dtype, quantization_config=methods.get(name))
    main = files.get("transformer", [Path()])[0]
    if text_encoder is not None and main.is_file():
        check_gemma(OriginalCheckpoint(main).metadata, text_encoder.config.to_dict(), str(main))
    return {"scheduler": new_scheduler(is_distilled(main)), **components}


def _methods(quantization_config: Any, loaded: list[str]) -> dict[str, Any]:
    """The quantisation of each component that has one.

    Raises:
        ValueError: If it is meant for a component that is not loaded, or is for all components alike.
    """
    config = as_pipeline_config(quantization_config, [name for name in TRANSFORMERS if name in loaded])
    if config is None:
        return {}
    if not config.quant_mapping:
        raise ValueError(
            "`quantization_config` of a single file needs a `quant_mapping` from components to configurations"
        )
    if unknown := sorted(config.quant_mapping.keys() - loaded):
        raise ValueError(
            f"`quantization_config` names {unknown[0]!r}, which is not loaded from the file; it can name {', '.join(loaded)}"
        )
    return dict(config.quant_mapping)


def load_text_encoder(
    text_encoder: Any, tokenizer: Any = None, dtype: torch.dtype | None = None, **options: Any
) -> tuple[Any, Any]:
    """A language model and its tokenizer.

    Args:
        text_encoder: The model, `None` to do without, or a folder, Hub id or original file to load it from.
        tokenizer: Its tokenizer, default from the same place; needed if `text_encoder` is a model.
        dtype: Data type of its weights, default as stored.
        options: Arguments of the download, and `quantization_config` for the model.
    """
    if not isinstance(text_encoder, (str, os.PathLike)):
        if text_encoder is not None and tokenizer is None:
            raise ValueError("a `text_encoder` given as a model needs its `tokenizer` beside it")
        return text_encoder, tokenizer
    from transformers import AutoModelForImageTextToText

    source = os.fspath(text_encoder)
    if is_text_file(source):
        model, own = load_text_file(source, dtype, **{n: v for n, v in options.items() if n not in _HUB_OPTIONS})
        return model, own if tokenizer is None else tokenizer
    subfolder = _checked_subfolder(source, "text_encoder")
    if tokenizer is None:
        hub = {name: value for name, value in options.items() if name in _HUB_OPTIONS}
        tokenizer = load_tokenizer(source, **hub)
    origin = origin_at(Path(source, subfolder))
    with named_errors(Path(source)):
        of_model = {"subfolder": subfolder, **options}
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype or "auto", **of_model)
    remember(model, origin)
    return model, tokenizer


def load_tokenizer(place: str | os.PathLike, **options: Any) -> Any:
    """The tokenizer in a folder or repository of a text encoder.

    Args:
        place: Folder or Hub id.
        options: Arguments of the download.
    """
    from transformers import AutoTokenizer

    source = os.fspath(place)
    subfolder = _checked_subfolder(source, "tokenizer")
    with named_errors(Path(source)):
        return AutoTokenizer.from_pretrained(source, subfolder=subfolder, **options)


def _checked_subfolder(source: str, name: str) -> str:
    """Where a text model is in a folder or repository: the library takes an empty name for the folder itself."""
    subfolder = name if os.path.isdir(os.path.join(source, name)) else ""
    if os.path.isdir(source):
        check_component(Path(source, subfolder), ("transformers", _TEXT_MODELS[name]), None)
    return subfolder
