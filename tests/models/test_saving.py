"""A save either completes or changes nothing, and never leaves weights of two saves side by side."""

import contextlib
import inspect
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import ModelMixin
from safetensors.torch import load_file

import ltx2_diffusers
from ltx2_diffusers import LTX2LatentUpsamplerModel, LTX2Scheduler, atomic

MODELS = (
    "LTX2AVTransformer3DModel",
    "AutoencoderKLLTX2Video",
    "AutoencoderKLLTX2Audio",
    "LTX2Vocoder",
    "LTX2VocoderWithBWE",
    "LTX2TextConnectors",
    "LTX2LatentUpsamplerModel",
)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def small_model(fill: float = 0.0) -> LTX2LatentUpsamplerModel:
    """A model of about 100 kB whose weights all have one value."""
    model = LTX2LatentUpsamplerModel(in_channels=4, mid_channels=32, num_blocks_per_stage=1, dims=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(fill)
    return model


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file can grow beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights_are(model: ModelMixin, fill: float) -> bool:
    return all(bool((parameter == fill).all()) for parameter in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_every_model_takes_the_atomic_path_and_keeps_diffusers_arguments(name, tmp_path):
    method = getattr(ltx2_diffusers, name).save_pretrained
    assert list(inspect.signature(method).parameters) == list(inspect.signature(ModelMixin.save_pretrained).parameters)
    file = tmp_path / "file"
    file.write_text("kept")
    # diffusers logs an error and returns here; the message shows that the shared code runs.
    with pytest.raises(ValueError, match="it is a file; give a folder"):
        method(object.__new__(getattr(ltx2_diffusers, name)), file)
    assert file.read_text() == "kept"


def test_a_full_disk_leaves_nothing_under_a_new_name(tmp_path):
    with full_disk(16_000), pytest.raises(Exception, match=r"(?i)too large|I/O error"):
        small_model().save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shard_size", ["10GB", "20KB"])
def test_a_full_disk_keeps_what_was_saved_before(tmp_path, shard_size):
    folder = tmp_path / "model"
    small_model(1.0).save_pretrained(folder)
    before = contents(tmp_path)
    with full_disk(16_000), pytest.raises(Exception, match=r"(?i)too large|I/O error"):
        small_model(2.0).save_pretrained(folder, max_shard_size=shard_size)
    assert contents(tmp_path) == before
    assert weights_are(LTX2LatentUpsamplerModel.from_pretrained(folder), 1.0)


def test_an_interrupt_in_the_middle_of_a_save_keeps_what_was_saved_before(tmp_path):
    folder = tmp_path / "model"
    small_model(1.0).save_pretrained(folder)
    before = contents(tmp_path)
    model = small_model(2.0)

    def interrupt(*_):
        raise KeyboardInterrupt

    # The configuration is already written when the weights are collected.
    model.register_state_dict_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(folder)
    assert contents(tmp_path) == before


def test_a_full_disk_keeps_the_old_scheduler(tmp_path):
    LTX2Scheduler(max_shift=1.5).save_pretrained(tmp_path)
    with full_disk(64), pytest.raises(OSError, match="File too large"):
        LTX2Scheduler(max_shift=1.7).save_pretrained(tmp_path)
    assert LTX2Scheduler.from_pretrained(tmp_path).config.max_shift == 1.5


def test_a_sharded_save_round_trips_and_replaces_a_whole_one(tmp_path):
    small_model(1.0).save_pretrained(tmp_path)
    small_model(2.0).save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / f"{WEIGHTS}.index.json").read_text())
    shards = {path.name for path in tmp_path.glob("*.safetensors")}
    assert shards == set(index["weight_map"].values())
    assert len(shards) > 2
    assert weights_are(LTX2LatentUpsamplerModel.from_pretrained(tmp_path), 2.0)


