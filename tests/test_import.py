"""Importing the package is cheap: it loads on demand and touches no device, file, network or setting."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import diffusers
import diffusers.pipelines.ltx2
import pytest

import ltx2_diffusers

# Reports, as JSON, what happens when a process that already has torch and diffusers resolves every public name.
WATCHED_IMPORT = """
import inspect, json, os, sys
import av, diffusers, peft, PIL.Image, torch, transformers
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin, SchedulerMixin
from diffusers.video_processor import VideoProcessor

def settings():
    return [
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark, torch.random.initial_seed(),
    ]

report = {"cuda": [], "network": [], "files": []}

def watched(function):
    def call(*args, **kwargs):
        report["cuda"].append(function.__name__)
        return function(*args, **kwargs)
    return call

for name, value in list(vars(torch.cuda).items()):
    if inspect.isfunction(value):
        setattr(torch.cuda, name, watched(value))

def audit(event, args):
    if event.startswith("socket."):
        report["network"].append(event)
    elif event == "open" and isinstance(args[0], (str, bytes)) and not os.fsdecode(args[0]).endswith((".py", ".pyc")):
        report["files"].append(os.fsdecode(args[0]))

settings_before, modules_before = settings(), set(sys.modules)
sys.addaudithook(audit)
import ltx2_diffusers
for name in ltx2_diffusers.__all__:
    getattr(ltx2_diffusers, name)
report["packages"] = sorted({name.split(".")[0] for name in set(sys.modules) - modules_before})
report["same_settings"] = settings() == settings_before
print(json.dumps(report))
"""


def run_python(code: str) -> dict:
    """JSON printed by a fresh interpreter."""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report() -> dict:
    return run_python(WATCHED_IMPORT)


def test_the_bare_import_loads_nothing_heavy():
    loaded = run_python("import json, sys, ltx2_diffusers; print(json.dumps(sorted(sys.modules)))")
    assert "ltx2_diffusers" in loaded
    assert not {"torch", "diffusers", "transformers", "numpy", "av"} & set(loaded)


@pytest.mark.parametrize("kind", ["cuda", "network", "files"])
def test_resolving_every_name_touches_nothing_outside(report, kind):
    """Files but those of the package, which holds tables of its own."""
    own = str(Path(ltx2_diffusers.__file__).parent)
    assert [one for one in report[kind] if not str(one).startswith(own)] == []


def test_resolving_every_name_leaves_torch_as_it_was(report):
    assert report["same_settings"]


def test_every_name_needs_only_its_declared_packages(report):
    # scipy, tqdm and the command line are reached when they are used; this is what keeps the import short.
    assert "ltx2_diffusers" in report["packages"]
    assert not {"scipy", "pandas", "matplotlib", "sentencepiece", "argparse"} & set(report["packages"])


def test_every_public_name_resolves_and_is_documented():
    assert ltx2_diffusers.__all__ == sorted(set(ltx2_diffusers.__all__))
    for name in ltx2_diffusers.__all__:
        assert getattr(ltx2_diffusers, name).__doc__, name
    assert set(ltx2_diffusers.__all__) <= set(dir(ltx2_diffusers))


def test_type_checkers_find_the_names_where_they_are():
    stub = ast.parse(Path(ltx2_diffusers.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    found = {
        alias.asname: getattr(importlib.import_module(f".{node.module}", "ltx2_diffusers"), alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert found == {name: getattr(ltx2_diffusers, name) for name in ltx2_diffusers.__all__}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="LTX3Pipeline"):
        ltx2_diffusers.LTX3Pipeline  # noqa: B018 (the access is what is tested)


def test_every_name_of_diffusers_is_here():
    names = {name for name in [*dir(diffusers), *dir(diffusers.pipelines.ltx2)] if name.startswith(("LTX2", "LTX25"))}
    assert {"LTX2Pipeline", "LTX2VideoTransformer3DModel", "LTX2DFRPipeline"} <= names <= set(ltx2_diffusers.__all__)
    assert ltx2_diffusers.LTX2VideoTransformer3DModel is ltx2_diffusers.LTX2AVTransformer3DModel
