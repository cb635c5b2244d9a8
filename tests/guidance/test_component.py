"""`LTX2Guidance`: golden values, passes by step, and the contract of diffusers' guiders."""

import json
import re

import diffusers
import pytest
import torch
from diffusers.modular_pipelines import BlockState

from ltx2_diffusers import LTX2Guidance
from tests.golden_data import load_metadata, load_tensors

FILE = "dfr_hdr/guider.safetensors"
ROWS = json.loads(load_metadata(FILE)["rows"])
TENSORS = {"pred_cond": "cond", "pred_uncond": "uncond", "pred_cond_stg": "stg", "pred_cond_modality": "modality"}
# What the golden files promise.
TOLERANCE = 1e-6


def batches(guider: LTX2Guidance) -> list[BlockState]:
    """A batch for each pass that the guider asks for, with the prediction of the golden file."""
    tensors, asked = (
        load_tensors(FILE),
        guider.prepare_inputs({"context": ("a", "b", "c", "d"), "shared": torch.ones(1)}),
    )
    for batch in asked:
        batch.noise_pred = tensors[TENSORS[name(batch)]]
    return asked


def name(batch: BlockState) -> str:
    return getattr(batch, LTX2Guidance._identifier_key)


@pytest.mark.parametrize("index", [i for i, row in enumerate(ROWS) if "active" in row])
def test_golden_values(index):
    guider = LTX2Guidance(**ROWS[index]["params"])
    assert guider.active_predictions() == ROWS[index]["active"]
    assert guider.num_conditions == len(ROWS[index]["active"])
    output = guider(batches(guider))
    torch.testing.assert_close(output.pred, load_tensors(FILE)[f"out.{index}"], rtol=TOLERANCE, atol=TOLERANCE)
    assert output[0] is output.pred


@pytest.mark.parametrize("row", [row for row in ROWS if "num_inference_steps" in row], ids=str)
def test_golden_passes_by_step(row):
    guider, steps = LTX2Guidance(**row["params"]), row["num_inference_steps"]
    active = []
    for step in range(steps):
        guider.set_state(step=step, num_inference_steps=steps, timestep=torch.tensor(0))
        active.append(guider.active_predictions())
    assert active == row["active_per_step"]


def test_each_pass_has_its_own_values():
    guider = LTX2Guidance(guidance_scale=2.0, modality_scale=2.0)
    assert [(name(one), one.context) for one in batches(guider)] == [
        ("pred_cond", "a"),
        ("pred_uncond", "b"),
        ("pred_cond_modality", "d"),
    ]
    fields = {"hidden": ("first", "second", "first", "third")}
    state = BlockState(first=1, second=2, third=3)
    assert [one.hidden for one in guider.prepare_inputs_from_block_state(state, fields)] == [1, 2, 3]


def test_half_precision_is_kept():
    tensors = {key: value.bfloat16() for key, value in load_tensors(FILE).items()}
    output = LTX2Guidance(guidance_scale=3.0, guidance_rescale=0.7)(
        [
            BlockState(**{LTX2Guidance._identifier_key: key, "noise_pred": tensors[TENSORS[key]]})
            for key in list(TENSORS)[:2]
        ]
    )
    assert output.pred.dtype == torch.bfloat16


def test_changed_attributes_count_and_a_disabled_guider_does_nothing():
    guider = LTX2Guidance()
    assert guider.active_predictions() == ["pred_cond"]
    guider.guidance_scale = 3.0
    assert guider.active_predictions() == ["pred_cond", "pred_uncond"]
    guider.disable()
    assert guider.active_predictions() == ["pred_cond"]
    assert guider(batches(guider)).pred.equal(load_tensors(FILE)["cond"])


def test_saved_and_loaded_in_both_libraries(tmp_path):
    guider = LTX2Guidance(3.0, 1.0, 3.0, 0.7, [1], start=0.25, stop=0.5)
    guider.save_pretrained(tmp_path)
    for kind in (LTX2Guidance, diffusers.LTX2Guidance):
        loaded = kind.from_pretrained(tmp_path)
        assert {k: v for k, v in loaded.config.items() if k[0] != "_"} == {
            k: v for k, v in guider.config.items() if k[0] != "_"
        }
    assert guider.new(guidance_scale=5.0).guidance_scale == 5.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"guidance_scale": 1e9}, "cfg_scale` has to be from"),
        ({"guidance_rescale": 1.5}, "rescale_scale must lie in [0, 1]"),
        ({"start": 0.8, "stop": 0.2}, "stop"),
    ],
)
def test_errors(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LTX2Guidance(**wrong)


def test_a_missing_prediction_is_refused():
    guider = LTX2Guidance(guidance_scale=3.0)
    with pytest.raises(ValueError, match="Expected 2 data items"):
        guider(batches(LTX2Guidance()))
    with pytest.raises(ValueError, match="uncond is missing"):
        guider.forward(torch.ones(1, 2))
