"""Reading and writing safetensors files one tensor at a time.

The format: eight bytes with the header's length (little-endian), the header as JSON (name -> dtype, shape, byte range;
`__metadata__` -> strings), then the raw little-endian tensors, contiguous and in header order.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

from ..atomic import complete_file, write_json
from .json_files import read_object

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# The safetensors library refuses longer headers; a larger number means the file is of another kind.
_MAX_HEADER_BYTES = 100_000_000
# The name of a component's weights, without ending.
_STEM = "diffusion_pytorch_model"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: its dtype and shape are known, its values are read by `load()`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Entry":
        """The entry of a tensor that is in memory."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def to(self, dtype: torch.dtype) -> "Entry":
        """The same tensor, cast to `dtype` when it is read."""
        if dtype == self.dtype:
            return self
        return Entry(dtype, self.shape, lambda: self.load().to(dtype))

    def rows(self, start: int, stop: int) -> "Entry":
        """Some rows of the tensor."""
        return Entry(self.dtype, (stop - start, *self.shape[1:]), lambda: self.load()[start:stop].clone())

    @classmethod
    def stacked(cls, parts: Sequence["Entry"]) -> "Entry":
        """Tensors one below the other."""
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        return cls(parts[0].dtype, shape, lambda: torch.cat([part.load() for part in parts]))


