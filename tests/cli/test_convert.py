"""`ltx2 convert`: both directions, the check, and one line for what cannot be converted."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ltx2_diffusers.checkpoints.safetensors_io import SafetensorsFile
from ltx2_diffusers.cli.main import main
from tests.golden_data import GOLDEN_DIR, load_metadata, load_tensors
from tests.tiny_checkpoints import tiny_checkpoint

V20 = GOLDEN_DIR / "checkpoint/ltx-2-tiny-dev.safetensors"
TINY = tiny_checkpoint("2.0")


def convert(*arguments: object) -> int:
    return main(["convert", *map(str, arguments), "--quiet"])


def test_there_and_back_is_equal(tmp_path, capsys):
    assert convert(V20, tmp_path / "folder", "--check", "--text-encoder", TINY, "--max-shard-size", "300KB") == 0
    assert convert(tmp_path / "folder", tmp_path / "back.safetensors", "--check", "--metadata-from", V20) == 0
    assert capsys.readouterr().out == "equal\nequal\n"
    assert (tmp_path / "folder" / "tokenizer" / "tokenizer.json").is_file()
    assert (tmp_path / "folder" / "transformer" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    assert SafetensorsFile(tmp_path / "back.safetensors").metadata == SafetensorsFile(V20).metadata


@pytest.mark.parametrize(
    "source", [tiny_checkpoint("2.3"), TINY / "temporal_upsampler", "ltx2-mini"], ids=["pipeline", "component", "name"]
)
def test_folders_and_packaged_names_convert(tmp_path, capsys, source):
    assert convert(source, tmp_path / "x.safetensors", "--to", "original", "--check") == 0
    assert capsys.readouterr().out == "equal\n"


def test_what_is_left_out_is_said_without_all_options(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["convert", "x.safetensors"])
    assert capsys.readouterr().err.splitlines()[0] == "usage: ltx2 convert SOURCE OUTPUT [options]"


def test_the_data_type_and_the_scheduler_are_chosen(tmp_path):
    assert convert(V20, tmp_path / "out", "--dtype", "fp32", "--distilled", "--check") == 0
    weights = SafetensorsFile(tmp_path / "out" / "vae" / "diffusion_pytorch_model.safetensors").entries
    assert {entry.dtype for entry in weights.values()} == {torch.float32}
    assert '"use_dynamic_shifting": false' in (tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text()


def test_differences_are_listed_with_status_1(tmp_path, capsys):
    """The folder to write into holds a component that the file lacks, and keeps it."""
    parts = {name: tensor for name, tensor in load_tensors(V20).items() if name.startswith(("vae.", "vocoder."))}
    save_file(parts, tmp_path / "parts.safetensors", load_metadata(V20))
    shutil.copytree(TINY / "connectors", tmp_path / "out" / "connectors")
    assert convert(tmp_path / "parts.safetensors", tmp_path / "out", "--check") == 1
    assert capsys.readouterr().out.startswith("connectors: only in")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.safetensors"], "there is no file 'nowhere.safetensors'"),
        (["ltx2-mni"], "there is no folder 'ltx2-mni'; did you mean the packaged 'ltx2-mini'?"),
        ([V20, "--to", "original"], "--to original does not fit"),
        ([TINY, "--to", "diffusers"], "use --to original"),
        ([TINY, "--text-encoder", TINY], "--text-encoder belongs to --to diffusers"),
        ([TINY, "--no-distilled"], "--distilled belongs to --to diffusers"),
        ([V20, "--metadata-from", V20], "--metadata-from belongs to --to original"),
        ([V20, "--max-shard-size", "many"], "max_shard_size"),
        ([TINY / "tokenizer"], "tokenizer"),
        ([TINY / "model_index.json"], "model_index.json"),
    ],
    ids=lambda value: " ".join(str(part).rpartition("/")[2] for part in value) if isinstance(value, list) else "",
)
def test_what_cannot_be_converted_is_said_in_one_line(tmp_path, capsys, arguments, message):
    source, *options = arguments
    to_original = isinstance(source, Path) and source.is_dir()
    assert convert(source, tmp_path / ("out.safetensors" if to_original else "out"), *options) == 2
    line = capsys.readouterr().err
    assert line.startswith("ltx2 convert: ") and line.count("\n") == 1
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        (
            V20,
            "x.safetensors",
            "'x.safetensors' is the name of a file; a folder in diffusers' layout is written, use 'x'",
        ),
        (TINY, "x", "'x' has to be one .safetensors file; use 'x.safetensors'"),
        (TINY, "x.bin", "'x.bin' has to be one .safetensors file; use 'x.safetensors'"),
        (TINY, ".", "'.' has to be one .safetensors file; use 'model.safetensors'"),
    ],
)
def test_the_name_of_the_output_says_what_it_is(tmp_path, capsys, monkeypatch, source, output, message):
    monkeypatch.chdir(tmp_path)
    assert convert(source, output) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["convert"], ["info"]], ids=" ".join)
def test_a_lora_is_called_so(tmp_path, capsys, command):
    path = tmp_path / "style.safetensors"
    save_file({"transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.zeros(2, 32)}, path)
    assert main([*command, str(path), *[str(tmp_path / "out")] * (command == ["convert"])]) == 2
    assert "style.safetensors': these are factors of a LoRA" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 7, 5000, 100_000])
def test_a_cut_file_is_said_in_one_line(tmp_path, capsys, size):
    (tmp_path / "cut.safetensors").write_bytes(V20.read_bytes()[:size])
    assert convert(tmp_path / "cut.safetensors", tmp_path / "out") == 2
    line = capsys.readouterr().err
    assert "cut.safetensors" in line and line.count("\n") == 1
