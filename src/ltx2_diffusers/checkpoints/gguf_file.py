"""GGUF files: read with the gguf package, and kept packed in the layers that diffusers has for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.quantizers import DiffusersAutoQuantizer
from diffusers.utils import is_gguf_available

from .safetensors_io import Entry

_MAGIC = b"GGUF"


@dataclass(frozen=True)
class PackedEntry(Entry):
    """A quantised tensor of a GGUF file, which reads as its real values in float32.

    Args:
        packed: The parameter as diffusers' layers for GGUF take it.
    """

    packed: Any = None


def is_gguf(path: Path) -> bool:
    """Whether a file is in the GGUF format, whatever its name is."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def read_gguf(path: Path) -> dict[str, Entry]:
    """The tensors of a GGUF file by name.

    Raises:
        ImportError: If the gguf package is missing, as in diffusers.
        ValueError: If the file is damaged, or quantised in a way that diffusers does not read.
    """
    if not is_gguf_available():
        raise ImportError(f"{str(path)!r} is a GGUF file, which the gguf package reads; install it: pip install gguf")
    try:
        return {name: entry_of(tensor) for name, tensor in load_gguf_checkpoint(path).items()}
    except Exception as error:
        # The package trusts every count and offset of a file, so that a damaged one ends in any error.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise ValueError(f"{str(path)!r} cannot be read as GGUF: {reason}; fetch the file again") from error


def entry_of(tensor: torch.Tensor) -> Entry:
    """The entry of a tensor in memory, packed or not."""
    shape = getattr(tensor, "quant_shape", None)
    if shape is None:
        return Entry.of(tensor)
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    return PackedEntry(torch.float32, tuple(shape), lambda: dequantize_gguf_tensor(tensor).float(), packed=tensor)


def fill_quantized(
    model: Any, entries: Mapping[str, Entry], quantization_config: Any, dtype: torch.dtype | None, device: torch.device
) -> None:
    """Fill an empty model with the tensors of a GGUF file; weights of linear layers stay packed.

    Args:
        model: The model, without values.
        entries: Its tensors.
        quantization_config: diffusers' `GGUFQuantizationConfig`.
        dtype: Data type of the other tensors, default the `compute_dtype` of the configuration.
        device: Where the values go.
    """
    quantizer = DiffusersAutoQuantizer.from_config(quantization_config)
    quantizer.validate_environment()
    dtype = quantizer.update_torch_dtype(dtype)
    layers = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    packed = {n: entry.packed for n, entry in entries.items() if isinstance(entry, PackedEntry) and n in layers}
    quantizer.preprocess_model(model=model, device_map=None, state_dict=packed, keep_in_fp32_modules=[])
    for name, parameter in packed.items():
        quantizer.create_quantized_param(model, parameter, name, device)
    others = {name: entry.to(dtype).load().to(device) for name, entry in entries.items() if name not in packed}
    model.load_state_dict(others, strict=False, assign=True)
    quantizer.postprocess_model(model)
    model.hf_quantizer = quantizer
