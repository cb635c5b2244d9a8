"""Packages of extras, which are imported when they are needed."""

import importlib
from types import ModuleType

# Packages that other extras than `train` bring.
_EXTRAS = {"bitsandbytes": "quantized", "wandb": "wandb", "OpenEXR": "hdr"}


def library(name: str, purpose: str) -> ModuleType:
    """A package of an extra, `train` if nothing else is known.

    Raises:
        ImportError: If it is not installed; the message says how to.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = _EXTRAS.get(name, "train")
        raise ImportError(f"{purpose} needs {name}; install it with pip install 'ltx2-diffusers[{extra}]'") from error
