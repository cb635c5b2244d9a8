"""A checkpoint in original layout, of LTX-2 or LTX-Video, seen as components under diffusers names."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..quantization.configs import FP8Config
from . import class_names, config_ltx_video, configs, gguf_file, keys
from .class_names import OPTIONAL_COMPONENTS
from .config_diffusion import without_gates
from .json_files import check_finite, merged, parse_object, read_object
from .reference_configs import guess_version, reference_config
from .safetensors_io import Entry, SafetensorsFile
from .scaled_fp8 import SCALES, dequantized, planned, without_scales


class OriginalCheckpoint:
    """An original file, several of them, or a state dict, of which components are read on demand.

    Complete files, files of one component with or without its prefix, and files whose tensors already have diffusers
    names are understood alike. A dictionary passed in is read, never changed.

    Args:
        source: Path of a safetensors or GGUF file, a list of safetensors files that are one checkpoint, or tensors by name.
        mmap: Whether tensors of a file are backed by a mapping of it, default False (read into memory).
        original_config: Metadata `config` to use instead of the file's own: a dictionary or a JSON file.
    """

    def __init__(
        self,
        source: str | os.PathLike | Sequence[str | os.PathLike] | Mapping[str, torch.Tensor],
        mmap: bool = False,
        original_config: Mapping[str, Any] | str | os.PathLike | None = None,
    ) -> None:
        if isinstance(source, Mapping):
            self.name, self.is_gguf = "the given state dict", any(hasattr(t, "quant_type") for t in source.values())
            self.entries = {name: _entry_of(name, tensor) for name, tensor in source.items()}
            self.metadata: dict[str, str] = {}
        elif not isinstance(source, (str, os.PathLike)):
            self.name, self.is_gguf = " and ".join(repr(str(path)) for path in source), False
            self.entries, self.metadata, joined = _read_joined([Path(path) for path in source], mmap)
            original_config = joined if original_config is None else original_config
        else:
            self.name = repr(str(source))
            self.is_gguf = gguf_file.is_gguf(Path(source))
            self.entries, self.metadata = _read(Path(source), mmap)
        if not self.entries:
            raise ValueError(f"{self.name} holds no tensors")
        self.metadata_config = self._parse_config(original_config)

    def _parse_config(self, original_config: Mapping[str, Any] | str | os.PathLike | None) -> dict[str, Any]:
        if isinstance(original_config, Mapping):
            return dict(original_config)
        if original_config is not None:
            return read_object(Path(original_config))
        return parse_object(self.metadata.get("config", "{}"), f"the `config` metadata of {self.name}")

    def components(self) -> list[str]:
        """Names of the components the checkpoint holds."""
        return keys.found_components(self.entries)

    def component(
        self, component: str, dtype: torch.dtype | None = None, keep_quantized: bool = False
    ) -> dict[str, Entry]:
        """The tensors of one component under diffusers names.

        Args:
            component: One of `keys.COMPONENTS`.
            dtype: Floating-point dtype to read as; default as stored.
            keep_quantized: Whether scaled fp8 layers stay as stored, scales beside them. By default they read as
                real weights, in the dtype of the unquantised ones if `dtype` is not given.
        """
        local = keys.component_keys(component, self.entries)
        if not local:
            found = ", ".join(self.components()) or "no LTX-2 component"
            raise ValueError(f"{self.name} holds no {component}; it holds {found}")
        with self.named(component):
            renamed = keys.rename(component, local.values(), to="diffusers")
            stored = {renamed[name]: self.entries[key] for key, name in local.items()}
            entries = split_entries(component, stored)
            if len(stored) != len(local) or len(entries) < len(stored):
                raise ValueError("the file holds tensors under two names each")
            if component == "diffusion_decoder":
                entries = without_gates(entries)
            if not keep_quantized:
                is_packed = any(isinstance(entry, gguf_file.PackedEntry) for entry in entries.values())
                dtype = torch.float32 if is_packed and dtype is None else dtype
                return cast_floating(real_weights(entries, dtype), dtype)
        if dtype is not None:
            raise ValueError(f"keep_quantized keeps the stored dtypes; dtype={dtype} contradicts it")
        return entries

    @property
    def family(self) -> str:
        """One of `FAMILIES`, by what the file says of its transformer: LTX-Video's knows no sound."""
        fields = self.metadata_config.get("transformer") or {}
        if isinstance(fields, Mapping) and "_class_name" in fields:
            return class_names.FAMILIES[fields["_class_name"] == "Transformer3DModel"]
        names = [*keys.component_keys("transformer", self.entries).values(), *fields]
        others = any("audio" in name or "prompt_adaln" in name or "lora_" in name for name in names)
        return class_names.FAMILIES["caption_projection.linear_1.weight" in names and not others]

    def config(self, component: str, family: str = "ltx2") -> dict[str, Any]:
        """The diffusers config of one component: from the metadata, else that of the published model it resembles.

        Args:
            component: One of `keys.COMPONENTS`.
            family: Whose configs, one of `FAMILIES`.
        """
        entries = self.component(component)
        with self.named(component):
            if family == "ltx_video":
                config = config_ltx_video.to_diffusers(component, self.metadata_config, entries)
            else:
                config = self._config_of(component, entries)
            check_finite(config, "the `config` metadata")
        return config

    def _config_of(self, component: str, entries: Mapping[str, Entry]) -> dict[str, Any]:
        if self.has_config(component):
            return configs.to_diffusers(component, self.metadata_config, entries)
        if component in OPTIONAL_COMPONENTS:
            return configs.to_diffusers(component, self.metadata_config, entries)
        if component == "latent_upsampler":
            return configs.upsampler_config_from_shapes(entries)
        version = guess_version(component, entries)
        if version is None:
            if any("lora_" in name for name in entries):
                raise ValueError(
                    "these are factors of a LoRA; load a model, and give them to load_lora_weights (--lora)"
                )
            raise ValueError(
                "there is no `config` metadata for it, and its tensor names fit no published model; pass config= (a "
                "diffusers folder) or original_config="
            )
        return configs.to_diffusers(component, reference_config(version), entries)

    @contextmanager
    def named(self, component: str) -> Iterator[None]:
        """Let errors in names, shapes and metadata that strangers wrote say where they were found."""
        try:
            yield
        except ValueError as error:
            raise ValueError(f"{component} of {self.name}: {error}") from None
        except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise ValueError(
                f"the `config` metadata or the tensors of {self.name} are incomplete for {component}: {error}"
            ) from error

    def has_config(self, component: str) -> bool:
        """Whether the metadata describe `component`; otherwise a published model's config is assumed."""
        return configs.has_config(component, self.metadata_config)


