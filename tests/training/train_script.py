"""Trains as a process of its own: `python -m tests.training.train_script DATA OUTPUT SECTIONS` with sections as JSON.

The losses of all steps are written to `<OUTPUT>/losses.json` by the main process. With `ACCELERATE_USE_FSDP=true` and the
other variables that `accelerate launch` sets, processes share the weights; Accelerate itself does so on accelerators alone.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from ltx2_diffusers.training.trainer import LTX2Trainer
from tests.training.running import Losses, config


class ShardedTrainer(LTX2Trainer):
    """A trainer whose processes share the weights, on the CPU."""

    def _accelerator(self) -> Accelerator:
        accelerator = super()._accelerator()
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        # Every state that is asked for copies it from there.
        accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        return accelerator


def main(data: str, output: str, sections: str) -> None:
    torch.set_num_threads(1)
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    trainer = (ShardedTrainer if sharded else LTX2Trainer)(config(Path(data), Path(output), **json.loads(sections)))
    losses = Losses(trainer)
    trainer.train()
    (Path(output) / "losses.json").write_text(json.dumps(losses.values))


if __name__ == "__main__":
    main(*sys.argv[1:])
