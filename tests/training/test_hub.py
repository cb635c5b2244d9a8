"""Publishing to the Hub, against a stand-in of its HTTP interface."""

import hashlib
import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import PIL.Image
import pytest
import torch
from huggingface_hub import ModelCard

from ltx2_diffusers import LTX2Pipeline, packaged_checkpoint
from ltx2_diffusers.media.reading import probe
from ltx2_diffusers.media.writing import write_video
from ltx2_diffusers.training.config_files import save_config
from ltx2_diffusers.training.hub import MAX_GIF_RATE, ORIGINAL_NAME, write_gif
from tests.hub_server import READER, HubServer

PATH = json.dumps(sys.path)
TINY = str(packaged_checkpoint("ltx2-tiny"))
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def run_client(hub, cache: Path, script: str, environment: dict | None = None, **said: object) -> dict:
    """Run a script in a process whose Hub is the stand-in: it finds `said` in `given`, and `told` comes back.

    The library reads its settings from the environment when it is imported, once in a process.
    """
    begin = f"import json, sys; sys.path[:] = {PATH}\ngiven = json.loads(sys.argv[1]); told = {{}}\n"
    command = [sys.executable, "-c", f"{begin}{script}\nprint(json.dumps(told))", json.dumps(said)]
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(cache), **hub.environment(str(cache)), **(environment or {})}
    result = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def factors() -> dict[str, torch.Tensor]:
    module = "transformer_blocks.0.attn1.to_q"
    linear = LTX2Pipeline.from_pretrained(TINY).transformer.get_submodule(module)
    down, up = torch.ones(2, linear.in_features), torch.ones(linear.out_features, 2)
    return {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}


LORA = """
from pathlib import Path
from safetensors.torch import load_file
from ltx2_diffusers import LTX2Pipeline
factors = {key.removeprefix("transformer."): value for key, value in load_file(given["lora"]).items()}

def push(**arguments):
    try:
        LTX2Pipeline.save_lora_weights(given["folder"], factors, push_to_hub=True, **arguments)
    except Exception as error:
        return [type(error).__name__, str(error)]
"""


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    folder = tmp_path_factory.mktemp("factors")
    LTX2Pipeline.save_lora_weights(folder, factors())
    return str(folder / WEIGHTS)


def test_a_lora_is_saved_pushed_and_loaded_back(hub, lora, tmp_path):
    script = (
        LORA
        + """
told["first"] = push(repo_id="user/my-lora", private=True, commit_message="First")
told["again"] = push(repo_id="my-lora")
pipe = LTX2Pipeline.from_pretrained(given["base"])
pipe.load_lora_weights("user/my-lora")
told["loaded"] = pipe.get_list_adapters()
told["equal"] = bool((pipe.lora_state_dict("user/my-lora")["transformer.transformer_blocks.0.attn1.to_q.lora_A.weight"] == 1).all())
"""
    )
    folder = tmp_path / "lora"
    told = run_client(hub, tmp_path / "cache", script, folder=str(folder), lora=lora, base=TINY)
    assert told == {"first": None, "again": None, "loaded": {"transformer": ["default_0"]}, "equal": True}
    repository = hub.repositories["user/my-lora"]
    assert repository.private
    # The second time nothing had changed.
    assert repository.messages == ["First"]
    assert repository.files().keys() == {"README.md", WEIGHTS}
    assert repository.files()[WEIGHTS] == (folder / WEIGHTS).read_bytes()
    assert [path.name for path in folder.iterdir()] == [WEIGHTS]
    data = ModelCard(repository.files()["README.md"].decode()).data
    assert {"lora", "template:sd-lora", "ltx-2"} <= set(data.tags)
    assert not [request for request in hub.requests if "xet" in request]


