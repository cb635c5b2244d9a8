"""What is published: the archive holds all files, so that its tests pass too, and asks for versions that were run."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
# What a checkout holds beside its files: the history, and what tools make.
MADE = shutil.ignore_patterns(
    ".git", ".venv", "*.egg-info", "__pycache__", ".*_cache", "build", "dist", "out", ".hypothesis", "*.mp4"
)


@pytest.mark.slow
def test_the_archive_holds_every_file(tmp_path):
    tree = shutil.copytree(ROOT, tmp_path / "tree", ignore=MADE)
    files = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files - names == set()


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    tree = shutil.copytree(ROOT, tmp_path / "tree", ignore=MADE)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    files = {
        str(path.relative_to(tree / "src")) for path in (tree / "src" / "ltx2_diffusers").rglob("*") if path.is_file()
    }
    assert files - names == set()


def test_the_oldest_versions_are_those_of_their_constraints():
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = [re.match(r"([\w-]+)>=([\d.]+)", line) for line in needed]
    lines = (ROOT / "constraints-min.txt").read_text().splitlines()
    run = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {match[1]: Version(match[2]) for match in found} == {name: Version(run[name]) for name in run}
