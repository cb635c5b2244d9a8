"""Storing the frozen weights of the transformer's blocks in few bits, under adapters that train in float32.

Only linear layers of the blocks are stored so. They are 97% of the weights; what lies outside the blocks (projections in and
out, timestep and modulation networks, caption projections) and all norms decide how exact a step is, and stay as loaded.
"""

import difflib
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

# Type -> library, its name for installation, and what it calls the type.
_QUANTO = {
    "int8-quanto": "qint8",
    "int4-quanto": "qint4",
    "int2-quanto": "qint2",
    "fp8-quanto": "qfloat8",
    "fp8uz-quanto": "qfloat8_e4m3fnuz",
}
_TORCHAO = {"torchao-int8": "Int8WeightOnlyConfig", "torchao-fp8": "Float8WeightOnlyConfig"}
_BITSANDBYTES = ("bnb-int8", "bnb-nf4")
_LIBRARIES = {
    **dict.fromkeys(_QUANTO, ("optimum.quanto", "optimum-quanto")),
    **dict.fromkeys(_TORCHAO, ("torchao.quantization", "torchao")),
    **dict.fromkeys(_BITSANDBYTES, ("bitsandbytes", "bitsandbytes")),
}
QUANTIZATIONS = tuple(_LIBRARIES)
"""Values of `acceleration.quantization`."""
STREAMABLE = (*_QUANTO, *_TORCHAO)
"""Those whose weights can be streamed from host memory."""


def check_quantization(name: str, device: torch.device) -> None:
    """Raise `ValueError` if weights cannot be stored in a type here, because of the library or of the device.

    Args:
        name: One of `QUANTIZATIONS`.
        device: Where the model is going to run.
    """
    if name not in _LIBRARIES:
        nearest = difflib.get_close_matches(str(name), QUANTIZATIONS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"`acceleration.quantization` is {name!r}, which is none of {', '.join(QUANTIZATIONS)}; use {nearest!r}"
        )
    module, package = _LIBRARIES[name]
    try:
        import_module(module)
    except ImportError as error:
        raise ValueError(
            f"`acceleration.quantization: {name}` needs {package}; install it (pip install {package}), or leave it out"
        ) from error
    if device.type == "mps" and (name in _BITSANDBYTES or "fp8" in name):
        raise ValueError(
            f"`acceleration.quantization: {name}` does not run on the device {device.type!r}; use 'int8-quanto'"
        )


def quantize_blocks(transformer: nn.Module, name: str, device: torch.device, home: torch.device) -> None:
    """Store the linear layers of the blocks in another type, in place, one block on the device at a time.

    Args:
        transformer: The frozen transformer, without adapters.
        name: One of `QUANTIZATIONS`.
        device: Where the conversion runs.
        home: Where the blocks lie afterwards.
    """
    convert = _converter(name)
    for block in transformer.get_submodule("transformer_blocks").children():
        block.to(device)
        convert(block)
        # bitsandbytes converts when weights arrive at a device.
        block.to(device).to(home)
        block.requires_grad_(False)
    if name in _BITSANDBYTES:
        # PEFT chooses its layers by these.
        transformer.__dict__["is_loaded_in_8bit" if name == "bnb-int8" else "is_loaded_in_4bit"] = True


def _converter(name: str) -> Callable[[nn.Module], Any]:
    """What changes the linear layers of one block."""
    library: Any = import_module(_LIBRARIES[name][0])
    if name in _QUANTO:
        weights = getattr(library, _QUANTO[name])

        def by_quanto(block: nn.Module) -> None:
            library.quantize(block, weights=weights)
            library.freeze(block)

        return by_quanto
    if name in _TORCHAO:
        return lambda block: library.quantize_(block, getattr(library, _TORCHAO[name])())
    return lambda block: _by_bitsandbytes(block, name, library.nn)


def _by_bitsandbytes(block: nn.Module, name: str, layers: Any) -> None:
    """Put bitsandbytes' layers into the places of the linear ones."""
    for path, layer in list(block.named_modules()):
        if type(layer) is not nn.Linear:
            continue
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        weight = layer.weight.data.cpu()
        if name == "bnb-int8":
            new = layers.Linear8bitLt(*sizes, has_fp16_weights=False)
            new.weight = layers.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            new = layers.Linear4bit(*sizes, compute_dtype=weight.dtype, quant_type="nf4")
            new.weight = layers.Params4bit(weight, requires_grad=False, quant_type="nf4", module=new)
        new.bias = layer.bias
        block.set_submodule(path, new)
