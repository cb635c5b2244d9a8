"""Models with float8 layers, from every source: golden numbers, the same bits by every way, and what is refused."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from safetensors.torch import load_file, save_file

from ltx2_diffusers import LTX2AVTransformer3DModel, LTX2TextConnectors
from ltx2_diffusers.quantization.configs import FP8CastConfig, FP8ScaledMMConfig, QuantizationPolicy, as_config
from ltx2_diffusers.quantization.linear import FLOAT8, FP8CastLinear, FP8ScaledLinear
from tests.checkpoints.test_scaled_fp8 import respelled
from tests.golden_data import assert_within, load_metadata, load_tensors

from .files import AMAX, FORWARD, FP8, FULL, FULL_23, PREFIX, load, outputs, same_weights

LAYER = "transformer_blocks.1.attn1.to_q"
CONFIGS = {"fp8_cast": FP8CastConfig, "fp8_scaled_mm": FP8ScaledMMConfig}
CASES = {
    "bf16_weights": (FULL, None, "checkpoint"),
    "static_scaled_mm": (FP8, "fp8_scaled_mm", "float8 products"),
    "fp8_cast_newest": (FULL, "fp8_cast", "checkpoint"),
    "fp8_cast_v20": (FULL, FP8CastConfig("2.0"), "checkpoint"),
}


def quantised(model) -> dict[str, torch.nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, (FP8CastLinear, FP8ScaledLinear))}


def saved(tmp_path, tensors) -> Path:
    save_file(tensors, tmp_path / "x.safetensors", load_metadata(FP8))
    return tmp_path / "x.safetensors"


@pytest.mark.usefixtures("golden_sinusoid")
@pytest.mark.parametrize("case", CASES)
def test_golden_outputs(case):
    source, config, row = CASES[case]
    for name, tensor in outputs(load(source, quantization_config=config)).items():
        assert_within(tensor, FORWARD[f"expected.{case}.{name}"], row, name)


@pytest.mark.usefixtures("golden_sinusoid")
def test_dequantised_weights_are_golden_too():
    """Read as real weights, which the file has in bfloat16."""
    for name, tensor in outputs(load(dtype=None).float()).items():
        assert_within(tensor, FORWARD[f"expected.dequantized.{name}"], "checkpoint", name)


def test_a_published_file_keeps_its_bits():
    """Weights and scales of the file, and no other layers than its own."""
    tensors, model = load_tensors(FP8), load(dtype=None, quantization_config="fp8_scaled_mm")
    state, layers = model.state_dict(), quantised(model)
    assert len(layers) == 56
    for name in layers:
        for kind in ("weight", "weight_scale", "input_scale", "bias"):
            found, expected = state[f"{name}.{kind}"], tensors[f"{PREFIX}{name}.{kind}"]
            assert found.dtype == expected.dtype
            assert torch.equal(found.float(), expected.float())


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("spelling", ["scale_weight", "comfy_quant"])
@pytest.mark.parametrize("prefix", [PREFIX, ""])
def test_every_spelling_is_the_same_model(tmp_path, spelling, prefix):
    """Also scales with an axis of length 1, without metadata about quantisation."""
    tensors = respelled(load_tensors(FP8), spelling)
    path = saved(tmp_path, {name.replace(PREFIX, prefix): t for name, t in tensors.items() if name.startswith(PREFIX)})
    for config in CONFIGS:
        assert same_weights(load(path, quantization_config=config), load(quantization_config=config))


def test_layers_without_a_stored_input_scale_are_dynamic(tmp_path):
    tensors = {n: t for n, t in load_tensors(FP8).items() if not n.endswith(".input_scale")}
    model = load(saved(tmp_path, tensors), quantization_config="fp8_scaled_mm")
    assert {layer.input_scale for layer in quantised(model).values()} == {None}
    static = outputs(load(quantization_config="fp8_scaled_mm"))
    for name, tensor in outputs(model).items():
        assert 0 < (tensor - static[name]).abs().max() < 0.3


def test_a_cast_of_a_scaled_file_goes_through_bfloat16():
    tensors, layer = load_tensors(FP8), load(quantization_config="fp8_cast").get_submodule(LAYER)
    real = tensors[f"{PREFIX}{LAYER}.weight"].float() * tensors[f"{PREFIX}{LAYER}.weight_scale"]
    assert torch.equal(layer.weight.float(), real.to(torch.bfloat16).to(FLOAT8).float())
    assert "weight_scale" not in layer.state_dict()


@pytest.mark.usefixtures("golden_sinusoid")
def test_real_weights_are_rounded_while_loading():
    """With a calibration the numbers are those of the published file, to the bit."""
    config = FP8ScaledMMConfig(AMAX)
    assert same_weights(
        load(FULL, None, quantization_config=config), load(FP8, None, quantization_config="fp8_scaled_mm")
    )


def test_gates_of_23_in_a_file_are_multiplied_as_they_are_stored(tmp_path):
    """Which layers are quantised is read from the file: here a gate whose 2 heads no unit multiplies."""
    name, tensors = f"{PREFIX}transformer_blocks.0.attn1.to_gate_logits", load_tensors(FULL_23)
    tensors[f"{name}.weight"] = torch.ones_like(tensors[f"{name}.weight"]).to(FLOAT8)
    tensors[f"{name}.weight_scale"] = torch.full((1,), 0.01)
    # Other tensors may have any data type.
    tensors[f"{PREFIX}patchify_proj.bias"] = tensors[f"{PREFIX}patchify_proj.bias"].float()
    save_file(tensors, tmp_path / "x.safetensors", load_metadata(FULL_23))
    model = load(tmp_path / "x.safetensors", None, quantization_config="fp8_scaled_mm")
    assert list(quantised(model)) == [name.removeprefix(PREFIX)]
    assert model.proj_in.bias.dtype == torch.float32
    assert model.proj_in.weight.dtype == torch.bfloat16


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("source", [FULL, FP8], ids=["bf16", "fp8"])
def test_folders_hold_what_was_saved(tmp_path, method, source):
    """Also in shards; loaded without naming a method, by our class and by diffusers'."""
    model = load(source, torch.bfloat16, quantization_config=method)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == method
    for cls in (LTX2AVTransformer3DModel, LTX2VideoTransformer3DModel):
        assert same_weights(cls.from_pretrained(tmp_path, torch_dtype=torch.bfloat16), model)
    for name, tensor in outputs(LTX2AVTransformer3DModel.from_pretrained(tmp_path), torch.float32).items():
        assert torch.equal(tensor, outputs(load(source, quantization_config=method))[name]), name


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.quick_cases(1)
def test_folders_of_real_weights_are_rounded_alike(tmp_path, method):
    load(FULL, None).save_pretrained(tmp_path, max_shard_size="40KB")
    for given in (method, CONFIGS[method]()):
        model = LTX2AVTransformer3DModel.from_pretrained(
            tmp_path, torch_dtype=torch.bfloat16, quantization_config=given
        )
        assert same_weights(model, load(FULL, torch.bfloat16, quantization_config=method))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("axes", [(), (1,)], ids=["scalar", "axis"])
