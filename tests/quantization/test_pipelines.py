"""Pipelines with float8 transformers: from folders and files, with LoRAs beside the layers, and saved."""

import json

import pytest
import torch
from diffusers import LTX2Pipeline as DiffusersPipeline
from diffusers import PipelineQuantizationConfig
from safetensors.torch import save_file

from ltx2_diffusers import LTX2AVTransformer3DModel, LTX2Pipeline, LTX2TwoStagePipeline
from ltx2_diffusers.quantization.configs import FP8CastConfig, FP8ScaledMMConfig
from ltx2_diffusers.quantization.linear import FP8CastLinear, FP8ScaledLinear
from tests.golden_data import GOLDEN_DIR
from tests.tiny_checkpoints import tiny_checkpoint

from .files import FULL, same_weights

METHODS = {"fp8_cast": (FP8CastConfig, FP8CastLinear), "fp8_scaled_mm": (FP8ScaledMMConfig, FP8ScaledLinear)}
CALL = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2, "output_type": "np"}


def frames(pipeline, **call):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a lighthouse", **{**CALL, **call}, generator=torch.Generator().manual_seed(0)).frames


def quantised(model):
    return [type(layer) for layer in model.modules() if isinstance(layer, (FP8CastLinear, FP8ScaledLinear))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny checkpoint with a third block, since fp8_scaled_mm leaves the first and the last one alone."""
    folder, source = tmp_path_factory.mktemp("tiny"), tiny_checkpoint("2.0")
    for path in source.iterdir():
        if path.name != "transformer":
            (folder / path.name).symlink_to(path)
    config = LTX2AVTransformer3DModel.load_config(source / "transformer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LTX2AVTransformer3DModel.from_config({**config, "num_layers": 3}).save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def plain(tiny):
    return frames(LTX2Pipeline.from_pretrained(tiny))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.quick_cases(1)
def test_every_way_to_ask_gives_the_same_pipeline(tiny, method, plain):
    config, layer = METHODS[method]
    given = [method, config(), PipelineQuantizationConfig(quant_mapping={"transformer": config()})]
    pipelines = [LTX2Pipeline.from_pretrained(tiny, quantization_config=asked) for asked in given]
    model = LTX2AVTransformer3DModel.from_pretrained(tiny / "transformer", quantization_config=method)
    pipelines.append(LTX2Pipeline.from_pretrained(tiny, transformer=model))
    for pipeline in pipelines:
        assert set(quantised(pipeline.transformer)) == {layer}
        assert not quantised(pipeline.connectors)
        assert same_weights(pipeline.transformer, model)
    made = frames(pipelines[0])
    assert (made == frames(pipelines[-1])).all()
    assert 0 < abs(made - plain).max() < 0.1


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("method", METHODS)
def test_pipelines_of_single_files(method):
    text = GOLDEN_DIR / "checkpoint" / "expected_diffusers" / FULL.stem
    given = [method, PipelineQuantizationConfig(quant_mapping={"transformer": METHODS[method][0]()})]
    for asked in given:
        pipeline = LTX2Pipeline.from_single_file(FULL, text_encoder=None, quantization_config=asked)
        model = LTX2AVTransformer3DModel.from_single_file(FULL, quantization_config=method)
        assert same_weights(pipeline.transformer, model)
    with pytest.raises(ValueError, match="names 'text_encoders'"):
        wrong = PipelineQuantizationConfig(quant_mapping={"text_encoders": METHODS[method][0]()})
        LTX2Pipeline.from_single_file(FULL, text_encoder=text, quantization_config=wrong)


@pytest.mark.quick_cases(0)
def test_both_transformers_of_two_stages(tiny, tmp_path):
    pipeline = LTX2TwoStagePipeline.from_pretrained(tiny)
    pipeline = LTX2TwoStagePipeline(**{**pipeline.components, "stage_2_transformer": pipeline.transformer})
    pipeline.save_pretrained(tmp_path)
    loaded = LTX2TwoStagePipeline.from_pretrained(tmp_path, quantization_config="fp8_cast")
    assert quantised(loaded.transformer)
    assert quantised(loaded.stage_2_transformer)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("method", METHODS)
def test_saved_pipelines_stay_quantised(tiny, tmp_path, method):
    """Loaded again without naming a method, by us and by diffusers."""
    pipeline = LTX2Pipeline.from_pretrained(tiny, quantization_config=method)
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "transformer" / "config.json").read_text())["quantization_config"]
    loaded = LTX2Pipeline.from_pretrained(tmp_path)
    assert same_weights(loaded.transformer, pipeline.transformer)
    assert same_weights(DiffusersPipeline.from_pretrained(tmp_path).transformer, pipeline.transformer)
    with pytest.raises(ValueError, match=f"quantised as '{method}'"):
        other = next(name for name in METHODS if name != method)
        LTX2Pipeline.from_pretrained(tmp_path, quantization_config=other)


@pytest.mark.parametrize("method", METHODS)
def test_casts_of_a_pipeline_leave_float8_alone(tiny, method):
    pipeline = LTX2Pipeline.from_pretrained(tiny, quantization_config=method)
    before = {n: t.float() for n, t in pipeline.transformer.state_dict().items() if t.dtype == torch.float8_e4m3fn}
    pipeline.to(torch.bfloat16).to("cpu", torch.float32)
    state = pipeline.transformer.state_dict()
    assert before
    assert all(torch.equal(state[name].float(), tensor) for name, tensor in before.items())
    assert frames(pipeline).shape == (1, 9, 64, 64, 3)


@pytest.mark.parametrize("method", METHODS)
def test_lora_beside_float8_layers(method):
    """Loaded, weighted, and taken off again; factors keep their values, and the base its bits."""
    pipeline = LTX2Pipeline.from_single_file(FULL, text_encoder=None, quantization_config=method, dtype=torch.float32)
    model = LTX2AVTransformer3DModel.from_single_file(FULL, quantization_config=method, dtype=torch.float32)
    file = GOLDEN_DIR / "checkpoint" / "lora" / "original.safetensors"
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = pipeline.transformer.transformer_blocks[1].attn1.to_q(x)
        pipeline.load_lora_weights(str(file), adapter_name="a")
        layer = pipeline.transformer.transformer_blocks[1].attn1.to_q
        factors = [part["a"].weight for part in (layer.lora_A, layer.lora_B)]
        assert not {factor.dtype for factor in factors} & {torch.float8_e4m3fn}
        beside = x @ factors[0].float().T @ factors[1].float().T * layer.scaling["a"]
        assert beside.abs().max() > 0.01
        assert torch.allclose(layer(x), plain + beside, atol=1e-5)
        pipeline.set_adapters(["a"], [0.5])
        assert torch.allclose(layer(x), plain + beside / 2, atol=1e-5)
        pipeline.unload_lora_weights()
        assert torch.equal(pipeline.transformer.transformer_blocks[1].attn1.to_q(x), plain)
    assert same_weights(pipeline.transformer, model)


def test_dora_over_float8_is_refused(tmp_path):
    """By name, with the pipeline unchanged."""
    name, width = "transformer_blocks.1.attn1.to_q", 32
    factors = {
        "lora_A.weight": torch.ones(2, width),
        "lora_B.weight": torch.ones(width, 2),
        "dora_scale": torch.ones(width, 1),
    }
    save_file(
        {f"diffusion_model.{name}.{part}": tensor for part, tensor in factors.items()}, tmp_path / "x.safetensors"
    )
    pipeline = LTX2Pipeline.from_single_file(FULL, text_encoder=None, quantization_config="fp8_cast")
    with pytest.raises(ValueError, match=f"x.safetensors' is a DoRA, but {name} is stored in float8"):
        pipeline.load_lora_weights(str(tmp_path / "x.safetensors"))
    assert same_weights(
        pipeline.transformer, LTX2AVTransformer3DModel.from_single_file(FULL, quantization_config="fp8_cast")
    )


def test_what_cannot_be_meant_is_refused(tiny, tmp_path):
    model = LTX2AVTransformer3DModel.from_pretrained(tiny / "transformer")
    with pytest.raises(ValueError, match="given by name"):
        LTX2Pipeline.from_pretrained(tiny, transformer=model, quantization_config="fp8_cast")
    with pytest.raises(ValueError, match="use 'fp8_cast'"):
        LTX2Pipeline.from_pretrained(tiny, quantization_config="fp8")
    with pytest.raises(ValueError, match="type list"):
        LTX2Pipeline.from_pretrained(tiny, quantization_config=["fp8_cast"])
    with pytest.raises(ValueError, match=r"does not know.*quantization_config"):
        LTX2Pipeline.from_single_file(FULL, text_encoder=None, quantisation="fp8_cast")
    with pytest.raises(FileNotFoundError, match=r"`calibration_amax_path`.*ltx2 calibrate"):
        FP8ScaledMMConfig(tmp_path / "none.json")
