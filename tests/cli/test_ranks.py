"""Generations that processes of torchrun share, and those that reuse steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltx2_diffusers.cli.jobs.ranks import own_device
from tests.cli.running import SMALL, complaint, generate

QUICK = [*SMALL, "--steps", "2", "--seed", "3"]
WORLD = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}


# The second process fails before it shares anything, while the first one waits for it.
FAILING = """
import os, sys
from ltx2_diffusers.cli import generate, main

def fail(*_):
    raise ValueError("this process fails")

if os.environ["RANK"] == "1":
    generate.load_pipeline = fail
sys.exit(main.main(["generate", "--prompt", "waves", "-o", "out.mp4", *sys.argv[1:]]))
"""


def launched(monkeypatch):
    for name, value in WORLD.items():
        monkeypatch.setenv(name, value)


def started(folder, *program, ranks=2):
    """A program of so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    command = [sys.executable, *launcher, *program]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def facts(path):
    manifest = json.loads(path.with_name(f"{path.name}.json").read_text())
    return {**manifest, "outputs": [{k: v for k, v in one.items() if k != "file"} for one in manifest["outputs"]]}


def test_every_process_takes_its_own_card(monkeypatch):
    assert own_device("cuda") == "cuda"
    launched(monkeypatch)
    assert [own_device(name) for name in ("cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:0", "cpu"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vram", "4"], "--vram is for one device, and torchrun has started several"),
        (["--offload", "model"], "--offload is for one device"),
        (["--step-cache", "0.1", "--parallel", "passes"], "--step-cache and --parallel passes contradict each other"),
        (["--preview", "--tiling"], "--preview and --tiling contradict each other"),
    ],
)
def test_what_processes_cannot_share_is_refused(tmp_path, monkeypatch, capsys, options, message):
    launched(monkeypatch)
    assert generate(tmp_path / "out.mp4", *QUICK, *options) == 2
    assert message in complaint(capsys)


def test_a_storyboard_is_made_by_one(tmp_path, monkeypatch, capsys):
    from ltx2_diffusers.cli.main import main

    board = tmp_path / "board.yaml"
    board.write_text("shots:\n- prompt: rain\n  duration_s: 1.0\n")
    launched(monkeypatch)
    assert main(["storyboard", str(board), "-o", str(tmp_path / "out.mp4")]) == 2
    assert "a storyboard is made by one process, and torchrun has started 2" in complaint(capsys, "storyboard")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["tokens", "passes"])
def test_two_processes_write_what_one_writes(tmp_path, what):
    alone, shared = tmp_path / "alone.mp4", tmp_path / "shared.mp4"
    command = ["-m", "ltx2_diffusers", "generate", "--prompt", "waves", *QUICK]
    assert started(tmp_path, *command, "-o", alone.name, ranks=1).returncode == 0
    done = started(tmp_path, *command, "--parallel", what, "-o", shared.name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("shared.mp4: ") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("alone.mp4", "alone.mp4.json", "shared.mp4", "shared.mp4.json")
    ]
    assert facts(shared)["outputs"][0]["video"]["frames"] == facts(alone)["outputs"][0]["video"]["frames"]
    if what == "passes":
        assert facts(shared)["outputs"] == facts(alone)["outputs"]


@pytest.mark.slow
def test_an_error_ends_all_processes(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(FAILING)
    done = started(tmp_path, str(program), *QUICK)
    assert done.returncode != 0 and "ltx2 generate: this process fails" in done.stderr
    assert list(tmp_path.iterdir()) == [program]


def test_a_step_cache_is_reported_and_replayed(tmp_path, capsys):
    from ltx2_diffusers.cli.main import main

    clip = tmp_path / "clip.mp4"
    options = ["--step-cache", "0.9", "--guidance-interval", "0.1", "0.99"]
    assert generate(clip, *SMALL, "--steps", "4", *options) == 0
    made = facts(clip)
    assert made["options"]["step_cache"] == 0.9 and made["options"]["guidance_interval"] == [0.1, 0.99]
    passes = made["result"]["passes"]
    assert passes["conditional"]["skip_ratio"] > 0 and passes["negative"]["forwards"] < 4
    assert "% of the passes skipped" in capsys.readouterr().out
    assert main(["replay", str(tmp_path / "clip.mp4.json"), "-o", str(tmp_path / "again.mp4")]) == 0
    assert facts(tmp_path / "again.mp4")["outputs"] == made["outputs"]