def test_folders_of_scaled_weights_that_do_not_say_so(tmp_path, method, axes):
    """As other tools write them, scales in another shard than weights."""
    load(FP8, None, quantization_config="fp8_scaled_mm").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = {n: t.reshape(axes) if "_scale" in n and t.ndim == 0 else t for n, t in load_file(file).items()}
    save_file(tensors, file)
    model = LTX2AVTransformer3DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, quantization_config=method)
    assert same_weights(model, load(FP8, torch.bfloat16, quantization_config=method))
    with pytest.raises(ValueError, match="quantization_config='fp8_scaled_mm'"):
        LTX2AVTransformer3DModel.from_pretrained(tmp_path)


@pytest.mark.quick_cases(0)
def test_plain_float8_weights_are_cast_or_refused(tmp_path):
    """As ComfyUI casts whole models: without scales, norms and all."""
    tensors = {n: t.to(FLOAT8) if n.startswith(PREFIX) else t for n, t in load_tensors(FULL).items()}
    path = saved(tmp_path, tensors)
    model = load(path, None, quantization_config="fp8_cast")
    assert model.proj_in.weight.dtype == torch.bfloat16
    assert torch.equal(model.get_submodule(LAYER).weight.float(), tensors[f"{PREFIX}{LAYER}.weight"].float())
    with pytest.raises(ValueError, match=r"without a weight_scale.*use fp8_cast"):
        load(path, quantization_config="fp8_scaled_mm")


