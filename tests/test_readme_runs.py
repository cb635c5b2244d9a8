"""Every command and every snippet of the README runs as it stands, and leaves nothing behind but `out/`.

They run in a folder in which the files that they name lie, with the packaged checkpoints.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.media.writing import write_audio, write_video
from tests.golden_data import GOLDEN_DIR

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", README, flags=re.DOTALL)
MARK = "# needs the published weights and a GPU\n"
SNIPPETS = [block for kind, block in BLOCKS if kind == "python" and not block.startswith(MARK)]
# What stands before `&&` installs the package, as the run of these tests did.
COMMANDS = [
    line.rpartition("&& ")[2].removeprefix(".venv/bin/")
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.splitlines()
]
# These tests themselves.
TESTS = "pytest -n 2"
RATE, SIZE = 24000, 192


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with everything that the README names, in a place of its own."""
    folder = tmp_path_factory.mktemp("readme")
    for number, name in enumerate(("first", "last", "singer", "mask")):
        pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
        pixels[:, number * 32 : number * 32 + 64] = 255
        PIL.Image.fromarray(pixels).save(folder / f"{name}.png")
    seconds = np.arange(4 * RATE) / RATE
    sound = 0.3 * np.stack([np.sin(2 * np.pi * 440 * seconds)] * 2).astype(np.float32)
    write_audio(folder / "song.wav", sound, RATE)
    frames = np.random.default_rng(0).integers(0, 255, (73, 2, 2, 3), dtype=np.uint8).repeat(32, 1).repeat(32, 2)
    for name in ("pose", "cat", "train"):
        write_video(folder / f"{name}.mp4", frames, 24.0, sound[:, : 73 * RATE // 24], RATE)
    write_video(folder / "silent.mp4", frames[:9], 24.0)
    _save_clips(folder / "clips", sound)
    shutil.copyfile(GOLDEN_DIR / "checkpoint" / "ltx-2-tiny-dev.safetensors", folder / "ltx-2-19b-dev.safetensors")
    shutil.copytree(GOLDEN_DIR / "checkpoint" / "expected_diffusers" / "ltx-2-tiny-dev", folder / "gemma-3-12b")
    shutil.copytree(ROOT / "conversion", folder / "conversion", ignore=shutil.ignore_patterns("__pycache__"))
    _save_loras(folder)
    return folder


def _save_clips(folder: Path, sound: np.ndarray) -> None:
    """Squares that move, each with a tone and a caption."""
    for number in range(3):
        frames = np.full((25, 96, 96, 3), 40, np.uint8)
        for index, frame in enumerate(frames):
            frame[30 * number : 30 * number + 24, 2 * index : 2 * index + 24, number] = 230
        write_video(folder / f"ball_{number}.mp4", frames, 24.0, sound[:, : 25 * RATE // 24], RATE)
        (folder / f"ball_{number}.txt").write_text(f"a square moves to the right in row {number}")


def _save_loras(folder: Path) -> None:
    layer, noise = "transformer_blocks.0.attn1.to_q", torch.Generator().manual_seed(0)
    factors = {
        f"{layer}.lora_A.weight": torch.randn(2, 32, generator=noise),
        f"{layer}.lora_B.weight": torch.randn(32, 2, generator=noise),
    }
    for name in ("style", "camera", "distilled"):
        LTX2Pipeline.save_lora_weights(folder, factors, weight_name=f"{name}.safetensors")


def run(command: list[str] | str, folder: Path) -> subprocess.CompletedProcess:
    """Run a command as a user does, with the scripts of this environment."""
    path = os.pathsep.join([os.fspath(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    shell = isinstance(command, str)
    return subprocess.run(command, shell=shell, cwd=folder, env=environment, capture_output=True, text=True)


def test_only_the_first_snippet_needs_published_weights():
    marked = [block for _, block in BLOCKS if MARK in block]
    assert len(marked) == 1 and marked[0] == BLOCKS[0][1]
    assert len(SNIPPETS) >= 6 and len(COMMANDS) >= 12 and COMMANDS.count(TESTS) == 1


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_a_snippet_runs_in_an_interpreter_of_its_own(snippet, folder):
    before = set(folder.iterdir())
    result = run([sys.executable, "-c", snippet], folder)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in set(folder.iterdir()) - before} <= {"out"}


@pytest.mark.slow
def test_commands_run_one_after_the_other(folder):
    before = set(folder.iterdir())
    for command in COMMANDS:
        if command != TESTS:
            result = run(command, folder)
            assert result.returncode == 0, f"{command}: {result.stderr}"
    assert {path.name for path in set(folder.iterdir()) - before} <= {"out"}


def test_what_they_write_is_no_part_of_the_repository():
    assert "/out/" in (ROOT / ".gitignore").read_text().splitlines()
    written = [name for command in COMMANDS for name in re.findall(r"-o (\S+)", command)]
    assert len(written) >= 6 and all(name.startswith("out/") for name in written)
