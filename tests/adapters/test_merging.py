"""The arithmetic of fusing: recorded bits of Lightricks' code, one rounding of the exact sum, float8, and what is refused."""

import logging

import pytest
import torch

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.adapters.merging import Arithmetic, merged_tensors
from ltx2_diffusers.checkpoints import keys
from ltx2_diffusers.kernels.add_round import add_round
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from ltx2_diffusers.quantization.configs import FP8ScaledMMConfig
from tests.adapters.stored import SCALED_FILE, bits, changed, in_fp8, stored_as, velocity
from tests.adapters.test_variants import variant
from tests.adapters.tiny import Q, assert_equal, build, lora, outputs
from tests.golden_data import load_tensors
from tests.golden_loras import ORIGINAL, SECOND
from tests.training.live_bytes import LiveBytes

K = "transformer_blocks.1.attn2.to_k"
# The recorded sums and ours are rounded to bfloat16 in different places (README of the vectors).
ABSOLUTE = 4e-3
FUSED = {"fused_original_0.7": [0.7], "fused_original_0.8_second_-0.5": [0.8, -0.5]}


def fused_weights(pipe: LTX2Pipeline, path: str) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Name, own and recorded value of every tensor of a file of recorded weights."""
    recorded = {key.removeprefix("model.diffusion_model."): tensor for key, tensor in load_tensors(path).items()}
    renamed, own = keys.rename("transformer", recorded, to="diffusers"), pipe.transformer.state_dict()
    return [(key, own[renamed[key]], tensor) for key, tensor in recorded.items()]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name, strengths", FUSED.items(), ids=FUSED)
@pytest.mark.parametrize("reference", [True, False])
def test_recorded_weights(name, strengths, reference):
    pipe = build(torch.bfloat16)
    pipe.load_lora_weights(ORIGINAL, adapter_name="original")
    if len(strengths) > 1:
        # Whose factors are float32, and are multiplied so there.
        pipe.load_lora_weights(SECOND, adapter_name="second", dtype=torch.float32)
    pipe.set_adapters(list(pipe.lora_metadata), strengths)
    pipe.fuse_lora(reference_rounding=reference)
    pipe.unload_lora_weights()
    compared = fused_weights(pipe, f"checkpoint/lora/expected/{name}.safetensors")
    # Those of one block; a larger set of vectors has them all.
    assert len(compared) >= 28
    for key, own, recorded in compared:
        assert (own - recorded).abs().max() <= (0 if reference else ABSOLUTE), key


@pytest.mark.parametrize("reference", [True, False])
def test_recorded_weights_of_scaled_float8(reference):
    load = LTX2AVTransformer3DModel.from_single_file
    transformer = load(SCALED_FILE, torch_dtype=torch.bfloat16, quantization_config=FP8ScaledMMConfig())
    pipe = build(torch.bfloat16, transformer=transformer)
    scales = {n: t.clone() for n, t in transformer.state_dict().items() if n.endswith("input_scale")}
    pipe.load_lora_weights(ORIGINAL)
    pipe.set_adapters("default_0", 0.7)
    pipe.fuse_lora(reference_rounding=reference)
    pipe.unload_lora_weights()
    compared = fused_weights(pipe, "checkpoint/fp8/expected/lora_original_0.7_fused_scaled_fp8.safetensors")
    own, recorded = ({key: pair[side] for key, *pair in compared} for side in (0, 1))
    for key in [key for key in own if key.endswith(".weight")]:
        values, expected = (side[key].float() * side[f"{key}_scale"] for side in (own, recorded))
        # Deltas are rounded to bfloat16 there, so that some sums go to the next value of float8.
        allowed = 0 if reference else ABSOLUTE + 2.0**-3 * expected.abs()
        assert ((values - expected).abs() <= allowed).all(), key
        assert torch.isclose(
            own[f"{key}_scale"], recorded[f"{key}_scale"], rtol=0 if reference else 2.0**-7, atol=0
        ), key
    now = transformer.state_dict()
    assert scales and all(torch.equal(now[name], scale) for name, scale in scales.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_exact_sum_is_rounded_once(dtype):
    pipe = build(dtype)
    factors = [lora(seed=seed) for seed in range(3)]
    for seed, tensors in enumerate(factors):
        pipe.load_lora_weights(tensors, adapter_name=f"lora_{seed}", dtype=torch.float32)
    strengths = [0.3, -0.7, 1.1]
    pipe.set_adapters(list(pipe.lora_metadata), strengths)
    weight = pipe.transformer.get_submodule(Q).base_layer.weight
    exact = weight.double() + sum(
        s * (t[f"transformer.{Q}.lora_B.weight"].double() @ t[f"transformer.{Q}.lora_A.weight"].double())
        for s, t in zip(strengths, factors)
    )
    pipe.fuse_lora()
    if dtype == torch.float32:
        assert (weight.double() - exact).abs().max() < 1e-6
    else:
        # Sums in float32 come so near to the exact ones that few are rounded to the other side.
        assert (weight != exact.to(dtype)).sum() <= 4


@pytest.mark.parametrize("kind", ["fp8_cast", "layerwise"])
@pytest.mark.parametrize("rounding, seed", [("nearest", 0), ("stochastic", 0), ("stochastic", 7)])
@pytest.mark.quick_cases(2)
def test_float8_without_scales_is_added_to_and_rounded(kind, rounding, seed):
    pipe = in_fp8(kind)
    pipe.load_lora_weights(lora(), adapter_name="style", dtype=torch.float32)
    weight = pipe.transformer.get_submodule(Q).base_layer.weight
    assert weight.dtype == torch.float8_e4m3fn
    down, up = (lora()[f"transformer.{Q}.lora_{side}.weight"] for side in "AB")
    expected = add_round(weight, (up @ down).bfloat16(), rounding, seed)
    pipe.fuse_lora(rounding=rounding, seed=seed)
    assert torch.equal(weight.float(), expected.float())


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", ["fp8_cast", "fp8_scaled_mm", "layerwise"])
def test_fused_is_beside_within_the_rounding_of_float8(kind):
    pipe = in_fp8(kind)
    base = velocity(pipe)
    pipe.load_lora_weights(ORIGINAL)
    beside = velocity(pipe)
    pipe.fuse_lora()
    fused = velocity(pipe)
    assert (fused - beside).norm() < 0.1 * (beside - base).norm()


def test_strengths_of_0_change_nothing():
    pipe = build(torch.bfloat16)
    base = bits(pipe)
    pipe.load_lora_weights(lora() | lora(K))
    pipe.set_adapters("default_0", {"transformer": {"attn1": 0.0}})
    pipe.fuse_lora()
    assert changed(bits(pipe), base) == [f"transformer.{K}.weight"] and pipe.fused_loras == {"default_0"}
    pipe.unfuse_lora()
    assert changed(bits(pipe), base) == []


@pytest.mark.parametrize(
    "kind, arguments, message",
    [
        ("fp8_cast", {"rounding": "up"}, r"`rounding` has to be one of \['nearest', 'stochastic'\] but is 'up'"),
        ("fp8_cast", {"seed": 3}, "`seed` is 3, but rounding to the nearest value draws nothing"),
        (
            torch.bfloat16,
            {"rounding": "stochastic"},
            r"`rounding` is \"stochastic\", but no weights here are stored in float8",
        ),
        ("fp8_scaled_mm", {"rounding": "stochastic"}, "but no weights here are stored in float8 without scales"),
        (torch.float32, {"reference_rounding": True}, r"not of weights in torch\.float32; leave it out"),
    ],
)
def test_arguments_without_effect_are_refused(kind, arguments, message):
    pipe = stored_as(kind)
    pipe.load_lora_weights(lora())
    before = bits(pipe)
    with pytest.raises(ValueError, match=message):
        pipe.fuse_lora(**arguments)
    assert changed(bits(pipe), before) == [] and pipe.fused_loras == set()


def test_dora_is_fused_in_types_of_real_weights():
    for pipe, arguments, message in (
        (in_fp8("layerwise"), {}, "DoRA cannot be fused into weights in float8"),
        (build(torch.bfloat16), {"reference_rounding": True}, "not of DoRA; leave it out"),
    ):
        pipe.load_lora_weights(variant("dora"))
        with pytest.raises(ValueError, match=message):
            pipe.fuse_lora(**arguments)


@pytest.mark.parametrize("keep", [True, False])
def test_weights_beyond_float8_are_refused(keep):
    pipe = in_fp8("fp8_cast")
    pipe.load_lora_weights(lora(K) | lora())
    before = bits(pipe)
    with pytest.raises(ValueError, match=r"reach 448, the largest that fp8_cast can store; lower the strengths"):
        pipe.fuse_lora(lora_scale=1e4, keep_originals=keep)
    assert changed(bits(pipe), before) == [] and pipe.transformer.get_submodule(Q).scaling == {"default_0": 1.0}


def test_factors_in_a_type_of_their_own():
    pipe, rounded = build(torch.bfloat16), build(torch.bfloat16)
    pipe.load_lora_weights(lora(), adapter_name="style", dtype=torch.float32)
    rounded.load_lora_weights(lora(), adapter_name="style")
    for one, dtype in ((pipe, torch.float32), (rounded, torch.bfloat16)):
        assert one.transformer.get_submodule(Q).lora_A["style"].weight.dtype == dtype
    assert torch.equal(
        pipe.transformer.get_submodule(Q).lora_A["style"].weight, lora()[f"transformer.{Q}.lora_A.weight"]
    )
    difference = (velocity(pipe) - velocity(rounded)).norm()
    assert 0 < difference < 0.02 * velocity(rounded).norm()
    with pytest.raises(ValueError, match=r"`dtype` is torch\.int8, but it has to be one of"):
        pipe.load_lora_weights(lora(), dtype=torch.int8)
    with pytest.raises(ValueError, match="hotswap=True keeps that of the old adapter; leave it out"):
        pipe.load_lora_weights(lora(), adapter_name="style", hotswap=True, dtype=torch.float32)


def peak_of_fusing(kind, num_layers: int, keep: bool) -> int:
    """Bytes beside the weights, at most."""
    pipe = stored_as(kind)
    paths = [f"transformer_blocks.{block}.{n}ff.net.2" for block in (1, 2, 0) for n in ("", "audio_")]
    sizes = [(32, 128) if ".ff" in path else (16, 64) for path in paths]
    layers = list(zip(paths, sizes))[: 2 * num_layers : 2]
    pipe.load_lora_weights({key: t for path, size in layers for key, t in lora(path, sizes=size).items()})
    known = [t for model in (pipe.transformer, pipe.connectors) for t in (*model.parameters(), *model.buffers())]
    with LiveBytes(known) as seen:
        pipe.fuse_lora(keep_originals=keep)
    assert len(layers) == num_layers
    return seen.peak


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("kind", [torch.bfloat16, "fp8_cast", "fp8_scaled_mm"], ids=str)
def test_memory_beside_the_weights_is_that_of_one_layer(kind):
    elements, samples = 32 * 128, 1024
    one, three = (peak_of_fusing(kind, number, keep=False) for number in (1, 3))
    # The sum in float32, what it becomes, and what rounding or checking needs: at most five times the sum.
    assert 4 * elements <= one <= 20 * elements + samples
    assert three <= one + 3 * samples
    # A copy of what is stored is kept of every layer.
    stored = elements * (2 if kind == torch.bfloat16 else 1)
    assert peak_of_fusing(kind, 3, keep=True) >= three + 2 * stored


def test_what_is_not_fused_is_named(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    pipe = build()
    pipe.load_lora_weights(lora() | lora("text_proj_in", 0, (8, 24), "connectors."), adapter_name="both")
    pipe.load_lora_weights(lora(seed=1), adapter_name="idle")
    pipe.set_adapters("both")
    for arguments, warnings in (
        ({}, ["the adapters ['idle'] are not fused, because they are not active"]),
        ({"adapter_names": ["both"]}, []),
        (
            {"components": ["transformer"], "adapter_names": ["both"]},
            ["'both' is not fused into the connectors, which it changes"],
        ),
        ({"adapter_names": ["both", "idle"]}, []),
    ):
        caplog.clear()
        pipe.fuse_lora(**arguments)
        assert len(caplog.records) == len(warnings)
        assert all(text in caplog.text for text in warnings)
        pipe.unfuse_lora()


def test_all_that_is_fused_acts():
    """Of a LoRA on both models, what unloading leaves computes what the adapters did."""
    pipe = build()
    pipe.load_lora_weights(lora() | lora("text_proj_in", 0, (8, 24), "connectors."))
    pipe.set_adapters("default_0", {"video": 0.5, "connectors": -1.0})
    expected = outputs(pipe)
    pipe.fuse_lora()
    layer = pipe.transformer.get_submodule(Q)
    assert list(merged_tensors(layer, [], Arithmetic(), False)) == []
    pipe.unload_lora_weights()
    now = outputs(pipe)
    assert max((now[key] - expected[key]).abs().max() for key in now) < 5e-6
    with pytest.raises(AssertionError):
        assert_equal(now, outputs(build()))
