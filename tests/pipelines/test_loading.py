"""Pipelines travel between this package and diffusers in both directions, and bad checkpoints are refused by name."""

import json
import re
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers import LTX2Pipeline as DiffusersLTX2Pipeline
from safetensors.torch import load_file, save_file

import ltx2_diffusers
from ltx2_diffusers import (
    LTX2AVTransformer3DModel,
    LTX2LatentUpsamplerModel,
    LTX2Pipeline,
    LTX2Scheduler,
    LTX2TwoStagePipeline,
)
from ltx2_diffusers.pipelines import base
from tests.golden_data import EQUAL_MODELS, EQUAL_PIPELINES, GOLDEN_DIR
from tests.models.test_saving import contents, full_disk
from tests.pipelines.tiny import ALL_GUIDANCE, CFG, EXPLICIT, PROMPT, load, max_difference, ours, seeded, theirs
from tests.tiny_checkpoints import tiny_checkpoint

VERSIONS = ("2.0", "2.3")
SINGLE_FILE = GOLDEN_DIR / "checkpoint" / "ltx-2-tiny-dev.safetensors"
GEMMA = GOLDEN_DIR / "checkpoint" / "expected_diffusers" / "ltx-2-tiny-dev"
# Kernels round differently with the alignment of mapped weights in memory.
CALL = {**EXPLICIT, **CFG, "prompt": PROMPT, "output_type": "np"}


