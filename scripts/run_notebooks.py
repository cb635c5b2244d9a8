"""Runs the notebooks of `examples/notebooks/` and writes what they show into them.

Run `python -m scripts.run_notebooks [NAME ...]`, without names for all. Files that a notebook writes go to a folder that is
removed afterwards.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from ltx2_diffusers.atomic import complete_file

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TIMEOUT_S = 1800
"""Of a cell: far above what it takes, so that only one that hangs ends by it."""
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


class Executed(NamedTuple):
    """A notebook with the outputs of a run, and the seconds of a CPU that the run took."""

    notebook: NotebookNode
    cpu_s: float


def execute(path: Path, folder: Path) -> Executed:
    """Run a notebook from its first cell to its last.

    Args:
        path: The notebook, which stays as it is.
        folder: Where it runs, and writes its files.

    Raises:
        CellExecutionError: If a cell fails; the message shows it.
    """
    notebook = nbformat.read(path, as_version=4)
    before = os.times()
    # Commands that are installed beside this interpreter, as in an environment that was activated.
    places = os.pathsep.join([os.fspath(Path(sys.executable).parent), os.environ["PATH"]])
    NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": os.fspath(folder)}},
    ).execute(env={**os.environ, "PATH": places})
    after = os.times()
    spent = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return Executed(tidied(notebook), spent)


def tidied(notebook: NotebookNode) -> NotebookNode:
    """The notebook with what readers want to see: no progress bars and warnings, pictures as JPEG, nothing of the machine."""
    notebook.metadata = NotebookNode(METADATA)
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            # Pillow shows a picture in both formats.
            if "image/jpeg" in output.get("data", {}):
                output.data.pop("image/png", None)
    return notebook


def main(arguments: Sequence[str] | None = None) -> int:
    """Run notebooks and write their outputs."""
    parser = argparse.ArgumentParser(prog="python -m scripts.run_notebooks", description=__doc__.splitlines()[0])
    names = [path.stem for path in NOTEBOOKS]
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *names], help=f"of {', '.join(names)}")
    wanted = parser.parse_args(arguments).names or names
    for path in NOTEBOOKS:
        if path.stem in wanted:
            with tempfile.TemporaryDirectory() as folder:
                executed = execute(path, Path(folder))
            with complete_file(path) as temporary:
                nbformat.write(executed.notebook, temporary)
            print(f"{path.name}: {executed.cpu_s:.0f} s of a CPU, {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
