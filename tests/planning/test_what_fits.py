"""What the page says of cards is what the planner says, and the scripts that show it run."""

import json
import os
import subprocess
import sys

import pytest
import torch

from benchmarks.memory import CARDS_GB, markdown, table
from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.cli.loading import load_pipeline
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.cli.messages import in_options
from scripts.pages import README, ROOT, page


def cells(text):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [row for row in rows if set(row[0]) != {"-"}]


def shown(text, first):
    """The table of a page whose first row begins so."""
    return cells(next(block for block in text.split("\n\n") if block.startswith(f"| {first} |")))


@pytest.mark.slow
def test_the_page_shows_what_the_planner_says():
    rows = cells(markdown(table()))
    assert shown(page("guides/memory_and_speed.md").text, "card") == rows
    times = [[row[0], *(cell.split("; ")[-1] for cell in (row[2], row[4]))] for row in rows[1:]]
    assert shown(README.text, "card")[1:] == times


def test_page_and_readme_name_the_same_cards():
    for one in (page("guides/memory_and_speed.md"), README):
        assert [row[0] for row in shown(one.text, "card")[1:]] == [f"{gb} GB" for gb in CARDS_GB]


def test_the_command_prints_and_writes_a_plan(capsys, tmp_path):
    file = tmp_path / "plan.json"
    size = ["--width", "64", "--height", "64", "--num-frames", "9"]
    assert main(["plan", "ltx2-mini", "--vram", "1", "--ram", "1", "--device", "cpu", "--json", str(file), *size]) == 0
    assert "64 x 64 x 9 frames, one stage, guided" in capsys.readouterr().out
    assert json.loads(file.read_text())["clip"]["height"] == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vram", "auto"], "--vram auto reads the card, but there is none of CUDA here; give a number of GB"),
        (["--vram", "0"], "--vram has to be greater than 0"),
        (["--vram", "1", "--text-encoder", "x"], "--text-encoder is 'x', but belongs to original files"),
    ],
)
def test_the_command_refuses_what_cannot_be(options, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["plan", "ltx2-mini", "--ram", "1", *options]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_checkpoint_is_no_option(capsys):
    assert main(["plan", "nowhere", "--vram", "1"]) == 2
    assert capsys.readouterr().err.startswith("ltx2 plan: there is no file or folder 'nowhere'")


def test_advice_is_given_in_options():
    asked = {"prompt": ["waves"], "vram": 1.0}
    assert (
        in_options("it fits with allow_lossy=True, which is lossy", asked)
        == "it fits with --allow-lossy, which is lossy"
    )
    assert "--quantize fp8-cast" in in_options("it fits with quantize='fp8-cast', which is lossy", asked)


@pytest.mark.quick_cases(0)
def test_what_is_lossy_may_be_allowed(capsys):
    # Weights that wait in host memory have no room there unless they are in float8.
    asked = ["--vram", "0.06", "--ram", "0.045", "--dtype", "float32", "--device", "cpu"]
    size = ["--width", "256", "--height", "256", "--num-frames", "9"]
    assert main(["plan", "ltx2-mini", *asked, *size]) == 2
    assert "it fits with --quantize fp8-cast, which is lossy" in capsys.readouterr().err
    given = {
        "checkpoint": "ltx2-mini",
        "dtype": "float32",
        "device": "cpu",
        "vram": 0.06,
        "ram": 0.045,
        "prompt": ["a"],
    }
    clip = {"height": 256, "width": 256, "num_frames": 9}
    pipe = load_pipeline({**given, **clip, "allow_lossy": True}, LTX2Pipeline)
    assert pipe.memory_plan.is_lossy and pipe.memory_plan.quantize == "fp8_cast"


@pytest.mark.quick_cases(0)
def test_a_calibration_is_taken_within_a_plan(tmp_path):
    layer = "transformer_blocks.1.attn1.to_q"
    file = tmp_path / "amax.json"
    file.write_text(json.dumps({"amax_values": {f"{layer}.input_quantizer": 448.0}}))
    asked = {
        "checkpoint": "ltx2-mini",
        "dtype": "float32",
        "device": "cpu",
        "vram": 1.0,
        "ram": 1.0,
        "prompt": ["waves"],
    }
    float8 = {"quantize": "fp8-scaled-mm", "calibration": file}
    pipe = load_pipeline({**asked, **float8, "height": 64, "width": 64, "num_frames": 9}, LTX2Pipeline)
    assert pipe.transformer.get_submodule(layer).input_scale == 1
    assert pipe.transformer.get_submodule(layer.replace("to_q", "to_k")).input_scale is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["benchmarks.memory", "--quick"], ["benchmarks.gpu_memory", "--tiny", "--device", "cpu"]]
)
def test_scripts_run(command, tmp_path):
    environment = {**os.environ, "LTX2_BENCHMARK_RESULTS": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout
    for file in tmp_path.glob("*.json"):
        assert json.loads(file.read_text())