def test_a_card_beside_the_lora_is_pushed_and_one_in_the_repository_stays(hub, lora, tmp_path):
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMy own card.\n")
    (folder / "notes.txt").write_text("private")
    told = run_client(hub, tmp_path / "cache", LORA + 'push(repo_id="user/x")', folder=str(folder), lora=lora)
    assert told == {}
    files = hub.repositories["user/x"].files()
    assert files.keys() == {"README.md", WEIGHTS}
    assert files["README.md"] == (folder / "README.md").read_bytes()
    (folder / "README.md").unlink()
    run_client(hub, tmp_path / "cache", LORA + 'push(repo_id="user/x")', folder=str(folder), lora=lora)
    assert b"My own card." in hub.repositories["user/x"].files()["README.md"]
    assert b"license: mit" in hub.repositories["user/x"].files()["README.md"]


@pytest.mark.parametrize(
    ("environment", "arguments", "kind", "parts"),
    [
        ({"HF_TOKEN": "hf_wrong"}, {}, "PermissionError", ["status 401", "hf auth login"]),
        ({"HF_TOKEN": READER}, {}, "PermissionError", ["status 403", "may not write"]),
        ({}, {"token": "hf_wrong"}, "PermissionError", ["status 401"]),
        ({}, {"repo_id": "stranger/x"}, "PermissionError", ["'stranger/x'", "status 403"]),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {}, "ConnectionError", ["http://127.0.0.1:9", "cannot be reached"]),
        ({"HF_HUB_OFFLINE": "1"}, {}, "ConnectionError", ["HF_HUB_OFFLINE"]),
    ],
)
def test_a_push_that_fails_says_why_and_loses_nothing(hub, lora, tmp_path, environment, arguments, kind, parts):
    folder = tmp_path / "lora"
    said = {"repo_id": "user/x", **arguments}
    script = LORA + 'told["error"] = push(**given["said"])'
    told = run_client(hub, tmp_path / "cache", script, environment, folder=str(folder), lora=lora, said=said)
    name, message = told["error"]
    assert name == kind
    assert all(part in message for part in [said["repo_id"], "nothing local was lost", *parts]), message
    assert [path.name for path in folder.iterdir()] == [WEIGHTS]


def test_what_cannot_name_a_repository_is_refused_before_anything_is_written(lora, tmp_path):
    del lora
    with pytest.raises(ValueError, match=r"`repo_id` is 'a/b/c', which cannot name a repository"):
        LTX2Pipeline.save_lora_weights(tmp_path / "x", factors(), push_to_hub=True, repo_id="a/b/c")
    with pytest.raises(ValueError, match="`push_to_hub` is False"):
        LTX2Pipeline.save_lora_weights(tmp_path / "x", factors(), repo_id="user/x")
    with pytest.raises(ValueError, match="cannot name a repository"):
        LTX2Pipeline.from_pretrained(TINY).save_pretrained(tmp_path / "x", push_to_hub=True, repo_id="no spaces")
    assert not (tmp_path / "x").exists()


PIPELINE = """
import torch
from ltx2_diffusers import LTX2Pipeline
pipe = LTX2Pipeline.from_pretrained(given["base"])

def frames(pipe):
    made = pipe("a cat", height=64, width=64, num_frames=9, num_inference_steps=2, output_type="uint8", generator=torch.Generator().manual_seed(0))
    return made.frames
"""


def test_a_pipeline_is_pushed_and_loaded_back(hub, tmp_path):
    script = (
        PIPELINE
        + """
told["url"] = pipe.push_to_hub("user/tiny", commit_message="Whole pipeline")
again = LTX2Pipeline.from_pretrained("user/tiny")
told["equal"] = torch.equal(frames(pipe), frames(again))
pipe.save_pretrained(given["folder"], push_to_hub=True, repo_id="user/tiny-2", private=True)
told["class"] = type(LTX2Pipeline.from_pretrained("user/tiny-2")).__name__
"""
    )
    folder = tmp_path / "saved"
    told = run_client(hub, tmp_path / "cache", script, base=TINY, folder=str(folder))
    assert told == {"url": f"{hub.url}/user/tiny", "equal": True, "class": "LTX2Pipeline"}
    first, second = (hub.repositories[name] for name in ("user/tiny", "user/tiny-2"))
    assert (first.messages, first.private, second.private) == (["Whole pipeline"], False, True)
    saved = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert second.files() == saved
    card = ModelCard(first.files()["README.md"].decode())
    assert {"ltx-2", "text-to-video", "audio-video"} <= set(card.data.tags)
    assert (card.data.license, card.data.library_name) == ("other", "diffusers")
    assert 'LTX2Pipeline.from_pretrained("user/tiny", dtype=torch.bfloat16)' in card.text


