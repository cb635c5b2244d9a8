"""Adapters in several threads: each call has its own strengths, and all have the old ones afterwards."""

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import torch

from ltx2_diffusers import LTX2Pipeline, LTX2TwoStagePipeline
from ltx2_diffusers.adapters.active import adapter_layers, held_adapters
from tests.adapters.tiny import Q, build, lora, settings
from tests.pipelines.tiny import load, seeded

SIZE = {"prompt": "a", "height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2, "output_type": "latent"}
STAGES = {"height": 128, "width": 128, "stage_1_adapters": {"a": 0.1}, "stage_2_adapters": {"b": 1.0, "a": 0.0}}


@pytest.fixture(scope="module")
def pipes() -> tuple[LTX2TwoStagePipeline, LTX2Pipeline]:
    """Two pipelines that share their models, and two adapters, of which one is active."""
    staged = load("2.0", LTX2TwoStagePipeline)
    plain = LTX2Pipeline.from_pipe(staged)
    plain.set_progress_bar_config(disable=True)
    for seed, name in enumerate("ab"):
        connectors = lora("text_proj_in", seed, (32, 96), "connectors.")
        staged.load_lora_weights(lora(seed=seed) | connectors, adapter_name=name)
    staged.set_adapters("a", 0.7)
    return staged, plain


def run_together(*works: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)


def interrupted(staged: LTX2TwoStagePipeline) -> None:
    """A call that fails in its first stage."""

    def fail(*_):
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        staged(**SIZE | STAGES, callback_on_step_end=fail)


def test_calls_at_once_are_those_one_after_the_other(pipes):
    staged, plain = pipes
    calls = (
        lambda: staged(**SIZE | STAGES, generator=seeded(1)).frames,
        lambda: plain(**SIZE, generator=seeded(2)).frames,
        lambda: plain(**SIZE, generator=seeded(3), attention_kwargs={"scale": 0.4}).frames,
    )
    before, expected = settings(staged), [call() for call in calls]
    assert not torch.equal(expected[1], expected[2])
    right = []
    compared = (
        lambda c=call, e=result: right.extend(torch.equal(c(), e) for _ in range(2))
        for call, result in zip(calls, expected)
    )
    run_together(*compared, lambda: interrupted(staged), lambda: interrupted(staged))
    assert right == [True] * 6
    assert settings(staged) == before


def test_changes_wait_for_a_call_that_runs(pipes):
    staged, plain = pipes
    expected = plain(**SIZE, generator=seeded(2)).frames
    running, results = threading.Event(), []

    def on_step(*_):
        running.set()
        return {}

    def change():
        running.wait(60)
        staged.set_adapters("b", 0.1)
        staged.load_lora_weights(lora(seed=5), adapter_name="c")
        staged.delete_adapters("c")

    run_together(
        lambda: results.append(plain(**SIZE, generator=seeded(2), callback_on_step_end=on_step).frames), change
    )
    assert torch.equal(results[0], expected)
    staged.set_adapters("a", 0.7)
    assert torch.equal(plain(**SIZE, generator=seeded(2)).frames, expected)


def test_a_callback_may_call_again(pipes):
    staged, plain = pipes
    before = settings(staged)
    inner = []

    def on_step(_pipe, step, *_):
        if step == 0:
            inner.append(plain(**SIZE).frames)
        return {}

    staged(**SIZE | STAGES, callback_on_step_end=on_step)
    assert len(inner) == 2 and settings(staged) == before


def test_models_without_adapters_are_not_held():
    pipe = build()
    entered = threading.Event()

    def enter():
        with held_adapters(pipe, if_loaded=True):
            entered.set()

    with held_adapters(pipe, if_loaded=True):
        run_together(enter)
    assert entered.is_set()


def test_held_models_can_be_copied_and_pickled():
    pipe = build()
    pipe.load_lora_weights(lora() | {f"transformer.{Q}.lora_magnitude_vector": torch.ones(32)})
    with held_adapters(pipe):
        copies = copy.deepcopy(pipe.transformer), pickle.loads(pickle.dumps(pipe.transformer))
    for one in copies:
        assert torch.equal(one.get_submodule(Q).lora_A["default_0"].weight, lora()[f"transformer.{Q}.lora_A.weight"])
    assert len(adapter_layers(copy.deepcopy(pipe))) == 1
