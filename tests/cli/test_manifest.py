"""Every output has a manifest beside it, and `ltx2 replay` makes the same frames and samples from it again."""

import functools
import json
import shutil
from importlib.metadata import version

import pytest
import torch

from ltx2_diffusers.cli import identities as fingerprints
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.guidance import preset
from ltx2_diffusers.media.reading import read_audio, read_video
from ltx2_diffusers.pipelines.generation import LTX2GenerationPipeline
from tests.cli.running import QUICK, SMALL, STAGED, complaint, generate, manifest
from tests.tiny_checkpoints import tiny_checkpoint


@pytest.fixture
def inputs(tmp_path, media):
    """A folder with a picture and a sound that a test may change."""
    for name in ("red.png", "tone.wav"):
        shutil.copy(media / name, tmp_path)
    return tmp_path


def replay(path, *options: object) -> int:
    return main(["replay", str(path), *map(str, options)])


def changed(path, **values) -> None:
    """Write a manifest with other values."""
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, **values}))


def test_a_two_stage_clip_is_made_again_exactly(inputs, capsys):
    out, again = inputs / "out.mp4", inputs / "again.mp4"
    given = ["--image", inputs / "red.png", "--audio", inputs / "tone.wav"]
    assert generate(out, "--two-stage", *given, *STAGED, *QUICK) == 0
    assert replay(f"{out}.json", "-o", again) == 0
    assert "all frames and samples are equal" in capsys.readouterr().out
    assert torch.equal(read_video(out), read_video(again))
    assert torch.equal(read_audio(out)[0], read_audio(again)[0])
    assert out.read_bytes() == again.read_bytes()
    assert manifest(again)["outputs"][0]["video"] == manifest(out)["outputs"][0]["video"]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", ["audio", "extension", "lora", "retake", "batch"])
def test_other_modes_are_made_again_exactly(tmp_path, media, name):
    options = {
        "audio": ["--audio-only", "--duration", "0.3"],
        "extension": ["--video", media / "clip.mp4", "--extend", "0.3", "--overlap", "9", "--drift-control", "0.5"],
        "lora": ["--lora", f"{media / 'strong.safetensors'}:0.5", "--sampler", "res_2s", *SMALL],
        "retake": ["--video", media / "clip.mp4", "--retake", "0.2:0.5", "--region", media / "mask.png"],
        "batch": ["--num-videos", "2", "--image-at", "0", f"{media / 'red.png'}:0.5", *SMALL],
    }[name]
    out = tmp_path / ("out.wav" if name == "audio" else "out.mp4")
    assert generate(out, *options, *QUICK, "--seed", "3") == 0
    assert replay(f"{out}.json") == 0
    assert manifest(out.with_stem("out-replay"))["options"] == manifest(out)["options"]
    assert manifest(out)["result"]["sampler"] == ("res_2s" if name == "lora" else "euler")


def test_a_clip_of_before_samplers_were_named_is_made_again_exactly(tmp_path, monkeypatch):
    # Only the distilled recipe took the sampler of its preset then; the others used "euler".
    monkeypatch.setattr(LTX2GenerationPipeline, "preset", preset("2.5", "distilled"))
    out = tmp_path / "out.mp4"
    assert generate(out, "--sampler", "euler", *SMALL, *QUICK) == 0
    written = manifest(out)
    del written["result"]["sampler"], written["options"]["sampler"]
    changed(tmp_path / "out.mp4.json", **written)
    assert replay(f"{out}.json") == 0
    assert manifest(tmp_path / "out-replay.mp4")["result"]["sampler"] == "euler"


def test_a_clip_keeps_the_sampler_of_its_preset(tmp_path, monkeypatch):
    monkeypatch.setattr(LTX2GenerationPipeline, "preset", preset("2.5", "distilled"))
    out = tmp_path / "out.mp4"
    assert generate(out, *SMALL, *QUICK) == 0
    assert replay(f"{out}.json") == 0
    assert manifest(tmp_path / "out-replay.mp4")["result"]["sampler"] == "euler_ancestral"


def test_a_compiled_clip_is_made_again_compiled(tmp_path, monkeypatch):
    """Not traced, which takes long: that both calls have their networks compiled is what counts."""
    out, compiled = tmp_path / "out.mp4", []
    compile_all = LTX2GenerationPipeline.compile
    monkeypatch.setattr(
        LTX2GenerationPipeline, "compile", lambda pipe: compile_all(pipe) or compiled.append(list(pipe.compiled))
    )
    with torch.compiler.set_stance("force_eager"):
        assert generate(out, "--compile", *SMALL, *QUICK) == 0
        assert replay(f"{out}.json") == 0
    assert compiled == [["transformer", "vae", "vocoder"]] * 2
    assert manifest(tmp_path / "out-replay.mp4")["options"]["compile"] is True


