"""A frozen base in few bits: how exact it is, and that adapters on it get gradients."""

import sys
from functools import cache

import pytest
import torch
from peft import LoraConfig
from torch import nn

from ltx2_diffusers.training.trained.quantization import _LIBRARIES, QUANTIZATIONS, check_quantization, quantize_blocks
from tests.models.transformer_tools import tiny_inputs, tiny_transformer

CPU = torch.device("cpu")
# Widths that layers can be packed in.
WIDE = {
    "attention_head_dim": 64,
    "cross_attention_dim": 128,
    "audio_attention_head_dim": 32,
    "audio_cross_attention_dim": 64,
}
# Relative errors of both velocities after three blocks of random weights, in bfloat16; half as much again as measured.
ERRORS = {
    "int8-quanto": 0.016,
    "torchao-int8": 0.012,
    "bnb-int8": 0.012,
    "fp8-quanto": 0.03,
    "fp8uz-quanto": 0.03,
    "torchao-fp8": 0.03,
    "int4-quanto": 0.12,
    "bnb-nf4": 0.1,
    "int2-quanto": 0.58,
}
# One whose kernel is compiled when it is first used.
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow, pytest.mark.quick_cases(0)]) if name == "int4-quanto" else name
    for name in QUANTIZATIONS
]
# Bytes of a weight, without its scales.
BYTES = {"int4-quanto": 0.5, "bnb-nf4": 0.5, "int2-quanto": 0.25}
# The exact layers, by their names in diffusers.
KEPT = (
    *("proj_in", "audio_proj_in", "proj_out", "audio_proj_out", "time_embed", "audio_time_embed", "prompt_adaln"),
    *("audio_prompt_adaln", "caption_projection", "audio_caption_projection"),
)


def base(layout: str = "2.3"):
    return tiny_transformer(layout, num_layers=3, **WIDE).requires_grad_(False).to(torch.bfloat16)


@cache
def inputs() -> dict:
    given = tiny_inputs(base())
    return given | {k: v.bfloat16() for k, v in given.items() if k.endswith("hidden_states")}


def quantized(name: str, layout: str = "2.3"):
    module, _ = _LIBRARIES[name]
    pytest.importorskip(module)
    model = base(layout)
    quantize_blocks(model, name, CPU, CPU)
    return model


@torch.no_grad()
def velocities(model) -> list[torch.Tensor]:
    return [velocity.float() for velocity in model(**inputs())]


def test_every_type_has_a_bound():
    assert sorted(ERRORS) == sorted(QUANTIZATIONS)


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", NAMES)
def test_a_quantised_base_is_as_exact_as_its_type(name):
    expected = velocities(base())
    errors = [float((a - e).norm() / e.norm()) for a, e in zip(velocities(quantized(name)), expected)]
    assert 0 < max(errors) < ERRORS[name], errors
    # The bound is near, so that a worse conversion would show.
    assert max(errors) > ERRORS[name] / 2, errors


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_weights_take_fewer_bytes(name):
    layer, plain = (model.transformer_blocks[0].ff.net[2].weight for model in (quantized(name), base()))

    def size(tensor: torch.Tensor) -> int:
        if hasattr(tensor, "__tensor_flatten__"):
            return sum(size(getattr(tensor, inner)) for inner in tensor.__tensor_flatten__()[0])
        return tensor.numel() * tensor.element_size()

    assert size(layer) < (BYTES.get(name, 1) / 2 + 0.15) * size(plain)


@pytest.mark.parametrize("name", ["int8-quanto", "torchao-int8", "bnb-nf4"])
@pytest.mark.parametrize("layout", ["2.0", "2.3"])
def test_what_lies_outside_the_blocks_stays(name, layout):
    model, plain = quantized(name, layout), base(layout)
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    outside = {path for path in layers if not path.startswith("transformer_blocks.")}
    assert {path.split(".")[0] for path in outside} <= {
        *KEPT,
        *(p for p in map(_top, outside) if "av_cross_attn" in p),
    }
    for path, layer in layers.items():
        same = type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and layer.weight.dtype == torch.bfloat16
        assert same == (path in outside), path
        if same:
            assert torch.equal(layer.weight, plain.get_submodule(path).weight)


def _top(path: str) -> str:
    return path.split(".")[0]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_adapters_on_it_get_the_gradients_of_the_exact_base(name):
    gradients = []
    for model in (base(), quantized(name)):
        torch.manual_seed(0)
        model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_out.0", "ff.net.2"]))
        for path, parameter in model.named_parameters():
            if "lora_" in path:
                parameter.data = torch.randn(parameter.shape) * 0.05
        model.train().enable_gradient_checkpointing()
        with torch.autocast("cpu", torch.bfloat16):
            sum(velocity.float().square().mean() for velocity in model(**inputs())).backward()
        trained = {path: p for path, p in model.named_parameters() if p.requires_grad}
        assert all(
            "lora_" in path and p.grad is not None and p.grad.dtype == torch.float32 for path, p in trained.items()
        )
        gradients.append(torch.cat([p.grad.flatten() for p in trained.values()]))
    exact, found = gradients
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > (0.5 if name == "int2-quanto" else 0.98)


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_missing_library_is_named_before_anything_is_loaded(name, monkeypatch):
    module, package = _LIBRARIES[name]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        ValueError, match=rf"quantization: {name}` needs {package}; install it \(pip install {package}\)"
    ):
        check_quantization(name, CPU)


def test_unknown_types_and_devices_are_refused():
    with pytest.raises(ValueError, match=r"is 'int8', which is none of .*; use '(int8-quanto|bnb-int8|torchao-int8)'"):
        check_quantization("int8", CPU)
    pytest.importorskip("optimum.quanto")
    with pytest.raises(ValueError, match="fp8-quanto` does not run on the device 'mps'; use 'int8-quanto'"):
        check_quantization("fp8-quanto", torch.device("mps"))
