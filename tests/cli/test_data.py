"""`ltx2 data`: its commands from videos to a contact sheet, and one line for what cannot be done."""

import csv
import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers import LTX2Pipeline
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.data.captioning import TransformersCaptioner, default_instruction
from ltx2_diffusers.data.samples import write_sample
from ltx2_diffusers.data.tables import media_files
from ltx2_diffusers.media.reading import probe
from ltx2_diffusers.media.writing import write_video
from tests.cli.running import complaint
from tests.media.clips import gradient_clip
from tests.tiny_checkpoints import tiny_checkpoint

COLOURS = ((200, 30, 30), (20, 60, 200), (240, 240, 90))
SHOT = 20


def data(*words: object) -> int:
    return main(["data", *map(str, words)])


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """A folder with a video of three shots of 20 frames, a bar moving in each."""
    frames = np.zeros((3 * SHOT, 48, 64, 3), np.uint8)
    for index, frame in enumerate(frames):
        frame[:] = COLOURS[index // SHOT]
        frame[:, index % 48 : index % 48 + 8] = 120
    folder = tmp_path_factory.mktemp("films")
    write_video(folder / "film.mp4", frames, 24.0, crf=1)
    return folder


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> str:
    """A module in the current folder that makes a captioner and a maker of references."""
    (tmp_path / "own_makers.py").write_text(
        "class Words:\n"
        "    def caption(self, frames, audio, instruction):\n"
        "        return f'The video shows {len(frames)} frames. {instruction[:5]}'\n"
        "def dark():\n"
        "    return lambda frames: frames // 2\n"
    )
    monkeypatch.chdir(tmp_path)
    return "own_makers"


# --- names ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["captoin"], "ltx2 data: error: unknown command 'captoin'; did you mean 'caption'?"),
        (
            ["sing"],
            "ltx2 data: error: unknown command 'sing'; there are process, split-scenes, caption, clean-captions",
        ),
        (
            ["caption", "x", "--overide"],
            "ltx2 data caption: error: unknown option --overide; did you mean --override?",
        ),
        (["--skip-strat", "3"], "unknown option --skip-strat; did you mean `ltx2 data split-scenes --skip-start`?"),
        (["check"], "ltx2 data check: error: the following arguments are required: ROOT"),
        (["references", "a", "--kind", "ears"], "argument --kind: invalid choice: 'ears'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_unknown_words_name_the_nearest(capsys, words, said):
    with pytest.raises(SystemExit, match="2"):
        data(*words)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["split-scenes", "none.mp4", "out"], "there is no file or folder 'none.mp4'"),
        (["split-scenes", "FILM", "out", "--skip-start", "1x"], "--skip-start has to be a number of frames like 123"),
        (
            ["split-scenes", "FILM", "out", "--fade-bias", "0.5"],
            "--fade-bias means nothing for the detector 'content'",
        ),
        (["split-scenes", "FILM", "out", "--filter-shorter-than", "9s"], "lower --filter-shorter-than"),
        (["split-scenes", "FILM", "out", "--detector", "eyes"], "--detector has to be one of 'content', 'adaptive'"),
        (["split-scenes", "FILM", "FILM"], "scenes must not lie among the videos"),
        (["caption", "FILM"], "give either --model, a folder with a vision-language model, or --captioner"),
        (["caption", "FILM", "--captioner", "nowhere:made"], "--captioner 'nowhere:made' has to name a function"),
        (["caption", "FILM", "--captioner", "json:dumps", "--use-8bit"], "--device and --use-8bit belong to --model"),
        (["caption", "FILM", "--model", "m", "-e", "mp4,,png"], "--extensions has to list endings like mp4,png"),
        (["caption", "FILM", "--model", "m", "-e", "tif"], "holds no files that end in .tif"),
        (["caption", "FILM", "--model", "m", "--max-frames", "0"], "--max-frames has to be a whole number"),
        (["clean-captions", "none.csv"], "there is no dataset file 'none.csv'"),
        (["references", "none"], "there is no file or folder 'none'"),
        (["references", "FILM", "--kind", "pose"], "--kind pose needs --maker MODULE:FUNCTION"),
        (["references", "FILM", "--kind", "depth"], "--kind depth needs --model"),
        (["references", "FILM", "--model", "m"], "--kind edges takes no --model"),
        (
            ["references", "FILM", "--maker", "json:dumps", "--model", "m"],
            "--model and --device belong to a depth model",
        ),
        (["references", "FILM", "--batch-size", "0"], "--batch-size has to be a whole number"),
        (["references", "FILM", "--video-column", "v"], "is no dataset file, so it has no column 'v'"),
        (["decode", "FILM", "out", "--checkpoint", "ltx2-mini"], "holds no latents; give a dataset"),
        (["decode", "FILM", "out", "--checkpoint", "ltx2-min"], "holds no latents; give a dataset"),
        (["check", "FILM"], "holds no samples; run `ltx2 data process` first"),
        (["check", "FILM", "--sheet", "x.png"], "--sheet is for the contact sheet, which needs --checkpoint"),
        (["check", "FILM", "--checkpoint", "ltx2-min"], "did you mean the packaged 'ltx2-mini'?"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_one_line(film, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    words = [str(film) if word == "FILM" else word for word in words]
    assert data(*words, *([] if words[0] == "clean-captions" else ["--quiet"])) == 2
    assert said in complaint(capsys, f"data {words[0]}")
    assert not (tmp_path / "out").exists()


# --- the commands ---


def test_videos_of_a_folder_are_split(film, tmp_path, capsys):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "film.mp4").write_bytes((film / "film.mp4").read_bytes())
    (tmp_path / "films" / "bad.mp4").write_bytes(b"no video")
    words = (tmp_path / "films", tmp_path / "scenes", "--min-scene-length", "5", "--max-scenes", "2", "--quiet")
    assert data("split-scenes", *words) == 0
    said = capsys.readouterr()
    assert f"2 scenes in {tmp_path / 'scenes'}, 1 left out" in said.out
    assert "1 of 2 files cannot be split:" in said.err
    assert "bad.mp4" in said.err
    assert [probe(path).num_frames for path in sorted((tmp_path / "scenes").glob("*.mp4"))] == [SHOT, SHOT]
    data("split-scenes", *words)
    assert "0 scenes in" in (again := capsys.readouterr().out)
    assert "1 videos were split before" in again


def test_measurements_belong_to_one_video(film, tmp_path, capsys):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "films").mkdir(exist_ok=True)
        (tmp_path / "films" / name).write_bytes((film / "film.mp4").read_bytes())
    words = ("split-scenes", tmp_path / "films", tmp_path / "scenes", "--stats-file", tmp_path / "s.csv", "--quiet")
    assert data(*words) == 2
    assert "--stats-file is for one video" in complaint(capsys, "data split-scenes")
    (tmp_path / "films" / "a.mp4").rename(tmp_path / "films" / "b.mov")
    assert data(*words[:3], "--quiet") == 2
    assert "would have the same names; rename one" in complaint(capsys, "data split-scenes")


def test_clips_are_captioned_by_a_function_of_ones_own(film, tmp_path, own_module, capsys):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes((film / "film.mp4").read_bytes())
    (tmp_path / "clips" / "b.mp4").write_bytes(b"no clip")
    words = (tmp_path / "clips", "--captioner", f"{own_module}:Words", "--quiet")
    assert data("caption", *words, "-f", "2", "-i", "Sing a song.") == 0
    said = capsys.readouterr()
    assert f"1 captions written to {tmp_path / 'clips' / 'dataset.json'}, 0 were there already" in said.out
    assert "1 of 2 files have no caption:" in said.err
    rows = json.loads((tmp_path / "clips" / "dataset.json").read_text())
    assert rows == [{"media_path": "a.mp4", "caption": "5 frames. Sing"}]
    output = tmp_path / "out.csv"
    assert data("caption", *words, "--raw-caption", "-o", output, "--no-audio") == 0
    with output.open() as file:
        (row,) = csv.DictReader(file)
    assert row == {"media_path": "clips/a.mp4", "caption": "The video shows 8 frames. Watch"}


def test_nothing_captioned_is_a_failure(tmp_path, own_module):
    (tmp_path / "a.mp4").write_bytes(b"no clip")
    assert data("caption", tmp_path / "a.mp4", "--captioner", f"{own_module}:Words", "--quiet") == 1


def test_a_local_model_captions(tmp_path, monkeypatch):
    """Its weights are random; that something is written is what the machinery owes."""
    model = tiny_checkpoint("2.0") / "text_encoder"
    PIL.Image.new("RGB", (32, 32), "red").save(tmp_path / "p.png")
    words = ("--model", model, "-d", "cpu", "--max-new-tokens", "4", "--raw-caption", "--quiet")
    assert data("caption", tmp_path, *words, "-e", "PNG") == 0
    ((row,),) = [json.loads((tmp_path / "dataset.json").read_text())]
    captioner = TransformersCaptioner.from_pretrained(model, max_new_tokens=4)
    pixels = np.asarray(PIL.Image.open(tmp_path / "p.png"))[None]
    assert row == {"media_path": "p.png", "caption": captioner.caption(pixels, None, default_instruction(False))}
    monkeypatch.chdir(tmp_path)
    assert data("caption", tmp_path, "--model", "no-model", "--quiet") == 2


def test_captions_are_cleaned_in_place_or_elsewhere(tmp_path, capsys):
    rows = [
        {"media_path": "a.mp4", "caption": "The video shows a cat. The scene depicts a dog.", "note": 1},
        {"media_path": "b.mp4", "caption": "A bird.", "note": 2},
        {"media_path": "c.mp4", "caption": "", "note": 3},
    ]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(rows))
    assert data("clean-captions", path, "--dry-run") == 0
    assert capsys.readouterr().out.splitlines() == [
        "1: - The video shows a cat. The scene depicts a dog.",
        "   + a cat. a dog.",
        "1 captions would change",
    ]
    assert json.loads(path.read_text()) == rows
    assert data("clean-captions", path, "-o", tmp_path / "sub" / "new.csv", "--no-phrases") == 0
    with (tmp_path / "sub" / "new.csv").open() as file:
        first = next(csv.DictReader(file))
    assert first == {"media_path": "../a.mp4", "caption": "a cat. The scene depicts a dog.", "note": "1"}
    assert data("clean-captions", path, "--no-prefixes") == 0
    rows[0]["caption"] = "a cat. a dog."
    assert json.loads(path.read_text()) == rows
    capsys.readouterr()
    assert data("clean-captions", path) == 0
    assert capsys.readouterr().out == f"0 captions changed in {path}\n"
    assert data("clean-captions", path, "--caption-column", "text") == 2
    assert "has no column 'text'; it has media_path, caption, note" in complaint(capsys, "data clean-captions")


