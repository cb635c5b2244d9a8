"""Generation on a card that does not hold a network: its blocks come from host memory, or from their file, when they run.

A block of the transformer, or a layer of a language model, is on the device while it computes, and the next one is copied at
the same time. From a file, a thread reads the block after that into host memory. What is computed is what it would be with
all weights on the device. Between runs every block has its own weights again: in host memory, or as
[`~ltx2_diffusers.memory.lazy.LazyWeight`] in the file.
"""

import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial, wraps
from itertools import chain
from typing import Any, NoReturn

import torch
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from ..checkpoints.origin import Origin, origin_of
from ..checkpoints.safetensors_io import Entry
from ..checks import as_device, check_choice, is_whole
from .lazy import LazyWeight
from .slots import HostBlock, Places, Rotation, Slot, frozen, in_host_memory, is_packed, move_rest, own_tensors

SOURCES = ("ram", "disk")
_BLOCKS = "transformer_blocks"
# What a language model reads no text with.
_OTHER_TOWERS = r"vision|audio"


def stream_blocks(
    model: nn.Module, source: str = "ram", device: torch.device | str = "cpu", num_on_device: int = 2
) -> "BlockStreamer":
    """Let the blocks of a model come to the device one by one; all else of it is moved there.

    Of a language model, all else comes when it runs and goes afterwards.

    Args:
        model: A transformer of LTX-2, or a language model.
        source: Where the weights of the blocks lie: in host memory, `"ram"` (default), or in the safetensors files that the
            model was loaded from, `"disk"`; memory that they took is free again.
        device: Where the model computes, default the CPU. `model.to(device)` changes it later.
        num_on_device: Most blocks whose weights lie on the device at a time, from 1 to their number. Default 2: one
            computes, and the next one is copied.

    Raises:
        ValueError: If the model has no such blocks, is offloaded, compiled or streamed already, or its weights cannot be
            streamed from there; it is as it was then.
    """
    check_choice("source", source, SOURCES)
    device, blocks = present_device(device), check_streamable(model, num_on_device)
    origin, entries = None, None
    if source == "disk":
        origin = origin_of(model)
        entries = _equal_entries(model, origin.entries(model), list(blocks))
    return BlockStreamer(model, blocks, device, num_on_device, entries, origin)


def stop_streaming(model: nn.Module) -> None:
    """Let a model have all its weights again, in host memory; those of a file are mapped, or read if they are cast.

    Raises:
        ValueError: If the files of the weights have changed; the model is streamed as before then.
    """
    streamer = streamer_of(model)
    if streamer is not None:
        streamer.stop()


def streamer_of(model: Any) -> "BlockStreamer | None":
    """What streams a model, if anything does."""
    return getattr(model, "_block_streaming", None)


def block_list(model: nn.Module) -> str:
    """Name of the list of blocks, or layers, that most of a model's weights are in.

    Raises:
        ValueError: If it has none.
    """
    if isinstance(getattr(model, _BLOCKS, None), nn.ModuleList):
        return _BLOCKS
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else None
    count = getattr(text, "num_hidden_layers", None)
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    for name, module in lists:
        if name.split(".")[-1] == "layers" and len(module) == count and not re.search(_OTHER_TOWERS, name):
            return name
    raise ValueError(
        f"{type(model).__name__} has no list of blocks that could be streamed; stream a transformer of LTX-2 or a language model"
    )


def check_streamable(model: nn.Module, num_on_device: int) -> dict[str, nn.Module]:
    """The blocks of a model by name, after a check that they can be streamed.

    Raises:
        ValueError: If they cannot; the message says why, and what to do.
    """
    name = type(model).__name__
    if streamer_of(model) is not None:
        raise ValueError(f"the blocks of this {name} are streamed already; call disable_block_streaming() first")
    if is_compiled_module(model) or any(part._compiled_call_impl is not None for part in model.modules()):
        raise ValueError(
            f"this {name} is compiled, and compiled code does not take weights from changing places; use the model as it was "
            "before torch.compile, or leave out block streaming"
        )
    places: Any = getattr(model, "hf_device_map", None)
    if places and len(set(places.values())) > 1:
        raise ValueError(f"a `device_map` spreads this {name} over devices; load it without")
    _check_hooks(model)
    prefix = block_list(model)
    blocks = {f"{prefix}.{key}": block for key, block in model.get_submodule(prefix).named_children()}
    check_num_on_device(num_on_device, len(blocks))
    for path, block in blocks.items():
        for key, _, _, tensor in own_tensors(block):
            _check_kind(f"{path}.{key}", tensor)
    return blocks