class SafetensorsFile:
    """The tensors and metadata of one safetensors file; only the header is read until an entry is loaded.

    Args:
        path: The file.
        mmap: Whether tensors are backed by a mapping of the file (`True`), which must then stay in place while they
            are used, or read into memory of their own (`False`, default).
    """

    def __init__(self, path: str | os.PathLike, mmap: bool = False) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no checkpoint file {str(self.path)!r}")
        header, self._data_start = _read_header(self.path)
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self._mapping = safe_open(self.path, framework="pt") if mmap else None
        self.entries = {name: self._entry(name, info) for name, info in header.items()}

    def _entry(self, name: str, info: dict[str, Any]) -> Entry:
        if info["dtype"] not in _DTYPES:
            raise ValueError(f"{str(self.path)!r}: tensor {name!r} has the unsupported dtype {info['dtype']}")
        dtype, shape, start = _DTYPES[info["dtype"]], tuple(info["shape"]), info["data_offsets"][0]
        mapping = self._mapping
        if mapping is not None:
            return Entry(dtype, shape, lambda: mapping.get_tensor(name))
        return Entry(dtype, shape, lambda: self._read(self._data_start + start, dtype, shape))

    def _read(self, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.numel() == 0:
            return tensor
        # The file is open only for this tensor, so that nothing of it stays resident between tensors.
        with self.path.open("rb", buffering=0) as file:
            file.seek(offset)
            buffer = memoryview(_as_bytes(tensor))
            while buffer:
                count = file.readinto(buffer)
                if not count:
                    raise ValueError(f"{str(self.path)!r} ended early: it was cut off while it was being read")
                buffer = buffer[count:]
        return tensor


def check_file(path: Path) -> None:
    """Raise `ValueError`, naming the file and what is wrong with it, unless it is a whole safetensors file."""
    try:
        # The library refuses overlaps, holes, trailing bytes and all else that breaks the format.
        with safe_open(path, framework="pt"):
            pass
    except SafetensorError as error:
        raise ValueError(_refusal(path, error)) from None


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a whole file, and where its tensors begin."""
    check_file(path)
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error or 'its header is nested too deeply'}") from None
    if unnamed := [name for name, info in header.items() if name != "__metadata__" and not isinstance(info, dict)]:
        raise ValueError(f"{str(path)!r} is damaged: its header describes {unnamed[0]!r} by a list")
    return header, 8 + length


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a whole file, of whatever dtype."""
    return [name for name in _read_header(path)[0] if name != "__metadata__"]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header; of two values under one name nobody can say which one is meant."""
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"its header names {next(name for name in names if names.count(name) > 1)!r} twice")
    return result


def _refusal(path: Path, error: SafetensorError) -> str:
    """What is wrong with a file that the library refuses, in words that say what to do."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start, raw = file.read(8), file.read(_MAX_HEADER_BYTES)
    if len(start) < 8:
        return f"{str(path)!r} is empty or cut off ({size} bytes); fetch the file again"
    length = struct.unpack("<Q", start)[0]
    if length > _MAX_HEADER_BYTES or raw[:1].lstrip() != b"{":
        return _foreign_file(path, start)
    if 8 + length > size:
        return _truncated(path, 8 + length, size)
    try:
        ends = [info["data_offsets"][1] for name, info in json.loads(raw[:length]).items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        expected = 0
    if size < expected:
        return _truncated(path, expected, size)
    return f"{str(path)!r} is damaged: {str(error).removeprefix('Error while deserializing header: ')}"


def _truncated(path: Path, expected: int, size: int) -> str:
    return f"{str(path)!r} is cut off: its header announces {expected} bytes, it has {size}; fetch the file again"


def _foreign_file(path: Path, start: bytes) -> str:
    kinds = {
        b"<": "a web page (a failed download?)",
        b"PK": "a PyTorch pickle or zip archive",
        **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a pickle"),
        b"version ": "a Git LFS pointer, not the file it stands for",
        b"GGUF": "a GGUF file",
    }
    kind = next((kind for magic, kind in kinds.items() if start.lstrip().startswith(magic)), "of another format")
    return f"{str(path)!r} is not a safetensors file: it looks {'like ' if kind[0] == 'a' else ''}{kind}"


def _as_bytes(tensor: torch.Tensor) -> Any:
    """The values of a tensor as a flat array of bytes, which shares its memory if it is contiguous."""
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def write_file(
    path: Path,
    entries: Mapping[str, Entry],
    metadata: Mapping[str, str] | None = None,
    on_tensor: Callable[[str], None] | None = None,
) -> None:
    """Writes a safetensors file holding one tensor in memory at a time; an interrupted write leaves no file.

    Args:
        path: The file to write.
        entries: The tensors by name.
        metadata: String-to-string metadata of the header, default none.
        on_tensor: Called with the name of every tensor written.
    """
    # The order of the safetensors library: widest elements first, so that every tensor is aligned, then by name.
    order = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        entry, start = entries[name], end
        end += entry.num_bytes
        header[name] = {"dtype": _DTYPE_NAMES[entry.dtype], "shape": entry.shape, "data_offsets": [start, end]}
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with complete_file(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for name in order:
            file.write(_as_bytes(_checked(name, entries[name])))
            if on_tensor is not None:
                on_tensor(name)


def _checked(name: str, entry: Entry) -> torch.Tensor:
    tensor = entry.load()
    if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
        raise ValueError(f"tensor {name!r} is {tensor.dtype} {tuple(tensor.shape)}, not {entry.dtype} {entry.shape}")
    return tensor.detach().cpu()


def parse_size(size: int | str, name: str = "max_shard_size") -> int:
    """A number of bytes, given as such or as a string like "5GB", "500MB" or "2GiB"."""
    text = str(size).strip().upper()
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        number = size if isinstance(size, int) else int(float(text.removesuffix(unit)) * _UNITS.get(unit, 1))
    except ValueError:
        raise ValueError(f"{name} must be a number of bytes or like '5GB', got {size!r}") from None
    if number <= 0:
        raise ValueError(f"{name} must be positive, got {size!r}")
    return number


def write_sharded(
    folder: Path,
    entries: Mapping[str, Entry],
    max_shard_size: int | str = "5GB",
    on_tensor: Callable[[str], None] | None = None,
) -> None:
    """Writes `diffusion_pytorch_model.safetensors`, or numbered shards and last their index, as diffusers does.

    Args:
        folder: An existing folder.
        entries: The tensors by name.
        max_shard_size: Bytes per shard, or like "5GB" (default, as in the published repositories). A tensor that
            exceeds it gets a shard of its own.
        on_tensor: Called with the name of every tensor written.
    """
    split = split_state_dict_into_shards_factory(
        dict(entries),
        get_storage_size=lambda entry: entry.num_bytes,
        filename_pattern=f"{_STEM}{{suffix}}.safetensors",
        max_shard_size=parse_size(max_shard_size),
    )
    for name, keys in split.filename_to_tensors.items():
        write_file(folder / name, {key: entries[key] for key in keys}, {"format": "pt"}, on_tensor)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / f"{_STEM}.safetensors.index.json", index)


def read_folder(folder: Path, stem: str = _STEM, variant: str | None = None) -> dict[str, Entry]:
    """The entries of a component folder, from its single file or from its shards.

    Args:
        folder: The folder.
        stem: Name of the weights, without ending.
        variant: Which of several weights, default those without a variant in their names.
    """
    infix = f".{variant}" if variant else ""
    index = folder / f"{stem}.safetensors.index{infix}.json"
    if not index.is_file():
        return SafetensorsFile(folder / f"{stem}{infix}.safetensors").entries
    weight_map = read_weight_map(index)
    names = sorted(set(weight_map.values()))
    if lost := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{str(index)!r} names shards that are not there: {', '.join(lost[:3])}")
    files = {name: SafetensorsFile(folder / name).entries for name in names}
    if lost := sorted(key for key, name in weight_map.items() if key not in files[name]):
        raise ValueError(f"{str(index)!r} names tensors that its shards lack, e.g. {', '.join(lost[:3])}")
    if more := sorted(key for name in names for key in files[name] if weight_map.get(key) != name):
        raise ValueError(f"{str(index)!r} leaves out tensors that its shards hold, e.g. {', '.join(more[:3])}")
    return {key: files[name][key] for key, name in weight_map.items()}


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor names and the shards that an index says they are in; shards lie beside the index and nowhere else."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{str(index)!r} has no `weight_map` from tensor names to shards; fetch the file again")
    for key, name in weight_map.items():
        # Links are followed, as in the Hub's cache; a name with a folder in it could reach any file of the reader.
        if not isinstance(name, str) or not name.endswith(".safetensors") or set(name) & set("/\\\0"):
            raise ValueError(
                f"{str(index)!r} says that {key!r} is in {name!r}; a shard is a .safetensors file beside the index"
            )
    return weight_map


def tensor_differences(entries: Mapping[str, Entry], others: Mapping[str, Entry]) -> list[str]:
    """Compares two sets of tensors name by name, holding one pair in memory at a time."""
    found = [
        f"{name}: missing in the {'second' if name in entries else 'first'}" for name in set(entries) ^ set(others)
    ]
    for name in set(entries) & set(others):
        one, other = entries[name], others[name]
        if one.dtype != other.dtype or one.shape != other.shape:
            found.append(f"{name}: {one.dtype} {list(one.shape)} and {other.dtype} {list(other.shape)}")
        # Byte by byte, so that NaN equals itself and the two zeros differ.
        elif not np.array_equal(_as_bytes(one.load()), _as_bytes(other.load())):
            found.append(f"{name}: different values")
    return sorted(found)
