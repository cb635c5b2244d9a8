"""Whole checkpoints from one layout to the other and back: the same bytes, the same configs, and nothing half-done."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from diffusers import LTX2Pipeline
from safetensors.torch import save_file

from ltx2_diffusers.checkpoints.class_names import component_of
from ltx2_diffusers.checkpoints.convert import (
    convert_to_diffusers,
    convert_to_original,
    differences,
    folder_components,
    original_components,
)
from ltx2_diffusers.checkpoints.safetensors_io import SafetensorsFile, tensor_differences
from tests.golden_data import load_json, load_metadata, load_tensors
from tests.golden_parts import golden_file

from .tiny import CHECKPOINTS, CLASSES, MODELS, UPSCALERS, V20, V23, expected_folder

REPOSITORY = Path(__file__).parents[2]
FP8 = golden_file("checkpoint/fp8/ltx-2-tiny-dev-fp8.safetensors")
SPATIAL = {V20.name: UPSCALERS[0], V23.name: next(path for path in UPSCALERS if "2.3" in path.name)}


def files_in(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def converted(path: Path, folder: Path, **options) -> Path:
    """The diffusers folder made of an original file, complete where the golden folder is."""
    if path in MODELS:
        upsampler = CHECKPOINTS[[p.name for p in CHECKPOINTS].index(SPATIAL[path.name].name)]
        options |= {"text_encoder": expected_folder(path) / "text_encoder", "latent_upsampler": upsampler}
    convert_to_diffusers(path, folder / path.stem, **options)
    return folder / path.stem


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_converted_folders_are_byte_for_byte_the_expected_ones(path, tmp_path):
    folder = converted(path, tmp_path)
    made, expected = files_in(folder), files_in(expected_folder(path))
    assert [name for name in expected if made[name].read_bytes() != expected[name].read_bytes()] == []
    # What the expected folder leaves out are weights, which follow from the golden key map, and the card.
    more = {Path(name).name for name in set(made) - set(expected)}
    assert more <= {"diffusion_pytorch_model.safetensors", "README.md"}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_converted_weights_are_those_of_the_golden_key_map(path, tmp_path):
    parts = folder_components(converted(path, tmp_path))
    originals = SafetensorsFile(path).entries
    expected: dict[str, dict] = {name: {} for name in parts}
    for key, place in load_json(f"checkpoint/key_maps/{path.stem}.json").items():
        if place:
            expected[place[0]][place[1]] = originals[key]
    for name, (entries, _) in parts.items():
        assert tensor_differences(entries, expected[name]) == []


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_there_and_back_gives_the_same_file(path, tmp_path):
    folder = converted(path, tmp_path, max_shard_size="100KB")
    assert differences(path, folder) == []
    back = tmp_path / "back.safetensors"
    convert_to_original(folder, back)
    assert differences(back, folder) == []
    lost = tensor_differences(SafetensorsFile(path).entries, SafetensorsFile(back).entries)
    assert all(line.startswith("vae.per_channel_statistics.") and "missing" in line for line in lost)
    before, after = load_metadata(path), load_metadata(back)
    assert json.loads(after["config"]) == json.loads(before["config"])
    assert after.get("model_version") == before.get("model_version")


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_upstream_opens_a_sharded_conversion(path, tmp_path):
    folder = converted(path, tmp_path, max_shard_size="300KB")
    pipeline = LTX2Pipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    parts = original_components(path)
    for name in ("transformer", "connectors", "vae", "audio_vae", "vocoder"):
        state = getattr(pipeline, name).state_dict()
        assert all(torch.equal(state[key], entry.load()) for key, entry in parts[name][0].items())
    assert type(pipeline.tokenizer).__name__ == "GemmaTokenizer"


def test_without_a_text_encoder_its_entries_stay_empty(tmp_path):
    convert_to_diffusers(V20, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["text_encoder"] == index["tokenizer"] == [None, None]


def test_a_gemma_folder_with_everything_in_it_brings_tokenizer_and_processor(tmp_path):
    gemma = tmp_path / "gemma"
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(expected_folder(V20) / part, gemma, dirs_exist_ok=True)
    (gemma / "preprocessor_config.json").write_text('{"processor_class": "Gemma3Processor"}')
    convert_to_diffusers(V20, tmp_path / "out", text_encoder=gemma)
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["processor"] == ["transformers", "Gemma3Processor"]
    assert {path.name for path in (tmp_path / "out" / "processor").iterdir()} == {
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not (tmp_path / "out" / "text_encoder" / "tokenizer.json").exists()


@pytest.mark.parametrize(
    "name, flag, dynamic", [("x-distilled", None, False), ("x", True, False), ("x-distilled", False, True)]
)
def test_a_distilled_model_gets_a_scheduler_that_takes_sigmas_as_they_are(tmp_path, name, flag, dynamic):
    shutil.copyfile(V20, tmp_path / f"{name}.safetensors")
    convert_to_diffusers(tmp_path / f"{name}.safetensors", tmp_path / "out", distilled=flag)
    config = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert (config["use_dynamic_shifting"], config["shift_terminal"]) == (dynamic, 0.1 if dynamic else None)


def test_fp8_files_convert_to_their_real_weights(tmp_path):
    convert_to_diffusers(FP8, tmp_path / "out")
    assert differences(FP8, tmp_path / "out") == []
    place = tmp_path / "out" / "transformer"
    weights = folder_components(place if place.is_dir() else tmp_path / "out")["transformer"][0]
    for key, expected in load_tensors("checkpoint/fp8/expected/dequantized_bf16.safetensors").items():
        assert torch.equal(weights[key.removeprefix("model.diffusion_model.")].load(), expected)


def test_a_cast_is_checked_as_a_cast(tmp_path):
    convert_to_diffusers(V20, tmp_path / "out", dtype=torch.float32)
    assert differences(V20, tmp_path / "out", torch.float32) == []
    assert differences(V20, tmp_path / "out")[0].startswith("audio_vae.")


def test_differences_find_a_changed_byte_a_lost_tensor_and_a_changed_config(tmp_path):
    folder = converted(V20, tmp_path)
    weights = folder / "vocoder" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"rope_type": "split"', '"rope_type": "interleaved"'))
    tensors = load_tensors(folder / "vae" / "diffusion_pytorch_model.safetensors")
    del tensors["latents_std"]
    save_file(tensors, folder / "vae" / "diffusion_pytorch_model.safetensors")
    shutil.rmtree(folder / "connectors")
    found = differences(V20, folder)
    assert len(found) == 4
    for part in (
        "connectors: only in",
        "rope_type is 'split' in the file",
        "vae.latents_std: missing",
        "vocoder.upsamplers",
    ):
        assert any(part in line for line in found)


@pytest.mark.parametrize(
    "name, config",
    [
        (
            "AutoencoderKLLTX2Video",
            {"timestep_conditioning": True, "decoder_inject_noise": [True, False, False, True]},
        ),
        ("AutoencoderKLLTX2Video", {"decoder_causal": True, "encoder_spatial_padding_mode": "reflect"}),
        ("LTX2LatentUpsamplerModel", {"rational_spatial_scale": 1.5}),
        ("LTX2LatentUpsamplerModel", {"spatial_upsample": False, "temporal_upsample": True}),
        ("LTX2AVTransformer3DModel", {"rope_type": "interleaved", "rope_double_precision": False, "num_layers": 1}),
    ],
)
def test_variants_that_were_not_published_survive_as_well(name, config, tmp_path):
    component = component_of(CLASSES[name])
    place = expected_folder(V20) / component
    base = load_json((expected_folder(UPSCALERS[0]) if component == "latent_upsampler" else place) / "config.json")
    model = CLASSES[name].from_config({**base, **config})
    model.save_pretrained(tmp_path / "folder")
    convert_to_original(tmp_path / "folder", tmp_path / "file")
    again = CLASSES[name].from_single_file(tmp_path / "file")
    assert {key: value for key, value in again.config.items() if key[0] != "_"} == {
        key: value for key, value in model.config.items() if key[0] != "_"
    }
    state = again.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


def test_metadata_of_a_given_file_are_carried_over(tmp_path):
    metadata = load_metadata(V20)
    config = json.loads(metadata["config"])
    config["transformer"]["a_new_field"] = 1
    save_file(load_tensors(V20), tmp_path / "template", {**metadata, "config": json.dumps(config), "license": "ours"})
    convert_to_original(converted(V20, tmp_path), tmp_path / "back", metadata_from=tmp_path / "template")
    after = load_metadata(tmp_path / "back")
    assert json.loads(after["config"]) == config
    assert after["license"] == "ours"


def test_a_2_5_transformer_needs_the_name_of_its_text_encoder(tmp_path):
    folder = converted(V23, tmp_path)
    config = json.loads((folder / "transformer" / "config.json").read_text()) | {
        "use_keyframes_abs_pos_embedding": True
    }
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_tensors(weights)
    width = config["num_attention_heads"] * config["attention_head_dim"]
    save_file({**tensors, "keyframes_abs_pos_embedding": torch.zeros(1, width)}, weights)
    with pytest.raises(ValueError, match="gemma_source_checkpoint"):
        convert_to_original(folder, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_tensors_of_no_component_stop_the_conversion(tmp_path):
    save_file(load_tensors(V20) | {"duration_head.x": torch.zeros(1)}, tmp_path / "file", load_metadata(V20))
    with pytest.raises(ValueError, match=r"duration_head\.x"):
        convert_to_diffusers(tmp_path / "file", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
    written = []

    def stop(name: str) -> None:
        written.append(name)
        if len(written) == 300:
            raise KeyboardInterrupt

    for convert, source in ((convert_to_diffusers, V20), (convert_to_original, converted(V20, tmp_path / "folder"))):
        written.clear()
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", on_tensor=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"text_encoder": "/nowhere/gemma"}, "/nowhere/gemma"),
        ({"tokenizer": "/nowhere/tokenizer"}, "tokenizer_config.json"),
        ({"max_shard_size": "many"}, "max_shard_size"),
    ],
)
def test_bad_options_are_named_and_leave_nothing(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        convert_to_diffusers(V20, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_text_encoder_does_not_fit_an_upscaler(tmp_path):
    with pytest.raises(ValueError, match="complete pipeline"):
        convert_to_diffusers(UPSCALERS[0], tmp_path / "out", text_encoder=expected_folder(V20))


def test_folders_that_are_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no LTX-2 component"):
        folder_components(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ValueError, match="UNet2DModel"):
        folder_components(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent"):
        folder_components(tmp_path / "absent")


def run_script(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    monkeypatch.syspath_prepend(str(REPOSITORY / "conversion"))
    with pytest.raises(SystemExit) as exit_status:
        runpy.run_path(str(REPOSITORY / "conversion" / name), run_name="__main__")
    return exit_status.value.code


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_scripts_say_equal_both_ways(path, tmp_path, monkeypatch, capsys):
    text = ["--text-encoder", expected_folder(path) / "text_encoder"] if path in MODELS else []
    folder = tmp_path / "folder"
    assert run_script(monkeypatch, "convert_to_diffusers.py", path, folder, *text, "--check") == 0
    assert run_script(monkeypatch, "convert_to_original.py", folder, tmp_path / "back.safetensors", "--check") == 0
    assert capsys.readouterr().out == "equal\nequal\n"


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("convert_to_diffusers.py", "file"),
        ("convert_to_diffusers.py", "file/folder"),
        ("convert_to_original.py", "folder.safetensors"),
        ("convert_to_original.py", "file/x.safetensors"),
        ("convert_lora.py", "folder"),
        ("convert_lora.py", "n" * 256),
    ],
)
def test_scripts_try_the_output_before_they_read_the_input(script, name, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("kept")
    for folder in ("folder", "folder.safetensors"):
        (tmp_path / folder).mkdir()
    # Not a checkpoint: read first, it would be named first.
    source = tmp_path / ("folder" if script == "convert_to_original.py" else "file")
    assert run_script(monkeypatch, script, source, tmp_path / name) == 2
    said = capsys.readouterr().err
    assert re.search(
        rf"^(?:error|ltx2 convert): cannot (?:write|save) to '{re.escape(str(tmp_path / name))}': ", said, re.MULTILINE
    )
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "folder.safetensors"]


def test_scripts_report_bad_input_without_a_traceback(tmp_path, monkeypatch, capsys):
    (tmp_path / "page.safetensors").write_text("<html>")
    assert run_script(monkeypatch, "convert_to_diffusers.py", tmp_path / "page.safetensors", tmp_path / "out") == 2
    assert "page.safetensors" in capsys.readouterr().err
