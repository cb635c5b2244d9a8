"""The benchmark of a training step: what it would run on a GPU, small and on the CPU."""

import json

import pytest
import torch

from benchmarks import common, training_step
from benchmarks.training_step import CONNECTORS, Case, SampleWidths, Sizes, measure_device, of_all_blocks
from benchmarks.transformer_forward import CONFIG

pytestmark = pytest.mark.slow

SMALL = Sizes({**CONFIG, "num_layers": 3}, CONNECTORS, 288, SampleWidths(video_text=256), 256)
CPU = torch.device("cpu")


@pytest.mark.parametrize("case", [Case(), Case(blocks_on_device=2), Case("torchao-int8")])
def test_a_case_measures_a_step(case):
    row = measure_device(case, CPU, SMALL, 1)
    assert "not run" not in row, row["not run"]
    assert row["step s"] > row["forward s"] > 0
    assert row["blocks"] == 3 and row["blocks on the device"] == (case.blocks_on_device or "all")


def test_a_case_that_fails_loses_no_other(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS_DIR", tmp_path)
    monkeypatch.setattr(training_step, "CASES", [Case("bnb-nf3"), Case(blocks_on_device=3), Case()])
    monkeypatch.setattr(training_step, "Sizes", lambda *_: SMALL)
    training_step.run_device(CPU, 3, 1)
    rows = json.loads((tmp_path / "training_step_cpu.json").read_text())["cases"]
    assert ["not run" in row for row in rows] == [True, True, False]
    assert "bnb-nf3" in rows[0]["not run"] and "from 1 to 2" in rows[1]["not run"]


def test_one_more_block_adds_its_weights_its_lora_and_its_input():
    """48 blocks of two bytes for each weight, 18 for each factor, and inputs of all tokens."""
    transformer, connectors = training_step.LTX2AVTransformer3DModel(**SMALL.transformer), None
    connectors = training_step.LTX2TextConnectors(**CONNECTORS)
    item = training_step.sample(288, SMALL.widths, 64)
    step = training_step.Step(transformer, connectors, item, 256)
    found = of_all_blocks(Case(), step, item, 1000, 10**9)
    lora = 18 * sum(p.numel() for p in step.parameters) / 3
    audio = item["audio_latents"]["latents"].shape[1]
    inputs = 2 * (288 * 512 + audio * 256)
    expected = (10**9 + 45 * (1000 + lora + inputs)) / 2**30
    assert found["peak GiB of 48 blocks, computed"] == pytest.approx(expected)
    streamed = of_all_blocks(Case(blocks_on_device=2), step, item, 1000, 10**9)
    assert streamed["peak GiB of 48 blocks, computed"] == pytest.approx(expected - 45 * 1000 / 2**30)
