"""Scaled fp8 in every spelling reads as weight times scale, exactly; other quantisations are refused by name."""

import json
import random

import pytest
import torch
from safetensors.torch import save_file

from ltx2_diffusers.checkpoints.convert import convert_to_diffusers, folder_components
from ltx2_diffusers.checkpoints.original import OriginalCheckpoint
from ltx2_diffusers.checkpoints.safetensors_io import Entry
from ltx2_diffusers.checkpoints.scaled_fp8 import dequantized
from tests.golden_data import load_metadata, load_tensors

from .tiny import V20

PREFIX = "model.diffusion_model."
LAYER = "transformer_blocks.1.attn1.to_q"
FP8 = "checkpoint/fp8/ltx-2-tiny-dev-fp8.safetensors"


def blob(**content) -> torch.Tensor:
    return torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)


def respelled(tensors: dict[str, torch.Tensor], spelling: str) -> dict[str, torch.Tensor]:
    """The golden fp8 file as other programs write it, in an order of its own."""
    result = {}
    for name, tensor in tensors.items():
        if spelling == "scale_weight":
            name = name.replace(".weight_scale", ".scale_weight").replace(".input_scale", ".scale_input")
        elif spelling == "comfy_quant" and name.endswith(".weight_scale"):
            result[name.replace("weight_scale", "comfy_quant")] = blob(
                format="float8_e4m3fn", full_precision_matrix_mult=True
            )
            tensor = tensor.reshape(1)
        result[name] = tensor
    if spelling == "scale_weight":
        result[f"{PREFIX}scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    order = list(result)
    random.Random(0).shuffle(order)
    return {name: result[name] for name in order}


@pytest.mark.parametrize("spelling", ["scale_weight", "comfy_quant"])
@pytest.mark.parametrize("prefix", [PREFIX, "diffusion_model.", ""])
def test_other_spellings_read_as_the_same_weights(spelling, prefix):
    tensors = {name: tensor for name, tensor in load_tensors(FP8).items() if name.startswith(PREFIX)}
    expected = OriginalCheckpoint(tensors).component("transformer")
    spelled = {name.replace(PREFIX, prefix): tensor for name, tensor in respelled(tensors, spelling).items()}
    found = OriginalCheckpoint(spelled).component("transformer")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].load(), entry.load()) for name, entry in expected.items())
    exact = OriginalCheckpoint(spelled).component("transformer", torch.float32)[f"{LAYER}.weight"].load()
    raw = tensors[f"{PREFIX}{LAYER}.weight"].float() * tensors[f"{PREFIX}{LAYER}.weight_scale"]
    assert torch.equal(exact, raw)


@pytest.mark.parametrize("spelling", ["scale_weight", "comfy_quant"])
def test_a_whole_file_of_another_spelling_converts(tmp_path, spelling):
    tensors = respelled(load_tensors(FP8), spelling)
    save_file(tensors, tmp_path / "x.safetensors", load_metadata(V20))
    convert_to_diffusers(tmp_path / "x.safetensors", tmp_path / "out")
    weights = folder_components(tmp_path / "out")["transformer"][0]
    for key, expected in load_tensors("checkpoint/fp8/expected/dequantized_bf16.safetensors").items():
        assert torch.equal(weights[key.removeprefix(PREFIX)].load(), expected)


def layer(**tensors: torch.Tensor) -> dict[str, Entry]:
    return {f"{LAYER}.{name}": Entry.of(tensor) for name, tensor in tensors.items()}


WEIGHT = torch.ones(4, 4).to(torch.float8_e4m3fn)
SCALE = torch.tensor(0.5)


def test_the_other_float8_is_scaled_alike():
    found = dequantized(layer(weight=torch.ones(4, 4).to(torch.float8_e5m2), weight_scale=SCALE))
    assert torch.equal(found[f"{LAYER}.weight"].load(), torch.full((4, 4), 0.5))


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({"weight": WEIGHT, "weight_scale": torch.ones(4)}, "weight_scale"),
        ({"weight": WEIGHT, "weight_scale": SCALE, "scale_weight": SCALE}, "two names"),
        ({"weight": WEIGHT, "weight_scale": SCALE, "pre_quant_scale": torch.ones(4)}, "pre_quant_scale"),
        ({"weight": WEIGHT, "weight_scale_inv": torch.ones(1, 1)}, "weight_scale_inv"),
        (
            {"weight": torch.ones(4, 4, dtype=torch.uint8), "weight_scale": WEIGHT, "weight_scale_2": SCALE},
            "weight_scale_2",
        ),
        ({"weight": torch.ones(4, 4, dtype=torch.int8), "weight_scale": SCALE}, "weight_scale"),
        ({"weight": torch.ones(4, 4), "scale_weight": SCALE}, "weight_scale"),
        ({"weight_scale": SCALE}, "weight_scale"),
        ({"weight": WEIGHT, "weight_scale": SCALE, "comfy_quant": blob(format="nvfp4")}, "'nvfp4'"),
        ({"weight": WEIGHT, "weight_scale": SCALE, "comfy_quant": blob(format=["float8_e4m3fn"])}, "comfy_quant"),
        ({"weight": WEIGHT, "weight_scale": SCALE, "comfy_quant": blob(format="float8_e5m2")}, "its weight is"),
        ({"weight": WEIGHT, "weight_scale": SCALE, "comfy_quant": blob()[:1]}, "comfy_quant.*no JSON"),
        ({"weight": WEIGHT, "weight_scale": SCALE, "comfy_quant": torch.ones(3)}, "JSON as bytes"),
        ({"weight": WEIGHT, "comfy_quant": blob(format="float8_e4m3fn")}, "no weight_scale"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_other_quantisations_are_refused_by_name(tensors, message):
    with pytest.raises(ValueError, match=message):
        dequantized(layer(**tensors))


def test_a_scale_that_is_not_finite_is_refused():
    found = dequantized(layer(weight=WEIGHT, weight_scale=torch.tensor(float("nan"))))
    with pytest.raises(ValueError, match=f"{LAYER}.weight_scale.*finite"):
        found[f"{LAYER}.weight"].load()
