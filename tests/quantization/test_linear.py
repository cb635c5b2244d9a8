"""Float8 layers compute the golden numbers to the bit, and stay what they are when a model is cast, copied or adapted."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from ltx2_diffusers.quantization import linear
from ltx2_diffusers.quantization.linear import FLOAT8, FP8CastLinear, FP8ScaledLinear, quantize_tensor
from tests.golden_data import load_tensors

PREFIX = "model.diffusion_model."
LAYERS = load_tensors("checkpoint/fp8/expected/fp8_linear_bf16.safetensors")
NAMES = sorted({name.rpartition(".")[0] for name in LAYERS})


def scaled(in_features=32, out_features=16, static_input=False, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    layer = FP8ScaledLinear(in_features, out_features, static_input=static_input, dtype=dtype)
    layer.requantize_(torch.randn(out_features, in_features, generator=generator))
    layer.bias.copy_(torch.randn(out_features, generator=generator))
    if static_input:
        layer.input_scale.fill_(0.01)
    return layer


def cast(in_features=32, out_features=16):
    layer = FP8CastLinear(in_features, out_features)
    layer.requantize_(torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0)))
    layer.bias.copy_(torch.linspace(-1, 1, out_features))
    return layer


KINDS = {"cast": cast, "dynamic": scaled, "static": lambda: scaled(static_input=True)}


def golden_layer(name, static_input):
    tensors = load_tensors("checkpoint/fp8/ltx-2-tiny-dev-fp8.safetensors")
    state = {kind: tensors[f"{PREFIX}{name}.{kind}"] for kind in ("weight", "bias", "weight_scale", "input_scale")}
    if not static_input:
        del state["input_scale"]
    layer = FP8ScaledLinear(*state["weight"].shape[::-1], static_input=static_input, dtype=torch.bfloat16)
    layer.load_state_dict(state)
    return layer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["expected", "expected_dynamic"])
def test_golden_layers_to_the_bit(name, kind):
    layer = golden_layer(name, static_input=kind == "expected")
    assert torch.equal(layer(LAYERS[f"{name}.input"]), LAYERS[f"{name}.{kind}"])


@pytest.mark.parametrize("name", NAMES)
def test_the_emulation_is_what_torch_multiplies(name):
    """On these sizes torch's own product on the CPU has the same bits."""
    layer, rounded = golden_layer(name, static_input=True), LAYERS[f"{name}.input_q"].flatten(0, -2)
    scales = {"scale_a": layer.input_scale, "scale_b": layer.weight_scale}
    product = torch._scaled_mm(rounded, layer.weight.t(), **scales, out_dtype=torch.bfloat16, use_fast_accum=True)
    assert torch.equal(layer._product(rounded, layer.input_scale, torch.bfloat16), product)


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_weight_is_what_it_was_made_of(name):
    expected = load_tensors("checkpoint/fp8/expected/dequantized_bf16.safetensors")[f"{PREFIX}{name}.weight"]
    layer = golden_layer(name, static_input=True)
    assert torch.equal(layer.dequantized_weight().to(torch.bfloat16), expected)
    before = layer.weight.float().clone()
    layer.requantize_(layer.dequantized_weight())
    assert torch.equal(layer.weight.float(), before)


def test_a_cast_layer_is_a_linear_layer_of_upcast_values():
    layer, x = cast(), torch.randn(2, 3, 32, dtype=torch.bfloat16)
    expected = nn.functional.linear(x, layer.weight.to(torch.bfloat16), layer.bias.to(torch.bfloat16))
    assert torch.equal(layer(x), expected)
    assert (layer.weight.dtype, layer.bias.dtype) == (FLOAT8, FLOAT8)


