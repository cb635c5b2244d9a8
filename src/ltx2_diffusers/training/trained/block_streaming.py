"""Training on a card that does not hold the transformer: its frozen blocks lie in host memory and come when they run.

Gradient checkpointing runs every block twice, in the forward pass and again, from the last block to the first, within the
backward pass. A block's frozen weights are on the device while it runs; the next one is copied at the same time. What a
block's backward reads of them lies in the same place on the device until the block before it begins to run again, which is
after the backward of this block, since autograd visits operations in the opposite order of their making. Adapters, and all
else that trains, stay on the device.

The library's own group offloading does not do: it moves adapters too and brings their old values back, it prefetches in
forward order alone, and a recomputation that ends early, as it does under checkpointing, leaves blocks on the device.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn


class BlockStreaming:
    """Keeps the frozen weights of a model's blocks in host memory, and brings them to the device block by block.

    Losses and gradients are exactly those without it. With more than one block on the device, copies run beside the
    computation; with more than two, all but two of them stay there.

    Args:
        model: A model with `transformer_blocks` of one kind, frozen but for what trains; moved to the device, all but these
            blocks. It must run with gradient checkpointing.
        device: Where it runs.
        num_on_device: Most blocks whose frozen weights lie on the device at a time, from 1 to below the number of blocks.

    Raises:
        ValueError: If the number is out of range, the blocks differ, or there is no gradient checkpointing.
    """

    def __init__(self, model: nn.Module, device: torch.device, num_on_device: int) -> None:
        blocks = _blocks(model)
        _check(model, blocks, num_on_device)
        # Those of the first blocks that stay.
        num_resident = max(num_on_device - 2, 0)
        self._model, self._device, self._streamed = model, device, blocks[num_resident:]
        self._blocks = [_HostBlock(block, device) for block in self._streamed]
        _move_rest(model, device, {id(block) for block in self._streamed})
        self._slots = [_Slot(self._blocks[0], device) for _ in range(min(num_on_device, 2))]
        self._side_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for index, block in enumerate(self._streamed):
            block.register_forward_pre_hook(self._entering(index))

    @property
    def on_device(self) -> list[int]:
        """The streamed blocks whose weights are on the device, by their place among the streamed ones."""
        return [slot.holds for slot in self._slots if slot.holds is not None]

    def _entering(self, index: int) -> Callable[..., None]:
        def enter(_block: nn.Module, _args: Any) -> None:
            self._enter(index)

        return enter

    @torch.compiler.disable
    def _enter(self, index: int) -> None:
        """Before a block runs: have its weights here, and those of the next on their way."""
        # Set by the engine for as long as a backward pass runs.
        in_backward = torch._C._current_graph_task_id() != -1
        if torch.is_grad_enabled() and not getattr(self._model, "gradient_checkpointing", False):
            raise ValueError("block streaming needs gradient checkpointing; call enable_gradient_checkpointing()")
        slot = self._slot_with(index) or self._load(index, self._slots[0], beside=False)
        # The one used last stands last.
        self._slots = [other for other in self._slots if other is not slot] + [slot]
        slot.wait(self._device)
        following = self._following(index, in_backward)
        if len(self._slots) > 1 and following != index and self._slot_with(following) is None:
            self._load(following, self._slots[0], beside=True)

    def _following(self, index: int, in_backward: bool) -> int:
        """The block that runs after this one."""
        if in_backward:
            return max(index - 1, 0)
        last = len(self._blocks) - 1
        # At the end of a pass with gradients the last block runs again; without, another pass begins.
        return index + 1 if index < last else last if torch.is_grad_enabled() else 0

    def _slot_with(self, index: int) -> "_Slot | None":
        return next((slot for slot in self._slots if slot.holds == index), None)

    def _load(self, index: int, slot: "_Slot", beside: bool) -> "_Slot":
        """Copy a block's weights into a slot, on the side stream if `beside` the computation."""
        if slot.holds is not None:
            self._blocks[slot.holds].leave()
        stream = self._side_stream if beside else None
        if stream is None:
            # A copy that nothing needed may still be on its way into the slot.
            slot.wait(self._device)
        else:
            # All that was launched so far may still read the slot.
            stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream) if stream is not None else nullcontext():
            slot.fill(index, self._blocks[index])
            slot.ready = stream.record_event() if stream is not None else None
        return slot

    def leave_out_of_ddp(self, network: nn.Module) -> None:
        """Keep data parallelism from sending weights that every process has read, from memory that it cannot send.

        Args:
            network: The module that is going to be wrapped, with the model somewhere in it.
        """
        streamed = {id(module) for block in self._streamed for module in block.modules()}
        names = [
            f"{path}.{name}" if path else name
            for path, module in network.named_modules()
            if id(module) in streamed
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            if not tensor.requires_grad
        ]
        network._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]  # read by torch


