"""Storyboards as jobs: what is asked for, checked and made, shot by shot."""

import json

import numpy as np
import pytest

from ltx2_diffusers.application.storyboard.board import SETTINGS, Storyboard, parse_storyboard
from ltx2_diffusers.application.storyboard.making import make_storyboard
from ltx2_diffusers.media.writing import write_audio
from ltx2_diffusers.serving.settings import Limits
from tests.media.clips import tone
from tests.serving.clips import content, create, data_uri, decoded, finished, left, steps
from tests.serving.conftest import JOB
from tests.serving.test_videos import LONG, events

# Three segments of 17 frames, of which the last two add 8: 33 frames.
BOARD = {
    "width": 64,
    "height": 64,
    "num_frames": 17,
    "overlap_frames": 9,
    "num_inference_steps": 2,
    "guidance_scale": 1.0,
    "max_sequence_length": 64,
    "shots": [{"prompt": "A fox walks.", "duration_s": 0.7}, {"prompt": "Waves break.", "duration_s": 0.7}],
}


def submitted(client, **changed) -> dict:
    """A new job of the storyboard with changes."""
    answer = client.post("/v1/storyboards", json={**BOARD, **changed})
    assert answer.status_code == 200, answer.text
    return answer.json()


def shot(client, job: str, number: int):
    return client.get(f"/v1/videos/{job}/shots/{number}/content")


def equal(one: bytes, other: bytes) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(decoded(one)[:2], decoded(other)[:2]))


def test_a_storyboard_is_a_job_like_others(client, served, tmp_path):
    job = submitted(client, seed=7)
    told = {name: job[name] for name in ("object", "status", "mode", "prompt", "size", "seconds", "seed", "shots")}
    assert told | {"status": "queued"} == {
        "object": "video",
        "status": "queued",
        "mode": "storyboard",
        "prompt": "A fox walks.\nWaves break.",
        "size": "64x64",
        "seconds": "1.375",
        "seed": 7,
        "shots": {"finished": 0, "total": 2},
    }
    video = finished(client, job["id"])
    assert (video["status"], video["progress"], video["shots"]) == ("completed", 100, {"finished": 2, "total": 2})
    assert job["id"] in [one["id"] for one in client.get("/v1/videos").json()["data"]]
    _, runner = served
    board = parse_storyboard({**BOARD, "seed": 7})
    make_storyboard(board, next(iter(runner._pipelines.values())), tmp_path / "film.mp4")
    assert equal(content(client, job["id"]), (tmp_path / "film.mp4").read_bytes())


def test_shots_can_be_fetched_and_make_up_the_film(client, served):
    job = finished(client, submitted(client)["id"])["id"]
    film = decoded(content(client, job))[0]
    shots = [decoded(shot(client, job, number).content) for number in (1, 2)]
    assert np.array_equal(film, np.concatenate([frames for frames, _, _ in shots]))
    assert all(sound is not None for _, sound, _ in shots)
    assert [shot(client, job, number).status_code for number in (3, 0)] == [404, 422]
    other = create(client, **JOB)
    assert shot(client, other, 1).status_code == 404
    # Of what it was made of, nothing but these is kept.
    folder = served[0] / "results" / job
    assert left(folder, "*.segments") == []
    assert sorted(path.name for path in folder.iterdir()) == ["shot_0001.mp4", "shot_0002.mp4"]
    assert client.delete(f"/v1/videos/{job}").status_code == 200
    assert left(served[0] / "results", f"{job}*") == []


def test_events_tell_of_shots_and_steps(client):
    told = events(client, submitted(client, preview_every=2)["id"])
    steps = [event for kind, event in told if kind == "progress"]
    assert steps[-1] == {"progress": 99, "run": 3, "step": 2, "steps": 2, "shots": 1, "segment": 3, "segments": 3}
    assert [event for kind, event in told if kind == "shot"][-1] == {"finished": 2, "total": 2}
    assert [kind for kind, _ in told].count("preview") >= 1
    assert told[-1][1]["status"] == "completed"


def test_pictures_and_one_sound_come_with_the_request(client, media, tmp_path):
    write_audio(tmp_path / "song.wav", tone(2.0, 24000), 24000)
    shots = [{**BOARD["shots"][0], "keyframes": [{"image": data_uri(media / "red.png")}]}, BOARD["shots"][1]]
    job = finished(client, submitted(client, shots=shots, audio=data_uri(tmp_path / "song.wav", "audio/wav"))["id"])
    assert job["status"] == "completed", job
    frames, sound, _ = decoded(content(client, job["id"]))
    red, _, blue = frames[0].reshape(-1, 3).mean(0)
    assert red > blue + 20
    assert np.abs(sound).max() > 0.4


