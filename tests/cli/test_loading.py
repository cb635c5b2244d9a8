"""`--checkpoint` is looked at before anything is loaded or fetched."""

import pytest

from ltx2_diffusers.cli.loading import check_checkpoint
from ltx2_diffusers.cli.main import main
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
