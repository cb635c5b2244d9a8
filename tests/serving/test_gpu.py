"""The server on a GPU: clips repeat, modes take turns under offloading, and only the worker takes the device."""

import subprocess

import pytest

from benchmarks.serving_load import Server
from tests.serving.clips import decoded
from tests.serving.conftest import JOB, QUICK
from tests.tiny_checkpoints import tiny_checkpoint

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("offload", ["none", "model"])
def test_clips_are_made_on_a_gpu(tmp_path, offload):
    options = ("--checkpoint", str(tiny_checkpoint("2.0")), "--device", "cuda", "--offload", offload)
    server = Server(tmp_path / "data", *options)
    try:
        assert server.told("GET", "/health")["device"] == "cuda"
        staged = {**JOB, "two_stage": True, "refine_with_same_weights": True, "width": 128, "height": 128}
        clips = []
        for _ in range(2):
            clips.append(decoded(server.told("POST", "/generate", QUICK)["video"])[0])
            job = server.told("POST", "/v1/videos", staged)["id"]
            assert server.finished(job)["status"] == "completed"
        assert (clips[0] == clips[1]).all()
        listed = subprocess.run(
            ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"], capture_output=True, text=True
        )
        assert str(server.process.pid) not in listed.stdout.split()
    finally:
        server.stop()


def test_replicas_share_a_gpu(tmp_path):
    pytest.importorskip("ray", reason="there is no Ray for this version of Python")
    options = ("--checkpoint", str(tiny_checkpoint("2.0")), "--device", "cuda")
    server = Server(tmp_path / "single", *options)
    try:
        expected = decoded(server.told("POST", "/generate", QUICK)["video"])[0]
    finally:
        server.stop()
    server = Server(tmp_path / "data", *options, "--ray", "local", "--replicas", "2", "--gpus-per-replica", "0.5")
    try:
        jobs = [server.told("POST", "/v1/videos", {**JOB, "steps": 200})["id"] for _ in range(2)]
        while not all((video := server.told("GET", f"/v1/videos/{job}"))["progress"] > 0 for job in jobs):
            assert video["status"] in ("queued", "in_progress")
        for job in jobs:
            server.told("POST", f"/v1/videos/{job}/cancel")
        assert (decoded(server.told("POST", "/generate", QUICK)["video"])[0] == expected).all()
        with pytest.raises(RuntimeError, match="2048, and there are"):
            Server(tmp_path / "many", *options, "--ray", "local", "--replicas", "4096", "--cpus-per-replica", "0.001")
    finally:
        server.stop()


def test_a_device_that_is_not_there_ends_the_start(tmp_path):
    with pytest.raises(RuntimeError, match="cannot be used"):
        Server(tmp_path / "data", "--device", "cuda:99")


def test_a_clip_that_a_card_cannot_hold_is_refused(tmp_path):
    options = ("--checkpoint", str(tiny_checkpoint("2.0")), "--device", "cuda", "--max-memory-gb", "0.1")
    server = Server(tmp_path / "data", *options)
    try:
        assert server.finished(server.told("POST", "/v1/videos", JOB)["id"])["status"] == "completed"
        status, content = server.ask("POST", "/v1/videos", {**JOB, "width": 1024, "height": 1024, "num_frames": 121})
        assert status == 422 and b"of memory beside the checkpoint" in content
    finally:
        server.stop()
