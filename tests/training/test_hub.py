"""Publishing to the Hub, against a stand-in of its HTTP interface."""

import hashlib
import subprocess
import sys

import PIL.Image
import pytest
import torch
from huggingface_hub import ModelCard, constants

from ltx2_diffusers import LTX2Pipeline, LTX2Vocoder
from ltx2_diffusers.media.reading import probe
from ltx2_diffusers.media.writing import write_video
from ltx2_diffusers.training.config import TrainingConfig
from ltx2_diffusers.training.config_files import save_config
from ltx2_diffusers.training.hub import MAX_GIF_RATE, ORIGINAL_NAME, push_training, write_gif
from ltx2_diffusers.training.model_card import CONFIG_NAME
from ltx2_diffusers.training.trainer import LTX2Trainer
from ltx2_diffusers.training.validation import ValidationSample
from tests.hub_server import READER, HubServer
from tests.tiny_checkpoints import tiny_checkpoint
from tests.training.running import Losses, config, stored_samples

TINY = str(tiny_checkpoint("2.0"))
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        server.connect(monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture(scope="module")
def pipeline():
    return LTX2Pipeline.from_pretrained(TINY)


@pytest.fixture(scope="module")
def factors(pipeline):
    module = "transformer_blocks.0.attn1.to_q"
    linear = pipeline.transformer.get_submodule(module)
    down, up = torch.ones(2, linear.in_features), torch.ones(linear.out_features, 2)
    return {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}


def push_lora(folder, factors, repo_id="user/my-lora", **arguments):
    LTX2Pipeline.save_lora_weights(folder, factors, push_to_hub=True, repo_id=repo_id, **arguments)


def card_of(repository):
    return ModelCard(repository.files()["README.md"].decode())


def test_a_lora_is_saved_pushed_and_loaded_back(hub, factors, tmp_path):
    folder = tmp_path / "lora"
    push_lora(folder, factors, private=True, commit_message="First")
    # A name in one's own space; and nothing has changed, so that there is nothing to commit.
    push_lora(folder, factors, "my-lora")
    repository = hub.repositories["user/my-lora"]
    assert repository.private
    assert repository.messages == ["First"]
    assert repository.files().keys() == {"README.md", WEIGHTS}
    assert repository.files()[WEIGHTS] == (folder / WEIGHTS).read_bytes()
    assert {path.name for path in folder.iterdir()} == {"README.md", WEIGHTS}
    assert {"lora", "template:sd-lora", "ltx-2"} <= set(card_of(repository).data.tags)
    assert not [request for request in hub.requests if "xet" in request]
    own = LTX2Pipeline.from_pretrained(TINY)
    own.load_lora_weights("user/my-lora")
    assert own.get_list_adapters() == {"transformer": ["default_0"]}
    loaded = own.lora_state_dict("user/my-lora")
    assert all(torch.equal(loaded[f"transformer.{name}"], tensor) for name, tensor in factors.items())


def test_a_card_beside_the_lora_is_pushed_and_one_in_the_repository_stays(hub, factors, tmp_path):
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\nMy own card.\n")
    (folder / "notes.txt").write_text("private")
    push_lora(folder, factors)
    files = hub.repositories["user/my-lora"].files()
    assert files.keys() == {"README.md", WEIGHTS}
    assert files["README.md"] == (folder / "README.md").read_bytes()
    (folder / "README.md").unlink()
    push_lora(folder, factors)
    card = card_of(hub.repositories["user/my-lora"])
    assert "My own card." in card.text
    assert card.data.license == "mit"


def test_a_card_that_was_edited_on_the_hub_stays_and_one_of_ours_is_renewed(hub, factors, tmp_path):
    push_lora(tmp_path / "a", factors, trigger="OLD")
    push_lora(tmp_path / "a", factors, trigger="NEW")
    repository = hub.repositories["user/my-lora"]
    assert card_of(repository).data.get("instance_prompt") == "NEW"
    assert "# my-lora" in card_of(repository).text
    assert "# a\n" in (tmp_path / "a" / "README.md").read_text()
    edited = repository.files()["README.md"].replace(b"A LoRA for", b"My LoRA for")
    repository.commit("main", {**repository.files(), "README.md": edited}, "Edited")
    push_lora(tmp_path / "b", factors, trigger="NEWEST", base_model="Lightricks/LTX-2")
    card = card_of(repository)
    assert "My LoRA for" in card.text
    assert (card.data.get("instance_prompt"), card.data.base_model) == ("NEW", "Lightricks/LTX-2")


def test_a_folder_of_a_repository_gets_no_card(hub, pipeline, tmp_path):
    pipeline.vocoder.save_pretrained(tmp_path / "a", push_to_hub=True, repo_id="user/parts", subfolder="vocoder")
    pipeline.push_to_hub("user/parts", subfolder="whole")
    names = hub.repositories["user/parts"].files()
    assert not [name for name in names if name.endswith("README.md")]
    assert {"vocoder/config.json", "whole/model_index.json"} <= set(names)


def named(monkeypatch, name, value):
    """Set what the library reads from its environment."""
    if name == "HF_TOKEN":
        monkeypatch.setenv(name, value)
    else:
        monkeypatch.setattr(constants, name, value)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("setting", "arguments", "kind", "parts"),
    [
        (("HF_TOKEN", "hf_wrong"), {}, PermissionError, ["status 401", "hf auth login"]),
        (("HF_TOKEN", READER), {}, PermissionError, ["status 403", "may not write"]),
        (None, {"token": "hf_wrong"}, PermissionError, ["status 401"]),
        (None, {"repo_id": "stranger/x"}, PermissionError, ["'stranger/x'", "status 403"]),
        (("ENDPOINT", "http://127.0.0.1:9"), {}, ConnectionError, ["http://127.0.0.1:9", "cannot be reached"]),
        (("HF_HUB_OFFLINE", True), {}, ConnectionError, ["HF_HUB_OFFLINE"]),
    ],
)
def test_a_push_that_fails_says_why_and_loses_nothing(
    hub, factors, tmp_path, monkeypatch, setting, arguments, kind, parts
):
    del hub
    if setting is not None:
        named(monkeypatch, *setting)
    with pytest.raises(kind) as caught:
        push_lora(tmp_path / "lora", factors, **arguments)
    message = str(caught.value)
    expected = [arguments.get("repo_id", "'user/my-lora'"), "nothing local was lost", *parts]
    assert all(part in message for part in expected), message
    assert {path.name for path in (tmp_path / "lora").iterdir()} == {"README.md", WEIGHTS}


