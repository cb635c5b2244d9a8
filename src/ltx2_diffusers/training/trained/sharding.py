"""Weights that FSDP spreads over processes: what a run may ask for then, how they are whole again, and how they are set.

This is the second version of FSDP, which cuts every parameter by itself and lets frozen and trained ones have types of their
own. The first one keeps gradients of frozen weights and needs all of a block in float32.
"""

from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

if TYPE_CHECKING:
    from ..config import TrainingConfig

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether processes share the weights."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def check_sharding(config: "TrainingConfig", accelerator: Accelerator) -> None:
    """Raise `ValueError` for what cannot be done with weights that FSDP has cut to pieces; nothing is loaded yet."""
    if not is_sharded(accelerator):
        return
    if not getattr(accelerator, "is_fsdp2", False):
        raise ValueError(
            "training needs the second version of FSDP; set `fsdp_version: 2` in the launch file (Accelerate 1.6 or newer)"
        )
    section, acceleration = config.optimization, config.acceleration
    if section.ema_decay is not None:
        raise ValueError("optimization.ema_decay cannot follow weights that FSDP has cut to pieces; set it to null")
    if section.optimizer_type != "adamw":
        raise ValueError(
            f"optimization.optimizer_type {section.optimizer_type!r} cannot step weights that FSDP has cut to pieces; use 'adamw'"
        )
    for name in ("quantization", "block_streaming"):
        if getattr(acceleration, name):
            raise ValueError(
                f"acceleration.{name} does not go with FSDP, which spreads the weights itself; leave it out"
            )


def set_types(accelerator: Accelerator) -> None:
    """Let FSDP compute in the type of mixed precision, add gradients in float32, and leave inputs as they are.

    By default it would bring positions and noise levels into half precision, too.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=_TYPES.get(accelerator.mixed_precision), reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter as one plain tensor; where it is cut to pieces, all processes have to ask."""
    gather = getattr(parameter, "full_tensor", None)
    return (parameter if gather is None else gather()).detach()


@torch.no_grad()
def fill(parameter: nn.Parameter, value: torch.Tensor) -> None:
    """Give a parameter, or the piece of it that this process holds, its part of a whole tensor."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor):
        local = value.to(parameter.device, parameter.dtype)
        # Every process has the whole and cuts its own piece.
        value = distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(value)
