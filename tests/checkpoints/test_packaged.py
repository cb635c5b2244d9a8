import json

import diffusers
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Gemma3Processor

import ltx2_diffusers
from ltx2_diffusers.checkpoints.class_names import COMPONENT_CLASSES
from ltx2_diffusers.checkpoints.packaged import PACKAGED, packaged_checkpoint
from scripts.build_tiny_checkpoint import FOLDERS, MAX_BYTES, build_component, write_model
from scripts.tiny_configs import component_configs

VERSIONS = dict(zip(PACKAGED, FOLDERS))


def our_class(component, version):
    kind = component.replace("temporal", "latent")
    names = COMPONENT_CLASSES[kind]
    return getattr(ltx2_diffusers, names[-1] if version == "2.3" else names[0])


@pytest.fixture(scope="module", params=PACKAGED)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def pipeline(name):
    pipeline = diffusers.LTX2Pipeline.from_pretrained(packaged_checkpoint(name))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_wrong_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match=r"did you mean 'ltx2\.3-tiny'.*ltx2-tiny"):
        packaged_checkpoint("ltx2.3-tin")


def test_checkpoints_are_small_and_hold_bfloat16():
    files = [path for name in PACKAGED for path in packaged_checkpoint(name).rglob("*") if path.is_file()]
    assert 1_000_000 < sum(path.stat().st_size for path in files) < MAX_BYTES
    for path in files:
        if path.suffix == ".safetensors":
            assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}, path


def test_every_component_loads_into_our_class_with_real_factors(name):
    version, folder = VERSIONS[name], packaged_checkpoint(name)
    for component in component_configs(version):
        model = our_class(component, version).from_pretrained(folder / component)
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values()), component
        if component == "vae":
            assert (model.spatial_compression_ratio, model.temporal_compression_ratio) == (32, 8)
        if component == "transformer":
            assert (model.config.in_channels, model.config.out_channels) == (128, 128)


def test_index_has_upstream_names_only(name):
    index = json.loads((packaged_checkpoint(name) / "model_index.json").read_text())
    libraries = {entry[0] for key, entry in index.items() if not key.startswith("_")}
    assert libraries == {"diffusers", "ltx2", "transformers", None}
    assert index["vocoder"][1] == ("LTX2VocoderWithBWE" if VERSIONS[name] == "2.3" else "LTX2Vocoder")


def test_tokenizer_pads_left_after_the_text_and_knows_every_character(name):
    tokenizer = AutoTokenizer.from_pretrained(packaged_checkpoint(name) / "tokenizer")
    tokens = tokenizer(["The dog runs — ☃!", ""], padding="max_length", max_length=32, return_tensors="pt")
    assert tokens.input_ids.shape == (2, 32)
    assert tokens.input_ids[1].tolist() == [0] * 31 + [tokenizer.bos_token_id]
    assert tokens.attention_mask[1].tolist() == [0] * 31 + [1]
    assert tokenizer.decode(tokens.input_ids[0], skip_special_tokens=True) == "The dog runs — ☃!"
    assert tokenizer.unk_token_id not in tokens.input_ids
    assert len(tokenizer("a dog on the beach").input_ids) < len("a dog on the beach") / 2


def test_processor_feeds_a_picture_to_the_text_encoder(name, pipeline):
    processor = Gemma3Processor.from_pretrained(packaged_checkpoint(name) / "processor")
    content = [{"type": "image"}, {"type": "text", "text": "A dog."}]
    messages = [{"role": "system", "content": "Rewrite."}, {"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=text, images=PIL.Image.new("RGB", (50, 40)), return_tensors="pt")
    assert text.count("<start_of_turn>") == 2
    assert pipeline.text_encoder.generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


def test_upstream_pipeline_generates_moving_pictures_and_sound(name, pipeline):
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
    assert pipeline.vocoder.config.output_sampling_rate == (48000 if VERSIONS[name] == "2.3" else 24000)
    assert audio.shape[0] == 2
    assert 0.02 < audio.std() < 0.4
    assert audio.abs().max() < 1


@pytest.mark.parametrize("component", ["transformer", "vocoder"])
def test_script_rebuilds_what_is_packaged(tmp_path, name, component):
    write_model(tmp_path, component, build_component(component, VERSIONS[name]))
    file = f"{component}/diffusion_pytorch_model.safetensors"
    rebuilt, packaged = load_file(tmp_path / file), load_file(packaged_checkpoint(name) / file)
    assert rebuilt.keys() == packaged.keys()
    for key, tensor in packaged.items():
        # The scaled last layers depend on the machine's rounding.
        torch.testing.assert_close(rebuilt[key].float(), tensor.float(), rtol=0.02, atol=1e-3, msg=key)
    config = json.loads((tmp_path / component / "config.json").read_text())
    assert config == json.loads((packaged_checkpoint(name) / component / "config.json").read_text())
