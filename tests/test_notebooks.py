"""The notebooks in `examples/notebooks/` say what is true, are small, and run from their first cell to their last."""

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

import ltx2_diffusers
from ltx2_diffusers import conditioning, guidance, sampling, training
from scripts.run_notebooks import METADATA, NOTEBOOKS, execute, tidied

ROOT = Path(__file__).parents[1]
URL = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Homepage"]
EACH_BYTES, ALL_BYTES = 150_000, 500_000
CPU_S = 120
ROOMS = {room.__name__: room for room in (ltx2_diffusers, conditioning, guidance, sampling, training)}
# Used by the scripts in `examples/`, too.
BESIDE = {"ltx2_diffusers.media.writing"}
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    """A valid notebook."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(path: Path) -> list[str]:
    """Cells of code as Python; magics are calls."""
    cells = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    return [TransformerManager().transform_cell(source) for source in cells]


def test_they_are_six():
    assert len(NOTEBOOKS) == 6
    sizes = {path.name: path.stat().st_size for path in NOTEBOOKS}
    assert max(sizes.values()) < EACH_BYTES and sum(sizes.values()) < ALL_BYTES, sizes


@each
def test_code_compiles_and_imports_public_names(path):
    trees = [ast.parse(cell) for cell in code(path)]
    imported = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imported if node.module.startswith("ltx2_diffusers") and node.module not in BESIDE]
    assert ours
    for node in ours:
        assert {name.name for name in node.names} <= set(ROOMS[node.module].__all__)


@each
def test_it_opens_in_colab_and_installs_the_package_first(path):
    notebook = read(path)
    first, install = notebook.cells[0], next(cell for cell in notebook.cells if cell.cell_type == "code")
    place = f"{URL.removeprefix('https://')}/blob/main/{path.relative_to(ROOT)}"
    assert f"https://colab.research.google.com/{place.replace('.com', '')}" in first.source
    assert "%pip install" in install.source and f"git+{URL}" in install.source


@each
def test_it_runs_on_real_weights_by_one_line(path):
    cells = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    text = "\n".join(cells)
    assert len(re.findall(r"^CHECKPOINT = ", text, flags=re.MULTILINE)) == 1
    assert 'For real weights: CHECKPOINT = "' in text


@each
def test_it_holds_what_a_run_has_shown(path):
    """Pictures for those who only read, nothing of the machine it ran on, and what refreshing would keep."""
    notebook = read(path)
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "image/jpeg" in kinds
    assert notebook.metadata == METADATA
    assert tidied(read(path)) == notebook
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not re.search(r"/(?:home|tmp|root|Users)/", path.read_text())


def test_readme_and_folder_name_the_same_notebooks():
    named = re.findall(r"\(examples/notebooks/(\w+\.ipynb)\)", (ROOT / "README.md").read_text())
    assert named == [path.name for path in NOTEBOOKS]


@pytest.mark.slow
@each
def test_it_runs(path, tmp_path):
    """Time of the CPU is counted, so that what else a machine does changes nothing."""
    executed = execute(path, tmp_path)
    assert executed.cpu_s < CPU_S
    kinds = [[output.output_type for output in cell.get("outputs", [])] for cell in executed.notebook.cells]
    assert kinds == [[output.output_type for output in cell.get("outputs", [])] for cell in read(path).cells]
