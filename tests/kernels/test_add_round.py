"""Adding to float8 and rounding: recorded bits, the twin and the Triton kernel alike, and roundings that are right on average."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from ltx2_diffusers.kernels.add_round import add_round, add_round_torch, shifted, uniform
from tests.golden_data import load_tensors

GOLDEN = "checkpoint/fp8/expected/fp8_cast_lora_fusion.safetensors"
VECTORS = load_tensors(GOLDEN)
LAYERS = sorted(key.removesuffix(".delta") for key in VECTORS if key.endswith(".delta"))
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal to the bit, but for the sign of NaN."""
    codes = [torch.where(t.float().isnan(), 127, t.view(torch.uint8)) for t in (one, other)]
    return one.dtype == other.dtype == torch.float8_e4m3fn and torch.equal(*codes)


def cases() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights of all codes and deltas of all sizes, that of a step among them, also beyond the range and in part blocks."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    deltas = torch.tensor([0.0, 2.0**-10, 2.0**-9, 3e-3, 0.03, 0.5, 7.0, 500.0, 6e4]).bfloat16()
    deltas = torch.cat([deltas, -deltas])
    grid = codes.repeat(len(deltas)), deltas.repeat_interleave(256)
    generator = torch.Generator().manual_seed(0)
    random = [torch.randn(33, 65, generator=generator) * scale for scale in (0.1, 0.02)]
    return [grid, (random[0].to(torch.float8_e4m3fn), random[1].bfloat16())]


@pytest.mark.parametrize("layer", LAYERS)
def test_recorded_bits(layer):
    weight, delta = VECTORS[f"{layer}.weight_fp8"], VECTORS[f"{layer}.delta"]
    assert same_bits(add_round(weight, delta), VECTORS[f"{layer}.nearest"])
    assert torch.equal(
        shifted(weight.flatten(), delta.flatten(), 0), VECTORS[f"{layer}.stochastic_bf16_seed0"].flatten()
    )
    assert same_bits(add_round(weight, delta, "stochastic"), VECTORS[f"{layer}.stochastic_seed0"])


@pytest.mark.parametrize("seed", [0, 5])
def test_recorded_random_numbers(seed):
    assert torch.equal(uniform(seed, 16), VECTORS[f"uniform_seed{seed}"])
    assert torch.equal(uniform(seed, 9, start=7), VECTORS[f"uniform_seed{seed}"][7:])


def test_random_numbers_are_uniform_and_depend_on_all_bits_of_the_seed():
    drawn = uniform(2**40 + 3, 100_000)
    assert drawn.min() >= 0 and drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 4 * (1 / 12 / len(drawn)) ** 0.5
    assert not torch.equal(drawn, uniform(3, len(drawn)))


def test_stochastic_rounding_is_right_on_average():
    weight = torch.full((200_000,), 0.25).to(torch.float8_e4m3fn)
    delta = torch.full(weight.shape, 0.01).bfloat16()
    total, step = 0.25 + delta[0].item(), 2.0**-5
    rounded = add_round(weight, delta, "stochastic", seed=1).float()
    assert rounded.unique().tolist() == [0.25, 0.25 + step]
    half_a_bfloat16_step = 2.0**-10
    assert abs(rounded.mean().item() - total) < half_a_bfloat16_step + 4 * 0.5 * step / len(weight) ** 0.5
    # To the nearest value the delta is lost.
    assert add_round(weight, delta).float().unique().tolist() == [0.25]


