"""Strengths of adapters: numbers, by component and by block; nothing else is taken."""

import numpy as np
import pytest

from ltx2_diffusers.adapters.strengths import strength_at
from tests.adapters.tiny import Q, assert_equal, build, in_diffusers, largest, lora, outputs, settings

NAN = float("nan")
K = "transformer_blocks.1.attn2.to_k"


@pytest.fixture(scope="module")
def adapted():
    pipe = build()
    pipe.load_lora_weights(lora() | lora(K) | lora("text_proj_in", 0, (8, 24), "connectors."), adapter_name="style")
    pipe.load_lora_weights(lora(seed=1), adapter_name="other")
    return pipe


@pytest.mark.parametrize(
    "weight, message",
    [
        (NAN, "'style' has to be a finite number but is nan; use 1.0"),
        (-float("inf"), "finite number but is -inf"),
        (np.float32("inf"), "finite number but is"),
        (True, "finite number but is True"),
        ("1", "finite number but is '1'"),
        (10**400, "finite number but is 1000"),
        ({"transfomer": 0.5}, "'transfomer' is none; use 'transformer'"),
        ({"transformer": NAN}, "finite number but is nan"),
        ({"transformer": {"transformer_blocks.0": NAN}}, "finite number but is nan"),
        (
            {"transformer": {"transformer_blocks.7": 0.5}},
            r"'transformer_blocks\.7', which is in no path.*such are transformer",
        ),
        ({"transformer": {"transformer_block.0": 0.5}}, "which is in no path"),
        ([1.0, 2.0], "2 values for the 1 adapters"),
    ],
)
def test_strengths_without_a_meaning_are_refused(adapted, weight, message):
    adapted.set_adapters("style", 0.4)
    before = settings(adapted)
    with pytest.raises(ValueError, match=message):
        adapted.set_adapters("style", weight)
    assert settings(adapted) == before


@pytest.mark.parametrize(
    "names, message", [("nope", r"has \['nope'\]"), (["style", "style"], "names an adapter twice")]
)
def test_adapters_without_a_meaning_are_refused(adapted, names, message):
    with pytest.raises(ValueError, match=message):
        adapted.set_adapters(names)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(2), 2, 0.0])
def test_all_finite_numbers_are_strengths(adapted, number):
    adapted.set_adapters(["style", "other"], [number, 1])
    assert adapted.transformer.get_submodule(Q).scaling["style"] == float(number)


@pytest.mark.parametrize(
    "weight",
    [
        0.3,
        {"transformer": 0.3},
        {"transformer": 0.3, "connectors": 0.0},
        {"transformer": {"transformer_blocks.0": 0.3}, "connectors": None},
        {"transformer": {"attn1": 0.3, "transformer_blocks.1": -0.5}},
        {"transformer": {"transformer_blocks": 0.5}},
    ],
)
@pytest.mark.quick_cases(2)
def test_strengths_by_component_and_block_are_those_of_diffusers(weight):
    pipe = build()
    reference = in_diffusers(pipe)
    tensors = lora() | lora(K) | lora("text_proj_in", 0, (8, 24), "connectors.")
    for one in (pipe, reference):
        one.load_lora_weights(dict(tensors), adapter_name="style")
        one.set_adapters("style", dict(weight) if isinstance(weight, dict) else weight)
    assert largest(outputs(pipe), outputs(reference)) < 5e-6


def test_block_1_is_not_block_10():
    weight = {"transformer": {"transformer_blocks.1": 0.5}}
    assert strength_at(weight, "transformer", "transformer_blocks.1.attn1.to_q") == 0.5
    assert strength_at(weight, "transformer", "transformer_blocks.10.attn1.to_q") == 1.0
    assert strength_at(weight, "connectors", "text_proj_in") == 1.0


def test_disabling_is_undone_by_enabling(adapted):
    adapted.set_adapters("style", 0.4)
    active = outputs(adapted)
    adapted.disable_lora()
    bare = outputs(adapted)
    assert_equal(bare, outputs(build()))
    adapted.enable_lora()
    assert_equal(outputs(adapted), active)