def test_references_are_drawn_and_named(film, tmp_path, own_module, capsys):
    (tmp_path / "a.mp4").write_bytes((film / "film.mp4").read_bytes())
    (tmp_path / "set.jsonl").write_text(
        '{"media_path": "a.mp4", "caption": "A"}\n{"media_path": "no.mp4", "caption": "B"}'
    )
    assert data("references", tmp_path / "set.jsonl", "--quiet") == 0
    said = capsys.readouterr()
    assert f"1 references drawn, 0 were there already, named in {tmp_path / 'set.jsonl'}" in said.out
    assert "1 of 2 files have no reference:" in said.err
    first, second = map(json.loads, (tmp_path / "set.jsonl").read_text().splitlines())
    assert first == {"media_path": "a.mp4", "caption": "A", "reference_path": "a_reference.mp4"}
    assert "reference_path" not in second
    edges = (tmp_path / "a_reference.mp4").read_bytes()
    words = ("--kind", "pose", "--maker", f"{own_module}:dark", "--override", "--quiet")
    assert data("references", tmp_path / "a.mp4", *words) == 0
    assert (tmp_path / "a_reference.mp4").read_bytes() != edges
    assert probe(tmp_path / "a_reference.mp4").frame_rate == Fraction(24)


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> Path:
    """A dataset of one computed sample, with its caption."""
    components = dict.fromkeys(("transformer", "text_encoder", "tokenizer", "connectors"))
    pipeline = LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"), **components)
    pixels = gradient_clip(9, 64, 64).movedim(1, 0)[None] * 2 - 1
    latents = pipeline.encode_video(pixels)[0].detach().bfloat16()
    folder = tmp_path_factory.mktemp("computed")
    numbers = {"num_frames": 2, "height": 2, "width": 2, "fps": 24.0}
    write_sample(folder / ".precomputed" / "latents" / "a.safetensors", {"latents": latents}, numbers)
    rows = {"video_prompt_embeds": torch.zeros(3, 16)}
    write_sample(folder / ".precomputed" / "conditions" / "a.safetensors", rows, {})
    (folder / "a.mp4").touch()
    (folder / "dataset.json").write_text('[{"media_path": "a.mp4", "caption": "A wave of colour."}]')
    return folder


