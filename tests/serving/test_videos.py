"""`/v1/videos` in the shape of OpenAI's API: jobs, their events and their files."""

import json
import threading

import numpy as np
import pytest

from ltx2_diffusers.cli.modes import MODES
from ltx2_diffusers.serving import app
from ltx2_diffusers.serving.running import LocalRunner
from ltx2_diffusers.serving.schema import MEDIA_KINDS, SERVED
from ltx2_diffusers.serving.settings import Limits
from tests.serving.clips import content, create, data_uri, decoded, finished, generate, left, refusal, steps
from tests.serving.conftest import JOB, QUICK, engine_options
from tests.tiny_checkpoints import tiny_checkpoint

# Stands still until it is to end.
LONG = {**JOB, "steps": 200, "num_frames": 33}


def events(client, job: str) -> list[tuple[str, dict]]:
    """Kinds and contents of the events of a job, until it has ended."""
    with client.stream("GET", f"/v1/videos/{job}/events") as answer:
        lines = [line.partition(": ")[2] for line in answer.iter_lines() if line]
    return [(kind, json.loads(data)) for kind, data in zip(lines[::2], lines[1::2])]


def test_a_job_is_made_in_the_background(client):
    answer = client.post("/v1/videos", json=JOB | {"model": "tiny"}).json()
    assert answer["id"].startswith("video_")
    told = {name: answer[name] for name in ("object", "model", "prompt", "size", "seed", "mode", "error")}
    assert told == {
        "object": "video",
        "model": "tiny",
        "prompt": "waves",
        "size": "64x64",
        "seed": 7,
        "mode": "video from text",
        "error": None,
    }
    video = finished(client, answer["id"])
    assert (video["status"], video["progress"], video["seconds"]) == ("completed", 100, "0.375")
    assert video["created_at"] <= video["started_at"] <= video["completed_at"] < video["expires_at"]
    frames, sound, _ = decoded(content(client, answer["id"]))
    assert (frames.shape, sound is not None) == ((9, 64, 64, 3), True)


def test_a_job_and_a_call_make_the_same_clip(client):
    negative = "blurry, low quality, distorted, glitchy, watermark"
    job = {**JOB, "negative_prompt": negative, "frame_rate": 25, "guidance_scale": 3.0}
    del job["max_sequence_length"]
    frames, _, _ = decoded(content(client, finished(client, create(client, **job))["id"]))
    assert np.array_equal(frames, decoded(generate(client, **QUICK)["video"])[0])


def test_what_openai_calls_seconds_and_size_and_reference(client, media):
    wanted = {"prompt": "waves", "seconds": "0.4", "size": "64x96", "steps": 1}
    files = {"input_reference": ("red.png", (media / "red.png").read_bytes(), "image/png")}
    answer = client.post("/v1/videos", data=wanted, files=files)
    assert answer.status_code == 200, answer.text
    video = finished(client, answer.json()["id"])
    assert (video["size"], video["seconds"], video["mode"]) == ("64x96", "0.375", "video from its first frame")


def test_events_tell_of_each_step_and_show_the_clip(client):
    told = events(client, create(client, **{**JOB, "steps": 3, "preview_every": 2}))
    assert [kind for kind, _ in told][-1] == "status"
    assert (told[0][0], told[-1][1]["status"]) == ("status", "completed")
    steps = [event for kind, event in told if kind == "progress"]
    assert steps[-1] == {"progress": 99, "run": 1, "step": 3, "steps": 3}
    pictures = [event["image"] for kind, event in told if kind == "preview"]
    assert pictures and all(picture.startswith("data:image/jpeg;base64,/9j/") for picture in pictures)


def test_jobs_are_listed_a_page_at_a_time(serve):
    with serve() as client:
        jobs = [create(client, **JOB) for _ in range(3)]
        assert [one["id"] for one in client.get("/v1/videos").json()["data"]] == jobs[::-1]
        page = client.get("/v1/videos", params={"limit": 2, "order": "asc"}).json()
        assert ([one["id"] for one in page["data"]], page["has_more"]) == (jobs[:2], True)
        rest = client.get("/v1/videos", params={"after": page["last_id"], "order": "asc"}).json()
        assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (jobs[2:], False)
        assert client.get("/v1/videos", params={"after": "none"}).json()["data"] == []
        assert client.get("/v1/videos", params={"limit": 0}).status_code == 422


