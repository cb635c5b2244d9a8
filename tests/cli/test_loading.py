"""`--checkpoint` is looked at before anything is loaded or fetched; what is loaded is as the options say."""

import numpy as np
import pytest

from ltx2_diffusers.cli.fitting.wishes import wish
from ltx2_diffusers.cli.loading import check_checkpoint
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.media.writing import write_video
from tests.tiny_checkpoints import tiny_checkpoint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ltx2-mni", "no such folder; did you mean the packaged 'ltx2-mini'"),
        ("LTX2-mini", "did you mean the packaged 'ltx2-mini'"),
        ("/no/such/folder", "no such folder; packaged are ltx2-mini"),
        ("./models/ltx2", "no such folder"),
        ("models/ltx-2", "no such folder"),
        ("a/b/c", "no such folder"),
        ("model.safetensors", "no such file"),
        ("models/model.safetensors", "no such file"),
        ("models", "no folder of a pipeline"),
        ("weights.ckpt", "is a .ckpt file"),
        ("", "no folder of a pipeline"),
    ],
)
def test_names_that_are_nothing_are_refused(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "weights.ckpt").touch()
    with pytest.raises(ValueError, match=message) as error:
        check_checkpoint(name)
    assert f"--checkpoint {name!r}" in str(error.value)


def test_packaged_names_folders_files_and_ids_of_the_hub_pass(tmp_path):
    (tmp_path / "model.safetensors").touch()
    for name in ("ltx2-mini", tiny_checkpoint("2.0"), tmp_path / "model.safetensors", "Lightricks/LTX-2"):
        check_checkpoint(str(name))


def test_generate_says_so_in_one_line(tmp_path, capsys):
    assert main(["generate", "--prompt", "rain", "--checkpoint", "ltx2-mni", "--output", str(tmp_path / "x.mp4")]) == 2
    line = capsys.readouterr().err
    assert "did you mean the packaged 'ltx2-mini'" in line and line.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def loaded(**options):
    from ltx2_diffusers import LTX2Pipeline
    from ltx2_diffusers.cli.loading import load_pipeline

    given = {"checkpoint": str(tiny_checkpoint("2.0")), "dtype": "float32", "device": "cpu", "offload": "none"}
    return load_pipeline({**given, **options}, LTX2Pipeline)


@pytest.mark.parametrize(("offload", "source"), [("none", None), ("blocks", "ram"), ("disk", "disk")])
def test_blocks_come_from_where_the_command_says(offload, source):
    pipe = loaded(offload=offload)
    assert pipe.streamed_components == ([] if source is None else ["text_encoder", "transformer"])
    assert {streamer.source for streamer in pipe._streamers} == ({source} - {None})


@pytest.mark.parametrize("offload", ["none", "blocks", "disk"])
def test_networks_are_compiled_where_they_are(offload):
    pipe = loaded(compile=True, offload=offload)
    assert list(pipe.compiled) == ["transformer", "vae", "vocoder"]
    assert pipe.streamed_components == ([] if offload == "none" else ["text_encoder", "transformer"])
    assert loaded(offload=offload).compiled == {}


def test_a_text_encoder_is_released():
    pipe = loaded(release_text_encoder=True, offload="blocks")
    assert pipe.text_encoder is None and pipe._text_encoder_on_demand.streamed == "ram"
    assert pipe.streamed_components == ["transformer"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"offload": "disk", "quantize": "fp8-cast"},
            "--quantize rounds weights, and --offload disk .* use --offload blocks",
        ),
        (
            {"offload": "sequential", "compile": True},
            "hooks on layers that --compile would trace; use --offload blocks",
        ),
        (
            {"offload": "disk", "fuse_lora": True},
            "--fuse-lora changes weights, and --offload disk .* use --offload blocks",
        ),
        ({"offload": "sequential"}, "--offload sequential keeps weights off a graphics card, and --device is cpu"),
    ],
)
def test_offloading_that_contradicts_the_rest_is_refused_before_loading(monkeypatch, options, message):
    monkeypatch.setattr("ltx2_diffusers.LTX2Pipeline.from_pretrained", None)
    with pytest.raises(ValueError, match=message):
        loaded(**options)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"height": 512, "num_frames": 121, "num_videos": 1, "two_stage": False, "image": False}),
        (
            {"steps": 8, "two_stage": True, "num_videos": 2},
            {"num_inference_steps": 8, "two_stage": True, "num_videos": 2},
        ),
        ({"distilled": True, "steps": 8}, {"guided": False, "two_stage": True}),
        (
            {"video": "clip.mp4", "retake": (0.1, 0.3)},
            {"height": 64, "width": 96, "num_frames": 17, "given_frames": 17},
        ),
        ({"video": "clip.mp4", "retake": (0, 1), "frame_rate": 12.0}, {"num_frames": 9, "given_frames": 9}),
        ({"extend": 1.0, "prompt": ["a", "b"]}, {"num_frames": 25, "num_videos": 1}),
        ({"auto_length": True}, {"num_frames": 473}),
        ({"auto_length": True, "max_seconds": 3.0, "frame_rate": 12.0}, {"num_frames": 33}),
        ({"audio_only": True, "duration": 2.0}, {"height": 64, "width": 64, "num_frames": 49}),
        ({"image_at": [[0, "clip.mp4", 1.0]], "num_frames": 9}, {"image": True, "given_frames": 9}),
        ({"image_at": [[0, "picture.png", 1.0]]}, {"image": True}),
    ],
)
def test_a_plan_is_for_what_the_options_make(tmp_path, given, expected):
    write_video(tmp_path / "clip.mp4", np.zeros((17, 64, 96, 3), np.uint8), frame_rate=24)
    given = {key: str(tmp_path / value) if value == "clip.mp4" else value for key, value in given.items()}
    found = wish({"prompt": ["waves"], **given})
    assert {key: found.get(key) for key in expected} == expected
    assert found.keys() & {"given_frames", "num_inference_steps", "guided"} == expected.keys() & {
        "given_frames",
        "num_inference_steps",
        "guided",
    }


def test_a_planned_clip_is_replayed(tmp_path, capsys):
    path = tmp_path / "clip.mp4"
    size = ["--width", "64", "--height", "64", "--num-frames", "9", "--steps", "1", "--device", "cpu"]
    checkpoint = ["--checkpoint", str(tiny_checkpoint("2.0"))]
    assert main(["generate", "--prompt", "a", "--vram", "1", "--ram", "1", "-o", str(path), *size, *checkpoint]) == 0
    assert main(["replay", f"{path}.json"]) == 0
    assert "identical" in capsys.readouterr().out
