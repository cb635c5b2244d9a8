"""Whatever is written survives a kill at any step: the old content or the new one, and nothing left after the next run."""

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ltx2_diffusers import LTX2AVTransformer3DModel, LTX2LatentUpsamplerModel, LTX2Pipeline, LTX2Scheduler
from ltx2_diffusers.adapters.convert import convert_lora
from ltx2_diffusers.atomic import finish_save
from ltx2_diffusers.checkpoints.convert import convert_to_diffusers, convert_to_original
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.conditioning.streams import TextContext
from ltx2_diffusers.media.streaming import ClipWriter
from ltx2_diffusers.media.writing import write_audio, write_video
from ltx2_diffusers.prompts.cache import EncodedBy, PromptCache, PromptKey
from tests.cli.running import QUICK, SMALL
from tests.killing import child, contents, count_steps, ended, hidden, killed_after, killed_before, some_steps
from tests.tiny_checkpoints import tiny_checkpoint

# Steps per writer: a few in every run, most of them where there is time.
FEW, MANY = 8, 60
Writer = Callable[[Path, float], object]

TINY = tiny_checkpoint("2.0")
INDEX = "diffusion_pytorch_model.safetensors.index.json"
LAYER = "transformer_blocks.0.attn1.to_q"


def model(fill: float) -> LTX2LatentUpsamplerModel:
    made = LTX2LatentUpsamplerModel(in_channels=4, mid_channels=32, num_blocks_per_stage=1, dims=2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(fill)
    return made


def transformer(fill: float) -> LTX2AVTransformer3DModel:
    made = LTX2AVTransformer3DModel.from_pretrained(TINY, subfolder="transformer")
    with torch.no_grad():
        made.proj_out.weight.fill_(fill)
    return made


def shards(folder: Path, fill: float) -> None:
    """Fewer and larger ones with every fill above 1."""
    model(fill).save_pretrained(folder / "model", max_shard_size="20KB" if fill == 1 else "40KB")


def same_shards(folder: Path, fill: float) -> None:
    model(fill).save_pretrained(folder / "model", max_shard_size="20KB")


def current_folder(folder: Path, fill: float) -> None:
    """A folder that cannot be exchanged."""
    here = folder / "here"
    here.mkdir(exist_ok=True)
    os.chdir(here)
    model(fill).save_pretrained(".", max_shard_size="20KB" if fill == 1 else "40KB")
    os.chdir("/")


def scheduler(folder: Path, fill: float) -> None:
    LTX2Scheduler(max_shift=fill).save_pretrained(folder / "scheduler")


def pipeline(folder: Path, fill: float) -> None:
    made = LTX2Pipeline.from_pretrained(TINY)
    with torch.no_grad():
        for part in (made.transformer, made.vae, made.vocoder):
            for parameter in part.parameters():
                parameter.fill_(fill)
    made.save_pretrained(folder / "pipeline")


def factors(fill: float) -> dict[str, torch.Tensor]:
    layer = transformer(0.0).get_submodule(LAYER)
    return {
        f"{LAYER}.lora_A.weight": torch.full((2, layer.in_features), fill),
        f"{LAYER}.lora_B.weight": torch.full((layer.out_features, 2), fill),
    }


def lora(folder: Path, fill: float) -> None:
    LTX2Pipeline.save_lora_weights(folder / "lora", transformer_lora_layers=factors(fill), trigger=str(fill))


def adapter(folder: Path, fill: float) -> None:
    made = transformer(0.0)
    made.load_lora_adapter(factors(fill), prefix=None)
    made.save_lora_adapter(folder / "adapter", "default_0")


def original(folder: Path, fill: float) -> Path:
    """An original file of one component, outside of what is watched."""
    place = folder.parent / f"sources-{fill}"
    if not place.exists():
        model(fill).save_pretrained(place / "folder")
        convert_to_original(place / "folder", place / "file.safetensors")
    return place


def to_folder(folder: Path, fill: float) -> None:
    convert_to_diffusers(original(folder, fill) / "file.safetensors", folder / "folder", max_shard_size="30KB")


def to_file(folder: Path, fill: float) -> None:
    convert_to_original(original(folder, fill) / "folder", folder / "file.safetensors")


def lora_file(folder: Path, fill: float) -> None:
    source = folder.parent / f"lora-{fill}"
    if not source.exists():
        LTX2Pipeline.save_lora_weights(source, transformer_lora_layers=factors(fill))
    convert_lora(source / "pytorch_lora_weights.safetensors", folder / "lora.safetensors", "original")


def prompt_cache(folder: Path, fill: float) -> None:
    context = TextContext(torch.full((1, 4, 8), fill), torch.full((1, 4, 8), fill))
    PromptCache(folder / "cache").store(EncodedBy("e", "c", "torch.float32"), PromptKey("a", 4), context)


def wave(folder: Path, fill: float) -> None:
    write_audio(folder / "new" / "sound.wav", np.full((2, 2000), fill / 4, np.float32), 24000)


def video(folder: Path, fill: float) -> None:
    write_video(folder / "clip.mp4", np.full((9, 64, 64, 3), fill / 4, np.float32), 24.0)


def clip_writer(folder: Path, fill: float) -> None:
    with ClipWriter(folder / "clip.mp4", 24.0, 24000) as writer:
        for _ in range(3):
            writer.write(np.full((9, 64, 64, 3), fill / 4, np.float32), np.full((2, 9000), fill / 4, np.float32))


WRITERS = (shards, same_shards, current_folder, scheduler, pipeline, lora, adapter, to_folder, to_file, lora_file)
WRITERS += (prompt_cache, wave, video, clip_writer)
# One for every way of putting things in place.
QUICK_WRITERS = (shards, current_folder, scheduler, wave)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that is watched; what a process needs beside it lies beside it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "watched"


def check(write: Writer, folder: Path, old: bool, kills: Iterable[Callable[[], bool]]) -> int:
    """Kill a writer in some ways, look at what it leaves, and run it again; how often it was killed."""
    for name, fill in (("old", 1.0), ("new", 2.0)):
        (folder.parent / name).mkdir()
        write(folder.parent / name, fill)
    before = seen(folder.parent / "old") if old else {}
    after = seen(folder.parent / "new")
    count = 0
    for kill in kills:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(folder.parent / "old", folder) if old else folder.mkdir()
        count += kill()
        if write is current_folder:
            # As the next load does.
            finish_save(folder / "here")
        assert seen(folder) in (before, after)
        write(folder, 2.0)
        assert seen(folder) == after
        assert hidden(folder) == []
    return count


def seen(folder: Path) -> dict[str, bytes]:
    """What others see of a folder; who encoded the entries of a cache is said before there is one."""
    found = {name: data for name, data in contents(folder).items() if not name.endswith("encoded_by.json")}
    return {name: sorted_header(data) if name.endswith(".safetensors") else data for name, data in found.items()}


def sorted_header(data: bytes) -> bytes:
    """A safetensors file without the order of its metadata, which is another one in every process."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]


def kills_at_steps(write: Writer, folder: Path, most: int) -> Iterator[Callable[[], bool]]:
    def again() -> None:
        write(folder, 2.0)

    folder.mkdir()
    write(folder, 1.0)
    for step in some_steps(count_steps(again, folder), most):
        yield partial(killed_before, again, folder, step)


def kills_at_times(write: Writer, folder: Path, count: int) -> Iterator[Callable[[], bool]]:
    chance = random.Random(0)
    start = time.perf_counter()
    folder.mkdir()
    write(folder, 1.0)
    longest = time.perf_counter() - start
    for _ in range(count):
        yield partial(killed_after, lambda: write(folder, 2.0), chance.uniform(0, longest))


@pytest.mark.parametrize("write", QUICK_WRITERS, ids=lambda write: write.__name__)
@pytest.mark.quick_cases(1)
def test_a_killed_writer_leaves_the_old_or_the_new(write, folder):
    assert check(write, folder, True, kills_at_steps(write, folder, FEW)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("old", [True, False], ids=["over", "new"])
@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_writer_killed_at_any_step_leaves_the_old_or_the_new(write, old, folder, record_property):
    kills = check(write, folder, old, kills_at_steps(write, folder, MANY))
    record_property("kills", kills)
    assert kills >= 4


@pytest.mark.slow
@pytest.mark.parametrize("write", [shards, pipeline, to_folder, video, clip_writer], ids=lambda write: write.__name__)
def test_a_writer_killed_at_any_time_leaves_the_old_or_the_new(write, folder, record_property):
    kills = check(write, folder, True, kills_at_times(write, folder, 12))
    record_property("kills", kills)
    assert kills >= 4


def clip(folder: Path, prompt: str, *options: str) -> int:
    size = [*SMALL, *QUICK, *options]
    return main(
        ["generate", "--prompt", prompt, "--preview", "--preview-every", "9", "-o", str(folder / "x.mp4"), *size]
    )


@pytest.mark.slow
@pytest.mark.parametrize("batch", [False, True], ids=["one", "batch"])
def test_a_manifest_never_takes_another_clip_for_its_own(batch, folder, capsys, record_property):
    options = ["--num-videos", "2"] if batch else []
    folder.mkdir()
    assert clip(folder, "waves", *options) == 0
    before = folder.parent / "before"
    shutil.copytree(folder, before)
    states = []
    for step in some_steps(count_steps(lambda: clip(folder, "wind", *options), folder), 30):
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        assert killed_before(lambda: clip(folder, "wind", *options), folder, step)
        # Python's own sum, not the one of the package.
        written = json.loads((folder / "x.mp4.json").read_text())
        files = {
            one["file"]: hashlib.sha256((folder / one["file"]).read_bytes()).hexdigest() for one in written["outputs"]
        }
        agrees = [one["sha256"] for one in written["outputs"]] == list(files.values())
        states.append((written["result"]["prompt"][0], agrees))
        if not agrees:
            capsys.readouterr()
            assert main(["replay", str(folder / "x.mp4.json")]) == 2
    record_property("kills", len(states))
    assert set(states) <= {("waves", True), ("wind", True), ("wind", False)}
    assert {("waves", True), ("wind", False)} <= set(states)
    assert clip(folder, "wind", *options) == 0
    assert hidden(folder) == []


def test_two_processes_at_once_make_one_whole_folder(folder):
    folder.mkdir()
    made = [model(1.0), model(2.0)]

    def save(index: int) -> None:
        for _ in range(8):
            made[index].save_pretrained(folder / "model", max_shard_size=("20KB", "40KB")[index])

    save(0)
    processes = [child(partial(save, index)) for index in (0, 1)]
    assert [ended(process) for process in processes] == [0, 0]
    loaded = LTX2LatentUpsamplerModel.from_pretrained(folder / "model")
    assert len({float(parameter.detach().min()) for parameter in loaded.parameters()}) == 1
    shards_named = set(json.loads((folder / "model" / INDEX).read_text())["weight_map"].values())
    assert shards_named == {path.name for path in (folder / "model").glob("*.safetensors")}
    assert hidden(folder) == []