def _read(path: Path, mmap: bool) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors and metadata of a file."""
    if gguf_file.is_gguf(path):
        return gguf_file.read_gguf(path), {}
    file = SafetensorsFile(path, mmap)
    return file.entries, file.metadata


def _read_joined(paths: Sequence[Path], mmap: bool) -> tuple[dict[str, Entry], dict[str, str], dict[str, Any]]:
    """Tensors, metadata and parsed `config` of several files as one file would have them.

    Args:
        paths: The files.
        mmap: Whether tensors are backed by mappings of the files.

    Raises:
        ValueError: If two files hold the same tensor.
    """
    entries: dict[str, Entry] = {}
    metadata: dict[str, str] = {}
    config: dict[str, Any] = {}
    files = [SafetensorsFile(path, mmap) for path in paths]
    # What the file of the transformer says of it goes before what others repeat.
    for file in sorted(files, key=lambda one: bool(keys.component_keys("transformer", one.entries))):
        for component in keys.found_components(file.entries):
            local = keys.component_keys(component, file.entries)
            named = {keys.joined_prefix(component) + name: file.entries[key] for key, name in local.items()}
            if twice := named.keys() & entries.keys():
                raise ValueError(f"{str(file.path)!r} holds {min(twice)} once more; leave one of the files out")
            entries |= named
        metadata |= file.metadata
        config = merged(
            config, parse_object(file.metadata.get("config", "{}"), f"the `config` metadata of {str(file.path)!r}")
        )
    return entries, metadata, config


def _entry_of(name: str, tensor: torch.Tensor) -> Entry:
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"a state dict holds tensors, but {name!r} is of type {type(tensor).__name__}")
    return gguf_file.entry_of(tensor)


def split_entries(component: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Tensors under diffusers' names, those apart that the original layout stacks along their rows."""
    result = {}
    for name, entry in entries.items():
        names = keys.split_names(component, name)
        rows = entry.shape[0] // len(names) if entry.shape else 0
        for index, part in enumerate(names):
            result[part] = entry if len(names) == 1 else entry.rows(index * rows, (index + 1) * rows)
    return result