def check_num_on_device(num_on_device: int, num_blocks: int) -> None:
    """Raise `ValueError` unless so many of a model's blocks can be on the device."""
    if not is_whole(num_on_device) or not 1 <= num_on_device <= num_blocks:
        nearest = min(max(num_on_device, 1), num_blocks) if is_whole(num_on_device) else 2
        raise ValueError(
            f"`num_on_device` has to be from 1 to {num_blocks}, the number of blocks on the device, but is "
            f"{num_on_device!r}; use {nearest}"
        )


def moving_blocks(blocks: Mapping[str, nn.Module], num_on_device: int) -> dict[str, nn.Module]:
    """The blocks that take turns: of so many on the device, all but two are the first ones, which stay."""
    return dict(list(blocks.items())[max(num_on_device - 2, 0) :])


def _check_hooks(model: nn.Module) -> None:
    for path, module in model.named_modules():
        registry = getattr(module, "_diffusers_hook", None)
        hooks = [name for name in getattr(registry, "hooks", ()) if re.search("offload|casting", name)]
        if hasattr(module, "_hf_hook") or hooks:
            kind = "casts its layers one by one" if any("casting" in hook for hook in hooks) else "is offloaded"
            raise ValueError(
                f"{type(model).__name__} {kind} ({path or 'as a whole'}), which block streaming would contradict; load it "
                "anew, or call remove_all_hooks() of the pipeline where that is enough"
            )


def _check_kind(name: str, tensor: torch.Tensor) -> None:
    kind = type(tensor)
    known = kind in (torch.Tensor, nn.Parameter, nn.Buffer, LazyWeight)
    if not known and not hasattr(tensor, "__tensor_flatten__") and not is_packed(tensor):
        raise ValueError(
            f"{name} is a {kind.__module__.split('.')[0]} {kind.__name__}, which cannot be streamed; use another "
            "quantisation, or stream the weights as they are"
        )


def _equal_entries(model: nn.Module, entries: Mapping[str, Entry], blocks: list[str]) -> dict[str, Entry]:
    """What a file has of the blocks, after a comparison with what is in memory, tensor by tensor."""
    found = {}
    for block in blocks:
        for key, _, _, tensor in own_tensors(model.get_submodule(block)):
            if _is_adapter(key):
                continue
            name = f"{block}.{key}".replace(".base_layer.", ".")
            entry = entries[name].to(tensor.dtype) if name in entries else None
            plain = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer)
            if entry is None or not plain or entry.shape != tensor.shape:
                _refuse(f"{name} is not in the file as it is in memory, as after a quantisation")
            if not tensor.is_meta and not torch.equal(entry.load().cpu(), tensor.detach().cpu()):
                _refuse(f"{name} has other values in the file, as after training, or after adapters were fused")
            found[f"{block}.{key}"] = entry
    return found


def _refuse(why: str) -> NoReturn:
    raise ValueError(f"`source` cannot be 'disk': {why}; use source='ram'")


def present_device(device: torch.device | str) -> torch.device:
    """A device of this machine, with its number if it is one of several."""
    if torch.device(as_device(device)).type == "meta":
        raise ValueError("`device` 'meta' computes nothing; use 'cpu'")
    try:
        return torch.empty(0, device=as_device(device)).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`device` {str(device)!r} cannot be used: {str(error).splitlines()[0]}; use 'cpu'") from None


def _is_adapter(name: str) -> bool:
    return "lora_" in name