class _HostBlock:
    """The frozen weights of one block, in host memory, and where they belong.

    Args:
        block: The block; what trains in it is moved to the device.
        device: The device.
    """

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self.places: list[tuple[dict[str, Any], str]] = []
        self.tensors: list[torch.Tensor] = []
        for module in block.modules():
            own: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for owner, name, tensor in [(o, n, t) for o in own for n, t in o.items() if t is not None]:
                if tensor.requires_grad:
                    tensor.data = tensor.data.to(device)
                    continue
                owner[name] = _frozen(tensor, _pinned if device.type == "cuda" else _in_memory)
                self.places.append((owner, name))
                self.tensors.append(owner[name])

    def use(self, tensors: list[torch.Tensor]) -> None:
        """Let the block compute with other tensors."""
        for (owner, name), tensor in zip(self.places, tensors, strict=True):
            owner[name] = tensor

    def leave(self) -> None:
        """Let the block have its own tensors again."""
        self.use(self.tensors)


class _Slot:
    """Memory for the frozen weights of one block on the device.

    Args:
        pattern: A block of the kind that it is for.
        device: The device.
    """

    def __init__(self, pattern: _HostBlock, device: torch.device) -> None:
        self.tensors = [_frozen(t, lambda part: torch.empty_like(part, device=device)) for t in pattern.tensors]
        self._parts = [part for tensor in self.tensors for part in _parts(tensor)]
        self.holds: int | None = None
        self.ready: torch.cuda.Event | None = None

    def fill(self, index: int, block: _HostBlock) -> None:
        """Copy a block's weights here and let it use them."""
        parts = [part for tensor in block.tensors for part in _parts(tensor)]
        for own, part in zip(self._parts, parts, strict=True):
            own.copy_(part, non_blocking=True)
        block.use(self.tensors)
        self.holds = index

    def wait(self, device: torch.device) -> None:
        """Let the computation wait for the copy."""
        if self.ready is not None:
            torch.cuda.current_stream(device).wait_event(self.ready)
            self.ready = None


def _blocks(model: nn.Module) -> list[nn.Module]:
    return list(model.get_submodule("transformer_blocks").children())


def _check(model: nn.Module, blocks: list[nn.Module], num_on_device: int) -> None:
    num_blocks = len(blocks)
    if not 1 <= num_on_device < num_blocks:
        raise ValueError(
            f"`acceleration.block_streaming` has to be from 1 to {num_blocks - 1}, the number of blocks on the device, but is "
            f"{num_on_device}; use {min(max(num_on_device, 1), num_blocks - 1)}, or 0 to have all there"
        )
    if not getattr(model, "gradient_checkpointing", False):
        raise ValueError(
            "`acceleration.block_streaming` needs `optimization.enable_gradient_checkpointing: true`: without it every "
            "block's weights would be held for the backward pass"
        )
    kinds = {
        tuple((tuple(t.shape), t.dtype, type(t)) for t in block.parameters() if not t.requires_grad)
        for block in blocks
    }
    if len(kinds) > 1:
        raise ValueError("block streaming needs blocks whose frozen weights are of the same sizes and types")


def _move_rest(model: nn.Module, device: torch.device, streamed: set[int]) -> None:
    """Move all of a model but its streamed blocks."""
    for name, child in model.named_children():
        if name != "transformer_blocks":
            child.to(device)
    for block in _blocks(model):
        if id(block) not in streamed:
            block.to(device)
    for tensors in (model._parameters, model._buffers):
        for tensor in tensors.values():
            if tensor is not None:
                tensor.data = tensor.data.to(device)


def _frozen(tensor: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A frozen parameter or buffer whose plain tensors are changed ones."""
    changed = _changed(tensor, change)
    return nn.Parameter(changed, requires_grad=False) if isinstance(tensor, nn.Parameter) else changed


def _changed(tensor: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    if not hasattr(tensor, "__tensor_flatten__"):
        return change(tensor.detach())
    # A quantised tensor is made of several plain ones.
    names, context = tensor.__tensor_flatten__()
    inner = {name: _changed(getattr(tensor, name), change) for name in names}
    return type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())  # type: ignore[attr-defined]


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a tensor is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.detach()]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


def _pinned(part: torch.Tensor) -> torch.Tensor:
    return part.cpu().pin_memory()


def _in_memory(part: torch.Tensor) -> torch.Tensor:
    return part.cpu()
