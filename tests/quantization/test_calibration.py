"""Calibration: what runs record, how it is written and read, and what it makes of the scales of inputs."""

import json

import pytest
import torch

from ltx2_diffusers import LTX2AVTransformer3DModel, LTX2Pipeline, packaged_checkpoint
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.quantization import calibration
from ltx2_diffusers.quantization.calibration import calibrate, read_calibration, recorded_inputs, write_calibration
from ltx2_diffusers.quantization.configs import FP8ScaledMMConfig
from tests.cli.running import QUICK, SMALL, generate

from .files import AMAX, FULL, PREFIX, load, outputs, same_weights

LAYER = "transformer_blocks.1.attn1.to_q"
CALL = {"width": 64, "height": 64, "num_frames": 9, "num_inference_steps": 2}


@pytest.mark.usefixtures("golden_sinusoid")
def test_golden_values_of_the_calibration():
    """Of all layers of the golden file, and of no others; afterwards nothing is recorded."""
    model, golden = load(FULL), read_calibration(AMAX)
    with recorded_inputs(model) as largest:
        outputs(model)
    assert largest.keys() == golden.keys()
    assert {name: value.item() for name, value in largest.items()} == pytest.approx(golden, rel=1e-5)
    largest.clear()
    outputs(model)
    assert largest == {}


def test_the_largest_input_by_hand():
    layer = torch.nn.ModuleDict({"transformer_blocks": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    with recorded_inputs(layer) as largest:
        for values in ([[1.0, -3.0]], [[2.0, 0.0]], torch.zeros(0, 2)):
            layer["transformer_blocks"][0](torch.as_tensor(values))
    assert {name: value.item() for name, value in largest.items()} == {"transformer_blocks.0": 3.0}


def test_files_are_written_and_read(tmp_path):
    write_calibration(tmp_path / "x.json", {"transformer_blocks.1.b": 2.5, "transformer_blocks.0.a": 0.0})
    content = json.loads((tmp_path / "x.json").read_text())
    names = ["transformer_blocks.0.a.input_quantizer", "transformer_blocks.1.b.input_quantizer"]
    assert list(content["amax_values"]) == names
    assert read_calibration(tmp_path / "x.json") == {"transformer_blocks.0.a": 0.0, "transformer_blocks.1.b": 2.5}
    original = {f"{PREFIX}{name}": value for name, value in content["amax_values"].items()}
    (tmp_path / "y.json").write_text(json.dumps({"amax_values": original}))
    assert read_calibration(tmp_path / "y.json") == read_calibration(tmp_path / "x.json")


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "no JSON"),
        ("[]", "no calibration"),
        ('{"amax_values": {}}', "no calibration"),
        ('{"amax_values": {"transformer_blocks.1.attn1.to_q.input_quantizer": "3"}}', "number from 0 on but is '3'"),
        ('{"amax_values": {"transformer_blocks.1.attn1.to_q.input_quantizer": NaN}}', "nan"),
        ('{"amax_values": {"transformer_blocks.1.attn1.to_q.input_quantizer": -1}}', "-1"),
        ('{"amax_values": {"transformer_blocks.9.attn1.to_q.input_quantizer": 1}}', "another model"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load(quantization_config=FP8ScaledMMConfig(tmp_path / "x.json"))


def test_layers_that_a_calibration_lacks_keep_their_scale(tmp_path, monkeypatch):
    """That of the file, or none; said once. Those that it names take its own, also where the file has one."""
    said = []
    monkeypatch.setattr(calibration.logger, "warning", said.append)
    write_calibration(tmp_path / "x.json", {LAYER: 44.8})
    config = FP8ScaledMMConfig(tmp_path / "x.json")
    of_file, of_weights = load(quantization_config=config), load(FULL, quantization_config=config)
    plain, other = load(quantization_config="fp8_scaled_mm"), "transformer_blocks.2.attn1.to_q"
    for model in (of_file, of_weights):
        assert model.get_submodule(LAYER).input_scale == pytest.approx(0.1)
    assert torch.equal(of_file.get_submodule(other).input_scale, plain.get_submodule(other).input_scale)
    assert of_weights.get_submodule(other).input_scale is None
    assert len(said) == 2
    assert "lacks 55 of 56 quantised layers" in said[0]


def test_a_saved_model_keeps_its_scales_without_the_file(tmp_path):
    write_calibration(tmp_path / "x.json", {LAYER: 44.8})
    model = load(FULL, quantization_config=FP8ScaledMMConfig(tmp_path / "x.json"))
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "x.json").unlink()
    loaded = type(model).from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.get_submodule(LAYER).input_scale, model.get_submodule(LAYER).input_scale)