def test_a_pipeline_whose_push_fails_is_saved(hub, tmp_path):
    hub.breaks_at = "POST api/models/user/tiny/commit"
    script = (
        PIPELINE
        + """
try:
    pipe.save_pretrained(given["folder"], push_to_hub=True, repo_id="user/tiny")
except OSError as error:
    told["error"] = str(error)
told["equal"] = torch.equal(frames(pipe), frames(LTX2Pipeline.from_pretrained(given["folder"])))
"""
    )
    told = run_client(hub, tmp_path / "cache", script, base=TINY, folder=str(tmp_path / "saved"))
    assert "'user/tiny'" in told["error"]
    assert "status 500" in told["error"]
    assert told["equal"]


def test_a_model_is_pushed_with_a_card(hub, tmp_path):
    script = (
        PIPELINE
        + """
pipe.vae.save_pretrained(given["folder"], push_to_hub=True)
told["class"] = type(type(pipe.vae).from_pretrained("user/my-vae")).__name__
"""
    )
    told = run_client(hub, tmp_path / "cache", script, base=TINY, folder=str(tmp_path / "my-vae"))
    assert told == {"class": "AutoencoderKLLTX2Video"}
    assert b"AutoencoderKLLTX2Video.from_pretrained" in hub.repositories["user/my-vae"].files()["README.md"]


TRAINING = """
from pathlib import Path
from ltx2_diffusers.training.config_files import load_config
from ltx2_diffusers.training.hub import push_training
from ltx2_diffusers.training.validation import ValidationSample
folder = Path(given["folder"])
config = load_config(folder / "training_config.yaml")
samples = [ValidationSample(folder / "samples" / name, f"prompt of {name}", 1) for name in given["samples"]]

def push(**arguments):
    try:
        return push_training(config, folder, samples, "user/trained", **arguments)
    except Exception as error:
        return [type(error).__name__, str(error)]
"""