def test_what_cannot_name_a_repository_is_refused_before_anything_is_written(pipeline, factors, tmp_path):
    with pytest.raises(ValueError, match=r"`repo_id` is 'a/b/c', which cannot name a repository"):
        push_lora(tmp_path / "x", factors, "a/b/c")
    with pytest.raises(ValueError, match="`push_to_hub` is False"):
        LTX2Pipeline.save_lora_weights(tmp_path / "x", factors, repo_id="user/x")
    with pytest.raises(ValueError, match="cannot name a repository"):
        pipeline.save_pretrained(tmp_path / "x", push_to_hub=True, repo_id="no spaces")
    assert not (tmp_path / "x").exists()


def weights(pipeline):
    return pipeline.transformer.state_dict()


def assert_same_weights(one, other):
    assert weights(one).keys() == weights(other).keys()
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


def test_a_pipeline_is_pushed_and_loaded_back(hub, pipeline):
    assert pipeline.push_to_hub("user/tiny", commit_message="Whole pipeline") == f"{hub.url}/user/tiny"
    repository = hub.repositories["user/tiny"]
    assert (repository.messages, repository.private) == (["Whole pipeline"], False)
    card = card_of(repository)
    assert {"ltx-2", "text-to-video", "audio-video"} <= set(card.data.tags)
    # Of a checkpoint from nowhere nobody knows the licence.
    assert (card.data.license, card.data.library_name) == (None, "diffusers")
    assert 'LTX2Pipeline.from_pretrained("user/tiny", dtype=torch.bfloat16)' in card.text
    assert_same_weights(pipeline, LTX2Pipeline.from_pretrained("user/tiny"))


def test_a_saved_pipeline_is_pushed_as_it_was_saved(hub, pipeline, tmp_path):
    folder = tmp_path / "saved"
    pipeline.save_pretrained(folder, push_to_hub=True, private=True)
    repository = hub.repositories["user/saved"]
    assert repository.private
    saved = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert repository.files() == saved


