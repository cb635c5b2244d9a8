"""The switch between functions as they are written and the same functions compiled to fewer kernels."""

import functools
import importlib.util
import types
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.overrides import handle_torch_function, has_torch_function

Fusion = bool | Literal["auto"]
"""Whether functions run compiled: `True`, `False`, or `"auto"`, which is on CUDA devices with Triton."""

_CHOICES = (True, False, "auto")
# Numbers are rounded where the functions as written round them, so that only the order of sums differs; what is put
# together again of parts is written once, in the kernel that computes the parts.
_OPTIONS = {"emulate_precision_casts": True, "force_pointwise_cat": True}
_mode: Fusion = False
# By function and kind of its arguments.
_compiled: dict[Hashable, Callable[..., Any]] = {}


def set_fusion(mode: Fusion) -> None:
    """Set whether steps of the networks between matrix products run as fused kernels, for all models of this process.

    Fused steps are compiled by `torch.compile` when they are first used: tens of seconds on a GPU, after which PyTorch
    keeps them on disk. Results differ from those of plain steps by rounding: by 1e-5 of their size in float32, by a step of
    bfloat16. Steps under autograd and steps that are part of a larger compiled function are not compiled by themselves.

    Args:
        mode: `"auto"` fuses on CUDA devices if Triton is installed; `True` on any device, which on a CPU needs a C++
            compiler; `False`, with which a process begins, nowhere.

    Raises:
        ValueError: For another mode.
    """
    global _mode
    if not any(mode is choice or mode == choice == "auto" for choice in _CHOICES):
        raise ValueError(f'`mode` has to be True, False or "auto" but is {mode!r}; use "auto"')
    _mode = mode


@contextmanager
def fusion(mode: Fusion) -> Iterator[None]:
    """[`set_fusion`] for the length of a `with` block."""
    before = _mode
    set_fusion(mode)
    try:
        yield
    finally:
        set_fusion(before)


def fuses(x: torch.Tensor) -> bool:
    """Whether steps on a tensor run as fused kernels: not with gradients, and not where a compiler is at work already."""
    # First of all, so that what a compiler makes of a caller does not depend on the switch.
    if torch.compiler.is_compiling() or _mode is False or torch.is_grad_enabled() or not x.numel():
        return False
    return _mode is True or (x.is_cuda and _has_triton())


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


class RMSNorm(NamedTuple):
    """A norm over the last axis as a value: what `torch.nn.RMSNorm` computes, with the weight it has.

    Args:
        weight: `[D]`, or `None`.
        eps: Added to the mean square.
    """

    weight: torch.Tensor | None
    eps: float | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise `[..., D]`."""
        return nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function of tensors run compiled where [`fuses`] says so, on the device of its first argument.

    It may take tensors, strings, `None`, tuples of them, and `torch.nn.RMSNorm` modules. A module that does more than its
    `forward`, because something hooked into it, is called: then the function runs as written, as it does for whole numbers,
    each of which would be compiled anew. For another number of tokens the function is compiled once more, and then fits all.

    Functions that watch PyTorch's own (`torch.overrides`) see a fused function as one call.
    """

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if not fuses(args[0]):
            return function(*args)
        leaves: list[Any] = []
        _collect(args, leaves)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if has_torch_function(tensors):
            return handle_torch_function(run, tensors, *args)
        if not all(map(_is_simple, leaves)):
            return function(*args)
        key = function, *map(_kind, leaves)
        if key not in _compiled:
            _compiled[key] = _compile(function, len(_compiled), args[0])
        return _compiled[key](*map(_as_value, args))

    return run


def _compile(function: Callable[..., Any], index: int, x: torch.Tensor) -> Callable[..., Any]:
    """The function compiled under a name of its own: what the compiler learns of sizes belongs to one kind of argument."""
    if x.is_meta:
        return function
    if x.is_cuda and not _has_triton():
        raise ValueError('fusion is on but Triton, which it needs on CUDA devices, is missing; use set_fusion("auto")')
    code = function.__code__.replace(co_name=f"{function.__name__}_{index}")
    own = types.FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
    import torch._inductor.config as known

    return torch.compile(own, options={name: value for name, value in _OPTIONS.items() if hasattr(known, name)})


def _collect(value: Any, leaves: list[Any]) -> None:
    """Append what tuples hold, and how many things each holds."""
    if isinstance(value, tuple):
        leaves.append(f"{len(value)}:")
        for item in value:
            _collect(item, leaves)
    else:
        leaves.append(value)


def is_bare(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether calling a module is no more than the `forward` of a class on parameters of PyTorch's own kind."""
    hooked = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    return (
        type(module) is cls and not hooked and all(type(p) is nn.Parameter for p in module.parameters(recurse=False))
    )


def _is_simple(leaf: Any) -> bool:
    """Whether nothing but values stands behind a leaf."""
    if isinstance(leaf, torch.Tensor):
        return type(leaf) in (torch.Tensor, nn.Parameter)
    if isinstance(leaf, nn.Module):
        return is_bare(leaf, nn.RMSNorm)
    return leaf is None or isinstance(leaf, (bool, str))


def _kind(leaf: Any) -> Hashable:
    """What decides how a leaf is compiled: of tensors type, width, and which axes have one entry."""
    if isinstance(leaf, nn.Module):
        return leaf.weight is None or leaf.weight.dtype, leaf.eps
    if not isinstance(leaf, torch.Tensor):
        return leaf
    width = leaf.shape[1] if leaf.ndim == 5 else leaf.shape[-1]
    return leaf.dtype, leaf.device.type, width, tuple(size == 1 for size in leaf.shape), leaf.is_contiguous()


def _as_value(arg: Any) -> Any:
    """The argument, of a norm what it reads."""
    return RMSNorm(arg.weight, arg.eps) if isinstance(arg, nn.RMSNorm) else arg