@pytest.fixture
def result(tmp_path, lora):
    """The folder of a training run at its end."""
    from ltx2_diffusers.training.config import TrainingConfig

    folder = tmp_path / "outputs"
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(Path(lora).read_bytes())
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "optimizer.bin").write_bytes(b"states")
    sections = {"model": {"model_path": "ltx2-tiny"}, "lora": {"rank": 2, "alpha": 2}, "output_dir": str(folder)}
    config = TrainingConfig.model_validate({**sections, "data": {"preprocessed_data_root": str(tmp_path)}})
    save_config(config, folder / "training_config.yaml")
    pixels = torch.randint(0, 256, (25, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(folder / "samples" / "step_000007_1.mp4", pixels, 25.0)
    PIL.Image.fromarray(pixels[0].numpy()).save(folder / "samples" / "step_000007_2.png")
    return folder


def test_the_result_of_training_is_pushed_whole_and_loads(hub, result, tmp_path):
    before = {path: path.read_bytes() for path in result.rglob("*") if path.is_file()}
    script = (
        TRAINING
        + """
told["url"] = push(private=True, commit_message="Trained", trigger="SKSCAT")
from ltx2_diffusers import LTX2Pipeline, packaged_checkpoint
pipe = LTX2Pipeline.from_pretrained(packaged_checkpoint("ltx2-tiny"))
pipe.load_lora_weights("user/trained")
told["loaded"] = pipe.get_list_adapters()
pipe.load_lora_weights("user/trained", weight_name=given["original"], adapter_name="original")
told["branch"] = push(revision="second")
"""
    )
    samples = ["step_000007_1.mp4", "step_000007_2.png"]
    told = run_client(hub, tmp_path / "cache", script, folder=str(result), samples=samples, original=ORIGINAL_NAME)
    url = f"{hub.url}/user/trained"
    assert told == {"url": url, "loaded": {"transformer": ["default_0"]}, "branch": url}
    repository = hub.repositories["user/trained"]
    assert repository.private
    assert repository.messages[0] == "Trained"
    assert repository.branches.keys() == {"main", "second"}
    files = repository.files()
    pictures = {"samples/sample_0.mp4", "samples/sample_0.gif", "samples/sample_1.png"}
    assert files.keys() == {"README.md", "training_config.yaml", WEIGHTS, ORIGINAL_NAME, *pictures}
    assert files[WEIGHTS] == before[result / WEIGHTS]
    assert files["training_config.yaml"] == before[result / "training_config.yaml"]
    assert files["samples/sample_0.mp4"] == before[result / "samples" / samples[0]]
    assert {path: path.read_bytes() for path in result.rglob("*") if path.is_file()} == before
    data = ModelCard(files["README.md"].decode()).data
    assert data.get("instance_prompt") == "SKSCAT"
    assert [one["output"]["url"] for one in data.get("widget")] == ["samples/sample_0.gif", "samples/sample_1.png"]
    assert files["samples/sample_0.gif"].startswith(b"GIF89a")


def test_a_second_push_renews_the_card(hub, result, tmp_path):
    script = TRAINING + 'push(trigger="OLD"); samples = []; push(trigger="NEW")'
    run_client(hub, tmp_path / "cache", script, folder=str(result), samples=["step_000007_1.mp4"])
    card = ModelCard(hub.repositories["user/trained"].files()["README.md"].decode())
    assert card.data.get("instance_prompt") == "NEW"
    assert "OLD" not in card.text
    assert len(card.data.tags) == len(set(card.data.tags))


def test_a_result_that_lacks_something_is_not_pushed(hub, result, tmp_path):
    script = TRAINING + 'told["gone"] = push(); (folder / given["weights"]).unlink(); told["weights"] = push()'
    told = run_client(hub, tmp_path / "cache", script, folder=str(result), samples=["gone.mp4"], weights=WEIGHTS)
    assert told["gone"][0] == told["weights"][0] == "ValueError"
    assert "gone.mp4" in told["gone"][1]
    assert "there are no weights to push" in told["weights"][1]
    assert hub.repositories == {}


def test_animated_pictures_have_at_most_fifteen_frames_a_second_and_no_end(tmp_path):
    pixels = torch.arange(25, dtype=torch.uint8)[:, None, None, None].expand(25, 600, 40, 3) * 10
    write_video(tmp_path / "clip.mp4", pixels, 25.0)
    write_gif(tmp_path / "clip.mp4", tmp_path / "clip.gif")
    image = PIL.Image.open(tmp_path / "clip.gif")
    assert image.n_frames == round(float(probe(tmp_path / "clip.mp4").duration_s) * MAX_GIF_RATE)
    assert image.info["loop"] == 0
    assert 1000 / image.info["duration"] <= MAX_GIF_RATE
    assert image.size == (34, 512)


def test_the_stand_in_refuses_bytes_with_another_checksum(hub):
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    place = f"{hub.url}/lfs/{hashlib.sha256(b'one').hexdigest()}"
    with pytest.raises(HTTPError, match="422"):
        urlopen(Request(place, data=b"two", method="PUT"))
    urlopen(Request(place, data=b"one", method="PUT"))
    assert BytesIO(hub.large_files[place.rsplit("/", 1)[1]]).read() == b"one"
