"""Files and folders of float8 layers, written in both layouts: what loading would store, with the published names."""

import json

import pytest
import torch

from ltx2_diffusers import LTX2AVTransformer3DModel
from ltx2_diffusers.checkpoints.convert import convert_to_diffusers, convert_to_original, differences
from ltx2_diffusers.checkpoints.safetensors_io import SafetensorsFile
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.quantization.configs import FP8ScaledMMConfig
from tests.golden_data import load_metadata, load_tensors

from .files import AMAX, FP8, FULL, PREFIX, load, same_weights

METHODS = ("fp8_cast", "fp8_scaled_mm")


def convert(*arguments: object) -> int:
    return main(["convert", *map(str, arguments), "--quiet", "--check"])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("source", [FULL, FP8], ids=["bf16", "fp8"])
def test_folders(tmp_path, method, source):
    """Written, they are what loading stores; and they load as float8 without naming the method."""
    convert_to_diffusers(source, tmp_path / "out", quantization_config=method, max_shard_size="60KB")
    assert differences(source, tmp_path / "out", quantization_config=method) == []
    place = tmp_path / "out" / "transformer"
    place = place if place.is_dir() else tmp_path / "out"
    model = LTX2AVTransformer3DModel.from_pretrained(place, torch_dtype=torch.bfloat16)
    assert same_weights(model, load(source, None, quantization_config=method))


@pytest.mark.quick_cases(0)
@pytest.mark.parametrize("method", METHODS)
def test_files_and_back(tmp_path, method, capsys):
    """A folder of real weights into a file of float8, and this into a folder, by the command."""
    option = method.replace("_", "-")
    convert_to_diffusers(FULL, tmp_path / "real")
    assert convert(tmp_path / "real", tmp_path / "x.safetensors", "--quantize", option) == 0
    assert convert(tmp_path / "x.safetensors", tmp_path / "float8", "--quantize", option) == 0
    assert convert(tmp_path / "float8", tmp_path / "again.safetensors", "--quantize", option) == 0
    assert capsys.readouterr().out == "equal\n" * 3
    assert same_weights(
        load(tmp_path / "x.safetensors", None, quantization_config=method),
        load(FULL, None, quantization_config=method),
    )
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_a_calibrated_file_is_the_published_one(tmp_path):
    """Every tensor and what it says of its layers, which is the golden file's."""
    convert_to_diffusers(FULL, tmp_path / "real")
    convert_to_original(
        tmp_path / "real" / "transformer", tmp_path / "x.safetensors", quantization_config=FP8ScaledMMConfig(AMAX)
    )
    mine, theirs = load_tensors(tmp_path / "x.safetensors"), load_tensors(FP8)
    assert mine.keys() == {name for name in theirs if name.startswith(PREFIX)}
    for name, tensor in mine.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape)
        assert torch.equal(tensor.float(), theirs[name].float()), name
    stated = [json.loads(load_metadata(f)["_quantization_metadata"]) for f in (tmp_path / "x.safetensors", FP8)]
    assert stated[0] == stated[1]


def test_without_a_method_folders_of_float8_become_real_weights(tmp_path):
    convert_to_diffusers(FP8, tmp_path / "float8", quantization_config="fp8_scaled_mm")
    convert_to_original(tmp_path / "float8", tmp_path / "x.safetensors")
    entries = SafetensorsFile(tmp_path / "x.safetensors").entries
    assert {entry.dtype for entry in entries.values()} == {torch.bfloat16}
    for name, expected in load_tensors("checkpoint/fp8/expected/dequantized_bf16.safetensors").items():
        assert torch.equal(entries[name].load(), expected)


def test_one_tensor_at_a_time(tmp_path, monkeypatch):
    """No two tensors of a file are in memory together."""
    import weakref

    from ltx2_diffusers.checkpoints import safetensors_io

    alive, most, read = weakref.WeakSet(), [], SafetensorsFile._read

    def counted(self, *arguments):
        tensor = read(self, *arguments)
        alive.add(tensor)
        most.append(sum(item.numel() > 1 for item in alive))
        return tensor

    monkeypatch.setattr(safetensors_io.SafetensorsFile, "_read", counted)
    convert_to_diffusers(FULL, tmp_path / "out", quantization_config="fp8_scaled_mm")
    assert max(most) <= 2


@pytest.mark.parametrize(
    "options, message",
    [
        (("--calibration", AMAX), "--calibration holds scales of inputs"),
        (("--quantize", "fp8-cast", "--calibration", AMAX), "--quantize fp8-scaled-mm alone"),
        (("--quantize", "fp8-scaled-mm", "--calibration", "none.json"), "there is no file 'none.json'"),
        (("--quantize", "fp8-scaled-mm", "--calibration", FULL), "no JSON"),
    ],
)
def test_what_cannot_be_written_is_one_line(tmp_path, capsys, options, message):
    assert convert(FULL, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_methods_and_files_without_a_transformer_are_refused(tmp_path):
    from diffusers import QuantoConfig

    with pytest.raises(ValueError, match="QuantoConfig cannot be written"):
        convert_to_diffusers(FULL, tmp_path / "out", quantization_config=QuantoConfig("int8"))
    upscaler = next(FULL.parent.glob("*upscaler*"))
    with pytest.raises(ValueError, match="holds no transformer"):
        convert_to_diffusers(upscaler, tmp_path / "out", quantization_config="fp8_cast")
    assert not (tmp_path / "out").exists()