def test_a_running_storyboard_is_cancelled_within_a_step_and_its_shots_stay(client, served):
    shots = [*BOARD["shots"], {"prompt": "Rain.", "duration_s": 5}]
    job = submitted(client, shots=shots, num_inference_steps=11)["id"]
    while client.get(f"/v1/videos/{job}").json()["shots"]["finished"] < 1:
        pass
    assert shot(client, job, 1).status_code == 200
    assert client.post(f"/v1/videos/{job}/cancel").json()["status"] == "cancelled"
    made = steps(client)
    assert finished(client, create(client, **JOB))["status"] == "completed"
    assert steps(client) - made <= 1 + JOB["steps"]
    assert (shot(client, job, 1).status_code, shot(client, job, 3).status_code) == (200, 409)
    assert client.get(f"/v1/videos/{job}").json()["shots"]["finished"] >= 1
    assert left(served[0] / "results" / job, "*.segments") == []


def test_a_storyboard_that_is_handed_back_goes_on_where_it_was(serve, served):
    # Stands still after its first shot, but not on the runner alone.
    long = {"num_inference_steps": 11}
    with serve(served[1]) as client:
        whole = content(client, finished(client, submitted(client, **long)["id"])["id"])
    with serve(limits=Limits(grace=0.05)) as client:
        job = submitted(client, **long)["id"]
        while client.get(f"/v1/videos/{job}").json()["shots"]["finished"] < 1:
            pass
        first = shot(client, job, 1).content
    with serve(served[1]) as client:
        told = events(client, job)
        # The first shot is not made again.
        assert min(event["segment"] for kind, event in told if kind == "progress") >= 2
        assert finished(client, job)["status"] == "completed"
        assert shot(client, job, 1).content == first
        assert equal(content(client, job), whole)


def test_a_storyboard_that_takes_too_long_fails(served, serve):
    _, runner = served
    runner._time_limit_s, before = 0.001, runner._time_limit_s
    try:
        with serve() as client:
            video = finished(client, submitted(client)["id"])
    finally:
        runner._time_limit_s = before
    assert (video["status"], video["error"]["code"]) == ("failed", "time_limit")


def test_it_is_sent_twice_and_done_once(client):
    key = {"Idempotency-Key": "film"}
    jobs = [client.post("/v1/storyboards", json=BOARD, headers=key).json()["id"] for _ in range(2)]
    assert jobs[0] == jobs[1]
    client.post(f"/v1/videos/{jobs[0]}/cancel")


def test_a_full_queue_refuses_it_and_keeps_none_of_its_files(serve, served, media):
    with serve(limits=Limits(max_queue=1)) as client:
        running, waiting = create(client, **LONG), None
        while client.get("/health").json()["running"] == 0:
            pass
        waiting = create(client, **JOB)
        before = sorted((served[0] / "inputs").iterdir())
        shots = [{**BOARD["shots"][0], "keyframes": [{"image": data_uri(media / "red.png")}]}]
        assert client.post("/v1/storyboards", json={**BOARD, "shots": shots}).status_code == 429
        assert sorted((served[0] / "inputs").iterdir()) == before
        for job in (running, waiting):
            client.post(f"/v1/videos/{job}/cancel")


def test_the_director_writes_the_prompts(client):
    shots = [{**one, "duration_s": 0.4} for one in BOARD["shots"]]
    wanted = {"director": True, "prompt": "by the sea", "director_tokens": 4, "shots": shots}
    video = finished(client, submitted(client, **wanted)["id"])
    assert (video["status"], video["prompt"]) == ("completed", "by the sea")
    request = client.get(f"/v1/videos/{video['id']}/manifest").json()["request"]
    assert (request["director"], "prompt" in request) == (False, False)
    assert [one["prompt"] for one in request["shots"]] != [[one["prompt"]] for one in shots]


