"""Weights that stay in their file: tensors whose values are read whenever something computes with them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch.utils._pytree import tree_map

from ..checkpoints.safetensors_io import Entry

# What is known without reading.
_FACTS = {
    getattr(torch.Tensor, name).__get__
    for name in (
        "shape",
        "dtype",
        "device",
        "layout",
        "requires_grad",
        "is_meta",
        "is_cuda",
        "is_leaf",
        "grad",
        "ndim",
    )
} | {
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.element_size,
    torch.Tensor.is_floating_point,
    torch.Tensor.is_complex,
    torch.Tensor.requires_grad_,
    torch.Tensor.requires_grad.__set__,  # type: ignore[attr-defined]  # declared as a plain value
    torch.Tensor.__len__,
    torch.Tensor.__hash__,
}
_ADVICE = "its block is streamed from the file; call disable_block_streaming(), or stream with source='ram'"


class LazyWeight(torch.Tensor):
    """A parameter or buffer of which shape and data type are in memory, and the values in a file.

    Every operation reads the values anew. None can change them.

    Args:
        entry: The tensor in the file.
        is_parameter: Whether it stands where a parameter stood. Default `True`.
    """

    _entry: Entry

    @staticmethod
    def __new__(cls, entry: Entry, is_parameter: bool = True) -> Self:
        """One element in memory stands for all."""
        held = torch.empty((), dtype=entry.dtype).expand(entry.shape)
        return held.as_subclass(cls)

    def __init__(self, entry: Entry, is_parameter: bool = True) -> None:
        super().__init__()
        self._entry = entry
        # By this `isinstance(..., Parameter)` is answered.
        self._is_param = is_parameter

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Answer questions of shape and type, refuse changes, and read the values for everything else."""
        kwargs = kwargs or {}
        if func in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        is_changed = args and isinstance(args[0], LazyWeight)
        if is_changed and (name == "__set__" or (name.endswith("_") and (name[0] != "_" or name.startswith("__i")))):
            raise ValueError(f"this weight cannot be changed: {_ADVICE}")
        return func(*tree_map(_read, args), **tree_map(_read, kwargs))


def _read(value: Any) -> Any:
    return value._entry.load() if isinstance(value, LazyWeight) else value
