"""Files and folders appear whole or not at all, wherever they lie and whatever is beside them."""

import functools
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from ltx2_diffusers import atomic
from ltx2_diffusers.atomic import (
    check_folder_writable,
    check_writable,
    complete_file,
    finish_save,
    replaced_folder,
    temporary_folder,
)
from tests.killing import child, contents, count_steps, ended, hidden, killed_before, some_steps

LONG = "n" * 252
DAY_S = 24 * 60 * 60


def save(folder: Path | str, **files: str) -> None:
    """Save files in the manner of a model."""
    with replaced_folder(folder) as temporary:
        for name, text in files.items():
            path = Path(temporary, name.replace("__", "/").replace("_dot_", "."))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def texts(folder: Path) -> dict[str, str]:
    return {name: data.decode() for name, data in contents(folder).items()}


@pytest.fixture
def umask():
    old = os.umask(0o027)
    yield 0o027
    os.umask(old)


# Where a file can be written


@pytest.fixture
def places(tmp_path):
    """A folder with all that stands in the way of a file."""
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("kept")
    (tmp_path / "locked.mp4").write_text("kept")
    (tmp_path / "locked.mp4").chmod(0o444)
    os.mkfifo(tmp_path / "pipe.mp4")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder.mp4", "it is a folder; give the name of a file"),
        ("", "it is a folder"),
        ("file/x.mp4", "file' is a file; choose a folder"),
        ("file/a/b/x.mp4", "file' is a file; choose a folder"),
        (f"{LONG}.mp4", "the name is too long; choose a shorter one"),
        (f"new/{LONG}.mp4", "the name is too long"),
        (f"{LONG}.mp4/x.mp4", "the name is too long"),
        ("locked.mp4", "it is read-only"),
        ("pipe.mp4", "it is no regular file"),
        ("/proc/x.mp4", "No such file or directory; choose another place"),
        ("/dev/null", "it is no regular file"),
    ],
)
@pytest.mark.parametrize(
    "writes", [check_writable, lambda path: complete_file(path).__enter__()], ids=["check", "write"]
)
def test_where_no_file_can_be_written_the_path_and_the_reason_are_said(places, writes, name, reason):
    before = sorted(places.rglob("*"))
    path = places / name
    with pytest.raises(OSError) as error:
        writes(path)
    assert str(error.value).startswith(f"cannot write to {str(path)!r}: ")
    assert reason in str(error.value)
    assert sorted(places.rglob("*")) == before


def test_a_name_that_no_file_can_have(tmp_path):
    for tries in (check_writable, check_folder_writable):
        with pytest.raises(ValueError, match=r"can be named '.*a\\x00b"):
            tries(tmp_path / "a\0b")


def test_a_trial_leaves_nothing_behind(tmp_path):
    (tmp_path / "old.mp4").write_text("kept")
    for tries in (check_writable, check_folder_writable):
        tries(tmp_path / "new" / "folders" / "x.mp4")
    check_writable(tmp_path / "old.mp4")
    assert texts(tmp_path) == {"old.mp4": "kept"}
    assert [path.name for path in tmp_path.iterdir()] == ["old.mp4"]


def test_a_killed_trial_makes_no_folder_of_that_name(tmp_path):
    """An empty one would be taken for a result."""
    place = tmp_path / "new" / "model"
    for step in range(count_steps(lambda: check_folder_writable(place), tmp_path)):
        killed_before(lambda: check_folder_writable(place), tmp_path, step)
        assert not place.exists()
        save(place, **{"config.json": "new"})
        assert hidden(tmp_path) == []
        shutil.rmtree(place)


@pytest.mark.parametrize("name", ["n" * 251 + ".mp4", "é" * 125 + ".mp4", "out:1.mp4", "a." + "b" * 253, "x"])
def test_every_name_that_the_system_takes_can_be_written(tmp_path, name):
    check_writable(tmp_path / name)
    with complete_file(tmp_path / name) as partial:
        partial.write_text("new")
        assert partial.suffix == Path(name).suffix or len(Path(name).suffix) > 16
    assert texts(tmp_path) == {name: "new"}


