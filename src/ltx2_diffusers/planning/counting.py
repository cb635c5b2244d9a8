"""Memory of tensors: what a function would hold, counted without computing it, and what it holds, measured."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

_ALLOCATION = "[memory]"
_QUESTION = torch.ops.aten._local_scalar_dense.default
_CONVOLUTION = torch.ops.aten.convolution.default


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors created while it is on and still referenced after each operation.

    Models on the meta device compute nothing, and so count at full size in no time. Their inputs may hold values on the
    CPU, which they are taken from where an operation reads both: what depends on values, such as the noise level of every
    token, then runs as it does on a device. Whether values that nobody has are true is answered with no.

    Args:
        kernels: Kind of the device, `"cpu"` or `"cuda"`, whose kernels' own memory counts too; default none of it. It is
            that of convolutions, which dwarfs what others take for themselves.
    """

    def __init__(self, kernels: str | None = None) -> None:
        super().__init__()
        self.alive = self.peak = self.operations = 0
        self.kernels = kernels
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        is_meta = has_values = False
        for tensor in tree_iter((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                # Weights and inputs were there before.
                self._know(tensor.untyped_storage())
                is_meta, has_values = is_meta or tensor.is_meta, has_values or not tensor.is_meta
        if is_meta and has_values:
            args, kwargs = tree_map(_without_values, (args, kwargs))
        if func is _QUESTION and is_meta and args[0].dtype is torch.bool:
            return False
        result = func(*args, **kwargs)
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        if self.kernels is not None:
            if func is _CONVOLUTION:
                self.peak = max(self.peak, self.alive + convolution_bytes(args, result, self.kernels))
            if func.overloadpacket in flop_registry:
                self.operations += flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
        return result

    def _know(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._seen:
            self._seen.add(key)
            # Another tensor may come to lie at its address.
            weakref.finalize(storage, self._seen.discard, key)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


def _without_values(value: Any) -> Any:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def convolution_bytes(args: tuple, result: torch.Tensor, device: str) -> int:
    """What a convolution takes for itself while it runs.

    Kernels copy input, weight and result into a layout of their own. Some of a CPU write out every window of the input;
    which it will be, PyTorch says.

    Args:
        args: Those of the operation.
        result: Its result.
        device: Kind of the device.
    """
    inputs, weight = args[:2]
    if device == "cpu":
        # No memory is touched: the choice depends on shapes and types.
        stand_ins = [torch.empty(one.shape, dtype=one.dtype, device="cpu") for one in (inputs, weight)]
        kernels: Any = torch._C
        backend = kernels._select_conv_backend(*stand_ins, None, *args[3:], [weight.shape[0]])
        if backend == kernels._ConvBackend.Slow3d:
            windows = weight[0].numel() * result.shape[0] * result[0, 0].numel()
            return windows * inputs.element_size()
    return sum(one.numel() * one.element_size() for one in (inputs, weight, result))


class FusedAttention(TorchFunctionMode):
    """Attention without values in one operation, as kernels of devices do it; PyTorch would write its scores out.

    What attentions compute is added up in `operations`.

    Args:
        kernels: Kind of the device, `"cpu"` or `"cuda"`.
    """

    def __init__(self, kernels: str) -> None:
        super().__init__()
        self.kernels, self.operations = kernels, 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3] if args else (kwargs[name] for name in ("query", "key", "value"))
        if not query.is_meta:
            return func(*args, **kwargs)
        shapes = [tuple(query.shape), *((*one.shape[:1], query.shape[1], *one.shape[2:]) for one in (key, value))]
        self.operations += sdpa_flop_count(*shapes)
        result = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]).transpose(1, 2)
        # Logarithms of sums, which the backward pass would read, and room for scores live as long as the kernel runs.
        beside = [query.new_empty(*query.shape[:3], dtype=torch.float32)]
        mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
        if mask is not None and mask.dtype is torch.bool:
            # Kernels add masks to the scores.
            beside.append(query.new_empty(mask.shape))
        if self.kernels == "cpu":
            beside.append(query.new_empty(_scores_on_cpu(query, key), dtype=torch.float32))
        del beside
        return result


def _scores_on_cpu(query: torch.Tensor, key: torch.Tensor) -> int:
    """Numbers that the threads of a CPU have room for: scores of a part, two sums a row, and a part of the result."""
    length = query.shape[2]
    rows = min(length, 256 if length >= 768 else 64 if length >= 192 else 32)
    return rows * (min(key.shape[2], 512) + 2 + query.shape[3]) * torch.get_num_threads()


class Counted(NamedTuple):
    """What a function would need.

    Args:
        peak: Most bytes of tensors alive at a time, without weights and inputs.
        operations: Additions and multiplications.
        attention: Those of them that attention makes.
    """

    peak: int
    operations: int
    attention: int = 0


def peak_bytes(run: Callable[[], Any]) -> int:
    """Highest number of tensor bytes alive between the operations of `run`, without weights and inputs."""
    with LiveTensors() as counter:
        run()
    return counter.peak


@torch.no_grad()
def counted(run: Callable[[], Any], device: str = "cuda") -> Counted:
    """What `run`, which calls models on the meta device, would need on a device of a kind, `"cuda"` (default) or `"cpu"`."""
    with FusedAttention(device) as attention, LiveTensors(device) as tensors:
        run()
    return Counted(tensors.peak, tensors.operations + attention.operations, attention.operations)


class Measured(NamedTuple):
    """What a function has held on a device, in bytes.

    Args:
        allocated: Most bytes that tensors had at a time, beyond those before the call.
        reserved: Most that PyTorch had taken from the device; on a CPU the same.
    """

    allocated: int
    reserved: int


@torch.no_grad()
def measured(run: Callable[[], Any], device: torch.device | str = "cpu") -> Measured:
    """Run a function and measure what it allocates on a device: `cpu` or one of CUDA.

    On a CPU every allocation of PyTorch is recorded, those within operations included.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _measured_on_cuda(run, device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = recorded.profiler.kineto_results.events()
    alive = peak = 0
    for _, size in sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == _ALLOCATION):
        alive += size
        peak = max(peak, alive)
    return Measured(peak, peak)


def _measured_on_cuda(run: Callable[[], Any], device: torch.device) -> Measured:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return Measured(torch.cuda.max_memory_allocated(device) - before, torch.cuda.max_memory_reserved(device))
