"""Calls on the weights that `--checkpoint` names: equal to diffusers, equal to what is recorded, in the memory that is recorded.

What they need, and how numbers are recorded, stands in the README beside this file.
"""

from typing import Any

import pytest

from ltx2_diffusers import LTX2Pipeline
from tests.golden_data import assert_within

from .records import Records
from .running import ALIKE, CASES, Outcome, Weights, decoded

pytestmark = pytest.mark.slow


def row(weights: Weights, pipeline: Any, name: str, equal: str) -> str:
    """Which row of the table of tolerances judges a tensor: in float32 that of equal pipelines, or of recorded ones."""
    if weights.dtype != "float32":
        return weights.dtype
    # Its second stage magnifies rounding.
    is_magnified = name == "audio" and type(pipeline.vocoder).__name__ == "LTX2VocoderWithBWE"
    return "pipeline, 2.3 sound" if is_magnified else equal


def test_text_to_video_is_that_of_diffusers(weights: Weights, request: pytest.FixtureRequest):
    """It comes first, so that the weights are in memory once."""
    expected = weights.of_diffusers()
    pipeline = request.getfixturevalue("pipeline")
    ours = LTX2Pipeline.from_pipe(pipeline)
    ours.set_progress_bar_config(disable=True)
    found = decoded(ours(**ALIKE, **weights.common(pipeline)))
    assert found.keys() == expected.keys() == {"frames", "audio"}
    for name, tensor in expected.items():
        # A blank clip would be equal, too.
        assert tensor.std() > 1e-3
        assert_within(found[name], tensor, row(weights, pipeline, name, "equal pipelines"), name)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def outcome(request: pytest.FixtureRequest, weights: Weights, pipeline: Any) -> Outcome:
    """What a case gives; the tests that look at it share one run."""
    return weights.run(pipeline, request.param)


def test_a_call_gives_what_is_recorded(outcome: Outcome, weights: Weights, pipeline: Any, records: Records):
    rows = {name: row(weights, pipeline, name, "pipeline") for name in outcome.found}
    records.check_slices(outcome.case.name, outcome.lora, outcome.found, rows)


def test_a_call_takes_no_more_memory_than_is_recorded(outcome: Outcome, records: Records):
    records.check_peak(outcome.case.name, outcome.peak_bytes)