def test_a_running_job_is_cancelled_within_a_step(client):
    job = create(client, **LONG)
    with client.stream("GET", f"/v1/videos/{job}/events") as answer:
        next(line for line in answer.iter_lines() if line == "event: progress")
        assert client.post(f"/v1/videos/{job}/cancel").json()["status"] == "cancelled"
    made = steps(client)
    # The next one need not wait for the 200 steps.
    assert finished(client, create(client, **JOB))["status"] == "completed"
    assert steps(client) - made <= 1 + JOB["steps"]
    assert client.get(f"/v1/videos/{job}/content").status_code == 409
    assert client.post(f"/v1/videos/{job}/cancel").json()["status"] == "cancelled"


def test_a_waiting_job_is_cancelled_and_never_begins(client):
    running, waiting = create(client, **LONG), create(client, **JOB)
    assert client.post(f"/v1/videos/{waiting}/cancel").json()["status"] == "cancelled"
    client.post(f"/v1/videos/{running}/cancel")
    finished(client, create(client, **JOB))
    assert client.get(f"/v1/videos/{waiting}").json()["started_at"] is None


def test_a_deleted_job_is_gone_with_its_files(client, media):
    job = create(client, **JOB, image=data_uri(media / "red.png"))
    finished(client, job)
    other = create(client, **LONG)
    for name in (job, other):
        assert client.delete(f"/v1/videos/{name}").json() == {"id": name, "object": "video.deleted", "deleted": True}
        assert client.get(f"/v1/videos/{name}").status_code == 404
        assert client.delete(f"/v1/videos/{name}").status_code == 404
    finished(client, create(client, **JOB))
    settings = client.app.state.server.settings
    for folder, name in ((settings.inputs, job), (settings.results, job), (settings.results, other)):
        assert left(folder, f"{name}*") == []


def test_parts_of_a_file_are_sent(client):
    job = create(client, **JOB)
    finished(client, job)
    whole = content(client, job)
    part = client.get(f"/v1/videos/{job}/content", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, whole[4:8])
    assert part.content == b"ftyp"


def test_a_file_is_sent_while_it_grows(client):
    job = create(client, **JOB, stream=True)
    sent = client.get(f"/v1/videos/{job}/content")
    assert (sent.status_code, sent.headers["content-type"]) == (200, "video/mp4")
    assert finished(client, job)["status"] == "completed"
    assert sent.content == content(client, job)
    plain = decoded(content(client, finished(client, create(client, **JOB))["id"]))
    for one, other in zip(decoded(sent.content)[:2], plain[:2]):
        assert np.array_equal(one, other)
    assert left(client.app.state.server.settings.results, f"{job}.*.mp4") == []


def test_a_file_that_will_never_be_whole_breaks_off(client, monkeypatch):
    job, growing = create(client, **LONG, stream=True), app._growing
    cancel = threading.Thread(target=lambda: client.post(f"/v1/videos/{job}/cancel"))

    def begun(*arguments):
        cancel.start()
        return growing(*arguments)

    monkeypatch.setattr(app, "_growing", begun)
    with pytest.raises(RuntimeError, match="not finished"):
        client.get(f"/v1/videos/{job}/content")
    cancel.join()


def test_a_request_that_is_sent_twice_is_done_once(client):
    headers = {"Idempotency-Key": "once"}
    assert create(client, headers, **JOB) == create(client, headers, **JOB)
    assert create(client, {"Idempotency-Key": "twice"}, **JOB) != create(client, headers, **JOB)


def test_a_full_queue_says_when_to_come_again(serve):
    with serve(limits=Limits(max_queue=1)) as client:
        running = create(client, **LONG)
        while client.get("/health").json()["running"] == 0:
            pass
        waiting = create(client, **JOB)
        for answer in (client.post("/v1/videos", json=JOB), client.post("/generate", json=QUICK)):
            assert (answer.status_code, int(answer.headers["retry-after"]) >= 1) == (429, True)
        client.post(f"/v1/videos/{running}/cancel")
        assert finished(client, waiting)["status"] == "completed"


def test_a_job_that_takes_too_long_fails(served, serve):
    _, runner = served
    # It has passed when the first step is done.
    runner._time_limit_s, before = 0.001, runner._time_limit_s
    try:
        with serve() as client:
            video = finished(client, create(client, **JOB))
            assert client.post("/generate", json=QUICK).status_code == 504
    finally:
        runner._time_limit_s = before
    assert (video["status"], video["error"]["code"]) == ("failed", "time_limit")


