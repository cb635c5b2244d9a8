"""Reading and writing safetensors files one tensor at a time.

The format: eight bytes with the header's length (little-endian), the header as JSON (name -> dtype, shape, byte range;
`__metadata__` -> strings), then the raw little-endian tensors, contiguous and in header order.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import safe_open

from ..atomic import complete_file, write_json

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
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self._mapping = safe_open(self.path, framework="pt") if mmap else None
        self.entries = {name: self._entry(name, info) for name, info in header.items()}

    def _entry(self, name: str, info: dict[str, Any]) -> Entry:
        if info["dtype"] not in _DTYPES:
            raise ValueError(f"{str(self.path)!r}: tensor {name!r} has the unsupported dtype {info['dtype']}")
        dtype, shape = _DTYPES[info["dtype"]], tuple(info["shape"])
        start, end = info["data_offsets"]
        if end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{str(self.path)!r}: tensor {name!r} has {end - start} bytes, not those of {shape}")
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


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError(f"{str(path)!r} is empty or cut off ({size} bytes); fetch the file again")
        length = struct.unpack("<Q", start)[0]
        if length > _MAX_HEADER_BYTES or (8 + length > size and not file.read(1) == b"{"):
            raise ValueError(_foreign_file(path, start))
        if 8 + length > size:
            raise ValueError(_truncated(path, 8 + length, size))
        file.seek(8)
        raw = file.read(length)
    try:
        header = json.loads(raw)
        ends = [info["data_offsets"][1] for name, info in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        raise ValueError(_foreign_file(path, start)) from None
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise ValueError(_truncated(path, expected, size))
    return header, 8 + length


def _truncated(path: Path, expected: int, size: int) -> str:
    return f"{str(path)!r} is cut off: its header announces {expected} bytes, it has {size}; fetch the file again"


def _foreign_file(path: Path, start: bytes) -> str:
    kinds = {
        b"<": "a web page (a failed download?)",
        b"PK": "a PyTorch pickle or zip archive",
        b"\x80": "a pickle",
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


def read_folder(folder: Path, stem: str = _STEM) -> dict[str, Entry]:
    """The entries of a component folder, from its single file or from its shards."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return SafetensorsFile(folder / f"{stem}.safetensors").entries
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    files = {name: SafetensorsFile(folder / name).entries for name in sorted(set(weight_map.values()))}
    if lost := sorted(key for key, name in weight_map.items() if key not in files[name]):
        raise ValueError(f"{str(index)!r} names tensors that its shards lack, e.g. {', '.join(lost[:3])}")
    return {key: files[name][key] for key, name in weight_map.items()}


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
