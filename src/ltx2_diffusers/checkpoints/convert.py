"""Conversion between original checkpoint files and diffusers folders, one tensor in memory at a time.

Models are built as shapes alone, to see that the tensors are theirs before anything is written. What is written appears
under its final name only when it is complete.
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..atomic import check_folder_writable, check_writable, finish_save, replaced_folder
from ..guidance.presets import preset
from ..publishing import Card, component_card, origin, put_card
from ..quantization.configs import NAMES, FP8Config, as_config
from . import configs, fit, keys
from . import folder as layout
from .card import PipelineFacts, pipeline_card
from .class_names import COMPONENT_OF, OPTIONAL_COMPONENTS, PIPELINE_COMPONENTS, class_name_for
from .json_files import merged, parse_object, read_config, read_object
from .original import OriginalCheckpoint, cast_floating, real_weights, stacked_entries, stored_in_float8
from .safetensors_io import Entry, read_folder, tensor_differences, write_file
from .scaled_fp8 import without_scales
from .several_files import component_files, opened_components
from .text_file import TEXT_CONFIG
from .versions import check_gemma, check_ltx2, model_version

Part = tuple[dict[str, Entry], dict[str, Any]]
"""Tensors of a component under diffusers' names, and its diffusers config."""

_SCALE = ".weight_scale"
# Where each component has a file: whose names have no prefix, and whose tensors are in the file of another one.
_BARE = ("vae", "diffusion_decoder")
_TOGETHER = {"connectors": "transformer", "vocoder": "audio_vae"}
# From this version on a checkpoint must name its text encoder, which a diffusers folder does not record.
_NEEDS_TEMPLATE = "2.5"


def convert_to_diffusers(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    text_encoder: str | os.PathLike | None = None,
    tokenizer: str | os.PathLike | None = None,
    latent_upsampler: str | os.PathLike | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    distilled: bool | None = None,
    quantization_config: Any = None,
    on_tensor: Callable[[str], None] | None = None,
) -> None:
    """Writes an original checkpoint as a folder in diffusers' layout.

    A file of several components becomes a folder with a sub-folder for each, and if it has all of a pipeline's, a
    loadable `LTX2Pipeline`. A file of one component, such as an upscaler, becomes that component's folder.

    Args:
        source: The original safetensors file, or a folder with a file for each component.
        output: The folder to write.
        text_encoder: Gemma folder whose files are copied into the pipeline, or an original file with one; default none.
        tokenizer: Tokenizer folder, by default found in or beside `text_encoder`.
        latent_upsampler: An upscaler file to add as sub-folder `latent_upsampler`, default none.
        dtype: Cast floating-point tensors to this dtype; default: as stored, scaled fp8 as bfloat16.
        max_shard_size: Bytes per weight file, or like "5GB" (default).
        distilled: Whether the model runs a fixed list of sigmas; default: whether the file's name says so.
        quantization_config: `"fp8_cast"`, `"fp8_scaled_mm"` or one of their configurations, with which layers of the
            transformer are written in float8; default: as real weights.
        on_tensor: Called with the name of every tensor written.
    """
    check_folder_writable(output)
    check_ltx2(source, "load it with LTXVideoPipeline.from_single_file(), and save that with save_pretrained()")
    method = _float8(quantization_config)
    parts = original_components(source, dtype, quantization_config=method)
    if latent_upsampler is not None:
        parts |= original_components(latent_upsampler, dtype, only="latent_upsampler")
    for name, part in parts.items():
        check_part(
            name, part, repr(str(latent_upsampler if name == "latent_upsampler" and latent_upsampler else source))
        )
    is_pipeline = set(PIPELINE_COMPONENTS) <= set(parts)
    if (text_encoder is not None or tokenizer is not None) and not is_pipeline:
        raise ValueError(f"a text encoder belongs to a complete pipeline; {str(source)!r} holds {', '.join(parts)}")
    with replaced_folder(output) as temporary:
        root = Path(temporary)
        for component, (entries, config) in parts.items():
            place = root / component if len(parts) > 1 else root
            if method is not None and component == "transformer":
                config = {**config, "quantization_config": method.to_dict()}
            layout.write_component(place, component, entries, config, max_shard_size, on_tensor)
        if is_pipeline:
            distilled = layout.is_distilled(_main_file(source)) if distilled is None else distilled
            layout.write_scheduler(root / "scheduler", distilled)
            listed = [name for name in (*PIPELINE_COMPONENTS, *OPTIONAL_COMPONENTS) if name in parts]
            pairs = {name: layout.portable_pair(name, parts[name][1]) for name in listed}
            given = (None if path is None else Path(path) for path in (text_encoder, tokenizer))
            pairs |= layout.copy_text_models(root, *given)
            if "text_encoder" in pairs:
                config = read_object(root / "text_encoder" / "config.json")
                check_gemma(_metadata(source), config, str(source))
            layout.write_model_index(root, pairs)
        put_card(root, output, partial(_card, source, parts, distilled if is_pipeline else None, text_encoder))


