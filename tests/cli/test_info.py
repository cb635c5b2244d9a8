"""`ltx2 info` describes checkpoints of both layouts without loading them."""

import json
import shutil

import pytest

from ltx2_diffusers.checkpoints.packaged import packaged_checkpoint
from ltx2_diffusers.cli.main import main
from tests.golden_data import GOLDEN_DIR
from tests.pipelines.tiny import ours
from tests.tiny_checkpoints import tiny_checkpoint

ORIGINALS = {"2.0": "ltx-2-tiny-dev", "2.3": "ltx-2.3-tiny-dev"}


def described(capsys, *arguments: str) -> dict:
    assert main(["info", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_a_folder(capsys, version):
    summary = described(capsys, str(tiny_checkpoint(version)))
    assert (summary["layout"], summary["version"], summary["kind"]) == ("diffusers", version, "dev")
    components = summary["components"]
    assert {"transformer", "vae", "audio_vae", "vocoder", "connectors", "text_encoder", "scheduler"} <= set(components)
    assert components["transformer"]["class"] == "LTX2VideoTransformer3DModel"
    state = ours(version).transformer.state_dict()
    assert components["transformer"]["tensors"] == len(state)
    assert components["transformer"]["parameters"] == sum(value.numel() for value in state.values())
    assert components["scheduler"]["tensors"] == 0


@pytest.mark.parametrize("version", ORIGINALS)
def test_an_original_file(capsys, version):
    path = GOLDEN_DIR / "checkpoint" / f"{ORIGINALS[version]}.safetensors"
    summary = described(capsys, str(path))
    assert (summary["layout"], summary["kind"]) == ("original", "dev")
    assert summary["version"].startswith(version)
    vocoder = summary["components"]["vocoder"]["class"]
    assert vocoder == ("LTX2Vocoder" if version == "2.0" else "LTX2VocoderWithBWE")
    assert summary["components"]["transformer"]["dtypes"] == ["bfloat16"]


def test_the_name_of_an_original_file_says_in_any_case_that_it_is_distilled(capsys, tmp_path):
    path = tmp_path / "LTX-2-Distilled.safetensors"
    shutil.copy(GOLDEN_DIR / "checkpoint" / f"{ORIGINALS['2.0']}.safetensors", path)
    assert described(capsys, str(path))["kind"] == "distilled"


def test_a_packaged_name_is_that_of_its_folder(capsys):
    assert described(capsys, "ltx2-mini") == described(capsys, str(packaged_checkpoint("ltx2-mini")))


def test_the_table_lists_components_and_sizes(capsys):
    assert main(["info", "ltx2-mini"]) == 0
    printed = capsys.readouterr().out
    assert "diffusers layout, LTX-2.0 dev" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("vae ")]
    assert "AutoencoderKLLTX2Video" in line
    assert "MB" in line
    assert "float32" in line or "bfloat16" in line


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nowhere/at-all", "packaged are ltx2-mini, ltx-video-tiny\n"),
        ("ltx2-mni", "did you mean the packaged 'ltx2-mini'?\n"),
    ],
)
def test_what_is_not_there(capsys, name, hint):
    assert main(["info", name]) == 2
    said = capsys.readouterr().err
    assert f"there is no file or folder {name!r} (a Hub repository" in said and said.endswith(hint)


def test_a_folder_without_index(capsys, tmp_path):
    assert main(["info", str(tmp_path)]) == 2
    assert "no model_index.json" in capsys.readouterr().err


def test_a_foreign_file(capsys, tmp_path):
    path = tmp_path / "notes.safetensors"
    path.write_text("not a checkpoint")
    assert main(["info", str(path)]) == 2
    assert "notes.safetensors" in capsys.readouterr().err
