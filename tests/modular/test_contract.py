"""Modular blocks have diffusers' tree, names, inputs, outputs and components."""

import pytest

from ltx2_diffusers.modular import blocks as known
from ltx2_diffusers.modular import decoding, denoising, encoding, preparing, text
from ltx2_diffusers.modular.declarations import Auto, Conditional, Loop, Sequential
from tests.golden_data import load_json

CONTRACT = load_json("dfr_hdr/modular_contract.json")
KINDS = {"sequential": Sequential, "conditional": Conditional, "auto": Auto, "loop": Loop}
ROOMS = (text, encoding, preparing, denoising, decoding)


def inputs(block):
    return [[one.name, one.kwargs_type, one.required, shown(one.default)] for one in block.inputs]


def shown(value):
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def check_tree(block, expected):
    assert type(block).__name__ == expected["class"]
    assert (isinstance(block, KINDS[expected["kind"]]), block.model_name) == (True, expected["model_name"])
    if "triggers" in expected:
        assert (block.block_trigger_inputs, block.default_block_name) == (
            expected["triggers"],
            expected["default_block"],
        )
    assert sorted(block.sub_blocks) == sorted(expected["blocks"])
    for name, part in expected["blocks"].items():
        if isinstance(part, str):
            assert type(block.sub_blocks[name]).__name__ == part
        else:
            check_tree(block.sub_blocks[name], part)


@pytest.mark.parametrize("name", CONTRACT["blocks"])
def test_blocks_of_pipelines(name):
    expected, blocks = CONTRACT["blocks"][name], getattr(known, name)()
    check_tree(blocks, expected["tree"])
    assert blocks.model_name == expected["model_name"]
    assert inputs(blocks) == expected["inputs"]
    assert [one.name for one in blocks.outputs if one.name in expected["outputs"]] == expected["outputs"]
    assert blocks._workflow_map == expected["workflows"]
    components = [
        [one.name, one.type_hint.__name__, one.default_creation_method, one.config and dict(one.config)]
        for one in blocks.expected_components
    ]
    # This class has another name here.
    ours = {"LTX2VideoTransformer3DModel": "LTX2AVTransformer3DModel"}
    assert components == [[first, ours.get(kind, kind), *rest] for first, kind, *rest in expected["components"]]


@pytest.mark.parametrize("name", CONTRACT["leaves"])
def test_blocks_that_compute(name):
    expected = CONTRACT["leaves"][name]
    block = next(getattr(room, name) for room in ROOMS if hasattr(room, name))()
    assert inputs(block) == expected["inputs"]
    assert [[one.name, one.kwargs_type] for one in block.intermediate_outputs] == expected["outputs"]
    assert [one.name for one in block.expected_components] == expected["components"]
    assert block.description and "TODO" not in block.doc
