"""How tests run the command line and look at what it wrote."""

import json
import re
from pathlib import Path
from typing import Any

from ltx2_diffusers.cli.main import main

QUICK = ["--steps", "2", "--device", "cpu", "--max-sequence-length", "64"]
SMALL = ["--width", "64", "--height", "64", "--num-frames", "9"]
STAGED = ["--width", "128", "--height", "128", "--num-frames", "9"]


def generate(path: Path, *options: object, prompt: str = "waves") -> int:
    """Run `ltx2 generate`."""
    return main(["generate", "--prompt", prompt, "-o", str(path), *map(str, options)])


def manifest(path: Path) -> dict[str, Any]:
    """The manifest beside an output."""
    return json.loads(path.with_name(f"{path.name}.json").read_text())


def complaint(capsys: Any, command: str = "generate") -> str:
    """The one line that a command said on stderr, without what loading and sampling show."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"ltx2 {command}:")]
    return line.removeprefix(f"ltx2 {command}: ")


def located(options: list[str], media) -> list[str]:
    """The options with names of files in capitals replaced by the files."""
    capitals = re.compile(r"[A-Z]+\.[A-Z0-9]+(:.*)?")
    return [str(media / option.lower()) if capitals.fullmatch(option) else option for option in options]
