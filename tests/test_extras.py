"""Without the packages of extras the package is imported, and every command helps or says which extra it lacks."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ltx2_diffusers.extras import library
from scripts.try_extras import COMMANDS
from tests.cli.conftest import media  # noqa: F401 (a fixture)
from tests.training.running import config

EXTRAS = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# What the extras for users bring, as it is imported.
PACKAGES = (
    *(
        "pydantic",
        "tensorboard",
        "scenedetect",
        "cv2",
        "bitsandbytes",
        "optimum",
        "torchao",
        "wandb",
        "gguf",
        "triton",
    ),
    *("fastapi", "starlette", "uvicorn", "sqlalchemy", "prometheus_client", "python_multipart", "psycopg", "ray"),
    "OpenEXR",
)
SERVE, TRAIN = "pip install 'ltx2-diffusers[serve]'", "pip install 'ltx2-diffusers[train]'"
# Commands, and what they say that installs what they lack.
LACKING = {
    "serve": SERVE,
    "train config.yaml": TRAIN,
    "data split-scenes folder clips": TRAIN,
    "data references folder --kind edges": TRAIN,
    "info model.gguf": "pip install gguf",
}
# What needs no extra at all.
GENERATES = (
    "generate --prompt waves -o out.mp4 --width 32 --height 32 --num-frames 1 --steps 1 --device cpu",
    "plan ltx2-mini --vram 16",
    "info ltx2-mini",
)
HELPFUL = ("generate", "storyboard", "replay", "info", "convert", "calibrate", "plan", "doctor", "data", "serve")
CODE = """
import contextlib, io, json, sys
for name in {packages!r}:
    sys.modules[name] = None
from ltx2_diffusers.cli.main import main
said = {{}}
for command in json.loads(sys.stdin.read()):
    text = io.StringIO()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
        try:
            status = main(command.split())
        except SystemExit as end:
            status = end.code
    said[command] = [status, text.getvalue()]
json.dump(said, sys.stdout)
"""


@pytest.mark.slow
def test_commands_without_extras(tmp_path, media):  # noqa: F811 (a fixture)
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(60))
    (tmp_path / "folder").mkdir()
    shutil.copy(media / "clip.mp4", tmp_path / "folder")
    commands = [*LACKING, *GENERATES, *(f"{name} --help" for name in HELPFUL)]
    result = subprocess.run(
        [sys.executable, "-c", CODE.format(packages=PACKAGES)],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert {name: said[f"{name} --help"][0] for name in HELPFUL} == dict.fromkeys(HELPFUL, 0)
    assert {name: said[name] for name in GENERATES if said[name][0] != 0} == {}
    for command, installs in LACKING.items():
        status, text = said[command]
        assert (status, installs in text.splitlines()[-1]) == (2, True), (command, text)


def test_every_extra_for_users_is_tried():
    """Tools of those who work on the package are no part of it."""
    assert set(COMMANDS) >= set(EXTRAS) - {"test", "docs", "wandb"}
    named = {re.split(r"[\[>=<]", one)[0] for name in COMMANDS for one in EXTRAS[name]} - {"ltx2-diffusers"}
    imported = {"opencv-python": "cv2", "optimum-quanto": "optimum"}
    assert {imported.get(name, name.replace("-", "_")) for name in named} <= set(PACKAGES)


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_named_before_anything_is_loaded(tmp_path, monkeypatch, name):
    from ltx2_diffusers.training import LTX2Trainer

    wanted = {"wandb": {"enabled": True}} if name == "wandb" else {"tracking": {"tensorboard": True}}
    settings = config(tmp_path, tmp_path / "out", **wanted)
    monkeypatch.setitem(sys.modules, name, None)
    extra = "wandb" if name == "wandb" else "train"
    with pytest.raises(ImportError, match=rf"needs {name}; install it with pip install 'ltx2-diffusers\[{extra}\]'"):
        LTX2Trainer(settings).train()


@pytest.mark.parametrize(
    ("name", "package"), [("bitsandbytes",) * 2, ("wandb",) * 2, ("cv2", "opencv-python"), ("OpenEXR",) * 2]
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError) as error:
        library(name, "this")
    (extra,) = re.findall(r"ltx2-diffusers\[(\w+)\]", str(error.value))
    assert any(one.startswith(package) for one in EXTRAS[extra])
