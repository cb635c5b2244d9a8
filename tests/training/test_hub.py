"""Publishing to the Hub, against a stand-in of its HTTP interface."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ltx2_diffusers import packaged_checkpoint
from tests.hub_server import HubServer

PATH = json.dumps(sys.path)
TINY = str(packaged_checkpoint("ltx2-tiny"))


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def run_client(hub: HubServer, cache: Path, script: str, **said: object) -> dict:
    """Run a script in a process whose Hub is the stand-in; it finds `said` in `given`, and what it puts into `told` comes back."""
    begin = f"import sys, json; sys.path[:] = {PATH}\ngiven = json.loads(sys.argv[1]); told = {{}}\n"
    environment = {
        "PATH": "/usr/bin:/bin",
        **hub.environment(str(cache), **{k: v for k, v in said.items() if k == "token"}),
    }
    command = [sys.executable, "-c", f"{begin}{script}\nprint(json.dumps(told))", json.dumps(said)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


LORA = """
import torch
from ltx2_diffusers import LTX2Pipeline
factors = {"transformer_blocks.0.attn1.to_q.lora_A.weight": torch.randn(4, 64), "transformer_blocks.0.attn1.to_q.lora_B.weight": torch.randn(64, 4)}
"""


def test_a_lora_is_saved_pushed_and_loaded_back(hub, tmp_path):
    script = (
        LORA
        + """
LTX2Pipeline.save_lora_weights(given["folder"], factors, push_to_hub=True, repo_id="user/my-lora", private=True, commit_message="First")
told["state"] = sorted(LTX2Pipeline.lora_state_dict("user/my-lora"))
"""
    )
    told = run_client(hub, tmp_path / "cache", script, folder=str(tmp_path / "lora"))
    repository = hub.repositories["user/my-lora"]
    assert repository.private
    assert repository.messages == ["First"]
    assert set(repository.files()) == {"README.md", "pytorch_lora_weights.safetensors"}
    saved = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    assert repository.files()["pytorch_lora_weights.safetensors"] == saved.read_bytes()
    assert told["state"] == [f"transformer.transformer_blocks.0.attn1.to_q.lora_{part}.weight" for part in "AB"]
    assert [path.name for path in (tmp_path / "lora").iterdir()] == [saved.name]