def test_quantize_tensor_by_hand():
    values, scale = quantize_tensor(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
    assert scale == 2 / 448
    assert values.float().tolist() == [[224.0, -448.0], [112.0, 0.0]]
    # No scale in float32 is so small, and one of zero would be refused when it is loaded.
    for largest in (0.0, 1e-40):
        values, scale = quantize_tensor(torch.full((2, 2), largest))
        assert scale == 1
        assert not values.float().any()


@pytest.mark.parametrize("kind", KINDS)
def test_casts_leave_storage_alone(kind):
    layer, holder = KINDS[kind](), nn.Sequential(nn.Linear(2, 2))
    holder.append(layer)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    for change in (
        lambda m: m.to(torch.float16),
        lambda m: m.half(),
        lambda m: m.float(),
        lambda m: m.to("cpu", torch.bfloat16),
    ):
        assert change(holder) is holder
        for name, tensor in layer.state_dict().items():
            if name != "bias" or kind == "cast":
                assert tensor.dtype == before[name].dtype
                assert torch.equal(tensor.float(), before[name].float())
    assert holder[0].weight.dtype == torch.bfloat16
    assert layer.bias.dtype == (FLOAT8 if kind == "cast" else torch.bfloat16)
    assert layer.to("meta").weight.is_meta


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_are_equal(kind, copied):
    layer, x = KINDS[kind](), torch.randn(4, 32, dtype=torch.bfloat16)
    assert torch.equal(copied(layer)(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_state_dicts_have_the_published_names(kind):
    names = {"cast": set(), "dynamic": {"weight_scale"}, "static": {"weight_scale", "input_scale"}}[kind]
    assert set(KINDS[kind]().state_dict()) == {"weight", "bias", *names}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_run_beside_the_layer(kind):
    layer, x = KINDS[kind](), torch.randn(4, 32, dtype=torch.bfloat16)
    plain = layer(x)
    model = inject_adapter_in_model(
        LoraConfig(r=2, target_modules=["0"], init_lora_weights=False), nn.Sequential(layer)
    )
    adapter = model[0]
    assert adapter.base_layer is layer
    factors = [adapter.lora_A["default"].weight, adapter.lora_B["default"].weight]
    assert {factor.dtype for factor in factors} == {layer.compute_dtype}
    assert layer.compute_dtype != FLOAT8
    with torch.no_grad():
        beside = x.float() @ factors[0].float().T @ factors[1].float().T * adapter.scaling["default"]
        assert torch.allclose(model(x).float(), plain + beside, rtol=0.02, atol=0.05)
        assert not torch.equal(model(x), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_it_compiles_as_one_graph(kind):
    layer, x = KINDS[kind](), torch.randn(4, 32, dtype=torch.bfloat16)
    assert torch.equal(torch.compile(layer, backend="eager", fullgraph=True)(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 32), (32,), (1, 2, 3, 32)], ids=str)
def test_inputs_of_any_shape(kind, shape):
    layer = KINDS[kind]()
    assert layer(torch.zeros(shape, dtype=torch.bfloat16)).shape == (*shape[:-1], 16)
    if 0 not in shape:
        assert torch.equal(layer(torch.zeros(shape)), layer.bias.float().expand(*shape[:-1], 16))


def test_values_beyond_the_calibrated_range_are_clamped():
    layer, x = scaled(static_input=True), torch.full((1, 32), 100.0)
    assert torch.equal(layer(x), layer(x.clamp(max=4.48)))
    assert layer(x).isfinite().all()


def test_training_goes_through_cast_layers_alone():
    x = torch.ones(1, 32, requires_grad=True)
    layer = cast()
    layer(x).sum().backward()
    assert torch.equal(x.grad[0], layer.dequantized_weight().sum(0))
    with pytest.raises(ValueError, match="no gradients"):
        scaled()(x)


def test_weights_that_cannot_be_stored_are_refused():
    layer = cast()
    before = layer.weight.float().clone()
    with pytest.raises(ValueError, match=r"449.*fp8_scaled_mm"):
        layer.requantize_(torch.full((16, 32), 449.0))
    for kind in (layer, scaled()):
        with pytest.raises(ValueError, match="finite"):
            kind.requantize_(torch.full((16, 32), float("nan")))
        with pytest.raises(ValueError, match=r"\[32, 16\].*\[16, 32\]"):
            kind.requantize_(torch.zeros(32, 16))
    assert torch.equal(layer.weight.float(), before)


def test_devices_without_float8_units_compute_with_dequantised_weights(monkeypatch):
    """Said once; nothing is multiplied in float8."""
    said = []
    monkeypatch.setattr(linear.logger, "warning", said.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 6))
    device = torch.device("cuda", 7)
    assert [linear._multiplies_float8(device), linear._multiplies_float8(device)] == [False, False]
    assert len(said) == 1
    assert "cuda:7 has no float8 units" in said[0]
    monkeypatch.setattr(linear, "_multiplies_float8", lambda _device: False)
    layer, x = scaled(), torch.randn(4, 32, dtype=torch.bfloat16)
    expected = nn.functional.linear(x, layer.dequantized_weight().to(x.dtype), layer.bias)
    assert torch.equal(layer(x), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("static_input", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_float8_units_compute_the_same_numbers(static_input, dtype):
    """Sums are accumulated in another order, so that results may differ by one rounding."""
    layer, x = scaled(256, 128, static_input, dtype), torch.randn(64, 256).to(dtype)
    expected, found = layer(x), layer.cuda()(x.cuda()).cpu()
    step = {torch.float32: 2e-3}.get(dtype, 2 * torch.finfo(dtype).eps)
    assert (found.float() - expected.float()).abs().max() <= step * expected.float().abs().max()
