"""Which files the weights of a model come from, noted when it is loaded, so that they can be read there again."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from .class_names import component_of
from .original import OriginalCheckpoint
from .pipeline_folder import weight_files
from .safetensors_io import Entry, SafetensorsFile


@dataclass(frozen=True)
class Origin:
    """Where the weights of a model lie.

    Args:
        path: A folder in the layout of diffusers or transformers, or an original file.
        stamps: Every file with weights in it, with its size in bytes and its time of change in nanoseconds.
        variant: Which of several weights in a folder.
        dtype: Floating-point type that an original file was read as, `None` as stored.
    """

    path: Path
    stamps: tuple[tuple[str, int, int], ...]
    variant: str | None = None
    dtype: torch.dtype | None = None

    def check(self) -> None:
        """Raise `ValueError` if a file has changed or vanished since."""
        for name, size, time in self.stamps:
            try:
                status = os.stat(name)
            except FileNotFoundError:
                raise ValueError(
                    f"{name!r}, from which weights are read, is gone; put it back, or load anew"
                ) from None
            if (status.st_size, status.st_mtime_ns) != (size, time):
                raise ValueError(
                    f"{name!r}, from which weights are read, has changed since they were loaded; load anew"
                )

    def entries(self, model: torch.nn.Module) -> dict[str, Entry]:
        """The tensors of the files under the names of the model, mapped rather than read.

        Raises:
            ValueError: If a file has changed since it was noted.
        """
        self.check()
        if self.path.is_file():
            checkpoint = OriginalCheckpoint(self.path, mmap=True)
            if checkpoint.is_gguf:
                raise ValueError(f"blocks cannot be streamed from the GGUF file {checkpoint.name}; use source='ram'")
            # Layers in eight bits read as the file has them, others as real weights.
            packed = any(t.dtype.is_floating_point and t.dtype.itemsize == 1 for t in model.parameters())
            component = component_of(type(model))
            return checkpoint.component(component, None if packed else self.dtype, keep_quantized=packed)
        files = [SafetensorsFile(name, mmap=True) for name, _, _ in self.stamps]
        stored = {name: entry for file in files for name, entry in file.entries.items()}
        return named_as_in(model, stored)


def named_as_in(model: torch.nn.Module, stored: Mapping[str, Entry]) -> dict[str, Entry]:
    """Tensors of a folder under the names of a model; those of a language model may be saved under older ones."""
    if not isinstance(model, PreTrainedModel):
        return dict(stored)
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    # The names of the model itself, not of what adapters make of it.
    names = {name.replace(".base_layer.", "."): None for name in model.state_dict(keep_vars=True)}
    prefix = model.base_model_prefix
    return {rename_source_key(key, renamings, converters, prefix, names)[0]: entry for key, entry in stored.items()}


def origin_at(path: str | os.PathLike, variant: str | None = None, dtype: torch.dtype | None = None) -> Origin | None:
    """The weights of a folder or of an original file as they are now; `None` for what is no file here."""
    place = Path(path).absolute()
    files = [place] if place.is_file() else weight_files(place, variant) if place.is_dir() else []
    return Origin(place, _stamps_of(files), variant, dtype) if files else None


def remember(model: Any, origin: Origin | None) -> None:
    """Note where the weights of a model were loaded from."""
    if origin is not None:
        model.__dict__["_weights_origin"] = origin


def _stamps_of(files: list[Path]) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of change of files."""
    statuses = ((os.fspath(file), file.stat()) for file in files)
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in statuses)


def noted_origin(model: Any) -> Origin | None:
    """Where the weights of a model lie, if that was noted."""
    return getattr(model, "_weights_origin", None)


def origin_of(model: Any) -> Origin:
    """Where the weights of a model lie.

    Raises:
        ValueError: If that is not known.
    """
    origin = noted_origin(model)
    if origin is None:
        raise ValueError(
            f"it is not known which files the weights of this {type(model).__name__} are from; load it with from_pretrained() "
            "from a folder, or with from_single_file(), or stream with source='ram'"
        )
    return origin
