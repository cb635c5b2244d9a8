"""The blocks of a transformer recorded once and replayed: a CUDA graph launches all their kernels at once.

A graph reads and writes the memory that it was recorded with. So everything that blocks are given is copied into buffers
that stay where they are, what they make is copied out, and a graph is replayed for nothing else than what it was recorded
for: the same passes, sizes, types and settings, and weights that are where they were. What cannot be replayed runs as it is
written, and a message says why.
"""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from diffusers.models import attention_dispatch
from diffusers.utils import logging
from torch import nn

from ..checks import check_at_least_one
from ..kernels.fusing import fuses
from .tensor_memo import TensorMemo
from .text_cache import TextCache

logger = logging.get_logger(__name__)

MOST_GRAPHS = 8
_ATTRIBUTE = "_block_graphs"
# Compilers and libraries choose kernels and take memory in the first run, which must not be recorded.
_WARM_UPS = 2

Tokens = tuple[torch.Tensor, torch.Tensor]
Loop = Callable[[Any, list[Tokens], range], list[Tokens]]


class Recording(NamedTuple):
    """What was recorded.

    Args:
        outputs (`list[tuple[torch.Tensor, torch.Tensor]]`): What the recorded function returned; a replay writes it anew.
        replay (`Callable`): Computes it from what stands in the memory that the function read.
    """

    outputs: list[Tokens]
    replay: Callable[[], None]


class Recorder(Protocol):
    """Records functions that read memory which stays where it is."""

    device_type: str

    def record(self, run: Callable[[], list[Tokens]], device: torch.device) -> Recording:
        """Record what `run` does on a device; nothing has to be computed yet."""


class CudaRecorder:
    """Records CUDA graphs, all of which share the memory of what is only needed within one."""

    device_type = "cuda"

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, run: Callable[[], list[Tokens]], device: torch.device) -> Recording:
        """The graph of `run`."""
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on with what they do on the device.
            with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
                outputs = run()
        self._pool = graph.pool()
        return Recording(outputs, graph.replay)


class _Buffer:
    """Memory that graphs read, and what was copied there last."""

    def __init__(self, like: torch.Tensor) -> None:
        # What is made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            self.tensor = torch.empty_like(like, requires_grad=False)
        self._source: tuple[weakref.ref, int] | None = None

    def take(self, source: torch.Tensor) -> None:
        """Copy a tensor, unless it stands here already: positions and texts are the same in all steps."""
        if not TensorMemo.can_remember(source):
            self._source = None
        elif self._source is not None and self._source[0]() is source and self._source[1] == source._version:
            return
        else:
            self._source = weakref.ref(source), source._version
        self.tensor.copy_(source)


class _Graph(NamedTuple):
    recording: Recording
    buffers: list[_Buffer]


