"""Quantisation of other libraries on our classes: which layers, a whole call, and a LoRA beside them."""

import pytest
import torch
from diffusers import (
    BitsAndBytesConfig,
    GGUFQuantizationConfig,
    PipelineQuantizationConfig,
    QuantoConfig,
    TorchAoConfig,
)
from torch import nn

from ltx2_diffusers import LTX2AVTransformer3DModel, LTX2Pipeline
from ltx2_diffusers.quantization.layers import cast_layers
from tests.checkpoints.test_gguf_file import WITH_CONFIG, write
from tests.tiny_checkpoints import tiny_checkpoint

TINY = tiny_checkpoint("2.0")
CALL = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2, "output_type": "np"}
NAME = "transformer_blocks.0.attn1.to_q"


def torchao(kind: str):
    library = pytest.importorskip("torchao.quantization", reason="the optional package torchao quantises")
    return lambda: TorchAoConfig(getattr(library, f"{kind}WeightOnlyConfig")())


def quanto(kind: str):
    pytest.importorskip("optimum.quanto", reason="the optional package optimum-quanto quantises")
    return lambda: QuantoConfig(kind)


LIBRARIES = {
    "torchao int8": (torchao, "Int8", 0.1),
    "torchao float8": (torchao, "Float8", 0.3),
    "quanto int8": (quanto, "int8", 0.1),
    "quanto float8": (quanto, "float8", 0.3),
    "quanto int4": (quanto, "int4", 0.6),
}


def frames(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a lighthouse", **CALL, generator=torch.Generator().manual_seed(0)).frames


@pytest.fixture(scope="module")
def plain():
    return frames(LTX2Pipeline.from_pretrained(TINY))


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """Factors for one layer."""
    folder, generator = tmp_path_factory.mktemp("lora"), torch.Generator().manual_seed(0)
    width = LTX2AVTransformer3DModel.from_pretrained(TINY / "transformer").get_submodule(NAME).in_features
    factors = {
        f"{NAME}.lora_A.weight": torch.randn(2, width, generator=generator),
        f"{NAME}.lora_B.weight": torch.randn(width, 2, generator=generator),
    }
    LTX2Pipeline.save_lora_weights(folder, transformer_lora_layers=factors)
    return folder


def packed_layers(model) -> set[str]:
    """Linear layers whose weights are of a type of the library."""
    return {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and type(m.weight) is not nn.Parameter}


def check_lora(pipeline, lora):
    """It changes what is made, and taken off leaves nothing."""
    before = frames(pipeline)
    pipeline.load_lora_weights(lora)
    assert abs(frames(pipeline) - before).max() > 0.01
    pipeline.unload_lora_weights()
    assert (frames(pipeline) == before).all()


@pytest.mark.parametrize("case", LIBRARIES)
def test_only_layers_of_the_blocks_are_quantised(case):
    library, kind, _ = LIBRARIES[case]
    model = LTX2AVTransformer3DModel.from_pretrained(
        TINY / "transformer", torch_dtype=torch.float32, quantization_config=library(kind)()
    )
    assert packed_layers(model) == set(cast_layers(model.state_dict()))


def test_a_configuration_may_choose_the_layers_itself():
    config = torchao("Int8")()
    config.modules_to_not_convert = ["transformer_blocks"]
    model = LTX2AVTransformer3DModel.from_pretrained(
        TINY / "transformer", torch_dtype=torch.float32, quantization_config=config
    )
    assert "proj_in" in packed_layers(model)
    assert not cast_layers(packed_layers(model))
    assert config.modules_to_not_convert == ["transformer_blocks"]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("case", LIBRARIES)
def test_a_pipeline_runs_and_takes_a_lora(case, plain, lora):
    library, kind, bound = LIBRARIES[case]
    config = library(kind)()
    given = [config, PipelineQuantizationConfig(quant_mapping={"transformer": config})]
    pipelines = [LTX2Pipeline.from_pretrained(TINY, torch_dtype=torch.float32, quantization_config=c) for c in given]
    made = frames(pipelines[0])
    assert 0 < abs(made - plain).max() < bound
    assert (made == frames(pipelines[1])).all()
    check_lora(pipelines[1], lora)


def test_gguf_takes_a_lora(tmp_path, lora):
    path, config = write(tmp_path / "x.gguf", "block"), GGUFQuantizationConfig(compute_dtype=torch.float32)
    model = LTX2AVTransformer3DModel.from_single_file(path, quantization_config=config, **WITH_CONFIG)
    check_lora(LTX2Pipeline.from_pretrained(TINY, transformer=model), lora)


@pytest.mark.parametrize("method", ["fp8_cast"])
def test_gguf_files_can_be_stored_in_float8(tmp_path, method):
    path = write(tmp_path / "x.gguf", "block")
    model = LTX2AVTransformer3DModel.from_single_file(path, quantization_config=method, **WITH_CONFIG)
    real = LTX2AVTransformer3DModel.from_single_file(path, **WITH_CONFIG)
    for name in cast_layers(real.state_dict()):
        expected = real.get_submodule(name).weight.to(torch.float8_e4m3fn).float()
        assert torch.equal(model.get_submodule(name).weight.float(), expected)


def test_layerwise_casting_covers_the_layers_of_fp8_cast():
    """What is stored in float8 are the layers of blocks, as with the configuration of this package."""
    model = LTX2AVTransformer3DModel.from_pretrained(TINY / "transformer")
    model.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    stored = {n.rpartition(".")[0] for n, t in model.state_dict().items() if t.dtype == torch.float8_e4m3fn}
    assert stored == set(cast_layers(model.state_dict()))


@pytest.mark.gpu
@pytest.mark.parametrize("bits", [{"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}])
def test_bitsandbytes_quantises_layers_of_the_blocks(bits, lora):
    """diffusers lets it run on GPUs alone."""
    pytest.importorskip("bitsandbytes", reason="the optional package bitsandbytes quantises")
    config = PipelineQuantizationConfig(quant_mapping={"transformer": BitsAndBytesConfig(**bits)})
    pipeline = LTX2Pipeline.from_pretrained(TINY, torch_dtype=torch.bfloat16, quantization_config=config).to("cuda")
    assert packed_layers(pipeline.transformer) == set(cast_layers(pipeline.transformer.state_dict()))
    check_lora(pipeline, lora)