def test_a_state_dict_is_not_changed_or_shared():
    tensors = {n.removeprefix(PREFIX): t for n, t in load_tensors(FULL).items() if n.startswith(PREFIX)}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    model = LTX2AVTransformer3DModel.from_single_file(
        tensors, quantization_config="fp8_cast", original_config=json.loads(load_metadata(FULL)["config"])
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.quick_cases(1)
def test_models_are_cast_copied_and_pickled(method):
    model = load(FULL, torch.bfloat16, quantization_config=method)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert same_weights(twin, model)
    stored = {name: layer.weight.float() for name, layer in quantised(model).items()}
    for change in (
        lambda m: m.to(torch.float16),
        lambda m: m.float(),
        lambda m: m.half(),
        lambda m: m.to(torch.float32),
    ):
        change(twin)
        assert all(torch.equal(layer.weight.float(), stored[name]) for name, layer in quantised(twin).items())
    for name, tensor in outputs(twin).items():
        assert_within(tensor, outputs(model.float())[name], "equal models", name)


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.quick_cases(1)
def test_offloading_in_groups_changes_nothing(method, kind):
    model = load(FULL, quantization_config=method)
    expected, device = outputs(model), torch.device("cpu")
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    model.enable_group_offload(device, device, offload_type=kind, **options)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in outputs(model).items())


def test_the_names_of_the_original_code():
    assert QuantizationPolicy.fp8_cast().to_dict() == {"quant_method": "fp8_cast", "variant": "newest"}
    assert QuantizationPolicy.fp8_scaled_mm(AMAX).calibration_amax_path == AMAX
    assert isinstance(as_config("fp8-scaled-mm"), FP8ScaledMMConfig)
    assert "fp8_cast" in repr(FP8CastConfig())


@pytest.mark.parametrize(
    "config, message",
    [
        ("fp8_casts", r"'fp8_casts'.*use 'fp8_cast'"),
        ("scaled", r"use 'fp8_scaled_mm'"),
        (8, r"type int"),
        ({"quant_method": "fp8_cast", "variant": "1.0"}, r"`variant` must be one of 'newest', '2.0', got '1.0'"),
        ({"quant_method": "gguf"}, "`ltx2 convert`"),
    ],
)
def test_unknown_methods_are_refused(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        load(FULL, quantization_config=config)
    if not isinstance(config, dict):
        with pytest.raises(ValueError, match=message):
            LTX2AVTransformer3DModel.from_pretrained(tmp_path, quantization_config=config)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight_scale": torch.tensor(float("nan"))}, "finite"),
        ({"weight_scale": torch.tensor(0.0)}, "above 0"),
        ({"input_scale": torch.tensor(float("inf"))}, "finite"),
        ({"weight_scale": torch.ones(32)}, "weight_scale"),
        ({"weight_scale": torch.ones(32, 1)}, "weight_scale"),
        ({"weight": torch.ones(32, 16).to(FLOAT8)}, r"\[32, 16\] \(the model has \[32, 32\]\)"),
        ({"weight": torch.ones(32, 32).to(torch.float8_e5m2)}, "float8_e5m2"),
        ({"weight": torch.ones(32, 32, dtype=torch.bfloat16)}, "not supported"),
    ],
    ids=["nan", "zero", "infinite", "rows", "blocks", "shape", "e5m2", "real"],
)
def test_files_that_cannot_be_multiplied_are_refused(tmp_path, change, message):
    tensors = load_tensors(FP8)
    tensors |= {f"{PREFIX}{LAYER}.{kind}": tensor for kind, tensor in change.items()}
    with pytest.raises(ValueError, match=message):
        load(saved(tmp_path, tensors), quantization_config="fp8_scaled_mm")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight_scale": torch.ones(32)}, "per row"),
        ({"weight_scale": torch.tensor(float("nan"))}, "finite"),
        ({"weight": torch.ones(32, 16).to(FLOAT8)}, r"\[32, 16\] \(the model has \[32, 32\]\)"),
    ],
    ids=["rows", "nan", "shape"],
)
@pytest.mark.quick_cases(1)
def test_folders_that_cannot_be_multiplied_are_refused(tmp_path, change, message):
    load(FP8, None, quantization_config="fp8_scaled_mm").save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {f"{LAYER}.{kind}": tensor for kind, tensor in change.items()}, file)
    with pytest.raises(ValueError, match=message):
        LTX2AVTransformer3DModel.from_pretrained(tmp_path)


