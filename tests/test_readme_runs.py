"""Every command and every snippet of the README runs as it stands, and leaves nothing behind but `out/`.

They run in a folder in which the files that they name lie, with the packaged checkpoint.
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

from examples.mini_world.drawing import draw
from examples.mini_world.scenes import Scene, outlined
from examples.mini_world.sounding import sound
from ltx2_diffusers import packaged_checkpoint
from ltx2_diffusers.media.writing import write_audio, write_video
from tests.adapters.files import save_random_loras
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
RATE = 24000
# Of clips: frames, height and width.
SIZE = (25, 128, 128)
SCENE = Scene("circle", "red", "blue", "right", radius=0.28, place=(0.5, 0.5), reach=0.38)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with everything that the README names, in a place of its own."""
    folder = tmp_path_factory.mktemp("readme")
    _save_scene(folder)
    mask = np.zeros(SIZE[1:], np.uint8)
    mask[:, 64:] = 255
    PIL.Image.fromarray(mask).save(folder / "mask.png")
    shutil.copyfile(GOLDEN_DIR / "checkpoint" / "ltx-2-tiny-dev.safetensors", folder / "ltx-2-19b-dev.safetensors")
    shutil.copytree(GOLDEN_DIR / "checkpoint" / "expected_diffusers" / "ltx-2-tiny-dev", folder / "gemma-3-12b")
    for name in ("conversion", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    save_random_loras(packaged_checkpoint("ltx2-mini"), folder, ("style", "camera"))
    return folder


def _save_scene(folder: Path) -> None:
    """A scene as a clip with its tone, as both of these alone, as its outline, and as its first and last picture."""
    pixels, outline = (draw([scene], *SIZE)[0].transpose(0, 1) / 2 + 0.5 for scene in (SCENE, outlined(SCENE)))
    tone = sound([SCENE], SIZE[0], RATE)[0]
    write_video(folder / "clip.mp4", pixels, 24.0, tone, RATE)
    write_video(folder / "silent.mp4", pixels, 24.0)
    write_video(folder / "outline.mp4", outline, 24.0)
    write_audio(folder / "tone.wav", tone, RATE)
    for name, frame in (("first", pixels[0]), ("last", pixels[-1])):
        array = (frame.permute(1, 2, 0) * 255).round().byte().numpy()
        PIL.Image.fromarray(array).save(folder / f"{name}.png")


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