def test_a_saved_model_may_be_calibrated_anew(tmp_path, recwarn):
    load(FULL, quantization_config="fp8_scaled_mm").save_pretrained(tmp_path)
    model = LTX2AVTransformer3DModel.from_pretrained(tmp_path, quantization_config=FP8ScaledMMConfig(AMAX))
    assert same_weights(model, load(FULL, quantization_config=FP8ScaledMMConfig(AMAX)))
    assert not [one for one in recwarn if "quantization_config" in str(one.message)]


def test_a_calibrated_pipeline_clamps_nothing_it_has_seen():
    """The recorded maximum is the largest value that the scale can express."""
    pipeline = LTX2Pipeline.from_pretrained(packaged_checkpoint("ltx2-mini"))
    pipeline.set_progress_bar_config(disable=True)
    values = calibrate(pipeline, ["red", "blue"], **CALL, generator=torch.Generator().manual_seed(0))
    layers = {n for n, m in pipeline.transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    assert values.keys() == {name for name in layers if name.startswith("transformer_blocks.")}
    once = calibrate(pipeline, ["red"], **CALL, generator=torch.Generator().manual_seed(0))
    assert calibrate(pipeline, "red", **CALL, generator=torch.Generator().manual_seed(0)) == once
    assert all(values[name] >= value for name, value in once.items())
    with pytest.raises(ValueError, match="`prompts` is empty"):
        calibrate(pipeline, [])


@pytest.mark.usefixtures("tiny_is_packaged")
@pytest.mark.quick_cases(0)
def test_the_command_writes_what_generate_takes(tmp_path, capsys):
    """The tiny checkpoint has too few blocks for fp8_scaled_mm, which is said in words of the command line."""
    (tmp_path / "prompts.txt").write_text("red\n\n blue \n")
    sizes = [part for part in SMALL if part != "--max-sequence-length"]
    command = ["calibrate", "ltx2-mini", "-o", str(tmp_path / "amax.json"), "--steps", "1", "--device", "cpu", *sizes]
    assert main([*command, "--prompts", str(tmp_path / "prompts.txt")]) == 0
    assert "56 layers" in capsys.readouterr().out
    assert len(read_calibration(tmp_path / "amax.json")) == 56
    options = ["--quantize", "fp8-scaled-mm", "--calibration", tmp_path / "amax.json", *QUICK, *SMALL]
    assert generate(tmp_path / "x.mp4", *options) == 2
    assert "no layer that fp8_scaled_mm stores" in capsys.readouterr().err
    assert generate(tmp_path / "x.mp4", "--quantize", "fp8-cast", *QUICK, *SMALL) == 0
    assert json.loads((tmp_path / "x.mp4.json").read_text())["options"]["quantize"] == "fp8-cast"


@pytest.mark.slow
def test_the_miniature_from_calibration_to_a_clip(tmp_path):
    amax, small = str(tmp_path / "amax.json"), ["--steps", "2", "--device", "cpu"]
    assert main(["calibrate", "ltx2-mini", "--prompt", "a red ball", "-o", amax, *small]) == 0
    options = ["--quantize", "fp8-scaled-mm", "--calibration", amax, *small]
    assert generate(tmp_path / "x.mp4", *options) == 0


@pytest.mark.parametrize(
    "options, message",
    [
        (["-o", "amax.txt", "--prompt", "x"], "has to be a .json file; use 'amax.json'"),
        (["-o", "amax.json", "--prompts", "none.txt"], "none.txt"),
        (["-o", "none/amax.json", "--prompt", "x", "--seed", str(2**70)], "seed"),
        (["-o", "amax.json", "--prompt", "x", "--device", "cuda:99"], "--device cuda:99"),
    ],
)
def test_what_cannot_be_calibrated_is_one_line(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", "ltx2-mini", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())
