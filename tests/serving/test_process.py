"""`ltx2 serve` as a process: what becomes of jobs when it, or its worker, is killed or asked to end."""

import os
import signal
import subprocess
import threading
import time

import pytest

from benchmarks.serving_load import Server
from ltx2_diffusers import packaged_checkpoint
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.serving.running import WorkerDied
from ltx2_diffusers.serving.worker import WorkerProcess
from tests.serving.conftest import JOB, QUICK
from tests.serving.test_storyboards import BOARD, equal
from tests.tiny_checkpoints import tiny_checkpoint

pytestmark = pytest.mark.slow

LONG = {**JOB, "steps": 60, "num_frames": 97}
ENDLESS = {**LONG, "steps": 200, "num_frames": 193}


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "data", "--checkpoint", str(tiny_checkpoint("2.0")), "--grace", "1")
    yield server
    server.kill()


def running(server: Server, job: str) -> dict:
    while (video := server.told("GET", f"/v1/videos/{job}"))["progress"] == 0 and video["status"] != "completed":
        time.sleep(0.02)
    return video


def times_run(server: Server, job: str) -> int:
    return server.log().count(f"{job} completed")


def test_a_killed_server_goes_on_where_it_was(server):
    first, second = (server.told("POST", "/v1/videos", LONG)["id"], server.told("POST", "/v1/videos", JOB)["id"])
    running(server, first)
    workers = server.processes()
    server.kill()
    server.start()
    assert [server.finished(job)["status"] for job in (first, second)] == ["completed"] * 2
    assert [times_run(server, job) for job in (first, second)] == [1, 1]
    assert server.ask("GET", f"/v1/videos/{first}/content")[1][4:8] == b"ftyp"
    # The worker of the first life has noticed that nobody wants its clip.
    assert not [process for process in workers if os.path.exists(f"/proc/{process}")]


def test_a_killed_worker_is_replaced_and_the_job_made(server):
    job = server.told("POST", "/v1/videos", LONG)["id"]
    running(server, job)
    os.kill(server.worker(), signal.SIGKILL)
    assert server.finished(job)["status"] == "completed"
    assert times_run(server, job) == 1
    assert b"ltx2_worker_deaths_total 1.0" in server.ask("GET", "/metrics")[1]
    assert server.ask("POST", "/generate", QUICK)[0] == 200


@pytest.mark.parametrize("what", ["worker", "server"])
def test_a_storyboard_goes_on_in_the_shot_in_which_its_worker_or_server_was_killed(server, tmp_path, what):
    wanted = {**BOARD, "num_inference_steps": 40, "shots": [*BOARD["shots"], {"prompt": "Rain.", "duration_s": 0.4}]}
    undisturbed = server.told("POST", "/v1/storyboards", wanted)["id"]
    assert server.finished(undisturbed)["shots"] == {"finished": 3, "total": 3}
    job = server.told("POST", "/v1/storyboards", wanted)["id"]
    while server.told("GET", f"/v1/videos/{job}")["shots"]["finished"] < 1:
        time.sleep(0.02)
    first = server.ask("GET", f"/v1/videos/{job}/shots/1/content")[1]
    # In the middle of the second one.
    begun = server.told("GET", f"/v1/videos/{job}")["progress"]
    while server.told("GET", f"/v1/videos/{job}")["progress"] <= begun + 2:
        time.sleep(0.02)
    folder = tmp_path / "data" / "results" / job
    segment = folder / "film.mp4.segments" / "0001.mp4"
    made = segment.stat().st_mtime_ns
    if what == "worker":
        os.kill(server.worker(), signal.SIGKILL)
    else:
        server.kill()
        server.start()
    assert server.told("GET", f"/v1/videos/{job}")["shots"]["finished"] >= 1
    assert server.ask("GET", f"/v1/videos/{job}/shots/1/content")[1] == first
    while server.told("GET", f"/v1/videos/{job}")["shots"]["finished"] < 2:
        time.sleep(0.02)
    assert segment.stat().st_mtime_ns == made
    assert server.finished(job)["status"] == "completed"
    films = [server.ask("GET", f"/v1/videos/{one}/content")[1] for one in (undisturbed, job)]
    assert equal(*films)
    assert sorted(path.name for path in folder.iterdir()) == [f"shot_000{number}.mp4" for number in (1, 2, 3)]
    assert times_run(server, job) == 1


def test_a_server_that_is_asked_to_end_hands_its_job_back(server):
    job = server.told("POST", "/v1/videos", ENDLESS)["id"]
    running(server, job)
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 10
    server.start()
    assert running(server, job)["status"] == "in_progress"
    assert server.told("POST", f"/v1/videos/{job}/cancel")["status"] == "cancelled"


def test_a_server_that_is_asked_to_end_finishes_its_call(tmp_path):
    server = Server(tmp_path / "data", "--checkpoint", str(tiny_checkpoint("2.0")), "--grace", "60")
    answers = []
    caller = threading.Thread(
        target=lambda: answers.append(server.ask("POST", "/generate", {**QUICK, "num_inference_steps": 200}))
    )
    caller.start()
    while server.told("GET", "/health")["running"] == 0 and not answers:
        time.sleep(0.02)
    assert server.stop() == 0
    caller.join()
    assert answers[0][0] == 200


def test_a_caller_who_goes_away_stops_the_call(server):
    command = ["curl", "-s", "-m", "1", "-X", "POST", f"{server.url}/generate", "-H", "Content-Type: application/json"]
    body = '{"prompt": "waves", "width": 64, "height": 64, "num_frames": 193, "num_inference_steps": 200}'
    assert subprocess.run([*command, "-d", body]).returncode == 28
    began = time.monotonic()
    while server.told("GET", "/health")["running"]:
        assert time.monotonic() - began < 5
    assert server.told("POST", "/generate", QUICK)["seed"] == 7


def test_a_lora_may_have_any_name(tmp_path):
    lora = packaged_checkpoint("ltx2-mini") / "ic_lora.safetensors"
    server = Server(tmp_path / "data", "--lora", f"file={lora}")
    try:
        assert server.told("GET", "/health")["adapters"] == ["file"]
        job = server.told("POST", "/v1/videos", JOB | {"adapters": {"file": 0.5}})["id"]
        assert server.finished(job)["status"] == "completed"
        assert server.told("GET", f"/v1/videos/{job}/manifest")["model"]["adapters"].keys() == {"file"}
        assert server.finished(server.told("POST", f"/v1/videos/{job}/replay")["id"])["status"] == "completed"
    finally:
        server.stop()


def test_a_worker_that_dies_while_it_loads_is_said_without_a_traceback(tmp_path, capsys, monkeypatch):
    # Nothing that a worker could be runs with this.
    monkeypatch.setattr("ltx2_diffusers.serving.worker.sys.executable", "false")
    assert main(["serve", "--port", "0", "--data", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "ltx2 serve: the worker ended with status 1 while it loaded the checkpoint" in said


def test_a_checkpoint_that_cannot_be_loaded_ends_the_start(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    options = {"checkpoint": str(tmp_path), "device": "cpu", "dtype": "float32", "offload": "none"}
    with pytest.raises((ValueError, WorkerDied)):
        WorkerProcess(options, tmp_path / "inputs", tmp_path / "results", 10.0)
