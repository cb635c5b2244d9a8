"""What is recorded is compared: nothing passes without a record, and what differs is told."""

import json

import pytest
import torch

from tests.real_weights.records import COUNT, Records, expected_slice

IDENTITY = {"sha256": "1"}
TENSORS = {"frames": torch.linspace(0, 1, 200).reshape(1, 2, 100)}
ROWS = {"frames": "pipeline"}


@pytest.fixture
def path(tmp_path):
    """A file with one case."""
    path = tmp_path / "records.json"
    recording = Records(path, "mini", IDENTITY, "float32", "cpu", {"record"})
    recording.check_slices("a call", "", TENSORS, ROWS)
    recording.check_peak("a call", 1000)
    return path


def records(path, identity=IDENTITY, numbers="float32", memory="cpu", writes=()):
    return Records(path, "mini", identity, numbers, memory, writes)


def test_a_slice_is_spread_over_the_tensor():
    found = expected_slice(TENSORS["frames"])
    assert found["shape"] == [1, 2, 100] and len(found["values"]) == COUNT
    assert found["values"][0] == 0 and found["values"][-1] == 1


def test_equal_numbers_pass_and_leave_the_file(path):
    before = path.read_bytes()
    records(path).check_slices("a call", "", TENSORS, ROWS)
    records(path).check_peak("a call", 1049)
    assert path.read_bytes() == before


def test_numbers_that_differ_are_told(path):
    for changed in (TENSORS["frames"] + 2e-4, TENSORS["frames"].flip(-1), TENSORS["frames"] * torch.nan):
        with pytest.raises(AssertionError, match="frames differs by"):
            records(path).check_slices("a call", "", {"frames": changed}, ROWS)
    with pytest.raises(AssertionError, match="frames"):
        records(path).check_slices("a call", "", {"frames": TENSORS["frames"][:, :1]}, ROWS)


def test_more_memory_is_told(path):
    with pytest.raises(AssertionError, match="took 1,051 bytes, recorded are 1,000"):
        records(path).check_peak("a call", 1051)


def test_nothing_passes_without_a_record(path):
    for lacking, case in ((records(path), "another"), (records(path, numbers="bfloat16, H200"), "a call")):
        with pytest.raises(AssertionError, match="no record of"):
            lacking.check_slices(case, "", TENSORS, ROWS)
        with pytest.raises(AssertionError, match="no record of"):
            lacking.check_peak(case, 1)
    with pytest.raises(AssertionError, match="no record of the memory of a call on H200"):
        records(path, memory="H200").check_peak("a call", 1)


def test_a_record_belongs_to_its_weights(path):
    with pytest.raises(AssertionError, match="of other weights"):
        records(path, {"sha256": "2"}, writes={"record_missing"}).check_slices("a call", "", TENSORS, ROWS)
    with pytest.raises(AssertionError, match="with another LoRA"):
        records(path).check_slices("a call", "lora", TENSORS, ROWS)


def test_what_has_no_record_is_added_if_that_is_wanted(path):
    adding = records(path, memory="H200", writes={"record_missing"})
    adding.check_slices("a call", "", TENSORS, ROWS)
    adding.check_peak("a call", 5)
    adding.check_slices("another", "", TENSORS, ROWS)
    cases = json.loads(path.read_text())["mini"]["numbers"]["float32"]
    assert cases["a call"]["peak_bytes"] == {"cpu": 1000, "H200": 5} and "another" in cases
    with pytest.raises(AssertionError, match="differs"):
        adding.check_slices("a call", "", {"frames": TENSORS["frames"] + 1}, ROWS)


def test_recording_again_replaces_other_weights(path):
    recording = records(path, {"sha256": "2"}, writes={"record"})
    recording.check_slices("another", "", TENSORS, ROWS)
    recording.check_peak("another", 5)
    entry = json.loads(path.read_text())["mini"]
    assert entry["identity"] == {"sha256": "2"} and list(entry["numbers"]["float32"]) == ["another"]