@pytest.mark.slow
def test_many_callers_are_served_one_at_a_time(serve):
    with serve() as client:
        clips: list = [None] * 6

        def call(index: int) -> None:
            clips[index] = decoded(generate(client, **{**QUICK, "seed": index % 2})["video"])[0]

        threads = [threading.Thread(target=call, args=(index,)) for index in range(len(clips))]
        for thread in threads:
            thread.start()
        most = 0
        while any(thread.is_alive() for thread in threads):
            most = max(most, client.get("/health").json()["running"])
        assert most == 1
    for index, clip in enumerate(clips):
        assert np.array_equal(clip, clips[index % 2])
    assert not np.array_equal(clips[0], clips[1])


def test_equal_requests_are_made_by_one_call_if_it_may_be(serve):
    with serve() as client:
        alone = [
            decoded(content(client, finished(client, create(client, **{**JOB, "seed": s}))["id"]))[0] for s in range(3)
        ]
    with serve(limits=Limits(max_batch=4)) as client:
        first = create(client, **LONG)
        jobs = [create(client, **{**JOB, "seed": seed}) for seed in range(3)]
        client.post(f"/v1/videos/{first}/cancel")
        videos = [finished(client, job) for job in jobs]
        assert client.app.state.server.metrics.registry.get_sample_value("ltx2_call_seconds_count") == 2
        together = [decoded(content(client, job))[0] for job in jobs]
    assert {video["status"] for video in videos} == {"completed"}
    for one, other in zip(alone, together):
        # Rounding differs, and the encoder makes more of it.
        assert np.abs(one.astype(int) - other.astype(int)).mean() < 1


def test_a_server_that_ends_hands_its_job_back_to_the_next(serve, served):
    with serve(limits=Limits(grace=0.1)) as client:
        running, waiting = create(client, **{**LONG, "steps": 11}), create(client, **JOB)
        while client.get("/health").json()["running"] == 0:
            pass
        assert client.get(f"/v1/videos/{waiting}").json()["status"] == "queued"
    with serve(served[1]) as client:
        videos = [finished(client, job) for job in (running, waiting)]
        assert [video["status"] for video in videos] == ["completed", "completed"]
        assert content(client, running)[4:8] == b"ftyp"
        assert client.app.state.server.store.get(running).attempts == 1


REQUESTS = {
    "video from text": {},
    "video from its first frame": {"image": "red.png"},
    "video with given pictures": {"image_at": [{"frame": -1, "media": "red.png", "strength": 0.5}]},
    "video after references": {"reference": [{"media": "clip.mp4"}], "adapters": {"reference": 1.0}},
    "video in two stages, or silent": {
        "two_stage": True,
        "refine_with_same_weights": True,
        "width": 128,
        "height": 128,
    },
    "pictures for a sound": {"audio": "tone.wav"},
    "a distilled model's few steps": {"distilled": True, "width": 128, "height": 128, "steps": None},
    "motion between pictures": {
        "interpolate": True,
        "image": "red.png",
        "image_at": [{"frame": -1, "media": "blue.png"}],
    },
    "sound for a clip": {"add_sound": True, "video": "clip.mp4", "width": None, "height": None, "num_frames": None},
    "a clip made longer": {
        "extend": 0.3,
        "video": "clip.mp4",
        "width": None,
        "height": None,
        "num_frames": 17,
        "overlap": 9,
    },
    "a stretch of a clip made anew": {
        "retake": [0.2, 0.5],
        "video": "clip.mp4",
        "region": "mask.png",
        "width": None,
        "height": None,
        "num_frames": None,
    },
    "sound from text": {"audio_only": True, "duration": 0.5, "width": None, "height": None, "num_frames": None},
}


def filled(value, media, name: str = ""):
    """A request whose names of files are their contents."""
    if isinstance(value, list):
        return [filled(part, media, name) for part in value]
    if isinstance(value, dict):
        return {key: filled(part, media, key) for key, part in value.items()}
    return data_uri(media / value) if name in {*MEDIA_KINDS, "media"} and isinstance(value, str) else value


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("mode", [mode.name for mode in MODES if SERVED.keys() >= {*mode.chosen_by}])
def test_every_mode_is_served(client, media, mode):
    wanted = {name: value for name, value in filled({**JOB, **REQUESTS[mode]}, media).items() if value is not None}
    video = finished(client, create(client, **wanted))
    assert (video["status"], video["mode"]) == ("completed", mode), video
    answer = client.get(f"/v1/videos/{video['id']}/content")
    assert answer.headers["content-type"] == ("audio/wav" if mode == "sound from text" else "video/mp4")
    if mode != "sound from text":
        frames, _, _ = decoded(answer.content)
        assert video["size"] == f"{frames.shape[2]}x{frames.shape[1]}"