class BlockStreamer(Rotation):
    """Streams the blocks of one model; made by [`stream_blocks`].

    Args:
        model: The model.
        blocks: Its blocks by name.
        device: Where it computes.
        num_on_device: Most blocks on the device; what exceeds two stays there.
        entries: The weights of the blocks in their file by name, or `None` for weights in host memory.
        origin: The files, which must not change.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[str, nn.Module],
        device: torch.device,
        num_on_device: int,
        entries: Mapping[str, Entry] | None,
        origin: Origin | None,
    ) -> None:
        self.model, self.origin, self._num_on_device = model, origin, num_on_device
        self._streamed = moving_blocks(blocks, num_on_device)
        self._rest = None if hasattr(model, _BLOCKS) else _rest_of(model, self._streamed)
        self._lock, self._depth, self._trains = threading.RLock(), 0, list[bool]()
        hosts = [self._host_block(name, block, device, entries) for name, block in self._streamed.items()]
        self._reader = _Reader(hosts) if entries is not None else None
        self._settle(hosts, device)
        self._hooks = [
            block.register_forward_pre_hook(partial(self._entering, index), prepend=True)
            for index, block in enumerate(self._streamed.values())
        ]
        for block in self._streamed.values():
            block.__dict__["_apply"] = partial(self._apply_to_block, block)
        model.__dict__["_apply"] = self._apply_to_model
        model.__dict__["forward"] = self._forward(model.forward)
        model.__dict__["_block_streaming"] = self

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._device

    @property
    def source(self) -> str:
        """Where the weights of the blocks lie, `"ram"` or `"disk"`."""
        return "ram" if self._reader is None else "disk"

    @property
    def num_on_device(self) -> int:
        """Most blocks on the device."""
        return self._num_on_device

    @contextmanager
    def running(self) -> Iterator[None]:
        """Have all but the blocks on the device as long as the block runs, over several runs of the model."""
        with self._lock:
            self._depth += 1
            try:
                if self._depth == 1:
                    self._begin()
                yield
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.vacate()
                    if self._rest is not None:
                        self._rest.leave()

    def stop(self) -> None:
        """Let the model have all its weights again, in host memory."""
        if self.origin is not None:
            self.origin.check()
        homes = [[_resident(tensor) for tensor in host.tensors] for host in self._hosts]
        for tensor, trains in zip(chain.from_iterable(homes), self._trains, strict=True):
            tensor.requires_grad_(trains)
        for hook in self._hooks:
            hook.remove()
        for host, tensors in zip(self._hosts, homes):
            host.use(tensors)
        for block in self._streamed.values():
            del block.__dict__["_apply"]
        for name in ("_apply", "forward", "_block_streaming"):
            del self.model.__dict__[name]
        self.close()

    def close(self) -> None:
        """End the thread that reads; a model that is streamed from its file cannot run any more."""
        if self._reader is not None:
            self._reader.close()

    def __reduce__(self) -> NoReturn:
        """Models that are streamed cannot be copied or pickled."""
        raise ValueError(
            "a model whose blocks are streamed cannot be copied or pickled; call disable_block_streaming() first"
        )

    def _host_block(
        self, name: str, block: nn.Module, device: torch.device, entries: Mapping[str, Entry] | None
    ) -> HostBlock:
        def home(key: str, tensor: torch.Tensor) -> torch.Tensor:
            self._trains.append(tensor.requires_grad)
            if entries is not None:
                return LazyWeight(entries[f"{name}.{key}"], isinstance(tensor, nn.Parameter))
            return _in_memory(tensor, device)

        return HostBlock(block, lambda key, _: _is_adapter(key), home)

    def _settle(self, hosts: list[HostBlock], device: torch.device) -> None:
        """Make places on a device, and move there what stays there."""
        Rotation.__init__(self, hosts, device, min(self._num_on_device, 2))
        if self._reader is not None:
            self._reader.settle(device)
        if self._rest is None:
            move_rest(self.model, device, {id(block) for block in self._streamed.values()})

    def _begin(self) -> None:
        """Before the model runs: its files are those that they were, and all that is not streamed is on the device."""
        if self.origin is not None:
            self.origin.check()
        if self._rest is not None:
            moved: dict[int, torch.Tensor] = {}
            for tensor in self._rest.tensors:
                # A tensor in two places, such as a tied embedding, is moved once.
                if id(tensor) not in moved:
                    moved[id(tensor)] = frozen(tensor, self._moved)
            self._rest.use([moved[id(tensor)] for tensor in self._rest.tensors])
        if self._device.type != "cpu":
            # Adapters are made where a layer has its weights at the time.
            for block in self._streamed.values():
                for name, parameter in block.named_parameters():
                    if _is_adapter(name) and parameter.device != self._device:
                        parameter.data = parameter.data.to(self._device)

    def _moved(self, part: torch.Tensor) -> torch.Tensor:
        # What a folder lacks, such as a vision tower, has no values.
        return part if part.is_meta else part.to(self._device, non_blocking=True)

    def _forward(self, forward: Any) -> Any:
        @wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return forward(*args, **kwargs)

        return run

    @torch.compiler.disable
    def _entering(self, index: int, block: nn.Module, _args: Any) -> None:
        """Before a block runs: have its weights here, and those of the next on their way."""
        if block._compiled_call_impl is not None:
            raise ValueError(
                "block streaming and compiled blocks exclude each other; call disable_block_streaming() first"
            )
        last = len(self._hosts) - 1
        # Within `running` the model may run again; otherwise its blocks get their own weights back now.
        following = index + 1 if index < last else (0 if self._depth > 1 else index)
        self.bring(index, following)
        if self._reader is not None:
            self._reader.read_ahead((index + 2) % len(self._hosts))

    def _load(self, index: int, slot: Slot, beside: bool) -> Slot:
        if self._reader is None:
            return super()._load(index, slot, beside)
        self._empty(slot)
        slot.assign(index, self._hosts[index])
        self._reader.submit(index, slot, self._side_stream)
        return slot

    def _apply_to_block(self, block: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:  # noqa: ARG002 (torch's)
        """What `to` and the like do to a streamed block: adapters are moved, its weights stay."""
        for name, parameter in block.named_parameters():
            if _is_adapter(name):
                parameter.data = fn(parameter.data)
        return block

    def _apply_to_model(self, fn: Any, recurse: bool = True) -> nn.Module:
        """What they do to the model: it computes on another device from now on."""
        dtype: Any = self.model.dtype
        probe = fn(torch.empty(1, dtype=dtype))
        if probe.dtype != dtype:
            raise ValueError(
                f"a model whose blocks are streamed keeps its data type {dtype}; call disable_block_streaming() before a cast to "
                f"{probe.dtype}, or load it in that type"
            )
        if self._rest is None:
            type(self.model)._apply(self.model, fn, recurse)
        if probe.device != self._device:
            hosts = self._hosts
            if self._reader is None:
                for host in hosts:
                    host.tensors = [_in_memory(tensor, probe.device) for tensor in host.tensors]
                    host.leave()
            self._settle(list(hosts), probe.device)
        return self.model


class _Reader:
    """A thread that reads blocks from their file ahead of use.

    On the CPU it reads into the slots themselves; for a card, into two places in host memory from which it copies.
    """

    def __init__(self, hosts: list[HostBlock]) -> None:
        self._hosts = hosts
        self._thread = ThreadPoolExecutor(1, "ltx2-blocks")
        self._stages: list[Slot] = []
        self._device = torch.device("cpu")

    def settle(self, device: torch.device) -> None:
        """Make places for another device."""
        self._device, count = device, 0 if device.type == "cpu" else 2
        self._stages = [Slot(self._hosts, torch.device("cpu"), device.type == "cuda") for _ in range(count)]

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    def submit(self, index: int, slot: Slot, stream: "torch.cuda.Stream | None") -> None:
        """Have a block read and copied to its slot, after all that was launched so far."""
        launched = None if stream is None else torch.cuda.current_stream(self._device).record_event()
        slot.pending = self._thread.submit(self._bring, index, slot, stream, launched)

    def read_ahead(self, index: int) -> None:
        """Have a block read that will be wanted after those that were submitted."""
        if self._stages:
            self._thread.submit(self._staged, index)

    @torch.no_grad()
    def _bring(self, index: int, slot: Slot, stream: Any, launched: Any) -> None:
        host = self._hosts[index]
        if not self._stages:
            slot.copy(host)
            return
        stage = self._staged(index)
        if stream is None:
            slot.copy_memory(stage, host)
            return
        with torch.cuda.stream(stream):
            stream.wait_event(launched)
            slot.copy_memory(stage, host)
            slot.ready = stage.ready = stream.record_event()

    @torch.no_grad()
    def _staged(self, index: int) -> Slot:
        """The place in host memory that has a block, which is read if none has."""
        stage = next((stage for stage in self._stages if stage.holds == index), None)
        if stage is None:
            stage = self._stages[0]
            if stage.ready is not None:
                stage.ready.synchronize()
                stage.ready = None
            stage.holds = None
            stage.copy(self._hosts[index])
            stage.holds = index
        # The one used last stands last.
        self._stages = [other for other in self._stages if other is not stage] + [stage]
        return stage


def _rest_of(model: nn.Module, streamed: Mapping[str, nn.Module]) -> Places:
    """All of a model but its streamed blocks."""
    rest, inside = Places(), tuple(f"{name}." for name in streamed)
    for name, owner, key, tensor in own_tensors(model):
        if not name.startswith(inside):
            rest.add(owner, key, tensor)
    return rest


def _in_memory(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return frozen(tensor, partial(in_host_memory, pinned=device.type == "cuda"))


def _resident(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, LazyWeight):
        return tensor
    values = tensor._entry.load()
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values
