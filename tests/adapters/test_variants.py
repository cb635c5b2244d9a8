"""DoRA and LoRA with biases, and adapters on weights that are stored in fp8."""

import pytest
import torch
from peft import get_peft_model_state_dict

from ltx2_diffusers.adapters.active import adapter_layers
from tests.adapters.tiny import VECTORS, Q, assert_equal, build, in_diffusers, largest, lora, outputs

K = "transformer_blocks.1.attn2.to_k"
SIZES = {Q: (32, 32), K: (32, 32), "text_proj_in": (8, 24)}
# Two programs compute the same sums in another order.
ROUNDING = 5e-6


def variant(kind: str, path: str = Q, prefix: str = "transformer.", length: str = "lora_magnitude_vector") -> dict:
    """The LoRA of a module with what DoRA or biases add to it."""
    size = SIZES[path]
    generator = torch.Generator().manual_seed(len(path))
    extra = {"plain": {}, "dora": {length: torch.rand(size[0], generator=generator) + 0.2}}
    extra["bias"] = {"lora_B.bias": torch.randn(size[0], generator=generator) * 0.3}
    tensors = {f"{prefix}{path}.{name}": tensor for name, tensor in extra[kind].items()}
    return lora(path, len(path), size, prefix) | tensors


CASES = {
    "DoRA": variant("dora") | variant("dora", K),
    "DoRA of connectors": variant("dora", "text_proj_in", "connectors."),
    "biases": variant("bias") | variant("bias", K),
}
in_all_cases = pytest.mark.parametrize("tensors", CASES.values(), ids=CASES)


@in_all_cases
def test_variants_do_the_same_in_diffusers(tensors):
    pipe = build()
    reference, base = in_diffusers(pipe), outputs(pipe)
    for strength in (1.0, 0.5):
        for one in (pipe, reference):
            if strength == 1.0:
                one.load_lora_weights(dict(tensors), adapter_name="style")
            one.set_adapters("style", strength)
        assert largest(outputs(pipe), outputs(reference)) < ROUNDING
        assert largest(outputs(pipe), base) > 0.05


@in_all_cases
def test_variants_fuse_and_unload(tensors):
    pipe = build()
    base = outputs(pipe)
    pipe.load_lora_weights(tensors)
    active = outputs(pipe)
    pipe.fuse_lora()
    assert largest(outputs(pipe), active) < ROUNDING
    pipe.unfuse_lora()
    assert largest(outputs(pipe), active) < ROUNDING
    pipe.unload_lora_weights()
    assert largest(outputs(pipe), base) < ROUNDING
    assert adapter_layers(pipe) == []


@pytest.mark.quick_cases(3)
@in_all_cases
@pytest.mark.parametrize("layout", ["diffusers", "original", "kohya_underscored", "peft", "bare"])
def test_variants_are_saved_in_every_layout(tensors, layout, tmp_path):
    pipe = build()
    alphas = {f"{key.removesuffix('.lora_A.weight')}.alpha": torch.tensor(2.0) for key in tensors if "lora_A" in key}
    pipe.load_lora_weights(tensors | alphas, adapter_name="style")
    expected, parts = outputs(pipe), {}
    for component in pipe.get_list_adapters():
        model = getattr(pipe, component)
        parts[f"{component}_lora_layers"] = get_peft_model_state_dict(model, adapter_name="style")
        parts[f"{component}_lora_adapter_metadata"] = model.peft_config["style"].to_dict()
    pipe.save_lora_weights(tmp_path, **parts, format=layout)
    again = build()
    again.load_lora_weights(tmp_path)
    assert largest(outputs(again), expected) < ROUNDING
    if layout == "diffusers":
        reference = in_diffusers(build())
        reference.load_lora_weights(str(tmp_path))
        assert largest(outputs(reference), expected) < ROUNDING


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
@pytest.mark.parametrize("kind", ["dora", "bias"])
def test_a_file_may_hold_both_kinds(kind, low_cpu_mem_usage):
    together, apart = build(), build()
    parts = variant(kind), variant("plain", K)
    together.load_lora_weights(parts[0] | parts[1], low_cpu_mem_usage=low_cpu_mem_usage)
    for name, part in zip("ab", parts):
        apart.load_lora_weights(part, adapter_name=name)
    apart.set_adapters(["a", "b"])
    assert_equal(outputs(together), outputs(apart))