def run(pipe: DiffusionPipeline):
    return pipe(**CALL, generator=seeded(1))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A writable copy of a packaged checkpoint."""
    return shutil.copytree(tiny_checkpoint("2.0"), tmp_path / "checkpoint")


@pytest.mark.parametrize("name", VERSIONS)
def test_saved_pipelines_load_here_and_in_diffusers(name, tmp_path):
    ours(name).save_pretrained(tmp_path)
    expected = run(ours(name))
    assert max_difference(run(load(tmp_path)), expected) <= EQUAL_MODELS
    portable = load(tmp_path, DiffusionPipeline)
    assert type(portable) is DiffusersLTX2Pipeline
    assert max_difference(run(portable), expected) <= EQUAL_PIPELINES


@pytest.mark.parametrize("name", VERSIONS)
def test_folders_saved_by_diffusers_load_into_our_classes(name, tmp_path):
    theirs(name).save_pretrained(tmp_path)
    pipe = load(tmp_path)
    models = [part for part in pipe.components.values() if type(part).__name__ in ltx2_diffusers.__all__]
    assert len(models) == 5
    assert not [part for part in pipe.components.values() if "diffusers.pipelines.ltx2" in type(part).__module__]
    assert not [part for part in pipe.components.values() if type(part).__module__.startswith("diffusers.models")]
    assert max_difference(run(pipe), run(ours(name))) <= EQUAL_MODELS


def test_a_hub_repository_gives_the_upsampler_that_its_index_leaves_out(folder, tmp_path, monkeypatch):
    commit = "0" * 40
    repository = tmp_path / "cache" / "models--someone--tiny"
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    asked = []
    monkeypatch.setattr(base, "snapshot_download", lambda name, **options: asked.append((name, options)))
    cache = {"cache_dir": str(tmp_path / "cache")}
    parts = dict.fromkeys(("text_encoder", "tokenizer", "processor", "vocoder", "audio_vae", "temporal_upsampler"))
    pipe = LTX2TwoStagePipeline.from_pretrained("someone/tiny", **cache, **parts)
    assert isinstance(pipe.latent_upsampler, LTX2LatentUpsamplerModel)
    patterns = ["diffusion_decoder/*", "latent_upsampler/*", "stage_2_transformer/*"]
    assert asked == [("someone/tiny", {"revision": commit, "allow_patterns": patterns, **cache})]


def test_saved_names_are_diffusers_names(tmp_path):
    ours().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "LTX2Pipeline"
    assert index["transformer"] == ["diffusers", "LTX2VideoTransformer3DModel"]
    assert index["connectors"] == ["ltx2", "LTX2TextConnectors"]
    assert not [entry for entry in index.values() if isinstance(entry, list) and "ltx2_diffusers" in entry]


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in ltx2_diffusers.__all__
        if re.fullmatch(r"LTX2(?!5?Modular|DFRTemporal|VideoDiffusion)\w*Pipeline", name)
    ],
)
def test_a_saved_folder_names_a_pipeline_that_diffusers_has(name, tmp_path):
    """And everything comes back here under the class that was saved."""
    cls = getattr(ltx2_diffusers, name)
    saved = cls.from_pretrained(tiny_checkpoint("2.0"))
    saved.save_pretrained(tmp_path)
    class_name = json.loads((tmp_path / "model_index.json").read_text())["_class_name"]
    assert class_name == (name if hasattr(diffusers, name) else "LTX2Pipeline")
    portable = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(portable) is getattr(diffusers, class_name)
    restored = cls.from_pretrained(tmp_path)
    present = [part for part, value in saved.components.items() if value is not None]
    assert [part for part, value in restored.components.items() if value is not None] == present


def test_our_scheduler_is_saved_as_a_portable_one_and_restored(tmp_path):
    pipe = load(scheduler=LTX2Scheduler(max_shift=1.9))
    pipe.save_pretrained(tmp_path)
    restored = load(tmp_path)
    assert isinstance(restored.scheduler, LTX2Scheduler)
    assert restored.scheduler.config.max_shift == 1.9
    assert max_difference(run(restored), run(pipe)) <= EQUAL_MODELS
    portable = load(tmp_path, DiffusersLTX2Pipeline)
    assert type(portable.scheduler) is FlowMatchEulerDiscreteScheduler
    assert run(portable).frames.shape == run(pipe).frames.shape


def test_a_plain_scheduler_stays_what_it_is():
    assert type(ours().scheduler) is FlowMatchEulerDiscreteScheduler


def test_a_component_can_be_replaced_while_loading():
    transformer = LTX2AVTransformer3DModel.from_pretrained(tiny_checkpoint("2.0"), subfolder="transformer")
    assert load(transformer=transformer).transformer is transformer


def test_components_serve_a_second_pipeline():
    second = LTX2Pipeline(**ours().components)
    second.set_progress_bar_config(disable=True)
    assert second.transformer is ours().transformer
    assert max_difference(run(second), run(ours())) <= EQUAL_MODELS


def test_variant_and_shard_size_reach_the_components(tmp_path):
    ours().save_pretrained(tmp_path, variant="fp32", max_shard_size="100KB")
    shards = list((tmp_path / "transformer").glob("diffusion_pytorch_model.fp32-*.safetensors"))
    assert len(shards) > 1
    assert max_difference(run(load(tmp_path, variant="fp32")), run(ours())) <= EQUAL_MODELS


def test_a_failed_save_of_a_pipeline_changes_nothing(tmp_path):
    target = tmp_path / "pipe"
    with full_disk(200_000), pytest.raises(Exception, match=r"(?i)too large|I/O error"):
        ours().save_pretrained(target)
    assert contents(tmp_path) == {}
    ours().save_pretrained(target)
    before = contents(tmp_path)
    with full_disk(200_000), pytest.raises(Exception, match=r"(?i)too large|I/O error"):
        load("2.3").save_pretrained(target)
    assert contents(tmp_path) == before


def test_data_types():
    pipe = LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"), dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.dtype == torch.bfloat16
    output = pipe(**CALL, generator=seeded(1))
    assert max_difference(output, run(ours())) < 0.5


# --- original files ---


@pytest.mark.parametrize("name", ["ltx-2-tiny-dev", "ltx-2.3-tiny-dev"])
def test_a_single_file_gives_a_whole_pipeline_with_the_reference_scheduler(name):
    pipe = LTX2Pipeline.from_single_file(
        GOLDEN_DIR / "checkpoint" / f"{name}.safetensors", text_encoder=GEMMA, dtype=torch.float32
    )
    assert isinstance(pipe.scheduler, LTX2Scheduler)
    assert pipe.preset.version == ("2.3" if "2.3" in name else "2.0")
    assert pipe.preset.kind == "dev"
    assert {type(pipe.components[n]).__module__.split(".")[0] for n in ("vae", "vocoder")} == {"ltx2_diffusers"}
    assert pipe.vae.dtype == torch.float32


@pytest.mark.parametrize("name", ["ltx-2-tiny-distilled", "LTX-2-Tiny-Distilled"])
def test_a_distilled_file_is_told_by_its_name(tmp_path, name):
    path = shutil.copy(SINGLE_FILE, tmp_path / f"{name}.safetensors")
    pipe = LTX2Pipeline.from_single_file(path, text_encoder=GEMMA)
    assert pipe.preset.kind == "distilled"


def test_components_of_a_single_file_can_be_replaced():
    vae = ours().vae
    pipe = LTX2Pipeline.from_single_file(SINGLE_FILE, text_encoder=GEMMA, vae=vae)
    assert pipe.vae is vae


def test_a_text_encoder_model_needs_its_tokenizer():
    with pytest.raises(ValueError, match="`tokenizer` beside it"):
        LTX2Pipeline.from_single_file(SINGLE_FILE, text_encoder=ours().text_encoder)
    pipe = LTX2Pipeline.from_single_file(SINGLE_FILE, text_encoder=ours().text_encoder, tokenizer=ours().tokenizer)
    assert pipe.text_encoder is ours().text_encoder


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(SINGLE_FILE.read_bytes()[:-1000])
    with pytest.raises((ValueError, OSError), match=r"cut\.safetensors"):
        LTX2Pipeline.from_single_file(path, text_encoder=GEMMA)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"unet.conv_in.weight": torch.zeros(4)}, path)
    with pytest.raises(ValueError, match=r"foreign\.safetensors"):
        LTX2Pipeline.from_single_file(path, text_encoder=GEMMA)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    path = tmp_path / "text.safetensors"
    path.write_text("hello, I am not a checkpoint")
    with pytest.raises((ValueError, OSError), match=r"text\.safetensors"):
        LTX2Pipeline.from_single_file(path, text_encoder=GEMMA)


def test_a_file_without_a_component_is_refused(tmp_path):
    tensors = {key: value for key, value in load_file(SINGLE_FILE).items() if not key.startswith("vocoder")}
    path = tmp_path / "silent.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match="also needs vocoder"):
        LTX2Pipeline.from_single_file(path, text_encoder=GEMMA)


def test_an_option_that_does_not_exist_is_refused_before_loading():
    with pytest.raises(ValueError, match="torch_dtyp"):
        LTX2Pipeline.from_single_file(SINGLE_FILE, text_encoder=GEMMA, torch_dtyp=torch.float32)


# --- broken folders ---


def test_truncated_weights_of_a_folder_are_refused(folder):
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises((ValueError, OSError, RuntimeError), match="transformer"):
        load(folder)


@pytest.mark.parametrize("entry", [None, [None, None]], ids=["left out", "empty"])
def test_a_folder_whose_index_lists_too_little_is_refused(folder, entry):
    index = json.loads((folder / "model_index.json").read_text())
    del index["tokenizer"], index["text_encoder"]
    entries = {} if entry is None else {"tokenizer": entry}
    shutil.rmtree(folder / "text_encoder")
    (folder / "model_index.json").write_text(json.dumps(index | entries))
    with pytest.raises(ValueError, match=rf"{folder.name}' holds no text_encoder, tokenizer; complete the checkpoint"):
        load(folder)
    assert load(folder, text_encoder=None, tokenizer=None).text_encoder is None


def test_a_missing_component_folder_is_refused(folder):
    shutil.rmtree(folder / "vocoder")
    with pytest.raises(ValueError, match=r"no folder for the components .*vocoder"):
        load(folder)
    assert load(folder, vocoder=None).vocoder is None
    assert load(folder, vocoder=ours().vocoder).vocoder is ours().vocoder


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("transformer/training_log.json", b"[1, 2]"),
        ("transformer/notes.json", b"{"),
        # What macOS leaves on other file systems.
        ("text_encoder/._config.json", b"\0\5\x16\7"),
        ("text_encoder/._model.safetensors", b"\0\5\x16\7"),
        ("text_encoder/consolidated.safetensors", b"version https://git-lfs.github.com/spec/v1"),
        ("text_encoder/model.fp16.safetensors", b"version https://git-lfs.github.com/spec/v1"),
        ("text_encoder/model.safetensors.index.fp16.json", b"{}"),
        ("vae/diffusion_pytorch_model.fp16.safetensors", b"version https://git-lfs.github.com/spec/v1"),
        ("tokenizer/._tokenizer.json", b"\0\5\x16\7"),
    ],
)
def test_files_that_are_not_loaded_may_be_anything(folder, file, content):
    (folder / file).write_bytes(content)
    assert load(folder).text_encoder is not None


def test_a_damaged_variant_of_the_text_encoder_is_refused_by_name(folder):
    (folder / "text_encoder" / "model.fp16.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"model\.fp16\.safetensors.*Git LFS"):
        load(folder, variant="fp16")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("base_shift", "x"),
        ("max_shift", None),
        ("num_train_timesteps", 0),
        ("base_image_seq_len", 4096),
        ("shift", -1),
        ("use_dynamic_shifting", "no"),
        ("use_beta_sigmas", 10**29),
        ("time_shift_type", "spiral"),
    ],
)
def test_a_scheduler_that_gives_no_schedule_is_refused_by_name(folder, key, value):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=rf"scheduler_config\.json.*{key}"):
        load(folder)


def test_a_scheduler_as_diffusers_saves_it_is_taken(folder):
    path = folder / "scheduler"
    for options in ({}, {"stochastic_sampling": True}, {"base_shift": None, "max_shift": None, "shift": 3.0}):
        FlowMatchEulerDiscreteScheduler(**options).save_pretrained(path)
        assert type(load(folder).scheduler) is FlowMatchEulerDiscreteScheduler


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("tokenizer/tokenizer.json", {"post_processor": {"type": "nothing"}}),
        ("processor/tokenizer_config.json", {"extra_special_tokens": [1]}),
    ],
)
def test_what_a_library_refuses_names_the_component(folder, file, changes):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=rf"checkpoint/{path.parent.name}"):
        load(folder)


@pytest.mark.parametrize("entry", [["transformers", "CLIPVisionModel"], [1, 2, 3], {"a": 1}])
def test_entries_of_the_index_that_the_pipeline_does_not_take_are_passed_over(folder, entry):
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_encoder": entry}))
    assert load(folder).transformer is not None


def test_a_pipeline_of_few_components_loads_from_a_folder_with_no_others(folder):
    """As it is on the disk if only these folders were fetched."""
    for part in folder.iterdir():
        if part.is_dir() and part.name not in ("vae", "latent_upsampler"):
            shutil.rmtree(part)
    assert load(folder, ltx2_diffusers.LTX2LatentUpsamplePipeline).latent_upsampler is not None


def test_a_component_passed_as_none_is_named_when_it_is_needed():
    for component in ("text_encoder", "tokenizer", "transformer", "connectors", "vae", "audio_vae", "vocoder"):
        pipe = LTX2Pipeline(**{**ours().components, component: None})
        with pytest.raises(ValueError, match=f"needs the components .*{component}"):
            pipe(**CALL)


def test_components_that_a_call_does_not_need_can_be_absent():
    embeds, mask, *_ = ours().encode_prompt(PROMPT, do_classifier_free_guidance=False, max_sequence_length=64)
    absent = dict.fromkeys(("text_encoder", "tokenizer", "vocoder"))
    pipe = LTX2Pipeline(**{**ours().components, **absent})
    pipe.set_progress_bar_config(disable=True)
    call = {**EXPLICIT, "guidance_scale": 1.0, "prompt_embeds": embeds, "prompt_attention_mask": mask}
    expected = ours()(**EXPLICIT, guidance_scale=1.0, prompt=PROMPT, generator=seeded(1))
    assert max_difference(pipe(**call, generator=seeded(1)), expected) <= EQUAL_MODELS
    with pytest.raises(ValueError, match=r"needs the components .*text_encoder"):
        pipe(**{**call, "guidance_scale": 3.0})


@pytest.mark.parametrize(
    ("component", "key", "value"),
    [
        ("transformer", "rope_type", "spiral"),
        ("transformer", "qk_norm", "layer_norm_nowhere"),
        ("transformer", "activation_fn", "sinus"),
        ("vae", "encoder_spatial_padding_mode", "mirror"),
        ("vae", "downsample_type", ["diagonal"] * 4),
        ("audio_vae", "causality_axis", "depth"),
        ("audio_vae", "norm_type", "batch"),
        ("vocoder", "resnet_kernel_sizes", []),
        ("connectors", "rope_type", "spiral"),
    ],
)
def test_a_config_value_that_is_not_implemented_is_refused_by_name(folder, component, key, value):
    path = folder / component / "config.json"
    config = json.loads(path.read_text())
    assert key in config
    path.write_text(json.dumps({**config, key: value}))
    with pytest.raises((ValueError, NotImplementedError), match=key):
        load(folder)


def test_all_guidance_survives_a_round_trip(tmp_path):
    pipe = ours("2.3")
    pipe.save_pretrained(tmp_path)
    kwargs = {**EXPLICIT, **ALL_GUIDANCE, "prompt": PROMPT}
    assert (
        max_difference(load(tmp_path)(**kwargs, generator=seeded(2)), pipe(**kwargs, generator=seeded(2)))
        <= EQUAL_MODELS
    )
