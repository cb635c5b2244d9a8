"""The scripts in `examples/` run as a user runs them, and there is one for every pipeline."""

import random
import re
import runpy
import shutil
from pathlib import Path

import av
import pytest
import torch
from diffusers.utils import logging

import ltx2_diffusers
from ltx2_diffusers.checkpoints import packaged
from ltx2_diffusers.cli.main import main
from tests.adapters.files import save_random_loras

EXAMPLES = sorted(Path(__file__).parents[1].joinpath("examples").glob("*.py"))
# Plans for every card take longer than a clip.
SLOW = ("low_vram",)
RUN = [pytest.param(path, marks=[pytest.mark.slow] if path.stem in SLOW else []) for path in EXAMPLES]
STORYBOARD = EXAMPLES[0].with_name("storyboard.yaml")
PIPELINES = [name for name in ltx2_diffusers.__all__ if name.endswith("Pipeline")]
SILENT = ("silent.mp4", "hdr.mp4", "upsample_latents.mp4", "clip.mp4", "long.mp4")
MEDIA_FILE = re.compile(r"\w+\.(?:mp4|wav)\b")


def first_line(script: Path) -> str:
    return script.read_text().partition("\n")[0]


def written_files(script: Path) -> list[str]:
    """Names that the first line of a script announces."""
    return MEDIA_FILE.findall(first_line(script).partition("writes ")[2])


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    """Where a user would try a script; the progress bars and random state of other tests stay as they are."""
    monkeypatch.chdir(tmp_path)
    states = random.getstate(), torch.get_rng_state()
    logging.disable_progress_bar()
    yield tmp_path
    random.setstate(states[0])
    torch.set_rng_state(states[1])


@pytest.fixture(scope="module")
def tiny_with_adapters(stand_in, tmp_path_factory):
    """The tiny checkpoint with random adapters beside its components, where the miniature has trained ones."""
    folder = shutil.copytree(stand_in, tmp_path_factory.mktemp("examples") / "ltx2-mini")
    save_random_loras(folder, folder, ("distilled_lora", "ic_lora"))
    return folder


@pytest.fixture(params=["tiny", pytest.param("packaged", marks=pytest.mark.slow)])
def checkpoint(request, monkeypatch):
    """What `ltx2-mini` names: a smaller one of its structure, and the one of the package."""
    if request.param == "tiny":
        folder = request.getfixturevalue("tiny_with_adapters")
        monkeypatch.setitem(packaged._FOLDERS, "ltx2-mini", str(folder))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("script", RUN, ids=lambda script: script.stem)
@pytest.mark.usefixtures("checkpoint")
def test_a_script_writes_what_it_says(script, in_empty_folder, capsys):
    runpy.run_path(str(script), run_name="__main__")
    names = written_files(script)
    assert names
    found = {path.name for path in in_empty_folder.iterdir() if path.suffix in (".mp4", ".wav")}
    assert found == set(names)
    assert names[-1] in capsys.readouterr().out
    for name in names:
        with av.open(name) as container:
            kinds = [stream.type for stream in container.streams]
            sound = [] if name in SILENT else ["audio"]
            assert kinds == (sound if name.endswith(".wav") else ["video", *sound])
            assert sum(1 for _ in container.decode(container.streams[0])) > 1


@pytest.mark.usefixtures("checkpoint")
def test_the_storyboard_becomes_a_film(in_empty_folder, capsys):
    assert main(["storyboard", str(STORYBOARD), "-o", "film.mp4", "--device", "cpu"]) == 0
    assert "film.mp4: 81 frames of 128x128" in capsys.readouterr().out
    assert {path.name for path in in_empty_folder.iterdir()} == {"film.mp4", "film.mp4.json"}
    with av.open("film.mp4") as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_a_script_is_short_and_runs_on_real_weights_by_one_line(script):
    text = script.read_text()
    assert text.count("\n") < 40
    assert text.count("\nCHECKPOINT = ") == 1
    assert 'For real weights: CHECKPOINT = "' in text


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_has_an_example(name):
    assert any(re.search(rf"\b{name}\b", script.read_text()) for script in EXAMPLES)