@pytest.mark.quick_cases(0)
def test_stochastic_rounding_keeps_the_mean(tmp_path):
    """Of the golden layers as of any other; what is float8 already is not rounded again."""
    real, nearest = load(FULL).get_submodule(LAYER).weight, load(FULL, quantization_config="fp8_cast")
    layers = [
        load(FULL, quantization_config=FP8CastConfig(rounding="stochastic", seed=seed)).get_submodule(LAYER)
        for seed in range(8)
    ]
    means = torch.stack([layer.dequantized_weight() for layer in layers]).mean(0)
    assert (means - real).square().mean() < 0.7 * (nearest.get_submodule(LAYER).weight.float() - real).square().mean()
    assert not torch.equal(layers[0].weight.float(), layers[1].weight.float())
    model = load(FULL, torch.bfloat16, quantization_config=FP8CastConfig(rounding="stochastic"))
    assert torch.equal(model.get_submodule(LAYER).weight.float(), layers[0].weight.float())
    model.save_pretrained(tmp_path)
    again = LTX2AVTransformer3DModel.from_pretrained(
        tmp_path, torch_dtype=torch.bfloat16, quantization_config=FP8CastConfig(rounding="stochastic", seed=5)
    )
    assert same_weights(again, model)
    with pytest.raises(ValueError, match=r"`rounding`.*'up'"):
        FP8CastConfig(rounding="up")
    with pytest.raises(ValueError, match="`seed` is 3"):
        FP8CastConfig(seed=3)


def test_weights_beyond_the_range_are_refused_by_name(tmp_path):
    tensors = load_tensors(FULL)
    tensors[f"{PREFIX}{LAYER}.weight"][3, 3] = 500.0
    path = saved(tmp_path, tensors)
    with pytest.raises(ValueError, match=rf"{LAYER}.weight.*500.*448.*fp8_scaled_mm"):
        load(path, quantization_config="fp8_cast")
    assert load(path, quantization_config="fp8_scaled_mm").get_submodule(LAYER).weight.float().max() == 448


def test_contradictions_are_refused(tmp_path):
    model = load(FULL, quantization_config="fp8_cast")
    with pytest.raises(ValueError, match=r"quantised.*layerwise casting"):
        model.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"quantised as 'fp8_cast'.*'fp8_scaled_mm'"):
        LTX2AVTransformer3DModel.from_pretrained(tmp_path, quantization_config="fp8_scaled_mm")
    with pytest.raises(ValueError, match="low_cpu_mem_usage"):
        load(FULL, quantization_config="fp8_cast", low_cpu_mem_usage=False)
    with pytest.raises(ValueError, match="no layer that fp8_cast stores"):
        LTX2TextConnectors.from_single_file(FULL, quantization_config="fp8_cast")


def test_a_saved_model_keeps_its_variant(tmp_path):
    load(FULL, None, quantization_config="fp8_cast").save_pretrained(tmp_path)
    again = LTX2AVTransformer3DModel.from_pretrained
    with pytest.raises(ValueError, match=r"quantised in the variant 'newest', .* asks for '2\.0'; leave it out"):
        again(tmp_path, quantization_config=FP8CastConfig("2.0"))
    assert again(tmp_path, quantization_config="fp8_cast").dtype == again(tmp_path).dtype