@pytest.mark.parametrize("name", ["x.txt", "x.txt/y"])
def test_a_folder_is_not_made_of_a_file(tmp_path, name):
    (tmp_path / "x.txt").write_text("kept")
    for tries in (check_folder_writable, save):
        with pytest.raises((ValueError, OSError), match=r"x\.txt"):
            tries(tmp_path / name)
    assert texts(tmp_path) == {"x.txt": "kept"}


def test_new_folders_go_with_a_file_that_fails(tmp_path):
    with pytest.raises(RuntimeError), complete_file(tmp_path / "a" / "b" / "x"):
        raise RuntimeError
    with pytest.raises(RuntimeError), replaced_folder(tmp_path / "a" / "b"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


# What killed processes left


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path):
    def write() -> None:
        with complete_file(tmp_path / "clip.mp4") as partial, temporary_folder(tmp_path) as folder:
            partial.write_text("half")
            (folder / "file").write_text("half")

    left = []
    for step in some_steps(count_steps(write, tmp_path), 8):
        assert killed_before(write, tmp_path, step)
        left += hidden(tmp_path)
        check_writable(tmp_path / "other.mp4")
        assert hidden(tmp_path) == []
    assert len(left) > 4


def test_what_a_living_process_writes_is_not_touched(tmp_path):
    with complete_file(tmp_path / "one.mp4") as one, temporary_folder(tmp_path) as folder:
        one.write_text("one")
        assert ended(child(lambda: save(tmp_path / "model", config_dot_json="{}"))) == 0
        assert ended(child(lambda: check_writable(tmp_path / "two.mp4"))) == 0
        assert one.exists() and folder.exists()
    assert texts(tmp_path) == {"one.mp4": "one", "model/config.json": "{}"}


@pytest.mark.parametrize(
    "name",
    [
        f".clip.{'0123456789abcdef' * 2}.partial.mp4",
        ".model.a1b2c3d_",
        f"{atomic._PARTIAL}00000000-0123456789ab.mp4",
        f"{atomic._PARTIAL}00000000-0123456789ab",
    ],
)
def test_leftovers_of_other_machines_and_earlier_versions_are_removed_after_a_day(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".mp4":
        path.write_text("half")
        parts = [path]
    else:
        path.mkdir(mode=0o700)
        (path / "config.json").write_text("{}")
        parts = [path / "config.json", path]
    save(tmp_path / "model", config_dot_json="{}")
    assert path.exists()
    for part in parts:
        os.utime(part, (time.time() - DAY_S - 60,) * 2)
    save(tmp_path / "model", config_dot_json="{}")
    assert not path.exists()


@pytest.mark.parametrize("name", [".model.settings", ".ltx2-partial-notes", ".cache", "model.partial.mp4"])
def test_hidden_files_of_others_stay(tmp_path, name):
    path = tmp_path / name
    path.mkdir()
    (path / "notes.odt").write_text("mine")
    for part in (path / "notes.odt", path):
        os.utime(part, (0, 0))
    path.chmod(0o700)
    save(tmp_path / "model", config_dot_json="{}")
    assert (path / "notes.odt").read_text() == "mine"


def test_many_processes_make_one_new_folder(tmp_path):
    def write(name: str) -> None:
        for index in range(20):
            path = tmp_path / "new" / str(index) / name
            check_writable(path)
            with complete_file(path) as partial:
                partial.write_text(name)

    processes = [child(functools.partial(write, name)) for name in "abc"]
    assert [ended(process) for process in processes] == [0, 0, 0]
    assert len(contents(tmp_path)) == 60
    assert hidden(tmp_path) == []


# Folders


def test_new_files_and_folders_have_the_usual_permissions(tmp_path, umask):
    save(tmp_path / "model", config_dot_json="{}", part__config_dot_json="{}")
    with complete_file(tmp_path / "file") as partial:
        partial.write_text("new")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert set(modes.values()) == {0o777 & ~umask, 0o666 & ~umask}
    assert modes[tmp_path / "model"] == modes[tmp_path / "model" / "part"] == 0o777 & ~umask


def test_a_folder_keeps_its_permissions_and_what_the_save_does_not_write(tmp_path):
    folder = tmp_path / "model"
    (folder / "runs" / "first").mkdir(parents=True)
    (folder / "runs" / "first" / "log").write_text("log")
    (folder / "empty").mkdir()
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("main")
    (folder / "link").symlink_to("runs/first/log")
    folder.chmod(0o750)
    log = (folder / "runs" / "first" / "log").open("a")
    for text in ("{}", "[]"):
        save(folder, config_dot_json=text, weights_dot_bin=text)
    with log:
        log.write(" goes on")
    assert texts(folder) == {
        "config.json": "[]",
        "weights.bin": "[]",
        "runs/first/log": "log goes on",
        "link": "log goes on",
    }
    assert (folder / ".git" / "HEAD").read_text() == "main"
    assert (folder / "link").is_symlink() and (folder / "empty").is_dir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert os.listdir(tmp_path) == ["model"]


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "large" / "part").mkdir(parents=True)
    (tmp_path / "large" / "kept").write_text("kept")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept too")
    (tmp_path / "large" / "linked").symlink_to("../elsewhere")
    (tmp_path / "model").symlink_to("large")
    save(tmp_path / "model", config_dot_json="{}", linked__config_dot_json="{}")
    assert (tmp_path / "model").is_symlink()
    names = {"config.json", "kept", "linked/config.json", "linked/kept"}
    assert texts(tmp_path / "large").keys() == names