def test_a_manifest_says_how_the_clip_was_made(inputs):
    out = inputs / "out.mp4"
    assert generate(out, "--image", inputs / "red.png", "--guidance-scale", "2", *SMALL, *QUICK, "--preview") == 0
    written = manifest(out)
    assert written["schema"] == 1
    assert written["options"]["image"] == {"file": "red.png"}
    assert written["options"]["seed"] == 10
    assert written["options"]["frame_rate"] == 24.0
    assert not {"preview", "output"} & written["options"].keys()
    assert written["inputs"] == {"red.png": fingerprints.file_sha256(inputs / "red.png")}
    assert written["environment"]["torch"] == version("torch")
    assert written["environment"]["threads"] == torch.get_num_threads()
    assert len(written["checkpoints"]["checkpoint"]["sha256"]) == 64
    assert written["result"]["preset"] == "2.0 dev"
    assert written["result"]["forwards_per_step"] == 4
    assert len(written["result"]["sigmas"]) == 3
    (output,) = written["outputs"]
    assert output["video"]["frames"] == 9
    assert output["video"]["sha256"] == fingerprints.content_identity(out)["video"]["sha256"]


# Options as the first version of manifests has them.
WRITTEN = {
    "two_stage": True,
    "refine_with_same_weights": True,
    "image": {"file": "red.png"},
    "image_at": [[-1, {"file": "red.png"}, 0.5]],
    "audio": {"file": "tone.wav"},
    "lora": [[{"file": "strong.safetensors"}, 0.5]],
    "checkpoint": "ltx2-mini",
    "device": "cpu",
    "dtype": "float32",
    "offload": "none",
    "prompt": ["waves"],
    "frame_rate": 24.0,
    "height": 128,
    "width": 128,
    "num_frames": 9,
    "max_sequence_length": 64,
    "seed": 10,
    "steps": 2,
}


def test_options_stand_in_a_manifest_as_they_always_did(tmp_path, media):
    for name in ("red.png", "tone.wav", "strong.safetensors"):
        shutil.copy(media / name, tmp_path)
    files = ["--image", "red.png", "--image-at", "-1", "red.png:0.5", "--audio", "tone.wav"]
    files = [str(tmp_path / file) if "." in file else file for file in files]
    lora = ["--lora", f"{tmp_path / 'strong.safetensors'}:0.5"]
    assert generate(tmp_path / "out.mp4", "--two-stage", *files, *lora, "--preview", *STAGED, *QUICK) == 0
    assert manifest(tmp_path / "out.mp4")["options"] == WRITTEN
    changed(tmp_path / "out.mp4.json", options=WRITTEN)
    assert replay(tmp_path / "out.mp4.json") == 0


def test_a_folder_with_clip_inputs_and_manifest_can_move(inputs, tmp_path_factory):
    assert generate(inputs / "out.mp4", "--image", inputs / "red.png", *SMALL, *QUICK) == 0
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    inputs.rename(moved)
    assert replay(moved / "out.mp4.json") == 0


def test_the_text_that_was_written_is_used_again(tmp_path, monkeypatch):
    from ltx2_diffusers.prompts.chat import ChatModel

    out = tmp_path / "out.mp4"
    assert generate(out, "--enhance-prompt", "--enhance-tokens", "4", *SMALL, *QUICK) == 0
    written = manifest(out)["result"]
    assert written["prompt"] == ["waves"]
    assert written["enhanced_prompt"] != ["waves"]
    monkeypatch.setattr(ChatModel, "answer", lambda *_, **__: pytest.fail("the text was written anew"))
    assert replay(f"{out}.json") == 0
    assert manifest(tmp_path / "out-replay.mp4")["options"]["prompt"] == written["enhanced_prompt"]


def test_the_texts_of_all_parts_of_an_extension_are_used_again(tmp_path, media):
    out = tmp_path / "out.mp4"
    options = ["--video", media / "clip.mp4", "--backwards", "--extend", "0.6", "--overlap", "9", "--prompt", "wind"]
    assert generate(out, "--enhance-prompt", "--enhance-tokens", "4", *options, *QUICK) == 0
    assert len(manifest(out)["result"]["enhanced_prompt"]) == 2
    assert replay(f"{out}.json") == 0