def test_a_pipeline_whose_push_fails_is_saved(hub, pipeline, tmp_path):
    hub.breaks_at = "POST api/models/user/tiny/commit"
    with pytest.raises(OSError, match=r"'user/tiny'.*status 500.*nothing local was lost"):
        pipeline.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="user/tiny")
    assert_same_weights(pipeline, LTX2Pipeline.from_pretrained(tmp_path / "saved"))


def test_a_model_is_pushed_with_a_card(hub, pipeline, tmp_path):
    pipeline.vocoder.save_pretrained(tmp_path / "my-vocoder", push_to_hub=True)
    assert "LTX2Vocoder.from_pretrained" in card_of(hub.repositories["user/my-vocoder"]).text
    assert isinstance(LTX2Vocoder.from_pretrained("user/my-vocoder"), LTX2Vocoder)


CLIENT = """
import sys, torch
sys.path[:] = {path}
from ltx2_diffusers import LTX2Pipeline
pipe = LTX2Pipeline.from_pretrained({base!r})
pipe.push_to_hub("user/tiny")
again = LTX2Pipeline.from_pretrained("user/tiny")
again.load_lora_weights("user/my-lora")

def frames(pipe):
    size = dict(height=64, width=64, num_frames=9, num_inference_steps=2, output_type="uint8")
    return pipe("a cat", generator=torch.Generator().manual_seed(0), **size).frames

changed = frames(again)
again.unload_lora_weights()
print(torch.equal(frames(pipe), frames(again)), torch.equal(changed, frames(again)))
"""


@pytest.mark.slow
def test_a_process_whose_hub_is_another_one_pushes_and_loads(hub, factors, tmp_path):
    """The library reads its settings when it is imported, as here."""
    push_lora(tmp_path / "lora", {name: 3 * tensor for name, tensor in factors.items()})
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **hub.environment(str(tmp_path / "own"))}
    script = CLIENT.format(path=sys.path, base=TINY)
    result = subprocess.run([sys.executable, "-c", script], env=variables, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1:] == ["True False"], result.stderr