@pytest.mark.parametrize("shard_size", ["10GB", "60KB"])
def test_shards_of_an_earlier_save_are_removed(tmp_path, shard_size):
    small_model(1.0).save_pretrained(tmp_path, max_shard_size="20KB")
    first = set(contents(tmp_path))
    small_model(2.0).save_pretrained(tmp_path, max_shard_size=shard_size)
    second = set(contents(tmp_path))
    assert first & second <= {"config.json", f"{WEIGHTS}.index.json"}
    assert weights_are(LTX2LatentUpsamplerModel.from_pretrained(tmp_path), 2.0)


def test_variants_live_beside_each_other(tmp_path):
    small_model(1.0).save_pretrained(tmp_path)
    small_model(2.0).to(torch.float16).save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    small_model(3.0).to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert set(contents(tmp_path)) == {"config.json", WEIGHTS, "diffusion_pytorch_model.fp16.safetensors"}
    assert weights_are(LTX2LatentUpsamplerModel.from_pretrained(tmp_path), 1.0)
    assert weights_are(LTX2LatentUpsamplerModel.from_pretrained(tmp_path, variant="fp16"), 3.0)


def test_pickled_weights_replace_safetensors_of_an_earlier_save(tmp_path):
    small_model(1.0).save_pretrained(tmp_path)
    small_model(2.0).save_pretrained(tmp_path, safe_serialization=False)
    assert weights_are(LTX2LatentUpsamplerModel.from_pretrained(tmp_path), 2.0)


def test_other_files_of_the_folder_stay(tmp_path):
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"adapter")
    small_model().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "about"
    assert (tmp_path / "pytorch_lora_weights.safetensors").read_bytes() == b"adapter"
    assert set(load_file(tmp_path / WEIGHTS)) == set(small_model().state_dict())


def half_saved(folder: Path) -> None:
    """A folder as a process leaves it that was killed while it moved the files of a new save over an old one."""
    small_model(1.0).save_pretrained(folder, max_shard_size="20KB")
    small_model(2.0).save_pretrained(folder.parent / "new")
    half = folder / f"{atomic._COMPLETE}{atomic._host()}-0123456789ab"
    (folder.parent / "new").rename(half)
    (half / ".stale.json").write_text(json.dumps([path.name for path in folder.glob(f"{WEIGHTS[:-12]}*")]))
    (folder / "config.json").unlink()


@pytest.mark.parametrize("subfolder", [None, "model"])
def test_a_half_save_loads_nowhere_until_it_is_gone_on_with(tmp_path, subfolder):
    half_saved(tmp_path / "model")
    place = tmp_path if subfolder else tmp_path / "model"
    with pytest.raises(OSError, match=r"no file named config\.json"):
        diffusers.pipelines.ltx2.latent_upsampler.LTX2LatentUpsamplerModel.from_pretrained(place, subfolder=subfolder)
    assert weights_are(LTX2LatentUpsamplerModel.from_pretrained(place, subfolder=subfolder), 2.0)
    assert set(contents(tmp_path / "model")) == {"config.json", WEIGHTS}


def test_the_next_save_goes_on_with_a_half_one(tmp_path):
    half_saved(tmp_path / "model")
    small_model(3.0).save_pretrained(tmp_path / "model")
    assert set(contents(tmp_path)) == {"model/config.json", f"model/{WEIGHTS}"}
    assert weights_are(LTX2LatentUpsamplerModel.from_pretrained(tmp_path / "model"), 3.0)


def test_a_configuration_alone_is_saved_whole_or_not_at_all(tmp_path):
    for shift in (1.5, 1.7):
        LTX2Scheduler(max_shift=shift).save_config(tmp_path / "scheduler")
    with full_disk(64), pytest.raises(OSError, match="File too large"):
        LTX2Scheduler(max_shift=1.9).save_config(tmp_path / "scheduler")
    assert LTX2Scheduler.from_pretrained(tmp_path / "scheduler").config.max_shift == 1.7
    assert set(contents(tmp_path)) == {"scheduler/scheduler_config.json"}
