"""Trains as a process of its own: `python -m tests.training.train_script DATA OUTPUT SECTIONS` with sections as JSON.

The losses of all steps are written to `<OUTPUT>/losses.json` by the main process.
"""

import json
import sys
from pathlib import Path

import torch

from ltx2_diffusers.training.trainer import LTX2Trainer
from tests.training.running import Losses, config


def main(data: str, output: str, sections: str) -> None:
    torch.set_num_threads(1)
    trainer = LTX2Trainer(config(Path(data), Path(output), **json.loads(sections)))
    losses = Losses(trainer)
    trainer.train()
    (Path(output) / "losses.json").write_text(json.dumps(losses.values))


if __name__ == "__main__":
    main(*sys.argv[1:])
