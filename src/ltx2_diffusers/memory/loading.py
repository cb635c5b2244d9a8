"""Models whose blocks are streamed from their files, and are never read into memory as a whole."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.fit import ModelClass, check_folder
from ..checkpoints.language_model import empty_language_model
from ..checkpoints.origin import Origin, origin_at, remember
from ..checkpoints.original import cast_floating
from ..checkpoints.pipeline_folder import BESIDE_TEXT
from ..checkpoints.safetensors_io import Entry
from ..checkpoints.scaled_fp8 import planned
from ..checkpoints.single_file import empty_component, empty_model
from ..quantization.configs import FP8Config, as_config_of
from ..quantization.linear import FLOAT8
from ..quantization.stored import scale_names
from .lazy import LazyWeight
from .slots import own_tensors
from .streaming import BlockStreamer, check_streamable, moving_blocks, present_device

Tensors = Mapping[str, Entry]


def load_streamed(
    cls: ModelClass,
    path: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    num_on_device: int = 2,
    subfolder: str | None = None,
    variant: str | None = None,
    config: str | os.PathLike | Mapping[str, Any] | None = None,
) -> Any:
    """A transformer whose blocks stay in its safetensors files; memory holds all else of it, and the blocks that compute.

    Args:
        cls: Class of the transformer.
        path: A folder in diffusers' layout on this machine, sharded or not, or an original safetensors file.
        dtype: Data type that it computes in; weights of another one are cast whenever they are read. Default float32 for a
            folder, as in `from_pretrained`, and as stored for a file.
        device, num_on_device: As in [`~ltx2_diffusers.memory.streaming.stream_blocks`].
        subfolder, variant: As in `from_pretrained`.
        config: As in `from_single_file`.

    Raises:
        ValueError: If the weights are not those of the model, or cannot be streamed from a file.
    """
    folder = Path(path, subfolder or "")
    if folder.is_dir():
        check_folder(cls, path, subfolder, variant)
        origin = _found(folder, variant)
        model, entries = _as_saved(cls, folder, origin, dtype or torch.float32)
    else:
        model, entries, file = empty_component(cls, path, dtype=dtype, config=config)
        origin = _found(file, None, dtype)
    model.register_to_config(_name_or_path=os.fspath(path))
    return _streamed(model, entries, origin, device, num_on_device)


def _as_saved(cls: ModelClass, folder: Path, origin: Origin, dtype: torch.dtype) -> tuple[Any, Tensors]:
    """The empty model of a folder and its tensors, cast but for what is stored in float8 with its scales."""
    config = cls.load_config(os.fspath(folder))
    model, saved = empty_model(cls, config), config.get("quantization_config")
    entries = origin.entries(model)
    if saved is None:
        return model, cast_floating(entries, dtype)
    method = as_config_of(saved)
    if not isinstance(method, FP8Config):
        raise ValueError(
            f"{os.fspath(folder)!r} is quantised ({saved.get('quant_method')!r}), so that its blocks cannot be streamed from the "
            "file; load it whole, then stream from RAM"
        )
    quantizer = planned(method, entries, dtype)
    quantizer.preprocess_model(model=model)
    stored = {name for name, tensor in model.state_dict().items() if tensor.dtype == FLOAT8} | {*scale_names(entries)}
    kept = {name: entry for name, entry in entries.items() if name in stored}
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
    return model, {**cast_floating(entries, dtype), **kept}


def load_streamed_language_model(
    folder: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    num_on_device: int = 2,
    variant: str | None = None,
) -> Any:
    """The same for a language model, from a folder in the layout of transformers.

    Args:
        folder: The folder, on this machine.
        dtype: Data type that it computes in, default as stored.
        device, num_on_device: As in [`load_streamed`].
        variant: Which of several weights.
    """
    model, entries, origin = mapped_language_model(folder, dtype, variant)
    return _streamed(model, entries, origin, device, num_on_device)


def mapped_language_model(
    folder: str | os.PathLike, dtype: torch.dtype | None, variant: str | None = None
) -> tuple[Any, Tensors, Origin]:
    """A language model as shapes, its tensors in the files by name, and the files.

    Raises:
        ValueError: If the files lack any that read texts.
    """
    origin, model = _found(Path(folder), variant), empty_language_model(folder, dtype)
    entries = cast_floating(origin.entries(model), model.dtype)
    tied: dict[int, Entry] = {id(t): entries[name] for name, _, _, t in own_tensors(model) if name in entries}
    for name, _, _, tensor in own_tensors(model):
        if tensor.is_meta and id(tensor) in tied:
            entries[name] = tied[id(tensor)]
    lost = [name for name, _, _, t in own_tensors(model) if t.is_meta and name not in entries]
    if needed := [name for name in lost if not re.search(BESIDE_TEXT, name)]:
        raise ValueError(f"{os.fspath(folder)!r} lacks {len(needed)} tensors, such as {needed[0]}; fetch it again")
    return model, entries, origin


def put_lazily(model: torch.nn.Module, entries: Tensors) -> None:
    """Let all of a model stay in its files."""
    for name, owner, key, tensor in own_tensors(model):
        if tensor.is_meta and name in entries:
            owner[key] = LazyWeight(entries[name], isinstance(tensor, torch.nn.Parameter))


def _found(path: Path, variant: str | None, dtype: torch.dtype | None = None) -> Origin:
    origin = origin_at(path, variant, dtype)
    if origin is None:
        raise ValueError(
            f"{str(path)!r} has no safetensors files to stream from; give a folder or a file on this machine"
        )
    return origin


def _streamed(model: Any, entries: Tensors, origin: Origin, device: torch.device | str, num_on_device: int) -> Any:
    """The model with all but its blocks in memory."""
    blocks = check_streamable(model, num_on_device)
    inside = tuple(f"{name}." for name in moving_blocks(blocks, num_on_device))
    rest = {name: entry.load() for name, entry in entries.items() if not name.startswith(inside)}
    model.load_state_dict(rest, strict=False, assign=True)
    if hasattr(model, "tie_weights"):
        model.tie_weights()
    remember(model, origin)
    BlockStreamer(model, blocks, present_device(device), num_on_device, entries, origin)
    return model.eval()
