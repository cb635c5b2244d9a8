"""Conversion of LoRA files between layouts, one tensor in memory at a time."""

import os
from collections.abc import Callable
from pathlib import Path

import torch

from ..atomic import check_writable
from ..checkpoints.safetensors_io import Entry, SafetensorsFile, tensor_differences, write_file
from .keys import lora_to_format, read_lora
from .settings import ADAPTER_METADATA


def convert_lora(
    source: str | os.PathLike,
    output: str | os.PathLike,
    layout: str,
    *,
    dtype: torch.dtype | None = None,
    on_tensor: Callable[[str], None] | None = None,
) -> None:
    """Writes a LoRA file in another layout; metadata such as `reference_downscale_factor` is kept.

    Args:
        source: The LoRA file.
        output: The file to write.
        layout: One of `LORA_FORMATS`.
        dtype: Cast the factors, default none.
        on_tensor: Called with the name of every tensor written.
    """
    check_writable(output)
    file = SafetensorsFile(source)
    entries = _in_layout(file, layout, dtype)
    # Its alphas are folded into the factors now.
    metadata = {name: value for name, value in file.metadata.items() if name != ADAPTER_METADATA}
    write_file(Path(output), entries, {"format": "pt", **metadata}, on_tensor)


def lora_differences(one: str | os.PathLike, other: str | os.PathLike, dtype: torch.dtype | None = None) -> list[str]:
    """Compares what two LoRA files of any layouts add to which modules; one line per difference."""
    files = [_in_layout(SafetensorsFile(path), "diffusers", dtype) for path in (one, other)]
    return tensor_differences(*files)


def _in_layout(file: SafetensorsFile, layout: str, dtype: torch.dtype | None) -> dict[str, Entry]:
    try:
        entries = lora_to_format(read_lora(file.entries, metadata=file.metadata), layout)
    except ValueError as error:
        raise ValueError(f"{str(file.path)!r}: {error}") from None
    if dtype is None:
        return entries
    return {key: entry if key.endswith(".alpha") else entry.to(dtype) for key, entry in entries.items()}
