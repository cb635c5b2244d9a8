"""Where a result cannot be written is said before anything is loaded, and a manifest knows its clip from others."""

import json
import re
import shutil
from pathlib import Path

import pytest

from ltx2_diffusers.cli.main import main
from tests.cli.running import QUICK, SMALL, complaint, generate, manifest

ROOT = Path(__file__).parents[2]
LONG = "n" * 245
# Said before anything is loaded: there is no such checkpoint.
ABSENT = ["--checkpoint", "no-such-folder"]


@pytest.mark.parametrize("output", ["", ".", "..", "/", "{}/.."])
@pytest.mark.parametrize("options", [[], ["--audio-only"], ["--preview"]], ids=" ".join)
def test_a_name_of_no_file(tmp_path, capsys, output, options):
    assert generate(output.replace("{}", str(tmp_path)), *ABSENT, *options) == 2
    assert re.search(r"--output.* has to be a file, got path '.*'; use '.*clip\.(mp4|wav)'$", complaint(capsys))


@pytest.fixture
def places(tmp_path):
    for folder in ("folder.mp4", "kept.mp4.json", "kept.preview.png"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").write_text("kept")
    for name in ("locked.mp4", "batch-1.mp4"):
        (tmp_path / name).write_text("kept")
        (tmp_path / name).chmod(0o444)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("folder.mp4", [], "--output: cannot write to '{}': it is a folder; give the name of a file"),
        ("file/x.mp4", [], "--output: cannot write to '{}': '{}/file' is a file; choose a folder"),
        ("locked.mp4", [], "--output: cannot write to '{}': it is read-only"),
        (f"{LONG}{LONG}.mp4", [], "--output: cannot write to '{}': the name is too long"),
        (f"{LONG}12.mp4", [], "the manifest of --output: cannot write to '{}.json': the name is too long"),
        ("kept.mp4", [], "the manifest of --output: cannot write to '{}.json': it is a folder"),
        ("kept.mp4", ["--preview", "{}/folder.mp4/x.png"], "the manifest of --output"),
        ("x.mp4", ["--preview", "{}/file/x.png"], "--preview: cannot write to '{}/file/x.png'"),
        ("batch.mp4", ["--num-videos", "2"], "--output: cannot write to '{}/batch-1.mp4': it is read-only"),
        ("batch.mp4", ["--prompt", "other"], "--output: cannot write to '{}/batch-1.mp4': it is read-only"),
        (
            "/proc/x.mp4",
            [],
            "--output: cannot write to '/proc/x.mp4': No such file or directory; choose another place",
        ),
    ],
)
def test_a_place_where_nothing_can_be_written(places, capsys, name, options, reason):
    before = sorted(places.rglob("*"))
    given = [option.replace("{}", str(places)) for option in options]
    assert generate(places / name, *ABSENT, *given, *SMALL) == 2
    said = complaint(capsys)
    expected = reason.replace("'{}'", f"'{places / name}'").replace("{}.json", f"{places / name}.json")
    assert said.startswith(expected.replace("{}", str(places)))
    assert sorted(places.rglob("*")) == before


def test_folders_of_a_run_that_does_not_start_do_not_stay(tmp_path):
    assert generate(tmp_path / "new" / "folder" / "x.mp4", *ABSENT, *SMALL) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out:1.wav", f"{LONG}1.wav", "new/é.wav"])
def test_names_that_can_be_written_are(tmp_path, name):
    assert generate(tmp_path / name, "--audio-only", "--duration", "0.3", *QUICK) == 0
    assert manifest(tmp_path / name)["outputs"][0]["file"] == Path(name).name


def test_an_output_that_a_batch_would_write_over_an_input(tmp_path, media, capsys):
    shutil.copy(media / "clip.mp4", tmp_path / "x-1.mp4")
    given = ["--video", tmp_path / "x-1.mp4", "--retake", "0.2:0.5", "--num-videos", "2"]
    assert generate(tmp_path / "x.mp4", *given, *ABSENT) == 2
    assert "--output would overwrite --video" in complaint(capsys)


# A clip and its manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A clip and its manifest."""
    folder = tmp_path_factory.mktemp("made")
    assert generate(folder / "x.mp4", *SMALL, *QUICK) == 0
    return folder


@pytest.fixture
def pair(made, tmp_path):
    for path in made.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path / "x.mp4"


def replay(path: Path, *options: str) -> int:
    return main(["replay", f"{path}.json", *options])


def test_another_clip_beside_a_manifest_is_noticed(pair, capsys):
    with pair.open("ab") as file:
        file.write(b"\0")
    assert replay(pair) == 2
    assert complaint(capsys, "replay").startswith(f"{str(pair)!r} is not the file that this manifest describes; ")
    assert {path.name for path in pair.parent.iterdir()} == {"x.mp4", "x.mp4.json"}
    assert replay(pair, "--force") == 0
    assert "identical to what x.mp4.json describes" in capsys.readouterr().out


def test_a_clip_that_is_not_there_is_made_again(pair, capsys):
    pair.unlink()
    assert replay(pair) == 0
    assert "identical to what x.mp4.json describes" in capsys.readouterr().out


def test_a_pair_that_was_renamed_together_is_still_one(pair, capsys):
    moved = pair.with_name("y.mp4")
    pair.rename(moved)
    Path(f"{pair}.json").rename(f"{moved}.json")
    assert replay(moved) == 0
    assert "identical to y.mp4" in capsys.readouterr().out


def test_a_manifest_of_before_it_named_the_clip_claims_nothing_about_it(pair, capsys):
    written = manifest(pair)
    del written["outputs"][0]["sha256"]
    Path(f"{pair}.json").write_text(json.dumps(written))
    assert replay(pair) == 0
    assert "identical to what x.mp4.json describes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "cannot be read as a manifest"),
        ('{"kind": "ltx2 manifest"}', "has the schema None"),
        ('{"kind": "ltx2 manifest", "schema": 1}', "is damaged: its 'options' is missing or of another kind"),
        ('{"kind": "ltx2 manifest", "schema": 1, "options": {}}', "is damaged: its 'inputs'"),
        ('{"kind": "ltx2 manifest", "options": {"image": {"file": 3}}}', "cannot be read as a manifest"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, capsys, content, reason):
    (tmp_path / "x.mp4.json").write_text(content)
    assert replay(tmp_path / "x.mp4") == 2
    said = complaint(capsys, "replay")
    assert str(tmp_path / "x.mp4.json") in said
    assert reason in said


@pytest.mark.parametrize("outputs", [[3], [{"file": 3, "video": {}}], [{"video": {}}], {}])
def test_damaged_outputs_are_named(pair, capsys, outputs):
    Path(f"{pair}.json").write_text(json.dumps({**manifest(pair), "outputs": outputs}))
    assert replay(pair) == 2
    assert "is damaged: its 'outputs' is missing or of another kind" in complaint(capsys, "replay")


def test_a_manifest_that_is_not_there_or_the_clip_in_its_place(pair, capsys):
    assert main(["replay", str(pair.with_name("none.json"))]) == 2
    assert re.fullmatch(r"there is no file '.*none\.json'; give the \.json file .*", complaint(capsys, "replay"))
    assert main(["replay", str(pair.parent)]) == 2
    assert "there is no file" in complaint(capsys, "replay")
    assert main(["replay", str(pair)]) == 2
    assert complaint(capsys, "replay").endswith(f"; give '{pair}.json'")
