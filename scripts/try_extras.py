"""Every extra installed alone: the package with that extra and nothing else is imported, and its commands run.

    python -m scripts.try_extras [EXTRA ...]

One environment holds what the package needs without extras; each extra gets one of its own on top of it.
"""

import argparse
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
# Everything that the requirements of an extra bring to be imported, and the extra itself as the metadata name it.
_IMPORTS = """
import importlib, sys
from importlib.metadata import packages_distributions, requires
from packaging.requirements import Requirement
wanted, names = [sys.argv[1]], set()
while wanted:
    extra = wanted.pop()
    for one in map(Requirement, requires("ltx2-diffusers")):
        if one.marker is None or not one.marker.evaluate({"extra": extra}) or one.marker.evaluate({"extra": ""}):
            continue
        wanted += one.extras if one.name == "ltx2-diffusers" else ()
        names.add(one.name.lower().replace("_", "-"))
import ltx2_diffusers
for module, owners in packages_distributions().items():
    if {owner.lower().replace("_", "-") for owner in owners} & names and module.isidentifier() and module[0] != "_":
        importlib.import_module(module)
        print(module, end=" ")
"""
# The least that shows that an extra is enough for what it is for.
COMMANDS = {
    "serve": ["from ltx2_diffusers.serving import app, worker"],
    "postgres": ["from ltx2_diffusers.serving.store import database_url; database_url('postgresql://db/jobs')"],
    "ray": ["from ltx2_diffusers.serving.fleet import replica, runner"],
    "train": [
        "from ltx2_diffusers.cli.main import main; main(['data', 'split-scenes', '--help'])",
        "from ltx2_diffusers.cli.main import main; main(['train', '--help'])",
    ],
    "quantized": ["import ltx2_diffusers.quantization"],
    "hdr": ["from ltx2_diffusers.extras import library; library('OpenEXR', 'EXR').File"],
}


def environment(folder: Path, below: Path | None = None) -> Path:
    """The Python of a new environment, which sees the packages of the one below."""
    venv.create(folder, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    if below is not None:
        (packages,) = below.glob("lib/python*/site-packages")
        (site / "below.pth").write_text(f"{packages}\n")
    return folder / "bin" / "python"


def said(python: Path, *arguments: str, status: int = 0) -> str:
    """What a Python says, of errors if it has to end with one."""
    result = subprocess.run([python, *arguments], capture_output=True, text=True, cwd=python.parents[1])
    if result.returncode != status:
        raise RuntimeError(f"{' '.join(arguments)}: {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result.stdout if status == 0 else result.stderr


def install(python: Path, wanted: str) -> None:
    """Install a package with the versions of the constraints."""
    said(python, "-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS), wanted)
    said(python, "-m", "pip", "check")


def main() -> None:
    """Try the extras that are asked for, or all."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"default all: {', '.join(known)}")
    extras = parser.parse_args().extras or list(known)
    if unknown := set(extras) - set(known):
        parser.error(f"there is no extra {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    with tempfile.TemporaryDirectory(prefix="ltx2-extras-") as temporary:
        folder = Path(temporary)
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", temporary, ROOT], check=True
        )
        (wheel,) = folder.glob("*.whl")
        base = environment(folder / "base")
        install(base, str(wheel))
        print("without extras:", said(base, "-m", "ltx2_diffusers.cli.main", "--version").strip(), flush=True)
        small = ("--width", "32", "--height", "32", "--num-frames", "1", "--steps", "1", "-o", "clip.mp4")
        said(base, "-m", "ltx2_diffusers.cli.main", "generate", "--prompt", "waves", *small)
        print(said(base, "-m", "ltx2_diffusers.cli.main", "serve", status=2).splitlines()[-1], flush=True)
        for extra in extras:
            python = environment(folder / extra, folder / "base")
            install(python, f"{wheel}[{extra}]")
            print(f"{extra}: {said(python, '-c', _IMPORTS, extra)}", flush=True)
            said(python, "-m", "ltx2_diffusers.cli.main", "serve", "--help")
            for command in COMMANDS.get(extra, ()):
                said(python, "-c", command)


if __name__ == "__main__":
    main()
