"""What validation must leave as it finds it: random states, modes of modules, and the states of the optimiser."""

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Run a block in evaluation, without gradients; whatever it draws or switches, training goes on as if it had not run.

    Dropout is off and blocks are not checkpointed in it.

    Args:
        modules: Networks that are trained or used; each part gets its own mode back.
    """
    parts = list({id(part): part for module in modules for part in module.modules()}.values())
    flags = [
        (part, name, getattr(part, name, False)) for part in parts for name in ("training", "gradient_checkpointing")
    ]
    with _same_random_states(), torch.no_grad():
        try:
            for part, name, is_on in flags:
                if is_on is True:
                    setattr(part, name, False)
            yield
        finally:
            for part, name, is_on in flags:
                if is_on is True:
                    setattr(part, name, True)


@contextmanager
def _same_random_states() -> Iterator[None]:
    """Put the random states of Python, numpy and torch, on all devices, back when the block ends."""
    python, array = random.getstate(), np.random.get_state()
    with ExitStack() as kept:
        kept.callback(random.setstate, python)
        kept.callback(np.random.set_state, array)
        # Those of the CPU, and of all devices that there are.
        kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        devices = range(torch.accelerator.device_count()) if kind is not None else ()
        kept.enter_context(torch.random.fork_rng(devices, device_type="cuda" if kind is None else kind.type))
        yield


@contextmanager
def offloaded_states(optimizer: torch.optim.Optimizer, enabled: bool) -> Iterator[None]:
    """Keep the states of an optimiser in host memory during a block, and put them back exactly where they were.

    Args:
        optimizer: The optimiser, or what Accelerate makes of it.
        enabled: Whether to do it (`acceleration.offload_optimizer_during_validation`).
    """
    if not enabled:
        yield
        return
    tensors = [
        (state, name, value)
        for state in optimizer.state.values()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.device.type != "cpu"
    ]
    # Quantised states share tables among parameters, and go on sharing them: a tensor is told by its identity.
    distinct = {id(value): value for _, _, value in tensors}
    hosts = {key: (value.to("cpu"), value.device) for key, value in distinct.items()}
    places = [(state, name, id(value)) for state, name, value in tensors]
    for state, name, key in places:
        state[name] = hosts[key][0]
    # Nothing may hold on to the memory of the device.
    del tensors, distinct
    try:
        yield
    finally:
        returned = {key: tensor.to(device) for key, (tensor, device) in hosts.items()}
        for state, name, key in places:
            state[name] = returned[key]
