"""Reading and writing files: the same bytes as the safetensors library, little memory, nothing half-written."""

import json
import resource
import struct
import weakref

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltx2_diffusers.checkpoints.safetensors_io import (
    Entry,
    SafetensorsFile,
    parse_size,
    read_folder,
    tensor_differences,
    write_file,
    write_sharded,
)

from .tiny import V20

TENSORS = {
    "half": torch.randn(3, 5).bfloat16(),
    "a.single": torch.randn(7),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "count": torch.arange(4),
    "byte": torch.randn(3).to(torch.float8_e4m3fn),
    "flag": torch.tensor([True, False]),
}


def entries_of(tensors: dict[str, torch.Tensor]) -> dict[str, Entry]:
    return {
        name: Entry(tensor.dtype, tuple(tensor.shape), lambda tensor=tensor: tensor)
        for name, tensor in tensors.items()
    }


def test_a_written_file_is_byte_for_byte_what_the_library_writes(tmp_path):
    tensors = {name: TENSORS[name] for name in ("half", "a.single", "scalar", "count")}
    write_file(tmp_path / "ours", entries_of(tensors), {"format": "pt"})
    save_file(tensors, tmp_path / "library", {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "library").read_bytes()


@pytest.mark.parametrize("mmap", [False, True])
def test_what_is_written_is_read_back(tmp_path, mmap):
    write_file(tmp_path / "file", entries_of(TENSORS), {"note": "für alle"})
    file = SafetensorsFile(tmp_path / "file", mmap=mmap)
    assert file.metadata == {"note": "für alle"}
    assert tensor_differences(file.entries, entries_of(TENSORS)) == []
    with safe_open(tmp_path / "file", framework="pt") as library:
        assert set(library.keys()) == set(TENSORS)


def test_views_are_written_as_they_read(tmp_path):
    write_file(tmp_path / "file", entries_of({"view": torch.arange(12.0).reshape(3, 4).T}))
    assert torch.equal(load_file(tmp_path / "file")["view"], torch.arange(12.0).reshape(3, 4).T)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty"),
        (b"abc", "empty or cut off"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (b"\x80\x02}q\x00" + bytes(100), "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (b"GGUF" + bytes(100), "GGUF"),
        (struct.pack("<Q", 20) + b"no json at all......", "not a safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "not a safetensors file"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        SafetensorsFile(path)
    assert "model.safetensors" in str(error.value)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_a_truncated_checkpoint_is_refused_by_name(tmp_path, share):
    path = tmp_path / "cut.safetensors"
    whole = V20.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"cut\.safetensors.*cut off"):
        SafetensorsFile(path)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path):
    path = tmp_path / "file"
    write_file(path, entries_of({"x": torch.zeros(1000)}))
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="ended early"):
        file.entries["x"].load()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SafetensorsFile(tmp_path / "nowhere.safetensors")


def test_sizes_and_shards_by_hand(tmp_path):
    assert [parse_size(size) for size in (7, "5GB", "500 mb", "2GiB", "1.5KB")] == [
        7,
        5 * 10**9,
        5 * 10**8,
        2**31,
        1500,
    ]
    entries = entries_of({name: torch.zeros(size) for name, size in zip("abcd", (10, 10, 30, 5))})
    # 120 bytes exceed 100 and get a shard of their own; 40 + 40 + 20 fill one.
    write_sharded(tmp_path, entries, max_shard_size=100)
    shards = {path.name: list(SafetensorsFile(path).entries) for path in tmp_path.glob("*.safetensors")}
    first, second = (f"diffusion_pytorch_model-{number}-of-00002.safetensors" for number in ("00001", "00002"))
    assert shards == {first: ["c"], second: ["a", "b", "d"]}
    for size in ("5XB", "", 0, "-1GB"):
        with pytest.raises(ValueError, match="max_shard_size"):
            parse_size(size)


@pytest.mark.parametrize("size", [40, 100, 10_000])
def test_a_sharded_folder_holds_what_the_library_writes(tmp_path, size):
    tensors = {name: tensor for name, tensor in TENSORS.items() if name not in ("byte", "empty")}
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    folders = [tmp_path / name for name in ("ours", "library")]
    for folder in folders:
        folder.mkdir()
    write_sharded(folders[0], entries_of(tensors), size)
    save_torch_state_dict(tensors, folders[1], filename_pattern=pattern, max_shard_size=size)
    for files in zip(*(sorted(folder.iterdir()) for folder in folders), strict=True):
        assert files[0].name == files[1].name
        read = json.loads if files[0].suffix == ".json" else bytes
        assert read(files[0].read_bytes()) == read(files[1].read_bytes())


def test_a_sharded_folder_has_an_index_and_reads_as_a_whole(tmp_path):
    write_sharded(tmp_path, entries_of(TENSORS), max_shard_size=40)
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in TENSORS.values())
    assert set(index["weight_map"].values()) == {path.name for path in tmp_path.glob("*.safetensors")}
    assert tensor_differences(read_folder(tmp_path), entries_of(TENSORS)) == []


def test_the_writer_holds_one_tensor_at_a_time(tmp_path):
    alive, peak = [0], [0]

    def load() -> torch.Tensor:
        tensor = torch.zeros(1000)
        alive[0] += 1
        peak[0] = max(peak[0], alive[0])
        weakref.finalize(tensor, lambda: alive.__setitem__(0, alive[0] - 1))
        return tensor

    entries = {str(index): Entry(torch.float32, (1000,), load) for index in range(10)}
    write_sharded(tmp_path, entries, max_shard_size=12_000)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert peak[0] == 1
    # A cast keeps the source beside its result and no more.
    write_file(tmp_path / "cast", {name: entry.to(torch.bfloat16) for name, entry in entries.items()})
    assert peak[0] == 1


def test_a_failing_tensor_leaves_no_file(tmp_path):
    def fail() -> torch.Tensor:
        raise OSError("the disk is gone")

    broken = entries_of({"a": torch.zeros(100)}) | {"b": Entry(torch.float32, (3,), fail)}
    with pytest.raises(OSError, match="disk is gone"):
        write_file(tmp_path / "file.safetensors", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.safetensors"
    write_file(path, entries_of({"old": torch.ones(3)}))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError):
            write_file(path, entries_of({"new": torch.zeros(10_000)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.safetensors"]


def test_a_source_that_does_not_keep_its_promise_is_refused(tmp_path):
    liar = {"x": Entry(torch.float32, (3,), lambda: torch.zeros(4))}
    with pytest.raises(ValueError, match="'x'"):
        write_file(tmp_path / "file", liar)


def test_differences_name_tensor_and_kind():
    one = entries_of({"a": torch.tensor([0.0]), "b": torch.zeros(2), "c": torch.tensor([float("nan")])})
    other = entries_of({"a": torch.tensor([-0.0]), "b": torch.zeros(3), "c": torch.tensor([float("nan")])})
    assert tensor_differences(one, other | entries_of({"d": torch.zeros(1)})) == [
        "a: different values",
        "b: torch.float32 [2] and torch.float32 [3]",
        "d: missing in the first",
    ]