def _card(
    source: str | os.PathLike,
    parts: Mapping[str, Part],
    distilled: bool | None,
    text_encoder: str | os.PathLike | None,
    name: str,
) -> Card:
    """The card of a converted folder; `distilled` is `None` for one that is no pipeline."""
    made = origin(source, _metadata(source).get("license"))
    if distilled is None:
        places = {component: component if len(parts) > 1 else "" for component in parts}
        classes = {places[component]: class_name_for(component, config) for component, (_, config) in parts.items()}
        return component_card(name, classes, made)
    config = parts["transformer"][1]
    settings = preset(model_version(config), "distilled" if distilled else "dev")
    facts = PipelineFacts(
        "LTX2Pipeline", made, settings, config["num_layers"], has_text_encoder=text_encoder is not None
    )
    return pipeline_card(facts, name)


def convert_to_original(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    metadata_from: str | os.PathLike | None = None,
    per_component: bool = False,
    quantization_config: Any = None,
    on_tensor: Callable[[str], None] | None = None,
) -> None:
    """Writes a folder in diffusers' layout as an original checkpoint.

    Args:
        source: A pipeline folder (text encoder and upsampler are not part of the file) or one component's folder.
        output: The safetensors file to write, or the folder.
        dtype: Cast floating-point tensors to this dtype; default: as stored.
        metadata_from: An original file whose metadata are carried over where the folder does not say otherwise.
        quantization_config: `"fp8_cast"`, `"fp8_scaled_mm"` or one of their configurations, with which layers of the
            transformer are written in float8; default: as real weights.
        per_component: Whether to write a folder with a file for each component, as LTX-2.5 is published: connectors are in
            that of the transformer, the vocoder is in that of the audio VAE. Default `False`: one file.
        on_tensor: Called with the name of every tensor written.
    """
    (check_folder_writable if per_component else check_writable)(output)
    check_ltx2(
        source, "files of that layout are not written; save a folder, with save_pretrained() of an LTXVideoPipeline"
    )
    parts = folder_components(source, dtype, _float8(quantization_config))
    for name, part in parts.items():
        check_part(name, part, repr(str(source)))
    known = _known_metadata(Path(source), metadata_from)
    if not per_component:
        return _write_original(Path(output), parts, known, on_tensor)
    with replaced_folder(output) as temporary:
        for name in dict.fromkeys(_TOGETHER.get(name, name) for name in parts):
            held = {other: part for other, part in parts.items() if _TOGETHER.get(other, other) == name}
            _write_original(Path(temporary, f"{name}.safetensors"), held, known, on_tensor, name in _BARE)


def _write_original(
    path: Path,
    parts: Mapping[str, Part],
    known: Mapping[str, str],
    on_tensor: Callable[[str], None] | None,
    is_bare: bool = False,
) -> None:
    """One file with some components, or with one whose names have no prefix."""
    entries: dict[str, Entry] = {}
    for component, (tensors, _) in parts.items():
        tensors = stacked_entries(component, tensors)
        renamed = keys.rename(component, tensors, to="original")
        prefixes = {name: "" if is_bare else keys.original_prefix(component, name) for name in renamed.values()}
        entries |= {prefixes[name] + name: tensors[key] for key, name in renamed.items()}
    metadata = _original_metadata({name: config for name, (_, config) in parts.items()}, known)
    write_file(path, entries, metadata | _float8_metadata(entries), on_tensor)