def stacked_entries(component: str, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The inverse of [`split_entries`]."""
    result: dict[str, Entry] = {}
    for name in entries:
        whole = keys.stacked_name(component, name)
        if whole not in result:
            parts = [entries[part] for part in keys.split_names(component, whole)]
            result[whole] = parts[0] if len(parts) == 1 else Entry.stacked(parts)
    return result


def real_weights(entries: Mapping[str, Entry], dtype: torch.dtype | None) -> dict[str, Entry]:
    """Gives fp8 weights, scaled or plain, `dtype` or else that of the component's other weights, rounding once."""
    target = dtype or main_dtype(entries)
    compressed = {n for n, e in entries.items() if e.dtype.is_floating_point and e.dtype.itemsize == 1}
    return {n: entry.to(target) if n in compressed else entry for n, entry in dequantized(entries).items()}


def stored_in_float8(entries: Mapping[str, Entry], config: FP8Config, dtype: torch.dtype | None) -> dict[str, Entry]:
    """The tensors of a model as `config` stores them, scales among them, each rounded when it is read.

    Args:
        entries: The tensors as a file holds them, with scales in any spelling.
        config: The method.
        dtype: Data type of what is not stored in float8, default as in the file.
    """
    main, quantizer = dtype or main_dtype(entries), planned(config, entries, dtype)

    def stored(name: str, entry: Entry, kind: str, as_type: torch.dtype) -> Entry:
        shape = () if kind in SCALES else entry.shape
        return Entry(as_type, shape, lambda: quantizer.stored_tensors(name, entry.load())[kind].to(as_type))

    result = {}
    for name, entry in without_scales(entries).items():
        own = dtype or (main if entry.dtype.itemsize == 1 else entry.dtype)
        kept = own if entry.dtype.is_floating_point else entry.dtype
        for kind, as_type in quantizer.stored_dtypes(name).items():
            path = name.rpartition(".")[0]
            result[f"{path}.{kind}" if path else kind] = stored(name, entry, kind, as_type or kept)
    return result


def main_dtype(entries: Mapping[str, Entry]) -> torch.dtype:
    """The data type of most weights of a component that are not fp8; bfloat16 if all are."""
    floating = [entry.dtype for entry in without_scales(entries).values() if entry.dtype.is_floating_point]
    plain = [dtype for dtype in floating if dtype.itemsize > 1]
    return max(set(plain), key=plain.count, default=torch.bfloat16)


def cast_floating(entries: Mapping[str, Entry], dtype: torch.dtype | None) -> dict[str, Entry]:
    """Casts floating-point entries to `dtype` when they are read; None keeps the stored dtypes."""
    if dtype is None:
        return dict(entries)
    return {name: entry.to(dtype) if entry.dtype.is_floating_point else entry for name, entry in entries.items()}
