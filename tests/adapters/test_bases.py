"""Adapters beside weights that any library quantises: the exact delta on top of what the base computes, and no fusing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import BitsAndBytesConfig, GGUFQuantizationConfig, TorchAoConfig
from diffusers.quantizers.quantization_config import QuantoConfig

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from ltx2_diffusers.quantization.configs import FP8ScaledMMConfig
from tests.adapters.stored import SCALED_FILE, bits, changed, in_fp8
from tests.adapters.tiny import Q, build, lora
from tests.checkpoints.test_gguf_file import WITH_CONFIG, write

DEEP = "transformer_blocks.1.attn1.to_v"
LORA = lora() | lora(DEEP, 1)
# Inputs and outputs of the networks, which the guide leaves out too: their sizes are no multiples of what libraries need.
KEPT = ["proj_in", "proj_out", "time_embed", "av_cross_attn", "caption_projection"]


def int8_of_torchao() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=KEPT)


def float8_of_torchao() -> Any:
    from torchao.quantization import Float8WeightOnlyConfig

    return TorchAoConfig(Float8WeightOnlyConfig(), modules_to_not_convert=KEPT)


def int8_of_quanto() -> Any:
    return QuantoConfig(weights_dtype="int8", modules_to_not_convert=KEPT)


def eight_bits() -> Any:
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=KEPT)


def four_bits() -> Any:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=KEPT)


# diffusers loads weights with bitsandbytes on a GPU alone.
ON_A_GPU = [pytest.param(kind, marks=pytest.mark.gpu) for kind in (eight_bits, four_bits)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transformer")
    build().transformer.save_pretrained(folder)
    return folder


def check_beside(pipe: LTX2Pipeline, dtype: torch.dtype, tolerance: float) -> None:
    """A layer computes its base's output and the delta, which is that of the factors as they are in the file."""
    pipe.load_lora_weights(dict(LORA), adapter_name="style")
    pipe.set_adapters("style", 0.5)
    for path in (Q, DEEP):
        layer = pipe.transformer.get_submodule(path)
        device = layer.lora_A["style"].weight.device
        down, up = (LORA[f"transformer.{path}.lora_{side}.weight"].to(device) for side in "AB")
        x = torch.randn(7, 32, generator=torch.Generator().manual_seed(3)).to(device, dtype)
        with torch.no_grad():
            delta = layer(x).float() - layer.base_layer(x).float()
        expected = 0.5 * x.float() @ down.T @ up.T
        assert layer.lora_A["style"].weight.dtype == dtype
        assert (delta - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("kind", [int8_of_torchao, float8_of_torchao, int8_of_quanto, *ON_A_GPU])
def test_libraries_of_quantisation(kind: Callable[[], Any], folder):
    load = LTX2AVTransformer3DModel.from_pretrained
    transformer = load(folder, torch_dtype=torch.float32, quantization_config=kind())
    pipe = build(transformer=transformer)
    check_beside(pipe, torch.float32, 1e-4)
    before = {path: _real(pipe, path) for path in (Q, DEEP)}
    with pytest.raises(
        ValueError, match=r"attn1\.to_[qv] are quantised.*work beside them, or fuse first and cast, quant"
    ):
        pipe.fuse_lora()
    assert pipe.fused_loras == set()
    for path, values in before.items():
        assert torch.equal(_real(pipe, path), values)


def _real(pipe: LTX2Pipeline, path: str) -> torch.Tensor:
    """What the base of a layer computes of all unit vectors."""
    with torch.no_grad():
        return pipe.transformer.get_submodule(path).base_layer(torch.eye(32, device=pipe.transformer.device)).clone()


def test_packed_weights_of_gguf(tmp_path):
    config = GGUFQuantizationConfig(compute_dtype=torch.float32)
    path = write(tmp_path / "x.gguf", "block")
    pipe = build(
        transformer=LTX2AVTransformer3DModel.from_single_file(path, quantization_config=config, **WITH_CONFIG)
    )
    check_beside(pipe, torch.float32, 1e-4)
    with pytest.raises(
        ValueError, match=r"quantised, .*\(GGUFParameter\), so that adapters cannot be fused into them exactly"
    ):
        pipe.fuse_lora()


@pytest.mark.parametrize("kind", ["fp8_cast", "fp8_scaled_mm", "layerwise", "static"])
def test_float8(kind):
    if kind == "static":
        load, config = LTX2AVTransformer3DModel.from_single_file, FP8ScaledMMConfig()
        transformer = load(SCALED_FILE, torch_dtype=torch.bfloat16, quantization_config=config)
        pipe = build(torch.bfloat16, transformer=transformer)
        assert transformer.get_submodule(DEEP).input_scale is not None
    else:
        pipe = in_fp8(kind)
    before = bits(pipe)
    # Both outputs and their difference are rounded to bfloat16.
    check_beside(pipe, torch.bfloat16, 0.03)
    assert changed(bits(pipe), before) == []
    pipe.unload_lora_weights()
    assert changed(bits(pipe), before) == []
