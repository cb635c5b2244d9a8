"""Blocks whose weights lie elsewhere, and the few places on the device in which they take turns."""

import math
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from functools import cached_property
from typing import Any, TypeGuard

import torch
from torch import nn

from .lazy import LazyWeight

# Kernels and copies like tensors that begin at such places; memory of the allocators begins there itself.
_ALIGNMENT = 256
Change = Callable[[torch.Tensor], torch.Tensor]


class Places:
    """Where parameters and buffers belong, and those that are there when nobody else uses the places."""

    def __init__(self) -> None:
        self.places: list[tuple[dict[str, Any], str]] = []
        self.tensors: list[torch.Tensor] = []

    def add(self, owner: dict[str, Any], name: str, tensor: torch.Tensor) -> None:
        """Note a place; the tensor is put there."""
        owner[name] = tensor
        self.places.append((owner, name))
        self.tensors.append(tensor)

    def use(self, tensors: Sequence[torch.Tensor]) -> None:
        """Let the modules compute with other tensors."""
        for (owner, name), tensor in zip(self.places, tensors, strict=True):
            owner[name] = tensor

    def leave(self) -> None:
        """Let the modules have their own tensors again."""
        self.use(self.tensors)


class HostBlock(Places):
    """The weights of one block off the device, and where they belong.

    Args:
        block: The block.
        stays: Whether a tensor of it, by name, stays in the block and is left alone.
        home: What lies off the device in place of a tensor, by name.
    """

    def __init__(
        self,
        block: nn.Module,
        stays: Callable[[str, torch.Tensor], bool],
        home: Callable[[str, torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        for name, owner, key, tensor in own_tensors(block):
            if not stays(name, tensor):
                self.add(owner, key, home(name, tensor))

    @cached_property
    def layout(self) -> Hashable:
        """Equal for blocks whose tensors are of the same kinds and sizes."""
        return tuple(
            (tuple(t.shape), t.dtype, type(t), getattr(t, "quant_type", None), _plain(t)) for t in self.tensors
        )

    @cached_property
    def num_bytes(self) -> int:
        """What a [`Slot`] for it has to hold."""
        return sum(_padded(part) for tensor in self.tensors for part in parts(tensor))


class Slot:
    """Memory for the weights of one block.

    Args:
        blocks: Those that it has to hold, one at a time.
        device: Where it is.
        pinned: Whether it is host memory from which a card copies by itself. Default `False`.
    """

    def __init__(self, blocks: Sequence[HostBlock], device: torch.device, pinned: bool = False) -> None:
        size = max(block.num_bytes for block in blocks)
        self._memory = torch.empty(size, dtype=torch.uint8, device=device, pin_memory=pinned)
        self._laid_out: dict[Hashable, list[torch.Tensor]] = {}
        self.tensors = self._tensors_for(blocks[0])
        self.holds: int | None = None
        self.ready: torch.cuda.Event | None = None
        self.pending: Future | None = None

    def _tensors_for(self, block: HostBlock) -> list[torch.Tensor]:
        """The same tensors for all blocks of one layout."""
        key = block.layout
        if key not in self._laid_out:
            at = 0

            def place(part: torch.Tensor) -> torch.Tensor:
                nonlocal at
                start, at = at, at + _padded(part)
                flat = self._memory[start : start + part.numel() * part.dtype.itemsize].view(part.dtype)
                return flat.as_strided(part.shape, _strides(part))

            self._laid_out[key] = [frozen(tensor, place) for tensor in block.tensors]
        return self._laid_out[key]

    def assign(self, index: int, block: HostBlock) -> None:
        """Let a block use this memory."""
        self.tensors = self._tensors_for(block)
        self.holds = index
        block.use(self.tensors)

    def copy(self, block: HostBlock) -> None:
        """Copy the weights of a block that it is assigned to, or laid out for."""
        for own, tensor in zip(self._tensors_for(block), block.tensors, strict=True):
            for part, other in zip(parts(own), parts(tensor), strict=True):
                part.copy_(other, non_blocking=True)

    def copy_memory(self, other: "Slot", block: HostBlock) -> None:
        """The same from another slot that has them, all at once."""
        self._memory[: block.num_bytes].copy_(other._memory[: block.num_bytes], non_blocking=True)

    def fill(self, index: int, block: HostBlock) -> None:
        """Copy a block's weights here and let it use them."""
        self.assign(index, block)
        self.copy(block)

    def wait(self, device: torch.device) -> None:
        """Let the computation wait for the copy."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()
        if self.ready is not None:
            torch.cuda.current_stream(device).wait_event(self.ready)
            self.ready = None


class Rotation:
    """Blocks that take turns in a few slots; with two, one is copied while the other computes.

    Args:
        hosts: The weights of the blocks off the device.
        device: Where they compute.
        num_slots: Slots, 1 or 2.
    """

    def __init__(self, hosts: Sequence[HostBlock], device: torch.device, num_slots: int) -> None:
        self._hosts, self._device = hosts, device
        self._slots = [Slot(hosts, device) for _ in range(num_slots)]
        self._side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def on_device(self) -> list[int]:
        """The streamed blocks whose weights are on the device, by their place among the streamed ones."""
        return [slot.holds for slot in self._slots if slot.holds is not None]

    def bring(self, index: int, following: int) -> None:
        """Have the weights of a block here, and those of the following one on their way, if it is another."""
        slot = self._slot_with(index) or self._load(index, self._slots[0], beside=False)
        # The one used last stands last.
        self._slots = [other for other in self._slots if other is not slot] + [slot]
        try:
            slot.wait(self._device)
        except BaseException:
            # What was not read must not be taken for what is there.
            self._empty(slot)
            raise
        if len(self._slots) > 1 and following != index and self._slot_with(following) is None:
            self._load(following, self._slots[0], beside=True)

    def vacate(self) -> None:
        """Let all blocks have their own weights again."""
        for slot in self._slots:
            self._empty(slot)

    def _empty(self, slot: Slot) -> None:
        if slot.holds is not None:
            self._hosts[slot.holds].leave()
            slot.holds = None

    def _slot_with(self, index: int) -> Slot | None:
        return next((slot for slot in self._slots if slot.holds == index), None)

    def _load(self, index: int, slot: Slot, beside: bool) -> Slot:
        """Copy a block's weights into a slot, on the side stream if `beside` the computation."""
        self._empty(slot)
        stream = self._side_stream if beside else None
        if stream is None:
            # A copy that nothing needed may still be on its way into the slot.
            slot.wait(self._device)
        else:
            # All that was launched so far may still read the slot.
            stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            slot.fill(index, self._hosts[index])
            slot.ready = stream.record_event() if stream is not None else None
        return slot


def is_packed(tensor: torch.Tensor) -> TypeGuard[Any]:
    """Whether a tensor is a packed weight of a GGUF file."""
    # diffusers' module needs the gguf package; where nobody has loaded it, there are no such weights.
    module = sys.modules.get("diffusers.quantizers.gguf.utils")
    return module is not None and isinstance(tensor, module.GGUFParameter)


def own_tensors(module: nn.Module) -> Iterator[tuple[str, dict[str, Any], str, torch.Tensor]]:
    """Name, owner, name in the owner, and tensor of every parameter and buffer, shared ones as often as they are used."""
    for path, part in list(module.named_modules()):
        own: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for owner, key, tensor in [(o, k, t) for o in own for k, t in o.items() if t is not None]:
            yield f"{path}.{key}" if path else key, owner, key, tensor


def frozen(tensor: torch.Tensor, change: Change) -> torch.Tensor:
    """A frozen parameter or buffer whose plain tensors are changed ones."""
    if is_packed(tensor):
        # It is a parameter that knows how it is packed.
        return type(tensor)(change(tensor.as_tensor()), requires_grad=False, quant_type=tensor.__dict__["quant_type"])
    changed = _changed(tensor, change)
    return nn.Parameter(changed, requires_grad=False) if isinstance(tensor, nn.Parameter) else changed


def _changed(tensor: torch.Tensor, change: Change) -> torch.Tensor:
    if not hasattr(tensor, "__tensor_flatten__"):
        return change(tensor if isinstance(tensor, LazyWeight) else tensor.detach())
    # A quantised tensor is made of several plain ones.
    names, context = tensor.__tensor_flatten__()
    inner = {name: _changed(getattr(tensor, name), change) for name in names}
    return type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())  # type: ignore[attr-defined]


def parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a tensor is made of; one in a file is not read by this."""
    if isinstance(tensor, LazyWeight):
        return [tensor]
    if is_packed(tensor):
        return [tensor.as_tensor()]
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.detach()]
    return [part for name in tensor.__tensor_flatten__()[0] for part in parts(getattr(tensor, name))]


def _plain(tensor: torch.Tensor) -> Hashable:
    return tuple((tuple(part.shape), _strides(part), part.dtype) for part in parts(tensor))


def in_host_memory(part: torch.Tensor, pinned: bool) -> torch.Tensor:
    """A plain tensor in host memory, from which a card copies by itself if it is pinned."""
    return part.cpu().pin_memory() if pinned else part.cpu()


def move_rest(model: nn.Module, device: torch.device, streamed: set[int]) -> None:
    """Move all of a model but its streamed blocks, given by identity."""
    for child in model.children():
        if id(child) not in streamed:
            move_rest(child, device, streamed)
    for tensors in (model._parameters, model._buffers):
        for tensor in tensors.values():
            if tensor is not None and tensor.device != device:
                tensor.data = tensor.data.to(device)


def _padded(part: torch.Tensor) -> int:
    return math.ceil(part.numel() * part.dtype.itemsize / _ALIGNMENT) * _ALIGNMENT


def _strides(part: torch.Tensor) -> tuple[int, ...]:
    """Those of a dense tensor are kept."""
    if isinstance(part, LazyWeight):
        return torch.empty(part.shape, device="meta").stride()
    return torch.empty_like(part, device="meta").stride()
