"""Kills runs at random moments: `python -m tests.training.killed_runs DATA OUTPUT KILLS`.

Each run is a child of a process that has imported everything, so that kills meet training and saving, and goes on from the
checkpoint that the last one left, which has to load. Exit status 1, with a word why, if one does not.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.training.checkpoints import latest_checkpoint, read_progress
from ltx2_diffusers.training.trainer import LTX2Trainer
from tests.tiny_checkpoints import tiny_checkpoint
from tests.training.running import config

LONGEST_S = 600
SECTIONS = {
    "optimization": {"steps": 100000, "learning_rate": 1e-4, "scheduler_type": "constant"},
    "checkpoints": {"interval": 1, "keep_last_n": 1, "resume": "latest"},
}


def step_of(output: Path) -> int:
    """The step of the newest checkpoint, -1 if there is none."""
    found = latest_checkpoint(output / "checkpoints")
    try:
        return -1 if found is None else read_progress(found).step
    except ValueError:
        # It was removed between two looks.
        return -1


def killed(data: Path, output: Path, step: int, moment_s: float) -> None:
    """Start a run, and kill it a moment after its first checkpoint."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        LTX2Trainer(config(data, output, **SECTIONS)).train()
        os._exit(0)
    deadline = time.monotonic() + LONGEST_S
    while step_of(output) <= step:
        if os.waitpid(child, os.WNOHANG)[0] or time.monotonic() > deadline:
            sys.exit(f"a run that went on from step {step} made no checkpoint")
        time.sleep(0.005)
    time.sleep(moment_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def main(data: str, output: str, kills: str) -> None:
    torch.set_num_threads(1)
    moments, step, folder = random.Random(5), -1, Path(output)
    pipe = LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"), text_encoder=None, tokenizer=None)
    for _ in range(int(kills)):
        killed(Path(data), folder, step, moments.uniform(0, 0.4))
        checkpoint = latest_checkpoint(folder / "checkpoints")
        reached = read_progress(checkpoint).step
        if reached <= step:
            sys.exit(f"step {step} was lost; the newest checkpoint is {checkpoint}")
        step = reached
        pipe.load_lora_weights(checkpoint, adapter_name="killed")
        pipe.delete_adapters("killed")
        if not load_file(checkpoint / "training_state" / "trained.safetensors"):
            sys.exit(f"{checkpoint} holds no weights")
    visible = [path.name for path in (folder / "checkpoints").iterdir() if not path.name.startswith(".")]
    # One that was about to be removed may stand beside the newest.
    if len(visible) > 2:
        sys.exit(f"checkpoints pile up: {visible}")
    print(f"{kills} kills, the last one at step {step}; left: {sorted(visible)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