def test_a_lora_is_asked_for_by_name(client):
    clips = [
        decoded(content(client, finished(client, create(client, **JOB, adapters=adapters))["id"]))[0]
        for adapters in ({}, {"strong": 4.0}, {"strong": 0.0}, {})
    ]
    assert not np.array_equal(clips[0], clips[1])
    assert np.array_equal(clips[0], clips[2])
    assert np.array_equal(clips[0], clips[3])
    assert client.get("/health").json()["adapters"] == ["reference", "strong"]


@pytest.mark.parametrize(
    ("wrong", "field", "reason"),
    [
        ({"auto_length": True, "num_frames": None}, "auto_length", "needs a duration head"),
        ({"auto_length": True, "num_frames": None, "seconds": 5}, "seconds", "`seconds` and `auto_length` contradict"),
        ({"adapters": {"weak": 1}}, "adapters", "there are reference, strong"),
        ({"adapters": {"../strong.safetensors": 1}}, "adapters", "not loaded"),
        ({"model": "sora-2"}, "model", "this server has 'tiny'"),
        ({"seconds": 5}, "seconds", "say the same"),
        ({"seconds": 1e9, "num_frames": None}, "seconds", "too long"),
        ({"size": "64"}, "size", "pattern"),
        ({"prompt": ["one", "two"]}, "prompt", "parts of `extend`"),
        ({"lora": "x.safetensors"}, "lora", "not permitted"),
        ({"output": "/tmp/x.mp4"}, "output", "not permitted"),
        ({"checkpoint": "somewhere/else"}, "checkpoint", "not permitted"),
        ({"video": "/etc/hostname", "retake": [0, 1]}, "video", "base64"),
        ({"retake": [0, 1]}, "retake", "`retake` needs `video`"),
        ({"keep_audio": True}, "keep_audio", "`keep_audio` needs `retake`"),
        ({"two_stage": True, "width": 96}, "width", "use 64 or 128"),
        ({"sampler": "best"}, "sampler", "must be one of"),
        ({"cfg_method": "best"}, "cfg_method", "Input should be"),
        ({"sigmas": [0.1, 0.9], "steps": None}, "sigmas", "fall"),
        ({"frame_rate": -1}, "frame_rate", "greater than 0"),
        ({"steps": 201}, "steps", "more than the 200"),
        (
            {"stream": True, "audio_only": True, "width": None, "height": None, "num_frames": None},
            "stream",
            "audio_only",
        ),
        ({"preview_every": 0}, "preview_every", "greater than or equal to 1"),
        ({"image_at": [{"frame": 0}]}, "media", "required"),
        ({"extend": 1e9, "overlap": 1}, "num_frames", "megapixels"),
    ],
)
def test_a_wrong_job_is_refused_by_name(client, wrong, field, reason):
    answer = client.post("/v1/videos", json={name: v for name, v in {**JOB, **wrong}.items() if v is not None})
    place, message = refusal(answer)
    assert (place, reason in message) == (field, True), message


def test_what_a_job_needs_is_something_that_it_can_say(client):
    answer = client.post("/v1/videos", json=JOB | {"one_stage": True})
    assert refusal(answer) == ("one_stage", "`one_stage` needs `distilled`")


def test_clips_as_long_as_their_texts(serve, served):
    engine = engine_options() | {"checkpoint": str(tiny_checkpoint("2.5"))}
    runner = LocalRunner(engine, served[0] / "results", 60.0)
    asked = {name: value for name, value in JOB.items() if name != "num_frames"} | {
        "auto_length": True,
        "min_seconds": 0.2,
    }
    with serve(runner, Limits(max_megapixels=1.0), engine=engine) as client:
        place, message = refusal(client.post("/v1/videos", json=asked))
        assert place == "num_frames" and "`num_frames` 473 of 64x64 pixels are 1.937 megapixels" in message
        video = finished(client, create(client, **asked, max_seconds=0.6))
    assert video["status"] == "completed" and video["seconds"] == "0.375"


def test_what_the_loaded_checkpoint_cannot_do_fails_with_its_reason(client):
    video = finished(client, create(client, **{**JOB, "stg_blocks": [99]}))
    assert (video["status"], video["error"]["code"]) == ("failed", "invalid_request")
    assert "`stg_blocks`" in video["error"]["message"]


def test_fields_are_the_options_of_the_command_line(client):
    fields = client.get("/openapi.json").json()["components"]["schemas"]["VideoRequest"]["properties"]
    assert fields.keys() >= SERVED.keys()
    assert not fields.keys() & {"checkpoint", "lora", "output", "device", "prompt_cache"}
    assert not any("--" in str(field.get("description")) for name, field in fields.items() if name in SERVED)