def test_fields_are_those_of_a_storyboard(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    fields = schemas["StoryboardRequest"]["properties"]
    own = {*Storyboard.__dataclass_fields__, *SETTINGS} - {"settings", "attention_kwargs"}
    assert fields.keys() == own | {"preview_every"}
    assert (fields["overlap_frames"]["default"], fields["frame_rate"]["default"]) == (25, 24.0)
    assert schemas["StoryboardKeyframe"]["properties"]["image"]["description"].startswith("content of a file")
    assert all("description" in str(field) for field in fields.values())


@pytest.mark.parametrize(
    ("wrong", "place", "reason"),
    [
        ({"widht": 64}, ["widht"], "not permitted"),
        ({"shots": []}, ["shots"], "at least 1"),
        ({"shots": [{"prompt": "x"}]}, ["shots", 0, "duration_s"], "required"),
        ({"shots": [{"prompt": "x", "duration_s": 0.05}]}, ["shots", 0, "duration_s"], "too short"),
        ({"shots": [{"prompt": "x", "duration_s": 1e308}]}, ["shots"], "megapixels"),
        ({"shots": [{"prompt": " ", "duration_s": 1}]}, ["shots", 0, "prompt"], "has to be a text"),
        ({"shots": [{"prompt": ["x", "y"], "duration_s": 0.5}]}, ["shots", 0, "prompt"], "has 2 texts"),
        ({"shots": [{"prompt": "x", "duration_s": 1, "seed": 2**65}]}, ["shots", 0, "seed"], "seed"),
        ({"shots": [{"prompt": "x", "duration_s": 1, "adapters": {"no": 1}}]}, ["shots", 0, "adapters"], "not loaded"),
        ({"width": 65}, ["width"], "divisible by 32"),
        ({"num_inference_steps": 201}, ["num_inference_steps"], "more than the 200 that this server makes; use 200"),
        ({"audio_start_s": 3.0}, ["audio_start_s"], "there is no `audio`"),
        ({"num_inference_steps": 0}, ["num_inference_steps"], "at least"),
        ({"sampler": "best"}, ["sampler"], "must be one of"),
        ({"guidance_options": {"bins": {}}}, ["guidance_options", "bins"], "not permitted"),
        ({"guidance_options": {"cfg_method": "best"}}, ["guidance_options", "cfg_method"], "one of"),
        ({"overlap_frames": 17}, ["overlap_frames"], "less than `num_frames`"),
        ({"prompt": "the sea"}, ["prompt"], "only the director reads"),
        ({"prompt": "\ud800"}, ["prompt"], "no character"),
        ({"model": {"checkpoint": "x"}}, ["model"], "string"),
        ({"model": "other"}, ["model"], "this server has"),
        ({"audio": "song.wav"}, ["audio"], "has to be base64"),
        ({"stage_2_adapters": {"no": 1}}, ["stage_2_adapters"], "not loaded"),
    ],
)
def test_what_is_wrong_is_refused_by_name(client, served, wrong, place, reason):
    before = sorted((served[0] / "inputs").glob("*"))
    answer = client.post(
        "/v1/storyboards", content=json.dumps({**BOARD, **wrong}), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422, answer.text
    detail = answer.json()["detail"][0]
    assert (detail["loc"], reason in detail["msg"]) == (["body", *place], True), detail
    assert sorted((served[0] / "inputs").glob("*")) == before


def test_all_that_is_wrong_is_named_and_no_path_of_the_server_is(client, media):
    key = {"image": data_uri(media / "red.png"), "at_s": 3}
    shots = [{"prompt": "x", "duration_s": 1, "keyframes": [key]}, {"prompt": "", "duration_s": 1}]
    details = client.post("/v1/storyboards", json={**BOARD, "shots": shots, "drift_control": 2}).json()["detail"]
    assert [detail["loc"][1:] for detail in details] == [
        ["drift_control"],
        ["shots", 0, "keyframes", 0, "at_s"],
        ["shots", 1, "prompt"],
    ]
    broken = {"image": data_uri(media / "tone.wav")}
    shots = [{"prompt": "x", "duration_s": 1, "keyframes": [broken]}]
    (detail,) = client.post("/v1/storyboards", json={**BOARD, "shots": shots}).json()["detail"]
    assert detail["loc"] == ["body", "shots", 0, "keyframes", 0, "image"]


def test_limits_of_the_whole_and_of_media(serve, media, tmp_path):
    picture = {"image": data_uri(media / "red.png")}
    with serve(limits=Limits(max_storyboard_megapixels=0.1, max_media=1, max_prompt=20)) as client:

        def refused(**changed) -> tuple[str, str]:
            (detail,) = client.post("/v1/storyboards", json={**BOARD, **changed}).json()["detail"]
            return detail["loc"][-1], detail["msg"]

        assert refused()[0] == "shots"
        field, said = refused(shots=[{"prompt": "x", "duration_s": 0.5, "keyframes": [picture, picture]}])
        assert (field, "more than the 1 media files" in said) == ("shots", True)
        assert refused(shots=[{"prompt": "x" * 21, "duration_s": 0.5}])[0] == "prompt"
    write_audio(tmp_path / "short.wav", tone(0.5, 24000), 24000)
    with serve() as client:
        answer = client.post("/v1/storyboards", json={**BOARD, "audio": data_uri(tmp_path / "short.wav", "audio/wav")})
        (detail,) = answer.json()["detail"]
        assert (detail["loc"], "lasts 0.50 s" in detail["msg"]) == (["body", "audio"], True)
