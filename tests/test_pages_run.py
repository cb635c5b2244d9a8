"""Every command and every snippet of the README and of the site runs as it stands, and leaves nothing behind but `out/`.

They run in a folder in which the files that they name lie, with the packaged checkpoint.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ltx2_diffusers import packaged_checkpoint
from scripts.pages import PAGES, README, ROOT, write_media
from tests.adapters.files import save_random_loras
from tests.golden_data import GOLDEN_DIR
from tests.golden_parts import golden_file

MARK = "# needs the published weights and a GPU\n"
SNIPPETS = [(one.name, code) for one in PAGES for code in one.blocks("python") if not code.startswith(MARK)]
# What stands before `&&` installs the package, as the run of these tests did.
COMMANDS = {
    one.name: [
        line.rpartition("&& ")[2].removeprefix(".venv/bin/")
        for block in one.blocks("bash")
        for line in block.splitlines()
        if not line.startswith("#")
    ]
    for one in PAGES
    if one.blocks("bash")
}
# These tests themselves.
TESTS = "pytest -n 2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with everything that the pages name, in a place of its own."""
    folder = tmp_path_factory.mktemp("pages")
    write_media(folder)
    shutil.copyfile(GOLDEN_DIR / "checkpoint" / "ltx-2-tiny-dev.safetensors", folder / "ltx-2-19b-dev.safetensors")
    scaled = golden_file("checkpoint/fp8/ltx-2-tiny-dev-fp8.safetensors")
    shutil.copyfile(scaled, folder / "ltx-2-19b-dev-fp8.safetensors")
    shutil.copytree(GOLDEN_DIR / "checkpoint" / "expected_diffusers" / "ltx-2-tiny-dev", folder / "gemma-3-12b")
    for name in ("conversion", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    save_random_loras(packaged_checkpoint("ltx2-mini"), folder, ("style", "camera"))
    return folder


def run(command: list[str] | str, folder: Path) -> subprocess.CompletedProcess:
    """Run a command as a user does, with the scripts of this environment."""
    path = os.pathsep.join([os.fspath(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    shell = isinstance(command, str)
    return subprocess.run(command, shell=shell, cwd=folder, env=environment, capture_output=True, text=True)


def test_few_snippets_need_published_weights():
    """The README's first one, and two that are about the size or the number of weights."""
    marked = [(one.name, code) for one in PAGES for code in one.blocks("python") if MARK in code]
    assert marked.count((README.name, README.blocks("python")[0])) == 1
    assert sorted(name for name, _ in marked) == [README.name, "docs/tasks/hdr.md", "docs/tasks/ltx_video.md"]
    commands = [command for lines in COMMANDS.values() for command in lines]
    assert len(SNIPPETS) >= 25 and len(commands) >= 18 and commands.count(TESTS) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "snippet"), SNIPPETS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(SNIPPETS)])
def test_a_snippet_runs_in_an_interpreter_of_its_own(name, snippet, folder):
    before = set(folder.iterdir())
    result = run([sys.executable, "-c", snippet], folder)
    assert result.returncode == 0, f"{name}: {result.stderr}"
    assert {path.name for path in set(folder.iterdir()) - before} <= {"out"}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_of_a_page_run_one_after_the_other(name, folder):
    before = set(folder.iterdir())
    for command in COMMANDS[name]:
        if command != TESTS:
            result = run(command, folder)
            assert result.returncode == 0, f"{command}: {result.stderr}"
    assert {path.name for path in set(folder.iterdir()) - before} <= {"out"}


def test_what_they_write_is_no_part_of_the_repository():
    assert "/out/" in (ROOT / ".gitignore").read_text().splitlines()
    texts = [code for _, code in SNIPPETS] + [command for lines in COMMANDS.values() for command in lines]
    written = [name for text in texts for name in re.findall(r'-o (\S+)|\.save\("([^"]+)"|save_path="([^"]+)"', text)]
    assert len(written) >= 25 and all("".join(names).startswith("out/") for names in written)
