"""`ltx2 storyboard` makes the clip of a file, goes on with one that was begun, and says what is wrong; `ltx2 replay` makes it again."""

import json
import shutil

import pytest
import yaml

from ltx2_diffusers import LTX2ExtendPipeline
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.media.reading import probe, read_audio, read_video
from ltx2_diffusers.media.writing import write_audio
from tests.cli.running import complaint, manifest
from tests.media.clips import tone

BOARD = {
    "width": 64,
    "height": 64,
    "num_frames": 17,
    "overlap_frames": 9,
    "num_inference_steps": 2,
    "guidance_scale": 1.0,
    "max_sequence_length": 64,
    "shots": [
        {"prompt": "a fox", "duration_s": 0.7, "keyframes": [{"image": "red.png"}]},
        {"prompt": "waves", "duration_s": 0.3},
    ],
}


@pytest.fixture
def folder(tmp_path, media):
    """A folder with a storyboard and the picture and LoRA that it may name."""
    for name in ("red.png", "strong.safetensors"):
        shutil.copyfile(media / name, tmp_path / name)
    return tmp_path


def storyboard(folder, *options: str, **changed) -> int:
    """Run `ltx2 storyboard` with a changed storyboard."""
    (folder / "film.yaml").write_text(yaml.safe_dump({**BOARD, **changed}))
    return main(["storyboard", str(folder / "film.yaml"), "-o", str(folder / "film.mp4"), "--device", "cpu", *options])


def test_a_file_becomes_a_clip_with_a_manifest(folder, capsys):
    assert storyboard(folder) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"segment 1 of 2: {folder / 'film.mp4.segments' / '0001.mp4'}"
    assert said[-1] == f"{folder / 'film.mp4'}: 25 frames of 64x64, 1.04 s, 2 segments, 2.0 dev preset"
    written = manifest(folder / "film.mp4")
    assert (written["mode"], written["pipeline"]) == ("storyboard", "LTX2ExtendPipeline")
    shots = written["options"]["storyboard"]["shots"]
    assert [shot["prompt"] for shot in shots] == ["a fox", "waves"]
    assert shots[0]["keyframes"][0]["image"] == {"file": "red.png"}
    assert list(written["inputs"]) == ["red.png"]
    assert {path.name for path in folder.iterdir()} == {
        *("film.yaml", "film.mp4", "film.mp4.json", "red.png", "strong.safetensors")
    }
    assert abs(read_audio(folder / "film.mp4")[0].shape[-1] / 24000 - 25 / 24) < 1025 / 24000


def test_replay_makes_it_again_also_elsewhere(folder, tmp_path_factory, capsys):
    assert storyboard(folder, audio=None, seed=3) == 0
    moved = tmp_path_factory.mktemp("moved")
    for name in ("film.mp4", "film.mp4.json", "red.png"):
        shutil.copyfile(folder / name, moved / name)
    assert main(["replay", str(moved / "film.mp4.json")]) == 0
    assert "identical to film.mp4" in capsys.readouterr().out
    assert probe(moved / "film-replay.mp4").num_frames == 25
    (moved / "red.png").write_bytes(b"")
    assert main(["replay", str(moved / "film.mp4.json")]) == 2
    assert "red.png' has changed since" in complaint(capsys, "replay")


def test_replay_takes_the_prompts_that_the_director_wrote(folder, capsys):
    assert storyboard(folder, director=True, prompt="by the sea", director_tokens=4) == 0
    written = manifest(folder / "film.mp4")
    prompts = written["result"]["prompts"]
    assert prompts != ["a fox", "waves"]
    assert main(["replay", str(folder / "film.mp4.json")]) == 0
    again = manifest(folder / "film-replay.mp4")
    assert again["options"]["storyboard"]["director"] is False
    assert again["result"]["prompts"] == prompts
    assert "identical to film.mp4" in capsys.readouterr().out


def test_it_goes_on_with_kept_segments_and_notices_changes(folder, capsys):
    assert storyboard(folder, "--keep-segments") == 0
    first = read_video(folder / "film.mp4")
    assert (folder / "film.mp4.segments" / "0002.mp4").is_file()
    other = [BOARD["shots"][0], {"prompt": "rain", "duration_s": 0.3}]
    capsys.readouterr()
    assert storyboard(folder, shots=other) == 2
    assert "of segment 2, `prompt` was 'waves' and is 'rain'" in (said := complaint(capsys, "storyboard"))
    assert "have what has changed made anew (--remake)" in said
    assert storyboard(folder, "--remake", shots=other) == 0
    second = read_video(folder / "film.mp4")
    assert (first[:17] == second[:17]).all() and (first[17:] != second[17:]).any()
    assert not (folder / "film.mp4.segments").exists()


def test_the_model_of_a_storyboard_is_loaded(folder, monkeypatch):
    loaded, load = [], LTX2ExtendPipeline.load_lora_weights

    def noting(self, *args, **kwargs):
        loaded.append(kwargs["adapter_name"])
        return load(self, *args, **kwargs)

    monkeypatch.setattr(LTX2ExtendPipeline, "load_lora_weights", noting)
    assert storyboard(folder) == 0
    plain = read_video(folder / "film.mp4")
    shots = [BOARD["shots"][0], {**BOARD["shots"][1], "adapters": {"strong": 0.0}}]
    model = {"checkpoint": "ltx2-mini", "loras": {"strong": {"file": "strong.safetensors", "strength": 0.5}}}
    assert storyboard(folder, model=model, shots=shots) == 0
    assert loaded == ["strong"]
    assert (read_video(folder / "film.mp4")[:17] != plain[:17]).any()
    written = manifest(folder / "film.mp4")
    assert written["options"]["lora"] == [[{"file": "strong.safetensors"}, 0.5, "strong"]]
    assert main(["replay", str(folder / "film.mp4.json")]) == 0