@pytest.fixture
def outputs(tmp_path, factors):
    """The folder of a training run at its end."""
    folder = tmp_path / "outputs"
    LTX2Pipeline.save_lora_weights(folder, factors)
    (folder / "checkpoint-7").mkdir()
    (folder / "checkpoint-7" / "optimizer.bin").write_bytes(b"states")
    pixels = torch.randint(0, 256, (25, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(folder / "samples" / "step_000007_1.mp4", pixels, 25.0)
    PIL.Image.fromarray(pixels[0].numpy()).save(folder / "samples" / "step_000007_2.png")
    save_config(settings(folder), folder / CONFIG_NAME)
    return folder


def settings(folder):
    sections = {"model": {"model_path": TINY}, "lora": {"rank": 2, "alpha": 2}, "output_dir": str(folder)}
    return TrainingConfig.model_validate({**sections, "data": {"preprocessed_data_root": str(folder)}})


def samples_in(folder):
    files = sorted((folder / "samples").iterdir())
    return [ValidationSample(path, f"prompt of {path.name}", 1) for path in files]


def test_the_result_of_training_is_pushed_whole_and_loads(hub, outputs):
    before = {path: path.read_bytes() for path in outputs.rglob("*") if path.is_file()}
    arguments = {"private": True, "commit_message": "Trained", "trigger": "SKSCAT"}
    url = push_training(settings(outputs), outputs, samples_in(outputs), "user/trained", **arguments)
    assert url == f"{hub.url}/user/trained"
    repository = hub.repositories["user/trained"]
    assert (repository.private, repository.messages) == (True, ["Trained"])
    files = repository.files()
    pictures = {"samples/sample_0.mp4", "samples/sample_0.gif", "samples/sample_1.png"}
    assert files.keys() == {"README.md", CONFIG_NAME, WEIGHTS, ORIGINAL_NAME, *pictures}
    assert files[WEIGHTS] == before[outputs / WEIGHTS]
    assert files[CONFIG_NAME] == before[outputs / CONFIG_NAME]
    assert files["samples/sample_0.mp4"] == before[outputs / "samples" / "step_000007_1.mp4"]
    assert files["samples/sample_0.gif"].startswith(b"GIF89a")
    assert {path: path.read_bytes() for path in outputs.rglob("*") if path.is_file()} == before
    data = card_of(repository).data
    assert data.get("instance_prompt") == "SKSCAT"
    assert [one["output"]["url"] for one in data.get("widget")] == ["samples/sample_0.gif", "samples/sample_1.png"]
    own = LTX2Pipeline.from_pretrained(TINY)
    own.load_lora_weights("user/trained")
    own.load_lora_weights("user/trained", weight_name=ORIGINAL_NAME, adapter_name="original")
    assert own.get_list_adapters() == {"transformer": ["default_0", "original"]}


def test_the_trigger_is_the_one_that_the_data_was_processed_with(hub, outputs):
    (outputs / ".precomputed").mkdir()
    (outputs / ".precomputed" / "process.json").write_text('{"lora_trigger": "SKSDOG"}')
    push_training(settings(outputs), outputs, [], "user/trained")
    card = card_of(hub.repositories["user/trained"])
    assert card.data.get("instance_prompt") == "SKSDOG"
    assert "Say `SKSDOG` in the prompt." in card.text


def test_a_branch_is_made_and_the_main_one_left_alone(hub, outputs):
    push_training(settings(outputs), outputs, [], "user/trained", revision="second")
    repository = hub.repositories["user/trained"]
    assert repository.files("second").keys() >= {WEIGHTS, "README.md"}
    assert repository.files("main") == {}


def test_a_second_push_renews_the_card(hub, outputs):
    for trigger, samples in (("OLD", samples_in(outputs)), ("NEW", samples_in(outputs)[1:])):
        push_training(settings(outputs), outputs, samples, "user/trained", trigger=trigger)
    card = card_of(hub.repositories["user/trained"])
    assert card.data.get("instance_prompt") == "NEW"
    assert len(card.data.get("widget")) == 1
    assert "OLD" not in card.text
    assert len(card.data.tags) == len(set(card.data.tags))


def test_a_whole_transformer_is_pushed_as_its_folder(hub, pipeline, outputs):
    (outputs / WEIGHTS).unlink()
    pipeline.transformer.save_pretrained(outputs / "transformer")
    whole = settings(outputs)
    whole.model.training_mode = "full"
    push_training(whole, outputs, [], "user/trained")
    files = hub.repositories["user/trained"].files()
    assert {name for name in files if "/" in name} == {
        f"transformer/{path.name}" for path in (outputs / "transformer").iterdir()
    }
    assert "lora" not in card_of(hub.repositories["user/trained"]).data.tags


def test_a_result_that_lacks_something_is_not_pushed(hub, outputs):
    gone = [ValidationSample(outputs / "gone.mp4", "a", 1)]
    with pytest.raises(ValueError, match=r"gone\.mp4' is gone"):
        push_training(settings(outputs), outputs, gone, "user/trained")
    (outputs / CONFIG_NAME).unlink()
    with pytest.raises(ValueError, match=f"holds no {CONFIG_NAME}"):
        push_training(settings(outputs), outputs, [], "user/trained")
    (outputs / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="there are no weights to push"):
        push_training(settings(outputs), outputs, [], "user/trained")
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
    assert hub.large_files == {place.rsplit("/", 1)[1]: b"one"}


@pytest.mark.quick_cases(0)
def test_a_run_makes_samples_without_a_trace_and_publishes_its_result(hub, tmp_path):
    data = stored_samples(tmp_path / "data")
    losses = {}
    for name, validation in {
        "plain": {"interval": None},
        "sampled": {"interval": 2, "prompts": ["a cat"], "video_dims": [64, 64, 9], "inference_steps": 2},
    }.items():
        published = {"push_to_hub": True, "hub_model_id": f"user/{name}"}
        trainer = LTX2Trainer(config(data, tmp_path / name, validation=validation, hub=published))
        losses[name] = Losses(trainer)
        trainer.train()
    assert losses["plain"].values == losses["sampled"].values
    made = sorted(path.name for path in (tmp_path / "sampled" / "samples").iterdir())
    assert made == [f"step_{step:06d}_1.mp4" for step in (0, 2, 4)]
    files = hub.repositories["user/sampled"].files()
    assert files["samples/sample_0.mp4"] == (tmp_path / "sampled" / "samples" / made[-1]).read_bytes()
    own = LTX2Pipeline.from_pretrained(TINY)
    own.load_lora_weights("user/sampled")
    assert own.get_list_adapters() == {"transformer": ["default_0"]}
