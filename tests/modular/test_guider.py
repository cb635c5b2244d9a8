"""`LTX2Guidance`: golden values and passes, and the contract of diffusers' guiders."""

import json

import pytest
import torch
from diffusers.modular_pipelines import BlockState

from ltx2_diffusers import LTX2Guidance
from tests.golden_data import load_metadata, load_tensors

FILE = "dfr_hdr/guider.safetensors"
ROWS = json.loads(load_metadata(FILE)["rows"])
PASSES = {"pred_cond": "cond", "pred_uncond": "uncond", "pred_cond_stg": "stg", "pred_cond_modality": "modality"}


@pytest.mark.parametrize("index", range(len(ROWS)))
def test_golden(index):
    tensors, row = load_tensors(FILE), ROWS[index]
    print(row)
