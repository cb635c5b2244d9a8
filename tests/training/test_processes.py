"""Runs in processes of their own: two that share a batch, and some that are killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.running import stored_samples

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
ALONE = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def started(data, output, processes=1, environment=None, **sections):
    """A run in one process, or in several that share its batches, with variables of the environment on top."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "tests.training.train_script", str(data), str(output), json.dumps(sections)]
    environment = {**os.environ, **(environment or {}), **ALONE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def losses(output):
    return json.loads((output / "losses.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return stored_samples(tmp_path_factory.mktemp("data"), count=6)


def test_two_processes_are_one_with_the_whole_batch(data, tmp_path):
    sections = {"optimization": {"steps": 5, "gradient_accumulation_steps": 2, "learning_rate": 0.001}}
    single = {**sections["optimization"], "batch_size": 2}
    assert started(data, tmp_path / "one", optimization=single).wait(300) == 0
    assert started(data, tmp_path / "two", processes=2, **sections).wait(300) == 0
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one == pytest.approx(two, rel=1e-5)
    weights = [
        load_file(tmp_path / name / "checkpoints" / "checkpoint-5" / "pytorch_lora_weights.safetensors")
        for name in ("one", "two")
    ]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4)


def test_two_processes_go_on_exactly(data, tmp_path):
    sections = {
        "optimization": {"steps": 4},
        "lora": {"dropout": 0.2},
        "checkpoints": {"interval": 2, "keep_last_n": 0},
    }
    assert started(data, tmp_path / "whole", processes=2, **sections).wait(300) == 0
    resume = str(tmp_path / "whole" / "checkpoints" / "checkpoint-2")
    sections["checkpoints"]["resume"] = resume
    assert started(data, tmp_path / "rest", processes=2, **sections).wait(300) == 0
    assert losses(tmp_path / "rest") == losses(tmp_path / "whole")[2:]


def test_whenever_a_run_is_killed_its_last_checkpoint_loads(data, tmp_path):
    """A hundred kills at random moments; every run goes on from where the last one was."""
    kills = os.environ.get("LTX2_KILLS", "100")
    command = [sys.executable, "-m", "tests.training.killed_runs", str(data), str(tmp_path / "run"), kills]
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, **ALONE}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1].startswith(f"{kills} kills")
