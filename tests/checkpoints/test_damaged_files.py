"""Damaged files load as what they were, or are refused in a ValueError that names them; nothing half-made stays."""

import json
import os
import random
import shutil

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.checkpoints.convert import convert_to_diffusers, convert_to_original
from ltx2_diffusers.checkpoints.json_files import read_config, read_object
from ltx2_diffusers.checkpoints.safetensors_io import SafetensorsFile, read_folder
from ltx2_diffusers.models.audio_vae import AutoencoderKLLTX2Audio
from ltx2_diffusers.models.latent_upsampler import LTX2LatentUpsamplerModel
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from ltx2_diffusers.models.video_vae import AutoencoderKLLTX2Video
from tests.tiny_checkpoints import tiny_checkpoint

from .damage import flipped_or_cut, split_file, with_header, with_junk, write_header
from .tiny import UPSCALERS, V20

ORIGINAL = V20
UPSCALER = UPSCALERS[0]
FIRST = next(name for name in split_file(ORIGINAL)[0] if name != "__metadata__")
INDEX = "diffusion_pytorch_model.safetensors.index.json"
A = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def test_the_door_refuses_what_the_library_refuses_of_a_large_file(tmp_path):
    changes = {
        "no dtype": lambda info: info.pop("dtype"),
        "no shape": lambda info: info.pop("shape"),
        "dtype a list": lambda info: info.update(dtype=["F32"]),
        "dtype unknown": lambda info: info.update(dtype="F33"),
        "negative offsets": lambda info: info.update(
            data_offsets=[info["data_offsets"][0] - info["data_offsets"][1], 0]
        ),
        "offsets of floats": lambda info: info.update(data_offsets=[float(end) for end in info["data_offsets"]]),
        "huge offsets": lambda info: info.update(data_offsets=[2**63, 2**64]),
        "three offsets": lambda info: info["data_offsets"].append(9),
        "another shape": lambda info: info["shape"].append(2),
        "negative shape": lambda info: info.update(shape=[-1, -1]),
        "shape overflow": lambda info: info.update(shape=[2**62, 4, 0], data_offsets=[0, 0]),
        "overlap": lambda info: info.update(data_offsets=[end + 2 for end in info["data_offsets"]]),
    }
    for name, change in changes.items():
        path = with_header(ORIGINAL, tmp_path / "x.safetensors", lambda header, change=change: change(header[FIRST]))
        with pytest.raises((SafetensorError, OverflowError)):
            safe_open(path, "pt")
        with pytest.raises(ValueError, match=r"x\.safetensors") as error:
            convert_to_diffusers(path, tmp_path / "out")
        assert "\n" not in str(error.value), name
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    "header, tensors",
    [
        (b"[" * 200_000 + b"]" * 200_000, b""),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, b""),
        (b'"text"', b""),
        (b"\xff\xfe{}", b""),
        (b'{"a": {"dtype": "F32"', b""),
        ({"__metadata__": [1]}, b""),
        ({"__metadata__": {"a": 1}}, b""),
        ({"a": None}, b""),
        ({"a": A}, b"1234x"),
        ({"a": A}, b"123"),
        ({"a": A, "b": A}, b"1234"),
        ({"a": {**A, "data_offsets": [4, 8]}}, b"12345678"),
        ({"a": ["F32", [1], [0, 4]]}, b"1234"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
        (b'{"__metadata__":{"config":"1","config":"2"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"),
    ],
    ids=["lists", "objects", "text", "no UTF-8", "cut JSON", "metadata list", "metadata number", "null", "trailing", "short"]
    + ["overlap", "hole", "described by a list", "tensor twice", "metadata twice"],
)  # fmt: skip
def test_headers_that_break_the_format_are_refused_by_name(tmp_path, header, tensors):
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        SafetensorsFile(write_header(tmp_path / "x.safetensors", header, tensors))


def test_metadata_of_nothing_are_no_metadata(tmp_path):
    file = SafetensorsFile(write_header(tmp_path / "x.safetensors", {"__metadata__": None, "a": A}, b"1234"))
    assert file.metadata == {}


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "sharded"
    source = tiny_checkpoint("2.0") / "transformer"
    LTX2AVTransformer3DModel.from_pretrained(source).save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.mark.parametrize(
    "outside", ["../private.safetensors", "{folder}/private.safetensors", "..\\private.safetensors"]
)
def test_an_index_reaches_no_file_outside_its_folder(sharded, outside):
    index = json.loads((sharded / INDEX).read_text())
    shutil.copy(next(sharded.glob("*.safetensors")), sharded.parent / "private.safetensors")
    index["weight_map"]["secret"] = outside.format(folder=sharded.parent)
    (sharded / INDEX).write_text(json.dumps(index))
    for read in (LTX2AVTransformer3DModel.from_pretrained, read_folder):
        with pytest.raises(ValueError, match=r"index\.json.*secret.*beside the index"):
            read(sharded)
    with pytest.raises(ValueError, match="private"):
        convert_to_original(sharded, sharded.parent / "out.safetensors")
    assert not (sharded.parent / "out.safetensors").exists()


