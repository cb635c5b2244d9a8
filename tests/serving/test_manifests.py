"""How jobs were made, and their making again."""

import base64
import hashlib
import shutil
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest

from ltx2_diffusers.serving.settings import Limits
from tests.serving.clips import content, create, data_uri, decoded, finished, generate, refusal
from tests.serving.conftest import JOB, QUICK
from tests.serving.test_storyboards import BOARD, equal, submitted


def manifest(client, job: str) -> dict:
    answer = client.get(f"/v1/videos/{job}/manifest")
    assert answer.status_code == 200, answer.text
    return answer.json()


def replayed(client, job: str) -> dict:
    """The finished job that makes another one again."""
    answer = client.post(f"/v1/videos/{job}/replay")
    assert answer.status_code == 200, answer.text
    return finished(client, answer.json()["id"])


def brought(value, files: dict[str, str]):
    """A request of a manifest with files in place of their names."""
    if isinstance(value, list):
        return [brought(part, files) for part in value]
    if isinstance(value, dict):
        if value.keys() == {"sha256", "field"}:
            return files[value["sha256"]]
        return {name: brought(part, files) for name, part in value.items()}
    return value


def named(*files: str) -> dict[str, str]:
    """Files by the names of their content."""
    return {hashlib.sha256(base64.b64decode(file.partition(",")[2])).hexdigest(): file for file in files}


def test_a_manifest_says_how_a_job_was_made(client, media):
    picture = data_uri(media / "red.png")
    wanted = {**JOB, "image_at": [{"frame": -1, "media": picture, "strength": 0.5}], "adapters": {"strong": 0.5}}
    job = finished(client, create(client, **wanted))["id"]
    made = manifest(client, job)
    assert (made["format"], made["endpoint"], made["seed"]) == ("ltx2 job 1", "/v1/videos", 7)
    assert made["request"] == {
        **{name: value for name, value in JOB.items() if name != "seed"},
        "seed": 7,
        "frame_rate": 24.0,
        "image_at": [
            {"frame": -1, "media": {"sha256": next(iter(named(picture))), "field": "image_at"}, "strength": 0.5}
        ],
        "adapters": {"strong": 0.5},
    }
    assert (made["model"]["name"], made["model"]["dtype"]) == ("tiny", "float32")
    assert made["model"]["checkpoint"].keys() == {"sha256"}
    # The other LoRA of the server has no part in it.
    assert made["model"]["adapters"].keys() == {"strong"}
    assert made["versions"]["torch"] == version("torch")
    clip = content(client, job)
    assert made["result"]["sha256"] == hashlib.sha256(clip).hexdigest()
    assert (made["result"]["width"], made["result"]["frames"]) == (64, 9)
    again = finished(client, create(client, **brought(made["request"], named(picture))))["id"]
    assert equal(content(client, again), clip)


def test_a_replay_has_equal_frames_also_with_a_picture(client, media):
    first = finished(client, create(client, **{**JOB, "seed": None, "image": data_uri(media / "red.png")}))
    again = replayed(client, first["id"])
    assert (again["status"], again["seed"], again["mode"]) == ("completed", first["seed"], first["mode"])
    assert again["id"] != first["id"]
    assert equal(content(client, first["id"]), content(client, again["id"]))
    # It has files of its own.
    client.delete(f"/v1/videos/{first['id']}")
    assert equal(content(client, replayed(client, again["id"])["id"]), content(client, again["id"]))
    plain = finished(client, create(client, **{**JOB, "seed": first["seed"]}))["id"]
    assert not np.array_equal(decoded(content(client, plain))[0], decoded(content(client, again["id"]))[0])


def test_a_storyboard_is_replayed_and_made_of_its_manifest(client, media):
    picture = data_uri(media / "red.png")
    shots = [{**BOARD["shots"][0], "duration_s": 0.4, "keyframes": [{"image": picture}]}]
    job = finished(client, submitted(client, shots=shots, seed=3)["id"])["id"]
    made = manifest(client, job)
    assert (made["endpoint"], made["seed"], made["result"]["frames"]) == ("/v1/storyboards", 3, 9)
    answer = client.post("/v1/storyboards", json=brought(made["request"], named(picture)))
    assert answer.status_code == 200, answer.text
    other = finished(client, answer.json()["id"])["id"]
    again = replayed(client, job)
    assert again["shots"] == {"finished": 1, "total": 1}
    assert equal(content(client, job), content(client, other))
    assert equal(content(client, job), content(client, again["id"]))