@pytest.mark.parametrize("name", ["red.png", "tone.wav"])
def test_a_changed_input_is_named(inputs, capsys, name):
    out = inputs / "out.mp4"
    assert generate(out, "--image", inputs / "red.png", "--audio", inputs / "tone.wav", *SMALL, *QUICK) == 0
    content = bytearray((inputs / name).read_bytes())
    content[-30] ^= 64
    (inputs / name).write_bytes(content)
    capsys.readouterr()
    assert replay(f"{out}.json") == 2
    assert f"{name}' has changed since" in complaint(capsys, "replay")
    (inputs / name).unlink()
    assert replay(f"{out}.json") == 2
    assert f"{name}' is missing" in complaint(capsys, "replay")


def test_another_picture_is_used_with_force_and_the_difference_is_said(inputs, media, capsys):
    out = inputs / "out.mp4"
    assert generate(out, "--image", inputs / "red.png", *SMALL, *QUICK) == 0
    shutil.copy(media / "blue.png", inputs / "red.png")
    assert replay(f"{out}.json", "--force") == 1
    printed = capsys.readouterr()
    assert "warning: the input" in printed.err
    assert "the frames of out-replay.mp4 differ from those of out.mp4" in printed.err
    assert "identical" not in printed.out


def test_a_changed_checkpoint_is_named(tmp_path, capsys):
    folder = shutil.copytree(tiny_checkpoint("2.0"), tmp_path / "checkpoint")
    out = tmp_path / "out.mp4"
    assert generate(out, "--checkpoint", folder, *SMALL, *QUICK) == 0
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    assert replay(f"{out}.json") == 2
    assert "the checkpoint" in complaint(capsys, "replay")


def test_other_versions_and_machines_are_a_warning(tmp_path, capsys):
    out = tmp_path / "out.mp4"
    assert generate(out, *SMALL, *QUICK) == 0
    environment = {**manifest(out)["environment"], "torch": "1.0", "threads": 99}
    changed(tmp_path / "out.mp4.json", environment=environment)
    assert replay(f"{out}.json") == 0
    printed = capsys.readouterr().err
    assert "warning: torch was 1.0" in printed
    assert "warning: threads was 99" in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read as a manifest"), ("[]", "is not a manifest"), ('{"a": 1}', "is not a manifest")],
)
def test_files_of_another_kind(tmp_path, capsys, content, message):
    (tmp_path / "x.json").write_text(content)
    assert replay(tmp_path / "x.json") == 2
    assert message in complaint(capsys, "replay")


def test_a_manifest_of_a_later_version(tmp_path, capsys):
    (tmp_path / "x.json").write_text('{"kind": "ltx2 manifest", "schema": 2}')
    assert replay(tmp_path / "x.json") == 2
    assert "has the schema 2, this version reads 1" in complaint(capsys, "replay")


def test_options_that_this_version_does_not_know_are_named(tmp_path, capsys):
    written = {"kind": "ltx2 manifest", "schema": 1, "inputs": {}, "options": {"prompt": ["a"], "zoom": 2, "pan": 1}}
    (tmp_path / "x.json").write_text(json.dumps(written))
    assert replay(tmp_path / "x.json") == 2
    assert "has --pan and --zoom, which this version does not know" in complaint(capsys, "replay")


def test_a_missing_manifest(tmp_path, capsys):
    assert replay(tmp_path / "none.json") == 2
    assert "none.json" in complaint(capsys, "replay")


def test_nothing_is_left_of_a_run_that_fails(tmp_path, monkeypatch):
    from ltx2_diffusers import LTX2Pipeline

    @functools.wraps(LTX2Pipeline.__call__)
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(LTX2Pipeline, "__call__", interrupted)
    assert generate(tmp_path / "out.mp4", *SMALL) == 130
    assert list(tmp_path.iterdir()) == []


def test_a_long_file_is_told_from_one_with_another_middle(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprints, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(fingerprints, "_BLOCK_BYTES", 16)
    path = tmp_path / "weights.safetensors"
    content = bytearray(range(256)) * 16
    path.write_bytes(content)
    before = fingerprints.checkpoint_identity(str(path))
    assert fingerprints.checkpoint_identity(str(path)) == before
    path.write_bytes(bytes(value ^ 1 for value in content))
    assert fingerprints.checkpoint_identity(str(path)) != before
    path.write_bytes(content + b"1")
    assert fingerprints.checkpoint_identity(str(path)) != before


def test_a_hub_repository_is_known_by_its_revision(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--ltx2"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    assert fingerprints.checkpoint_identity("someone/ltx2") == {"revision": "a" * 40}
    assert fingerprints.checkpoint_identity("someone/other") == {}
