"""Folders of pipelines that are damaged or contradict themselves are refused, by file and key, before they are used."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GemmaTokenizer

from ltx2_diffusers import LTX2Pipeline
from tests.golden_data import GOLDEN_DIR
from tests.tiny_checkpoints import tiny_checkpoint

CALL = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture
def folder(tmp_path) -> Path:
    return shutil.copytree(tiny_checkpoint("2.0"), tmp_path / "pipeline")


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(folder: Path, message: str, **given) -> None:
    with pytest.raises(ValueError, match=message) as error:
        LTX2Pipeline.from_pretrained(folder, **given)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("transformer", "num_layers", 2000),
        ("transformer", "num_layers", -1),
        ("transformer", "norm_eps", float("nan")),
        ("vae", "scaling_factor", float("nan")),
        ("connectors", "video_connector_num_layers", 10**9),
        ("vocoder", "output_sampling_rate", 0),
        ("audio_vae", "mel_hop_length", 0),
        ("audio_vae", "sample_rate", float("inf")),
        ("text_encoder", "_class_name", 3),
        ("scheduler", "base_shift", float("nan")),
        ("scheduler", "max_shift", float("-inf")),
    ],
)
def test_a_value_that_no_pipeline_can_have_is_refused_by_file_and_key(folder, file, key, value):
    name = "scheduler_config.json" if file == "scheduler" else "config.json"
    change(folder / file / name, **{key: value})
    refused(folder, rf"{file}.*{key}")


@pytest.mark.parametrize(("pattern", "is_needed"), [("layers.0.self_attn.q_proj", True), ("vision_tower", False)])
def test_the_text_encoder_has_all_weights_that_read_text(folder, pattern, is_needed):
    """transformers draws what is missing, and the prompt means something else."""
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    lost = [name for name in weights if pattern in name and ("vision" in name) != is_needed]
    save_file({name: value for name, value in weights.items() if name not in lost}, file, metadata={"format": "pt"})
    if is_needed:
        refused(folder, r"text_encoder' lacks 1 of \d+ tensors of the Gemma3.*layers\.0\.self_attn\.q_proj")
        LTX2Pipeline.from_pretrained(folder, text_encoder=None)
    else:
        assert lost
        LTX2Pipeline.from_pretrained(folder)


@pytest.mark.parametrize("count", [1, 10**9])
def test_layers_of_the_text_encoder_are_those_of_its_weights(folder, count):
    file = folder / "text_encoder" / "config.json"
    section = json.loads(file.read_text())["text_config"]
    change(file, text_config={**section, "num_hidden_layers": count})
    refused(folder, rf"text_encoder/config\.json.*text_config\.num_hidden_layers` is {count}, but")


@pytest.mark.parametrize(
    "text",
    ["[]", "5", "", '{"transformer": [1, 2]}', '{"transformer": ["diffusers"]}', '{"transformer": "x"}']
    + ['{"transformer": ["diffusers", null]}', '{"a": NaN}', "[" * 100_000],
    ids=lambda text: text[:40],
)
def test_an_index_that_is_none_is_refused(folder, text):
    (folder / "model_index.json").write_text(text)
    refused(folder, r"model_index\.json")


def test_a_folder_without_an_index_is_no_pipeline(folder):
    refused(folder / "transformer", r"no model_index\.json")


def test_components_that_are_given_need_not_be_whole(folder):
    (folder / "vocoder" / "config.json").write_text("{")
    refused(folder, r"vocoder/config\.json")
    assert LTX2Pipeline.from_pretrained(folder, vocoder=None).vocoder is None


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_cut_files_of_the_text_encoder_are_named(folder, name):
    file = folder / "text_encoder" / name
    file.write_bytes(file.read_bytes()[:-10])
    refused(folder, rf"text_encoder/{name}")


def test_broken_merges_of_a_tokenizer_are_refused_with_the_folder(folder):
    file = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = [5]
    file.write_text(json.dumps(content))
    refused(folder, "cannot be loaded")


@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)], ids=["empty", "no words"])
def test_a_tokenizer_without_words_is_refused(folder, kept):
    for file in (folder / "tokenizer").iterdir():
        if file.name not in kept:
            file.unlink()
    refused(folder, r"pipeline/tokenizer.*holds no vocabulary")


def test_a_tokenizer_with_an_emptied_vocabulary_is_refused(folder):
    file = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    special = {entry["content"] for entry in content["added_tokens"] if entry["special"]}
    vocab = content["model"]["vocab"]
    content["model"] |= {"vocab": {word: vocab[word] for word in vocab if word in special}, "merges": []}
    file.write_text(json.dumps(content))
    refused(folder, r"tokenizer\.json.*has no words")
    file.write_text(json.dumps({**content, "model": 5}))
    refused(folder, r"tokenizer\.json.*has no words")


def test_a_given_tokenizer_without_words_is_refused_before_the_encoder_runs(tmp_path):
    pipe = LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"), tokenizer=GemmaTokenizer.from_pretrained(tmp_path))
    with pytest.raises(ValueError, match="tokenizer has no words"):
        pipe("a lighthouse", **CALL)


def test_tokens_beyond_the_embedding_are_refused_before_the_encoder_runs(folder):
    file = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {word: number + 100_000 * (number > 20) for word, number in vocab.items()}
    file.write_text(json.dumps(content))
    pipe = LTX2Pipeline.from_pretrained(folder)
    with pytest.raises(
        ValueError, match=r"`prompt` the token 100\d+, but the text encoder has embeddings for 0 to 767"
    ):
        pipe("a lighthouse", **CALL)


def test_weights_of_another_model_are_refused_before_anything_is_loaded(folder):
    file = folder / "vocoder" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    name, tensor = next(iter(tensors.items()))
    save_file({**tensors, name: torch.zeros(*tensor.shape, 2)}, file)
    refused(folder, f"1 of another shape: {name}")


def test_a_gemma_folder_beside_an_original_file_is_checked_alike(folder):
    original = GOLDEN_DIR / "checkpoint/ltx-2-tiny-dev.safetensors"
    for file in (folder / "tokenizer").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="holds no vocabulary"):
        LTX2Pipeline.from_single_file(original, text_encoder=folder)
    weights = folder / "text_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors.*cut off"):
        LTX2Pipeline.from_single_file(original, text_encoder=folder)


@pytest.mark.parametrize("place", ["/there-is-none", "./nowhere", "/nonexistent/model", "two words", "~/ltx2"])
def test_what_is_neither_a_folder_nor_an_id_is_said_to_be_missing(place):
    with pytest.raises(ValueError, match=r"there is no folder .*, nor can a repository") as error:
        LTX2Pipeline.from_pretrained(place)
    assert repr(place) in str(error.value)


def test_the_name_of_the_miniature_leads_to_its_folder():
    with pytest.raises(ValueError, match=r"packaged_checkpoint\('ltx2-mini'\)"):
        LTX2Pipeline.from_pretrained("ltx2-mini")