def test_texts_that_a_language_model_wrote_are_kept(client):
    job = finished(client, create(client, **{**JOB, "enhance_prompt": True, "enhance_tokens": 4}))["id"]
    request = manifest(client, job)["request"]
    assert not request.keys() & {"enhance_prompt", "enhance_tokens"}
    assert request["prompt"] != JOB["prompt"]
    assert equal(content(client, job), content(client, replayed(client, job)["id"]))


def test_only_what_is_finished_has_a_manifest(client):
    job = create(client, **{**JOB, "steps": 200, "num_frames": 33})
    answers = (client.get(f"/v1/videos/{job}/manifest"), client.post(f"/v1/videos/{job}/replay"))
    client.post(f"/v1/videos/{job}/cancel")
    answers += (client.get(f"/v1/videos/{job}/manifest"), client.post(f"/v1/videos/{job}/replay"))
    assert [answer.status_code for answer in answers] == [409] * 4
    assert client.post("/v1/videos/none/replay").status_code == 404


def test_limits_hold_for_replays(serve, served):
    with serve() as client:
        job = finished(client, create(client, **JOB))["id"]
        board = finished(client, submitted(client)["id"])["id"]
    before = sorted((served[0] / "inputs").glob("*"))
    with serve(limits=Limits(max_steps=1)) as client:
        assert refusal(client.post(f"/v1/videos/{job}/replay"))[0] == "steps"
        assert refusal(client.post(f"/v1/videos/{board}/replay"))[0] == "num_inference_steps"
    with serve(limits=Limits(max_storyboard_megapixels=0.01)) as client:
        assert refusal(client.post(f"/v1/videos/{board}/replay"))[0] == "shots"
    assert sorted((served[0] / "inputs").glob("*")) == before


def test_another_checkpoint_or_adapter_makes_no_replay(serve, served):
    _, runner = served
    with serve() as client:
        plain = finished(client, create(client, **JOB))["id"]
        strong = finished(client, create(client, **JOB, adapters={"strong": 0.5}))["id"]
    model = runner.model
    try:
        runner.model = replace(model, identity={**model.identity, "adapters": {"strong": {"sha256": "other"}}})
        with serve() as client:
            assert client.post(f"/v1/videos/{plain}/replay").status_code == 200
            answer = client.post(f"/v1/videos/{strong}/replay")
            assert (answer.status_code, "the adapter 'strong'" in answer.json()["detail"]) == (409, True)
        runner.model = replace(model, identity={**model.identity, "checkpoint": {"sha256": "other"}})
        with serve() as client:
            answer = client.post(f"/v1/videos/{plain}/replay")
            assert (answer.status_code, "the checkpoint of this server" in answer.json()["detail"]) == (409, True)
    finally:
        runner.model = model


def test_files_live_as_long_as_their_job(client, served, media):
    inputs = served[0] / "inputs"
    job = finished(client, create(client, **JOB, image=data_uri(media / "red.png")))["id"]
    assert (inputs / job).is_dir()
    before = sorted(inputs.iterdir())
    generate(client, **QUICK, image=data_uri(media / "red.png"))
    assert sorted(inputs.iterdir()) == before
    shutil.rmtree(inputs / job)
    answer = client.post(f"/v1/videos/{job}/replay")
    assert (answer.status_code, "are gone" in answer.json()["detail"]) == (409, True)
    other = finished(client, create(client, **JOB, image=data_uri(media / "red.png")))["id"]
    client.delete(f"/v1/videos/{other}")
    assert not (inputs / other).exists()


@pytest.mark.parametrize("wanted", [{"quantize": "fp8-cast"}, {"vram": 8}, {"release_text_encoder": True}])
def test_what_is_loaded_is_the_servers_business(client, wanted):
    (name,) = wanted
    assert refusal(client.post("/v1/videos", json={**JOB, **wanted})) == (name, "Extra inputs are not permitted")