def test_large_tensors_are_rounded_in_parts(monkeypatch):
    weight, delta = cases()[1]
    whole = {rounding: add_round(weight, delta, rounding) for rounding in ("nearest", "stochastic")}
    monkeypatch.setattr("ltx2_diffusers.kernels.add_round._ELEMENTS", 100)
    for rounding, expected in whole.items():
        assert same_bits(add_round(weight, delta, rounding), expected)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_last_value_stands_for_all_beyond(rounding):
    weight = torch.tensor([448.0, -448.0, 0.0, float("nan")]).to(torch.float8_e4m3fn)
    total = add_round(weight, torch.tensor([100.0, -6e4, 0.0, 0.0]).bfloat16(), rounding).float()
    assert total[:3].tolist() == [448.0, -448.0, 0.0] and total[3].isnan()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"rounding": "up"}, r"`rounding` has to be one of \['nearest', 'stochastic'\] but is 'up'; use \"nearest\""),
        ({"seed": 3}, "`seed` is 3, but rounding to the nearest value draws nothing"),
        ({"rounding": "stochastic", "seed": -1}, "`seed` has to be a whole number of 64 bits but is -1; use 0"),
        ({"rounding": "stochastic", "seed": 1.5}, "but is 1.5"),
        ({"delta": torch.ones(3)}, "`delta` bfloat16, but they are torch.float8_e4m3fn and torch.float32"),
        ({"delta": torch.ones(2).bfloat16()}, r"`weight` \[3\] on cpu and `delta` \[2\] on cpu differ"),
    ],
)
def test_what_has_no_meaning_is_refused(arguments, message):
    given = {"weight": torch.ones(3).to(torch.float8_e4m3fn), "delta": torch.ones(3).bfloat16()} | arguments
    with pytest.raises(ValueError, match=message):
        add_round(**given)


def test_importing_the_package_leaves_triton_out():
    code = "import sys, ltx2_diffusers, ltx2_diffusers.kernels.add_round as k; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_triton_is_asked_on_cuda_alone(monkeypatch):
    """On a CPU the twin computes, whether or not Triton is there."""
    monkeypatch.setitem(sys.modules, "ltx2_diffusers.kernels.add_round_triton", None)
    weight, delta = cases()[1]
    assert same_bits(add_round(weight, delta), add_round_torch(weight, delta, "nearest", 0))


_INTERPRETED = """
import torch
from ltx2_diffusers.kernels.add_round import add_round_torch
from ltx2_diffusers.kernels.add_round_triton import add_round_triton
from tests.kernels.test_add_round import cases, same_bits
for weight, delta in cases():
    for rounding, seed in (("nearest", 0), ("stochastic", 0), ("stochastic", 2**40 + 3)):
        one, other = (f(weight, delta, rounding, seed) for f in (add_round_triton, add_round_torch))
        assert same_bits(one, other), (rounding, seed)
print("compared")
"""


@pytest.mark.quick_cases(0)
@needs_triton
def test_the_kernel_gives_the_same_bits_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", _INTERPRETED], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "compared"), done.stderr


_COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from ltx2_diffusers.kernels.add_round_triton import _add_round
types = {"weight": "*u8", "delta": "*i16", "result": "*u8", "count": "i32", "seed": "i64"}
types |= {"stochastic": "constexpr", "block": "constexpr"}
for capability, stochastic in ((80, True), (90, False)):
    source = ASTSource(fn=_add_round, signature=types, constexprs={"stochastic": stochastic, "block": 1024})
    made = compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
    # A product and a sum rounded once would give other bits than the twin.
    assert "fma.rn" not in made.asm["ptx"] and len(made.asm["cubin"]) > 0
print("compiled")
"""


@pytest.mark.slow
@needs_triton
def test_the_kernel_compiles_for_gpus_with_and_without_float8(tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)} | {"TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", _COMPILED], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "compiled"), done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("rounding, seed", [("nearest", 0), ("stochastic", 0), ("stochastic", 2**40 + 3)])
def test_the_kernel_gives_the_same_bits_on_a_gpu(rounding, seed):
    for weight, delta in cases():
        on_gpu = add_round(weight.cuda(), delta.cuda(), rounding, seed)
        assert same_bits(on_gpu.cpu(), add_round_torch(weight, delta, rounding, seed))
