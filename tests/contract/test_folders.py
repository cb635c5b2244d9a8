"""Saving, loading and moving pipelines as diffusers' users do it: one check, run on the classes of both libraries."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from tests.contract.both import (
    CASES,
    CFG,
    GENERATING,
    LIBRARIES,
    WITH_TEXT,
    both,
    difference,
    each,
    generating,
    model,
    named,
    new_model,
    optional,
    pipeline,
    quiet,
    run,
    text_models,
)

EQUAL = 1e-4
cases = pytest.mark.parametrize(("library", "name"), CASES)


def loaded(library: str, name: str, folder: Path, **options: Any) -> Any:
    """A pipeline from a folder, in float32 unless it is said otherwise."""
    return quiet(named(library, name).from_pretrained(folder, **{"torch_dtype": torch.float32} | options))


def models(pipe: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    """The networks of a pipeline by name."""
    return {part: model for part, model in pipe.components.items() if isinstance(model, torch.nn.Module)}


@each
@both
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickled"])
@pytest.mark.quick_cases(4)
def test_a_saved_pipeline_is_the_same(library, name, safe, tmp_path):
    pipe = pipeline(library, name)
    pipe.save_pretrained(tmp_path, safe_serialization=safe)
    # Language models are always saved as safetensors.
    texts = {} if safe or name not in WITH_TEXT else {"text_encoder": pipe.text_encoder}
    again = loaded(library, name, tmp_path, use_safetensors=safe, **texts)
    assert difference(run(library, name, again), run(library, name, pipe)) <= EQUAL
    for part in models(pipe).keys() - {"text_encoder"}:
        assert any((tmp_path / part).glob("*.safetensors")) == safe


@cases
@pytest.mark.quick_cases(2)
def test_optional_components_stay_away(library, name, tmp_path):
    pipe = pipeline(library, name)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {part: index[part] for part in optional(name)} == {part: [None, None] for part in optional(name)}
    for options in ({}, dict.fromkeys(optional(name))):
        again = loaded(library, name, tmp_path, **options)
        assert all(getattr(again, part) is None for part in optional(name))
    assert difference(run(library, name, again), run(library, name, pipe)) <= EQUAL


@cases
@pytest.mark.parametrize("away", ["text", "decoders"])
@pytest.mark.quick_cases(4)
def test_needed_components_can_stay_away_too(library, name, away, tmp_path):
    pipeline(library, name).save_pretrained(tmp_path)
    parts = {"text": ("text_encoder", "tokenizer"), "decoders": ("vocoder",)}[away]
    pipe = loaded(library, name, tmp_path, **dict.fromkeys(parts))
    assert all(getattr(pipe, part) is None for part in parts)
    pipe.save_pretrained(tmp_path / "again")
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert all(index[part] == [None, None] for part in parts)


@each
@pytest.mark.quick_cases(2)
def test_folders_travel_both_ways(name, tmp_path):
    for here, there in (("diffusers", "ours"), ("ours", "diffusers")):
        folder = tmp_path / here
        pipeline(here, name).save_pretrained(folder)
        expected = run(here, name, return_dict=False)
        assert difference(run(there, name, loaded(there, name, folder), return_dict=False), expected) <= EQUAL
    indices = [json.loads((tmp_path / library / "model_index.json").read_text()) for library in LIBRARIES]
    assert indices[0].items() <= indices[1].items()


@each
@both
@pytest.mark.quick_cases(5)
def test_variants(library, name, tmp_path):
    pipe = pipeline(library, name)
    pipe.save_pretrained(tmp_path, variant="fp16")
    files = [file.name for part in models(pipe) for file in (tmp_path / part).glob("*.safetensors")]
    assert files and all(".fp16." in file for file in files)
    again = loaded(library, name, tmp_path, variant="fp16")
    assert difference(run(library, name, again), run(library, name, pipe)) <= EQUAL
    for wrong in ("fp32", None):
        with pytest.raises((OSError, ValueError)):
            loaded(library, name, tmp_path, variant=wrong)


@each
@both
@pytest.mark.quick_cases(5)
def test_data_types_of_single_components(library, name, tmp_path):
    pipeline(library, name).save_pretrained(tmp_path)
    pipe = loaded(library, name, tmp_path, torch_dtype={"vae": torch.bfloat16, "default": torch.float16})
    assert {part: model.dtype for part, model in models(pipe).items()} == {
        part: torch.bfloat16 if part == "vae" else torch.float16 for part in models(pipe)
    }
    assert loaded(library, name, tmp_path, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


@each
@both
def test_a_pipeline_changes_its_data_type(library, name):
    pipe = pipeline(library, name, new_model, **({"text_encoder": None} if name in WITH_TEXT else {}))
    assert pipe.to(torch.bfloat16) is pipe
    assert {model.dtype for model in models(pipe).values()} == {torch.bfloat16}
    pipe.to(dtype=torch.float32, device="cpu")
    assert pipe.dtype == torch.float32 and pipe.device.type == "cpu"


@pytest.mark.quick_cases(2)
@cases
def test_half_precision_is_close(library, name, tmp_path):
    pipeline(library, name).save_pretrained(tmp_path)
    pipe = loaded(library, name, tmp_path, torch_dtype=torch.bfloat16)
    output = run(library, name, pipe)
    assert all(part.isfinite().all() for part in output.to_tuple() if isinstance(part, torch.Tensor))
    assert (output[0].float() - run(library, name)[0]).abs().max() < 0.5


@pytest.mark.quick_cases(2)
@cases
def test_components_serve_another_pipeline(library, name):
    pipe = pipeline(library, name)
    for other in GENERATING:
        twin = quiet(named(library, other).from_pipe(pipe, torch_dtype=torch.float32))
        assert twin.transformer is pipe.transformer
    assert difference(run(library, other, twin), run(library, other)) == 0


@cases
def test_guidance_can_be_left_out_by_a_list_of_steps(library, name):
    sigmas = [1.0, 0.7, 0.3]
    pipe = pipeline(library, name)
    output = run(library, name, pipe, sigmas=sigmas, num_inference_steps=3, **CFG)
    assert pipe.num_timesteps == 3 and output[0].isfinite().all()


@each
@both
@pytest.mark.quick_cases(6)
def test_offloading_leaves_the_result_alone(library, name):
    pipe = pipeline(library, name, new_model, **(text_encoder_copy() if name in WITH_TEXT else {}))
    pipe.enable_model_cpu_offload(device="cpu")
    assert difference(run(library, name, pipe), run(library, name)) == 0
    pipe.remove_all_hooks()
    pipe.maybe_free_model_hooks()


def text_encoder_copy() -> dict[str, torch.nn.Module]:
    """A text encoder that may be given hooks."""
    return {"text_encoder": copy.deepcopy(text_models()["text_encoder"])}


@pytest.mark.quick_cases(2)
@cases
def test_groups_of_layers_are_brought_one_by_one(library, name):
    pipe = pipeline(library, name, new_model)
    device = torch.device("cpu")
    pipe.enable_group_offload(
        onload_device=device,
        offload_device=device,
        offload_type="leaf_level",
        exclude_modules=["text_encoder", "vocoder", "audio_vae"],
    )
    assert difference(run(library, name, pipe), run(library, name)) == 0


@cases
def test_layerwise_casting(library, name):
    pipe = pipeline(library, name, new_model)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    output = run(library, name, pipe)
    assert output[0].isfinite().all()
    stored = {parameter.dtype for parameter in pipe.transformer.parameters()}
    assert torch.float8_e4m3fn in stored


@cases
@pytest.mark.quick_cases(2)
def test_adapters_of_a_pipeline(library, name, tmp_path):
    pipe = pipeline(library, name, new_model)
    plain = run(library, name, pipe)
    lora = LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    pipe.transformer.add_adapter(lora, adapter_name="one")
    adapted = run(library, name, pipe)
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="one")
    named(library, name).save_lora_weights(tmp_path, transformer_lora_layers=layers)
    pipe.unload_lora_weights()
    assert difference(run(library, name, pipe), plain) <= EQUAL
    pipe.load_lora_weights(tmp_path, adapter_name="two")
    assert pipe.get_active_adapters() == ["two"] and pipe.get_list_adapters() == {"transformer": ["two"]}
    assert difference(run(library, name, pipe), adapted) <= EQUAL < difference(adapted, plain)
    assert difference(run(library, name, pipe, attention_kwargs={"scale": 0.0}), plain) <= EQUAL
    pipe.set_adapters("two", 0.5)
    halved = run(library, name, pipe)
    pipe.fuse_lora(components=["transformer"])
    assert pipe.num_fused_loras == 1
    assert difference(run(library, name, pipe), halved) <= EQUAL
    pipe.unfuse_lora()
    pipe.disable_lora()
    assert difference(run(library, name, pipe), plain) <= EQUAL
    pipe.enable_lora()
    pipe.delete_adapters("two")
    assert difference(run(library, name, pipe), plain) <= EQUAL


@generating
@both
def test_a_folder_says_its_class(library, name, tmp_path):
    pipeline(library, name).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == name
    assert type(DiffusionPipeline.from_pretrained(tmp_path)) is named("diffusers", name)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", [one for one in GENERATING if "duration_head" in optional(one)])
def test_a_duration_head_is_saved_loaded_and_used_alike(name, tmp_path):
    bounds = {"num_frames": None, "min_seconds": 0.1, "max_seconds": 0.6}
    outputs = []
    for library in LIBRARIES:
        pipe = pipeline(library, name, duration_head=model(library, "duration_head"))
        outputs.append(run(library, name, pipe, **bounds))
        pipe.save_pretrained(tmp_path / library)
        for reader in LIBRARIES:
            again = loaded(reader, name, tmp_path / library)
            assert type(again.duration_head) is named(reader, "LTX2DurationHead")
    assert difference(*outputs) <= EQUAL
