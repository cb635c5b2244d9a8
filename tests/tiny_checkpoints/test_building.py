"""The tiny checkpoints: equal each time they are built, and they load and run in both libraries."""

import json
import os

import diffusers
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Gemma3Processor

import ltx2_diffusers
from ltx2_diffusers.checkpoints.class_names import COMPONENT_CLASSES
from tests import tiny_checkpoints
from tests.tiny_checkpoints import FOLDERS, tiny_checkpoint
from tests.tiny_checkpoints.building import build
from tests.tiny_checkpoints.configs import component_configs


def our_class(component, version):
    kind = component.replace("temporal", "latent")
    names = COMPONENT_CLASSES[kind]
    return getattr(ltx2_diffusers, names[-1] if version == "2.3" else names[0])


@pytest.fixture(scope="module", params=FOLDERS)
def version(request):
    return request.param


@pytest.fixture(scope="module")
def pipeline(version):
    pipeline = diffusers.LTX2Pipeline.from_pretrained(tiny_checkpoint(version))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_building_is_deterministic_to_the_bit(version, tmp_path):
    """Whatever the number of threads, and whatever random numbers were drawn before."""
    torch.manual_seed(1)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        build(tmp_path, version)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    folder = tiny_checkpoint(version)
    files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert [name for name in files if (folder / name).read_bytes() != (tmp_path / name).read_bytes()] == []


def test_builds_are_kept_by_what_they_were_built_with(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny_checkpoints.tempfile, "tempdir", str(tmp_path))
    built = []
    monkeypatch.setattr(
        "tests.tiny_checkpoints.building.build", lambda folder, _: built.append(folder.mkdir(parents=True))
    )
    monkeypatch.setattr("tests.tiny_checkpoints.newest.build_newest", lambda folder, _: folder.mkdir())
    find = tiny_checkpoint.__wrapped__
    first = find("2.0")
    assert find("2.3").parent == first.parent and len(built) == len(FOLDERS)
    os.utime(first.parent, (0, 0))
    monkeypatch.setattr(tiny_checkpoints, "LIBRARIES", ("torch",))
    second = find("2.0")
    assert second.parent != first.parent and second.is_dir() and not first.exists()
    assert len(built) == 2 * len(FOLDERS)


def test_weights_are_bfloat16(version):
    for path in tiny_checkpoint(version).rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}, path


def test_every_component_loads_into_our_class_with_real_factors(version):
    folder = tiny_checkpoint(version)
    for component in component_configs(version):
        model = our_class(component, version).from_pretrained(folder / component)
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values()), component
        if component == "vae":
            assert (model.spatial_compression_ratio, model.temporal_compression_ratio) == (32, 8)
        if component == "transformer":
            assert (model.config.in_channels, model.config.out_channels) == (128, 128)


def test_index_has_upstream_names_only(version):
    index = json.loads((tiny_checkpoint(version) / "model_index.json").read_text())
    libraries = {entry[0] for key, entry in index.items() if not key.startswith("_")}
    assert libraries == {"diffusers", "ltx2", "transformers", None}
    assert index["vocoder"][1] == ("LTX2VocoderWithBWE" if version == "2.3" else "LTX2Vocoder")


def test_tokenizer_pads_left_after_the_text_and_knows_every_character(version):
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint(version) / "tokenizer")
    tokens = tokenizer(["The dog runs — ☃!", ""], padding="max_length", max_length=32, return_tensors="pt")
    assert tokens.input_ids.shape == (2, 32)
    assert tokens.input_ids[1].tolist() == [0] * 31 + [tokenizer.bos_token_id]
    assert tokens.attention_mask[1].tolist() == [0] * 31 + [1]
    assert tokenizer.decode(tokens.input_ids[0], skip_special_tokens=True) == "The dog runs — ☃!"
    assert tokenizer.unk_token_id not in tokens.input_ids
    assert len(tokenizer("a dog on the beach").input_ids) < len("a dog on the beach") / 2


def test_processor_feeds_a_picture_to_the_text_encoder(version, pipeline):
    processor = Gemma3Processor.from_pretrained(tiny_checkpoint(version) / "processor")
    content = [{"type": "image"}, {"type": "text", "text": "A dog."}]
    messages = [{"role": "system", "content": "Rewrite."}, {"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=text, images=PIL.Image.new("RGB", (50, 40)), return_tensors="pt")
    assert text.count("<start_of_turn>") == 2
    assert pipeline.text_encoder.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


def test_upstream_pipeline_generates_moving_pictures_and_sound(version, pipeline):
    def run(prompt):
        generator = torch.Generator().manual_seed(0)
        size = {"height": 64, "width": 64, "num_frames": 9}
        return pipeline(
            prompt, **size, num_inference_steps=2, guidance_scale=3.0, output_type="pt", generator=generator
        )

    output, other = run("A cat walks on the beach."), run("A man plays the piano.")
    frames, audio = output.frames[0], output.audio[0]
    assert frames.shape == (9, 3, 64, 64)
    assert frames.std(dim=(2, 3)).min() > 0.005
    assert (frames[1:] - frames[:-1]).abs().mean() > 1e-3
    assert (frames - other.frames[0]).abs().max() > 1e-3
    assert pipeline.vocoder.config.output_sampling_rate == (48000 if version == "2.3" else 24000)
    assert audio.shape[0] == 2
    assert 0.02 < audio.std() < 0.4
    assert audio.abs().max() < 1