def _float8(quantization_config: Any) -> FP8Config | None:
    """The float8 method that is asked for; others store what no file of this layout holds."""
    config = as_config(quantization_config)
    if config is not None and not isinstance(config, FP8Config):
        raise ValueError(
            f"`quantization_config` of type {type(config).__name__} cannot be written here; use {' or '.join(map(repr, NAMES))}, "
            "or load the model with it and save that"
        )
    return config


def _float8_metadata(entries: Mapping[str, Entry]) -> dict[str, str]:
    """What published files say of their scaled layers."""
    layers = [name.removesuffix(_SCALE) for name in entries if name.endswith(_SCALE)]
    if not layers:
        return {}
    formats = {name: {"format": "float8_e4m3fn"} for name in sorted(layers)}
    return {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": formats})}


def differences(
    original: str | os.PathLike,
    folder: str | os.PathLike,
    dtype: torch.dtype | None = None,
    quantization_config: Any = None,
) -> list[str]:
    """Compares an original file with a diffusers folder: every config value, tensor name, dtype, shape and byte.

    Args:
        original: The original safetensors file.
        folder: A pipeline folder or one component's folder.
        dtype: The dtype to which floating-point tensors were cast on the way, default none.
        quantization_config: How the transformer was stored in float8 on the way, default not.

    Returns:
        One line per difference; an empty list if both hold the same model.
    """
    method = _float8(quantization_config)
    ours = original_components(original, dtype, quantization_config=method)
    theirs = folder_components(folder, dtype, method)
    found = [f"{name}: only in {original if name in ours else folder}" for name in sorted(set(ours) ^ set(theirs))]
    for name in sorted(set(ours) & set(theirs)):
        # Two broken checkpoints may be equal, too.
        found += _part_differences(name, ours[name], theirs[name]) or _misfit(name, ours[name], repr(str(original)))
    return found


def _part_differences(component: str, ours: Part, theirs: Part) -> list[str]:
    (entries, config), (other_entries, other_config) = ours, theirs
    cls = fit.model_class(component, config)
    config, other_config = fit.complete_config(cls, config), fit.complete_config(cls, other_config)
    found = [
        f"{component}: config {name} is {value!r} in the file, {other_config[name]!r} in the folder"
        for name, value in config.items()
        if not configs.same_value(value, other_config[name])
    ]
    return found + [f"{component}.{line}" for line in tensor_differences(entries, other_entries)]


def _misfit(component: str, part: Part, where: str) -> list[str]:
    try:
        check_part(component, part, where)
    except ValueError as error:
        return [str(error)]
    return []


def check_part(component: str, part: Part, where: str) -> None:
    """Raise `ValueError` unless the tensors of a component are exactly those that its config builds."""
    entries, config = part
    fit.check_fit(fit.model_class(component, config), config, without_scales(entries), where)


def original_components(
    path: str | os.PathLike,
    dtype: torch.dtype | None = None,
    only: str | None = None,
    quantization_config: FP8Config | None = None,
) -> dict[str, Part]:
    """Tensors (diffusers names) and diffusers config of every component of an original checkpoint, or of `only` one.

    Args:
        path: The file, or a folder of files.
        dtype: Data type to read floating-point tensors as, default as stored.
        only: The component, default all.
        quantization_config: How the transformer's layers are stored in float8, default as real weights.

    Raises:
        ValueError: If the file holds tensors of no supported component; they would be lost.
    """
    opened = opened_components(path)
    for stored in dict.fromkeys(opened.values()):
        unclaimed = [] if TEXT_CONFIG in stored.metadata else keys.unclaimed_keys(stored.entries)
        if unclaimed:
            raise ValueError(
                f"{stored.name} holds {len(unclaimed)} tensors of no supported component, e.g. {', '.join(unclaimed[:3])}"
            )
    names = [only] if only else list(opened)
    if missing := [name for name in names if name not in opened]:
        raise ValueError(f"{str(path)!r} holds no {missing[0]}; it holds {', '.join(opened)}")
    if quantization_config is not None and "transformer" not in names:
        raise ValueError(f"{str(path)!r} holds no transformer, whose layers could be stored in float8")

    def tensors(name: str) -> dict[str, Entry]:
        if quantization_config is None or name != "transformer":
            return opened[name].component(name, dtype)
        return stored_in_float8(opened[name].component(name, keep_quantized=True), quantization_config, dtype)

    return {name: (tensors(name), opened[name].config(name)) for name in names}


def _main_file(source: str | os.PathLike) -> Path:
    """The file of an original checkpoint that holds the transformer."""
    return component_files(source)["transformer"][0] if os.path.isdir(source) else Path(source)


def _metadata(source: str | os.PathLike) -> dict[str, str]:
    """The metadata of an original checkpoint, those of the transformer's file if it has several."""
    opened = opened_components(source)
    return next((opened[name].metadata for name in ("transformer", *opened) if name in opened), {})


def folder_components(
    path: str | os.PathLike, dtype: torch.dtype | None = None, quantization_config: FP8Config | None = None
) -> dict[str, Part]:
    """Tensors and config of every component in a pipeline folder, or of a component's folder.

    Args:
        path: The folder.
        dtype: Data type to read floating-point tensors as, default as stored.
        quantization_config: How the transformer's layers are stored in float8, default as real weights.
    """
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {str(root)!r}")
    finish_save(root)
    names = (*PIPELINE_COMPONENTS, *OPTIONAL_COMPONENTS)
    folders = [root] if (root / "config.json").is_file() else [root / name for name in names]
    places = [folder for folder in folders if (folder / "config.json").is_file()]
    if not places:
        raise ValueError(f"{str(root)!r} is no folder in diffusers' layout: it has no LTX-2 component")
    result = {}
    for place in places:
        config = read_config(place / "config.json")
        component = _component_of_config(config, root) if place == root else place.name
        config = {name: value for name, value in config.items() if not name.startswith("_")}
        if fit.is_fp8(config.get("quantization_config")):
            del config["quantization_config"]
        entries = read_folder(place)
        if quantization_config is not None and component == "transformer":
            result[component] = stored_in_float8(entries, quantization_config, dtype), config
        else:
            result[component] = cast_floating(real_weights(entries, dtype), dtype), config
    if quantization_config is not None and "transformer" not in result:
        raise ValueError(f"{str(root)!r} holds no transformer, whose layers could be stored in float8")
    return result


def _component_of_config(config: Mapping[str, Any], folder: Path) -> str:
    name = config.get("_class_name")
    if name not in COMPONENT_OF:
        raise ValueError(f"{str(folder)!r} holds a {name}, which is no component of LTX-2")
    return COMPONENT_OF[name]


def _known_metadata(folder: Path, template: str | os.PathLike | None) -> dict[str, str]:
    """Metadata that follow from no component's config: those of another file, and the version of the folder's text encoder."""
    metadata = {} if template is None else dict(OriginalCheckpoint(template).metadata)
    file = folder / "text_encoder" / "config.json"
    version = read_object(file).get("gemma_version") if file.is_file() else None
    if version is not None:
        metadata.setdefault("gemma_source_checkpoint", json.dumps({"gemma_version": version}))
    return metadata


def _original_metadata(component_configs: Mapping[str, Mapping[str, Any]], known: Mapping[str, str]) -> dict[str, str]:
    metadata = dict(known)
    template = parse_object(metadata.get("config", "{}"), "the `config` metadata of `metadata_from`")
    config = merged(template, configs.to_original(component_configs))
    if "transformer" in component_configs:
        version = model_version(component_configs["transformer"])
        if version == _NEEDS_TEMPLATE and "gemma_source_checkpoint" not in metadata:
            raise ValueError(
                f"an LTX-{version} file must name its text encoder (metadata gemma_source_checkpoint); pass "
                "metadata_from= an original file of that version"
            )
        metadata.setdefault("model_version", f"{version}.0")
    return metadata | {"config": json.dumps(config)}