def test_latents_are_decoded(computed, tmp_path, capsys):
    assert data("decode", computed, tmp_path, "--checkpoint", "ltx2-mini", "--device", "cpu", "--quiet") == 0
    assert probe(tmp_path / "decoded_videos" / "a.mp4").num_frames == 9
    assert PIL.Image.open(tmp_path / "contact_sheet.png").width > 1600
    assert f"1 files written to {tmp_path}, contact sheet" in capsys.readouterr().out


def test_a_dataset_is_checked_and_shown(computed, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    words = ("--checkpoint", "ltx2-mini", "--device", "cpu", "--sheet", sheet, "--quiet")
    assert data("check", computed, *words) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "samples     1 complete"
    assert lines[2] == "sizes       64x64x9: 1"
    assert lines[3] == "frame rates 24: 1"
    assert lines[5] == "captions    3 to 3 tokens, half of them at most 3"
    assert lines[-1] == "nothing is wrong"
    assert sheet.is_file()
    # Its own captions are found.
    first = sheet.read_bytes()
    assert data("check", computed / ".precomputed", *words, "--dataset", computed / "dataset.json") == 0
    assert sheet.read_bytes() == first
    # The caption is drawn, so that the sheet of another one differs.
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"media_path": str(computed / "a.mp4"), "caption": "Something else."}]))
    before = sheet.read_bytes()
    assert data("check", computed, *words, "--dataset", other) == 0
    assert sheet.read_bytes() != before
    other.write_text("{")
    assert data("check", computed, *words, "--dataset", other) == 2


