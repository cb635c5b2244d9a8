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
from functools import partial
from typing import Any

import torch
from torch import nn

from ...memory.slots import HostBlock, Rotation, frozen, in_host_memory, move_rest


class BlockStreaming(Rotation):
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
        self._model, self._streamed = model, blocks[num_resident:]
        hosts = [_host_block(block, device) for block in self._streamed]
        move_rest(model, device, {id(block) for block in self._streamed})
        super().__init__(hosts, device, min(num_on_device, 2))
        for index, block in enumerate(self._streamed):
            block.register_forward_pre_hook(self._entering(index))

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
        self.bring(index, self._following(index, in_backward))

    def _following(self, index: int, in_backward: bool) -> int:
        """The block that runs after this one."""
        if in_backward:
            return max(index - 1, 0)
        last = len(self._hosts) - 1
        # At the end of a pass with gradients the last block runs again; without, another pass begins.
        return index + 1 if index < last else last if torch.is_grad_enabled() else 0

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


def _host_block(block: nn.Module, device: torch.device) -> HostBlock:
    """The frozen weights of a block in host memory; what trains in it is moved to the device."""
    move = partial(in_host_memory, pinned=device.type == "cuda")
    for parameter in block.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(device)
    return HostBlock(block, lambda _, tensor: tensor.requires_grad, lambda _, tensor: frozen(tensor, move))


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