class BlockGraphs:
    """The graphs of one transformer.

    Args:
        recorder ([`Recorder`]): Records them.
        most (`int`, defaults to 8): How many are kept; the one that was not used for longest is given up for another.

    Attributes:
        recorded, replayed: How many were recorded and how often graphs were replayed.
    """

    def __init__(self, recorder: Recorder, most: int = MOST_GRAPHS) -> None:
        self.recorder, self.most = recorder, most
        self.recorded = self.replayed = 0
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        # Graphs of several sizes read the same text from the same memory.
        self._buffers: weakref.WeakValueDictionary[Hashable, _Buffer] = weakref.WeakValueDictionary()
        self._weights: Hashable = None
        self._told: set[str] = set()
        self._lock = threading.Lock()

    @property
    def kept(self) -> int:
        """How many graphs there are."""
        return len(self._graphs)

    def run(
        self, blocks: nn.ModuleList, loop: Loop, prepared: Any, states: list[Tokens], indices: range
    ) -> list[Tokens]:
        """What `loop(prepared, states, indices)` returns, in memory of its own."""
        device = states[0][0].device
        weights = self._recordable(blocks, prepared, device) if indices else None
        if weights is None:
            return loop(prepared, states, indices)
        with self._lock:
            if weights != self._weights:
                # Graphs have the addresses of weights and the strengths of adapters in them.
                self._graphs.clear()
                self._weights = weights
            given = _Given(prepared, states)
            key = given.key, indices, fuses(states[0][0]), _attention_setting()
            graph = self._graphs.get(key)
            if graph is None:
                buffers = [self._buffer(place, tensor) for place, tensor in enumerate(given.tensors)]
            else:
                buffers = graph.buffers
                self._graphs.move_to_end(key)
            for buffer, tensor in zip(buffers, given.tensors):
                buffer.take(tensor)
            if graph is None:
                graph = self._record(key, loop, given.within(buffers), indices, buffers, device)
            graph.recording.replay()
            self.replayed += 1
            # The next replay writes where this one did.
            outputs = graph.recording.outputs
            own = {id(state): (state[0].clone(), state[1].clone()) for state in outputs}
            return [own[id(state)] for state in outputs]

    def _buffer(self, place: int, tensor: torch.Tensor) -> _Buffer:
        key = place, *_kind(tensor)
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = self._buffers[key] = _Buffer(tensor)
        return buffer

    def _record(
        self,
        key: Hashable,
        loop: Loop,
        within: tuple[Any, list[Tokens]],
        indices: range,
        buffers: list[_Buffer],
        device: torch.device,
    ) -> _Graph:
        while len(self._graphs) >= self.most:
            self._graphs.popitem(last=False)
        graph = _Graph(self.recorder.record(lambda: loop(*within, indices), device), buffers)
        self._graphs[key] = graph
        self.recorded += 1
        return graph

    def _recordable(self, blocks: nn.ModuleList, prepared: Any, device: torch.device) -> tuple | None:
        """What of the blocks stands in a graph; `None` where a call cannot be replayed, as one that fills its text's cache."""
        is_watched = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled(device.type)
        if is_watched or not all(_is_filled(prepared, len(blocks))):
            return None
        try:
            return _weights_of(blocks, device, self.recorder.device_type)
        except _NotRecordableError as error:
            reason = str(error)
        if reason not in self._told:
            logger.warning(f"blocks run as they are written, without CUDA graphs: {reason}")
        self._told.add(reason)
        return None

    def __reduce__(self) -> tuple:
        """What is copied and pickled records anew."""
        return BlockGraphs, (type(self.recorder)(), self.most)