def test_a_contact_sheet_is_not_taken_for_a_clip(computed, tmp_path):
    shutil.copytree(computed, tmp_path / "set")
    assert data("check", tmp_path / "set", "--checkpoint", "ltx2-mini", "--device", "cpu", "--quiet") == 0
    assert (tmp_path / "set" / ".precomputed" / "contact_sheet.png").is_file()
    assert [path.name for path in media_files(tmp_path / "set")] == ["a.mp4"]


def test_warnings_are_notes_of_one_line(tmp_path, capsys):
    for name in ("moving.gif", "moving.txt"):
        (tmp_path / name).touch()
    assert data("process", tmp_path, "--checkpoint", "ltx2-mini", "--device", "cpu") == 2
    note, error = capsys.readouterr().err.splitlines()
    assert note.startswith(f"note: 1 texts of {str(tmp_path)!r} are captions of no clip")
    assert error == f"ltx2 data process: {str(tmp_path)!r} names no clips; add at least one"


def test_a_dataset_with_faults_has_another_status(computed, tmp_path, capsys):
    target = tmp_path / "latents" / "a.safetensors"
    target.parent.mkdir()
    target.write_bytes((computed / ".precomputed" / "latents" / "a.safetensors").read_bytes())
    (tmp_path / "latents" / "b.safetensors").write_bytes(b"x")
    assert data("check", tmp_path, "--quiet") == 1
    said = capsys.readouterr().out
    assert "missing     conditions: 2, a, b" in said
    assert f"damaged     {tmp_path / 'latents' / 'b.safetensors'}:" in said
    assert said.endswith("not all is well\n")
    assert data("check", tmp_path, "--json", "--quiet") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["missing"], told["sizes"], told["is_sound"]) == ({"conditions": ["a", "b"]}, {"64x64x9": 1}, False)