def test_one_sound_for_all_and_two_stages(folder):
    write_audio(folder / "song.wav", tone(2.0, 24000), 24000)
    assert storyboard(folder, audio="song.wav", two_stage=True, width=128, height=128, stage_2_sigmas=[0.9, 0.0]) == 0
    samples, _ = read_audio(folder / "film.mp4")
    assert samples.abs().max() > 0.4
    options = manifest(folder / "film.mp4")["options"]
    assert options["storyboard"]["stage_2_adapters"] == {}
    assert options["storyboard"]["audio"] == {"file": "song.wav"}
    assert main(["replay", str(folder / "film.mp4.json")]) == 0


def test_without_sizes_the_miniature_makes_those_that_it_can(folder):
    small = {"num_inference_steps": 1, "guidance_scale": 1.0, "shots": [{"prompt": "a fox", "duration_s": 0.4}]}
    (folder / "film.yaml").write_text(yaml.safe_dump(small))
    assert main(["storyboard", str(folder / "film.yaml"), "-o", str(folder / "film.mp4"), "--device", "cpu"]) == 0
    kept = manifest(folder / "film.mp4")["options"]["storyboard"]
    assert (kept["width"], kept["height"], kept["num_frames"], kept["overlap_frames"]) == (128, 128, 25, 9)


def test_a_preview_is_kept(folder):
    assert storyboard(folder, "--preview", "--preview-every", "1") == 0
    assert (folder / "film.preview.png").is_file()


@pytest.mark.parametrize(
    ("options", "changed", "message"),
    [
        ([], {"widht": 64}, "unknown key `widht`; did you mean `width`?"),
        ([], {"width": 65}, "`width` has to be divisible by 32 but is 65; use 64 or 96"),
        ([], {"shots": [{"prompt": "waves", "duration_s": 0.1}]}, "shot 1: `duration_s` 0.1 is too short"),
        ([], {"model": {"lora": "x"}}, "model: unknown key `lora`; there are checkpoint, "),
        ([], {"model": {"loras": {"a": {"file": 3}}}}, "`model: loras.a.file` has to be a `str` but is 3"),
        ([], {"model": {"loras": {"a": "no.safetensors"}}}, "`loras` of `model`: there is no file"),
        ([], {"model": {"checkpoint": "no/such/folder"}}, "--checkpoint 'no/such/folder': there is no such folder"),
        (["--preview-every", "2"], {}, "--preview-every needs --preview"),
        (["--no-text-encoder"], {}, "--no-text-encoder needs --prompt-cache"),
        ([], {"model": {"distilled_lora": "strong.safetensors"}}, "`distilled_lora` of `model` means nothing without"),
        (["-o", "film.gif"], {}, "--output is written as .mp4 or .mov"),
        (["--device", "cuda:77"], {}, "--device cuda:77 cannot be used"),
        ([], {"two_stage": True}, "`height` has to be divisible by 64|64"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_before_anything_is_loaded(
    folder, monkeypatch, capsys, options, changed, message
):
    monkeypatch.setattr(LTX2ExtendPipeline, "from_pretrained", None)
    before = {path.name for path in folder.iterdir()} | {"film.yaml"}
    wrong_size = {"height": 96} if changed.get("two_stage") else {}
    assert storyboard(folder, *options, **changed, **wrong_size) == 2
    assert any(part in complaint(capsys, "storyboard") for part in message.split("|"))
    assert {path.name for path in folder.iterdir()} == before


def test_all_that_is_wrong_is_said_a_line_each(folder, capsys):
    assert storyboard(folder, seed=2**65, drift_control=3) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ltx2 storyboard:")]
    assert len(said) == 2 and "`seed`" in said[1] and "`drift_control`" in said[0]


def test_it_would_not_overwrite_what_it_reads(folder, capsys):
    shutil.copyfile(folder / "red.png", folder / "film.mp4")
    shots = [{**BOARD["shots"][0], "keyframes": [{"image": "film.mp4"}]}]
    assert storyboard(folder, shots=shots) == 2
    assert "--output would overwrite the storyboard's '" in complaint(capsys, "storyboard")


def test_a_missing_file_is_named(tmp_path, capsys):
    assert main(["storyboard", str(tmp_path / "no.yaml"), "-o", str(tmp_path / "x.mp4")]) == 2
    assert "there is no storyboard" in complaint(capsys, "storyboard")


def test_manifests_of_storyboards_are_plain_json(folder):
    assert storyboard(folder, guidance_scale=2.0, guidance_options={"cfg_method": "apg"}) == 0
    text = (folder / "film.mp4.json").read_text()
    assert json.loads(text)["options"]["storyboard"]["guidance_options"]["cfg_method"] == "apg"
    assert main(["replay", str(folder / "film.mp4.json")]) == 0