class _Given:
    """What blocks are given, as a list of tensors and a key of all else.

    Args:
        prepared: Of a forward pass.
        states: Tokens of every variant; the same object for variants that are equal so far.
    """

    def __init__(self, prepared: Any, states: Sequence[Tokens]) -> None:
        self.prepared, self.depth = prepared, len(prepared.variants[0])
        unique = list({id(state): state for state in states}.values())
        self.order = tuple(next(i for i, one in enumerate(unique) if one is state) for state in states)
        # Texts first, so that they have the same places whatever follows.
        texts = [_slots(cache, self.depth) for cache in prepared.text_caches]
        self.parts = texts, unique, prepared.contexts, prepared.inputs, prepared.variants
        self._places: dict[int, int] = {}
        self.tensors: list[torch.Tensor] = []
        self.key = self.order, self._described(self.parts)

    def _described(self, value: Any) -> Hashable:
        """What a graph depends on beside the values of tensors, which are noted; equal tensors are one."""
        if isinstance(value, torch.Tensor):
            if id(value) not in self._places:
                self._places[id(value)] = len(self.tensors)
                self.tensors.append(value)
            return self._places[id(value)], *_kind(value)
        return tuple(map(self._described, value)) if isinstance(value, (tuple, list)) else value

    def within(self, buffers: Sequence[_Buffer]) -> tuple[Any, list[Tokens]]:
        """The same with every tensor in its buffer."""
        texts, unique, contexts, inputs, variants = (self._placed(part, buffers) for part in self.parts)
        caches = tuple(_cache_of(slots) for slots in texts)
        prepared = self.prepared._replace(contexts=contexts, inputs=inputs, variants=variants, text_caches=caches)
        return prepared, [unique[index] for index in self.order]

    def _placed(self, value: Any, buffers: Sequence[_Buffer]) -> Any:
        if isinstance(value, torch.Tensor):
            return buffers[self._places[id(value)]].tensor
        if not isinstance(value, (tuple, list)):
            return value
        parts = [self._placed(part, buffers) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def _slots(cache: TextCache | None, depth: int) -> list | None:
    """Keys and values of a text for both streams of every block."""
    if cache is None:
        return None
    slots = [cache.slot(stream, index) for stream in ("video", "audio") for index in range(depth)]
    return [(slot.key, slot.value) for slot in slots]


def _cache_of(slots: list | None) -> TextCache | None:
    if slots is None:
        return None
    cache, depth = TextCache(), len(slots) // 2
    for place, (key, value) in enumerate(slots):
        slot = cache.slot("video" if place < depth else "audio", place % depth)
        slot.key, slot.value = key, value
    return cache


def _is_filled(prepared: Any, depth: int) -> Iterator[bool]:
    """For every text that is kept, whether the blocks that read it will find it."""
    reads = prepared.variants[0][0].video, prepared.variants[0][0].audio
    for cache in prepared.text_caches:
        for stream in (name for name, is_read in zip(("video", "audio"), reads) if is_read and cache is not None):
            yield all(cache.slot(stream, index).key is not None for index in range(depth))


def _kind(tensor: torch.Tensor) -> tuple[Hashable, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _attention_setting() -> Hashable:
    return attention_dispatch._AttentionBackendRegistry.get_active_backend()[0]


class _NotRecordableError(ValueError):
    """Why blocks cannot be recorded now."""


def _weights_of(blocks: nn.ModuleList, device: torch.device, device_type: str) -> tuple:
    """What of the blocks stands in a graph: where their weights are, their parts, adapters and attention kernels."""
    if device.type != device_type:
        raise _NotRecordableError(f"the transformer computes on {device}")
    state: list[Any] = []
    for module in blocks.modules():
        settings = module.__dict__
        _check_hooks(module, settings)
        state.append(id(module))
        for tensor in (*settings["_parameters"].values(), *settings["_buffers"].values()):
            # Quantised weights of other libraries have no address of their own.
            has_address = type(tensor) is nn.Parameter or type(tensor) is torch.Tensor
            state.append(tensor.data_ptr() if has_address else id(tensor))
        if (processor := settings.get("processor")) is not None:
            if getattr(processor, "_parallel_config", None) is not None:
                raise _NotRecordableError("its tokens are shared among processes")
            state += [id(processor), getattr(processor, "_attention_backend", None)]
        # Compiled code, and how a block looks at its sound.
        state += [id(settings[name]) for name in ("forward", "audio_view") if name in settings]
        if "scaling" in settings:
            # Strengths of hot-swapped adapters are tensors, which graphs read.
            strengths = ((k, id(v) if isinstance(v, torch.Tensor) else v) for k, v in settings["scaling"].items())
            state += [*strengths, *(repr(settings.get(name)) for name in _ADAPTER_SETTINGS)]
    return tuple(state)


# Of layers with adapters: which act.
_ADAPTER_SETTINGS = ("_active_adapter", "_disable_adapters", "merged_adapters")


def _check_hooks(module: nn.Module, settings: dict[str, Any]) -> None:
    registry = settings.get("_diffusers_hook")
    if "_hf_hook" in settings or (registry is not None and registry.hooks):
        raise _NotRecordableError(f"offloading, a cache of layers or casting has hooks on {type(module).__name__}")
    if settings["_forward_hooks"] or settings["_forward_pre_hooks"]:
        raise _NotRecordableError(
            f"{type(module).__name__} has hooks, as of block streaming or of an observer, which a graph would not call"
        )


def graphs_of(model: Any) -> BlockGraphs | None:
    """The graphs of a transformer, if its blocks are recorded."""
    return getattr(model, _ATTRIBUTE, None)


def record_blocks(model: nn.Module, most_graphs: int = MOST_GRAPHS, recorder: Recorder | None = None) -> None:
    """Record the blocks of a transformer when they run, and replay them from then on; results are the same.

    Args:
        model: An `LTX2AVTransformer3DModel` on a CUDA device.
        most_graphs: Most graphs that are kept, at least 1. Default 8.
        recorder: What records; default CUDA graphs.

    Raises:
        ValueError: If the blocks cannot be recorded, or `most_graphs` is less than 1.
    """
    check_at_least_one(most_graphs=most_graphs)
    recorder = recorder or CudaRecorder()
    device = next(model.parameters()).device
    try:
        _weights_of(model.transformer_blocks, device, recorder.device_type)  # type: ignore[arg-type]
    except _NotRecordableError as error:
        raise ValueError(
            f"the blocks of this {type(model).__name__} cannot be recorded as CUDA graphs: {error}; have all its weights on a card "
            "by to('cuda'), without offloading, streaming and hooks"
        ) from None
    setattr(model, _ATTRIBUTE, BlockGraphs(recorder, most_graphs))


def stop_recording(model: nn.Module) -> None:
    """Run blocks as they are written again, and give the graphs up."""
    model.__dict__.pop(_ATTRIBUTE, None)
