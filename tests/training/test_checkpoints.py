import json

import pytest

from ltx2_diffusers.training.checkpoints import Progress, check_fingerprint, latest_checkpoint, read_progress
from ltx2_diffusers.training.trained.models import find_checkpoint
from tests.golden_data import load_json


def test_the_newest_file_is_found_as_in_the_reference(tmp_path):
    for number, case in enumerate(load_json("training/find_checkpoint.json")):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in case["files"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        found = find_checkpoint(folder)
        assert (None if found is None else found.relative_to(folder).as_posix()) == case["chosen"]


def test_a_file_is_taken_and_others_are_refused(tmp_path):
    file = tmp_path / "style.safetensors"
    file.touch()
    assert find_checkpoint(file) == file
    for name in ("missing", "style.pt"):
        with pytest.raises(ValueError, match=name):
            find_checkpoint(tmp_path / name)


def test_the_latest_checkpoint_is_the_newest_that_has_a_state(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    for step in (5, 100, 30):
        state = tmp_path / f"checkpoint-{step}" / "training_state"
        state.mkdir(parents=True)
        (state / "progress.json").write_text(json.dumps({"step": step}))
    (tmp_path / "checkpoint-200").mkdir()
    (tmp_path / ".checkpoint-300").mkdir()
    found = latest_checkpoint(tmp_path)
    assert found.name == "checkpoint-100"
    assert read_progress(found) == Progress(step=100)


@pytest.mark.parametrize("content", ["", "[1]", '{"steps": 3}'])
def test_a_damaged_state_is_named(tmp_path, content):
    with pytest.raises(ValueError, match=r"has no training_state/progress\.json"):
        read_progress(tmp_path)
    (tmp_path / "training_state").mkdir()
    (tmp_path / "training_state" / "progress.json").write_text(content)
    with pytest.raises(ValueError, match=r"progress\.json' is damaged"):
        read_progress(tmp_path)


def test_other_settings_are_named(tmp_path):
    check_fingerprint({"seed": 1, "old": 2}, {"seed": 1}, tmp_path)
    with pytest.raises(ValueError, match="seed was 1 and is 2"):
        check_fingerprint({"seed": 1}, {"seed": 2}, tmp_path)
