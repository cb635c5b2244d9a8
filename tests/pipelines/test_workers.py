"""A pipeline can be sent to another process and copied, whatever was done with it before."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ltx2_diffusers import LTX2Pipeline, LTX2TwoStagePipeline
from tests.pipelines import recipes
from tests.pipelines.tiny import CFG, EXPLICIT, PROMPT, load, max_difference, seeded

CALL = {**EXPLICIT, **CFG, "prompt": PROMPT}


def run(pipe: LTX2Pipeline, **changes: Any) -> Any:
    return pipe(**CALL | changes, generator=seeded(1))


def stop(pipe: LTX2Pipeline, *_: Any) -> None:
    pipe._interrupt = True


def used(kind: str, folder: Path) -> LTX2Pipeline:
    """A pipeline after what may leave traces in it."""
    pipe = load()
    if kind == "prompt cache":
        pipe.enable_prompt_cache(folder)
    if kind == "LoRA":
        recipes.add_lora(pipe, folder, "one")
    if kind == "enhanced prompt":
        pipe.enhance_prompt(PROMPT, max_new_tokens=2)
    run(pipe, **{"callback_on_step_end": stop} if kind in ("callback", "interrupted") else {})
    return pipe


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", ["plain", "callback", "prompt cache", "LoRA", "enhanced prompt"])
@pytest.mark.parametrize(
    "sent", [lambda pipe: pickle.loads(pickle.dumps(pipe)), copy.deepcopy], ids=["pickle", "copy"]
)
def test_what_arrives_works_as_what_was_sent(kind, sent, tmp_path):
    pipe = used(kind, tmp_path)
    twin = sent(pipe)
    expected = run(pipe)
    assert max_difference(run(twin), expected) == 0
    assert twin.components.keys() == pipe.components.keys()
    assert (twin.prompt_cache is None) == (pipe.prompt_cache is None)
    # The copy has weights of its own, and was not run before.
    torch.nn.init.zeros_(twin.transformer.proj_out.weight)
    assert max_difference(run(pipe), expected) == 0
    assert max_difference(run(sent(twin)), run(twin)) == 0


def test_a_pipeline_is_as_large_after_a_call_as_before():
    pipe = load()
    before = len(pickle.dumps(pipe))
    run(pipe)
    assert len(pickle.dumps(pipe)) < before * 1.01


def test_a_shallow_copy_shares_its_components():
    pipe = load()
    expected = run(pipe)
    twin = copy.copy(pipe)
    assert all(part is pipe.components[name] for name, part in twin.components.items())
    assert max_difference(run(twin), expected) == 0


def test_recipes_in_stages_travel_too():
    pipe = load("2.0", LTX2TwoStagePipeline)
    call = {**recipes.CALL, **recipes.TWO_STAGES}
    expected = pipe(**call, generator=seeded(1))
    assert max_difference(pickle.loads(pickle.dumps(pipe))(**call, generator=seeded(1)), expected) == 0


def test_a_process_that_has_built_no_language_model_reads_prompts(monkeypatch):
    output_capturing = pytest.importorskip("transformers.utils.output_capturing", reason="only newer versions note it")
    pipe = load()
    expected, sent = run(pipe), pickle.dumps(pipe)
    monkeypatch.setattr(output_capturing, "_CAN_RECORD_REGISTRY", type(output_capturing._CAN_RECORD_REGISTRY)())
    assert max_difference(run(pickle.loads(sent)), expected) == 0


@pytest.mark.slow
def test_another_process_takes_a_pipeline(tmp_path):
    pipe = used("plain", tmp_path)
    (tmp_path / "pipe").write_bytes(pickle.dumps((pipe, CALL)))
    program = (
        "import pickle, sys, torch; pipe, call = pickle.load(open(sys.argv[1], 'rb'));"
        "output = pipe(**call, generator=torch.Generator().manual_seed(1)); torch.save(output.frames, sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "pipe", tmp_path / "frames"], check=True)
    assert torch.equal(torch.load(tmp_path / "frames"), run(pipe).frames)