def test_shards_may_be_links_as_in_the_cache_of_the_hub(sharded, tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, shard in enumerate(sorted(sharded.glob("*.safetensors"))):
        shard.rename(blobs / str(number))
        shard.symlink_to(os.path.relpath(blobs / str(number), sharded))
    assert read_folder(sharded).keys() == LTX2AVTransformer3DModel.from_pretrained(sharded).state_dict().keys()


@pytest.mark.parametrize(
    "index",
    [
        {"metadata": {}},
        {"weight_map": [1]},
        {"weight_map": {}},
        {"weight_map": {"a": 1}},
        {"weight_map": {"a": "b.bin"}},
        [],
    ],
    ids=str,
)
def test_an_index_that_says_nothing_is_refused_by_name(sharded, index):
    (sharded / INDEX).write_text(json.dumps(index))
    for use in (LTX2AVTransformer3DModel.from_pretrained, lambda folder: convert_to_original(folder, folder / "out")):
        with pytest.raises(ValueError, match=r"index\.json"):
            use(sharded)


def test_shards_and_index_say_the_same(sharded):
    index = json.loads((sharded / INDEX).read_text())
    key, shard = next(iter(index["weight_map"].items()))
    other = next(name for name in index["weight_map"].values() if name != shard)
    for change, message in (({"more": shard}, "shards lack"), ({key: other}, "shards lack")):
        (sharded / INDEX).write_text(json.dumps({**index, "weight_map": {**index["weight_map"], **change}}))
        with pytest.raises(ValueError, match=message):
            read_folder(sharded)
    kept = {name: file for name, file in index["weight_map"].items() if name != key}
    (sharded / INDEX).write_text(json.dumps({**index, "weight_map": kept}))
    with pytest.raises(ValueError, match=rf"leaves out tensors.*{key}"):
        read_folder(sharded)
    (sharded / INDEX).write_text(json.dumps(index))
    (sharded / shard).unlink()
    with pytest.raises(ValueError, match="not there"):
        read_folder(sharded)


@pytest.mark.parametrize(
    "text, message",
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[]", "JSON object"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"_class_name": 5}', "_class_name"),
        (b'{"a": [1, {"b": NaN}]}', r"`a\.b` has to be finite"),
        (b'{"a": -Infinity}', "`a` has to be finite"),
    ],
)
def test_configurations_are_objects_with_finite_numbers(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        read_config(tmp_path / "config.json")
    assert read_object(tiny_checkpoint("2.0") / "model_index.json")["_class_name"] == "LTX2Pipeline"


def outcome(use, folder):
    """What `use` returns, or `None` where it refuses by a ValueError that names a file in `folder`."""
    try:
        return use()
    except ValueError as error:
        assert str(folder) in str(error)
        return None


@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_original_file_gives_the_same_weights_or_its_name(tmp_path, seed):
    """Bits of a header may be part of an unread word of the metadata; weights never change."""
    source, folder = random.Random(seed), tmp_path / "out"
    file, content, whole = tmp_path / "x.safetensors", UPSCALER.read_bytes(), load_file(UPSCALER)
    for _ in range(25):
        file.write_bytes(flipped_or_cut(content, source))
        model = outcome(lambda: LTX2LatentUpsamplerModel.from_single_file(file), tmp_path)
        if model is not None:
            assert all(torch.equal(whole[name], tensor) for name, tensor in model.state_dict().items())
        if outcome(lambda: convert_to_diffusers(file, folder) or True, tmp_path):
            weights = load_file(folder / "diffusion_pytorch_model.safetensors")
            assert all(torch.equal(whole[name], tensor) for name, tensor in weights.items())
            shutil.rmtree(folder)
        assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("seed", range(3))
def test_nonsense_in_the_metadata_is_refused_or_harmless(tmp_path, seed):
    source, file = random.Random(seed), tmp_path / "x.safetensors"

    def change(header):
        config = json.loads(header["__metadata__"]["config"])
        with_junk(config, source)
        header["__metadata__"]["config"] = json.dumps(config)

    for _ in range(8):
        with_header(ORIGINAL, file, change)
        for kind in (AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, LTX2AVTransformer3DModel):
            outcome(lambda kind=kind: kind.from_single_file(file), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_pipeline_folder_loads_or_is_named(tmp_path, seed):
    source = random.Random(seed)
    for _ in range(10):
        folder = tmp_path / "pipeline"
        shutil.copytree(tiny_checkpoint("2.0"), folder)
        file = source.choice(sorted(path for path in folder.rglob("*.json")) + sorted(folder.rglob("*.safetensors")))
        if file.suffix == ".safetensors":
            file.write_bytes(flipped_or_cut(file.read_bytes(), source))
        elif source.random() < 0.7:
            value = json.loads(file.read_text())
            with_junk(value, source)
            file.write_text(json.dumps(value))
        else:
            file.write_bytes(file.read_bytes()[: source.randrange(file.stat().st_size)])
        outcome(lambda folder=folder: LTX2Pipeline.from_pretrained(folder), folder)
        shutil.rmtree(folder)