def test_magnitudes_of_other_trainers_are_columns():
    pipe, other = build(), build()
    pipe.load_lora_weights(variant("dora"))
    written = variant("dora", length="dora_scale")
    written[f"transformer.{Q}.dora_scale"] = written[f"transformer.{Q}.dora_scale"][:, None]
    other.load_lora_weights(written)
    assert_equal(outputs(pipe), outputs(other))


def test_a_dora_takes_no_other_ones_place():
    pipe = build()
    pipe.load_lora_weights(variant("dora"), adapter_name="style")
    for kind in ("dora", "plain"):
        with pytest.raises(ValueError, match="hotswap is not possible: the new LoRA or the old is DoRA"):
            pipe.load_lora_weights(variant(kind), adapter_name="style", hotswap=True)


def test_biases_need_a_layer_with_one_to_be_fused():
    pipe = build()
    pipe.load_lora_weights(variant("bias") | variant("bias", "text_proj_in", "connectors."), adapter_name="style")
    active = outputs(pipe)
    with pytest.raises(ValueError, match="'style' has biases for a layer without one"):
        pipe.fuse_lora()
    assert pipe.fused_loras == set()
    assert_equal(outputs(pipe), active)


# --- weights stored in fp8 ---


def velocity(pipe) -> torch.Tensor:
    inputs = {
        key.removeprefix("input.transformer."): t for key, t in VECTORS.items() if key.startswith("input.transformer.")
    }
    inputs = {k: t.bfloat16() if t.is_floating_point() and "coords" not in k else t for k, t in inputs.items()}
    with torch.no_grad():
        return pipe.transformer(**inputs).sample


def cast(pipe) -> None:
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)


@pytest.mark.parametrize("tensors", [CASES["DoRA"], CASES["biases"], lora()], ids=["DoRA", "biases", "plain"])
@pytest.mark.quick_cases(1)
def test_an_adapter_does_the_same_before_and_after_casting(tensors):
    first, later = build(torch.bfloat16), build(torch.bfloat16)
    first.load_lora_weights(tensors, adapter_name="style")
    cast(first)
    cast(later)
    base = velocity(later)
    later.load_lora_weights(tensors, adapter_name="style")
    factor = later.transformer.get_submodule(Q).lora_A["style"].weight
    assert factor.dtype == torch.bfloat16
    assert torch.equal(velocity(later), velocity(first))
    assert not torch.equal(velocity(later), base)
    assert later.transformer.get_submodule(Q).base_layer.weight.dtype == torch.float8_e4m3fn
    # A second adapter leaves the first as it was.
    later.load_lora_weights(lora(K), adapter_name="second")
    later.set_adapters("style")
    assert torch.equal(velocity(later), velocity(first))
    later.unload_lora_weights()
    assert torch.equal(velocity(later), base)


def test_adapters_swap_places_on_cast_weights():
    pipe, other = build(torch.bfloat16), build(torch.bfloat16)
    for one in (pipe, other):
        cast(one)
    pipe.enable_lora_hotswap(target_rank=8)
    pipe.load_lora_weights(lora(), adapter_name="style")
    assert pipe.transformer.get_submodule(Q).lora_A["style"].weight.shape == (8, 32)
    for seed in (0, 1):
        pipe.load_lora_weights(lora(seed=seed), adapter_name="style", hotswap=True)
        other.load_lora_weights(lora(seed=seed), adapter_name=f"style_{seed}")
        assert torch.equal(velocity(pipe), velocity(other))


def test_weights_in_other_types_take_no_adapter_into_them():
    pipe = build(torch.bfloat16)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e5m2, compute_dtype=torch.bfloat16)
    pipe.load_lora_weights(lora())
    with pytest.raises(
        ValueError, match=r"stored as torch\.float8_e5m2.*fuse first and cast, quantise or stream then"
    ):
        pipe.fuse_lora()
    assert pipe.fused_loras == set()


def test_an_adapter_joins_a_model_that_is_offloaded_in_groups():
    pipe, plain = build(), build()
    pipe.transformer.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    for one in (pipe, plain):
        one.load_lora_weights(lora())
    assert_equal(outputs(pipe), outputs(plain))
    pipe.unload_lora_weights()
    assert_equal(outputs(pipe), outputs(build()))