def test_the_current_folder_stays_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = os.stat(".").st_ino
    for text in ("{}", "[]"):
        save(".", config_dot_json=text, part__config_dot_json=text)
    assert os.stat(".").st_ino == before
    assert texts(Path(".")) == {"config.json": "[]", "part/config.json": "[]"}
    assert hidden(tmp_path) == []


def test_a_folder_that_cannot_be_exchanged_is_filled(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(atomic, "_exchange", refused)
    save(
        tmp_path / "model", config_dot_json="{}", **{"w-00001-of-00002_dot_bin": "1", "w-00002-of-00002_dot_bin": "1"}
    )
    save(tmp_path / "model", config_dot_json="[]", w_dot_bin="2")
    assert texts(tmp_path) == {"model/config.json": "[]", "model/w.bin": "2"}
    assert hidden(tmp_path) == []


@pytest.mark.quick_cases(0)
def test_while_files_are_moved_nothing_can_be_loaded_and_then_one_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "pipeline"
    old = {"model_index_dot_json": "1", "part__config_dot_json": "1", "part__w-00001-of-00002_dot_bin": "1"}
    new = {"model_index_dot_json": "2", "part__config_dot_json": "2", "part__w_dot_bin": "2", "part__v_dot_bin": "2"}
    folder.mkdir()
    monkeypatch.chdir(folder)
    save(folder, **new)
    after = texts(folder)
    steps = some_steps(count_steps(lambda: save(folder, **new), folder), 30)
    shutil.rmtree(folder / "part")
    save(folder, **old)
    before = texts(folder)
    halves = []
    for step in steps:
        shutil.rmtree(folder / "part", ignore_errors=True)
        save(folder, **old)
        killed_before(lambda: save(folder, **new), folder, step)
        found = texts(folder)
        if "model_index.json" not in found:
            halves.append(found)
            # Neither does its component load while it is none of both.
            part = {name: text for name, text in found.items() if name.startswith("part/")}
            assert "part/config.json" not in part or part.items() <= before.items() or part.items() <= after.items()
        finish_save(folder)
        found = texts(folder)
        assert found in (before, after)
    assert len(halves) > 4


def test_a_half_save_that_cannot_be_gone_on_with_is_said(tmp_path):
    half = tmp_path / f"{atomic._COMPLETE}{atomic._host()}-0123456789ab"
    half.mkdir()
    (half / "config.json").write_text("{}")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(OSError, match="is half saved: a save was interrupted and cannot go on"):
        finish_save(tmp_path)
