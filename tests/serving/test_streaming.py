"""Clips that are written while they decode: read before they are finished, ended on the way, and equal to others."""

import io
import math
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import av
import httpx
import numpy as np
import pytest
import uvicorn

from ltx2_diffusers.serving import running
from ltx2_diffusers.serving.app import create_app
from ltx2_diffusers.serving.settings import Settings
from tests.serving.clips import content, create, decoded, finished, left
from tests.serving.conftest import JOB, engine_options
from tests.serving.test_videos import REQUESTS, filled

LONG = {**JOB, "num_frames": 97}
# Parts of a clip that are decoded before the gate below closes, and those of the whole one, of some eight frames each.
BEFORE, CHUNKS = 8, 16


@pytest.fixture
def runner(served):
    """The runner, whose video autoencoder streams however small the clips."""
    vae = next(iter(served[1]._pipelines.values())).vae
    vae.enable_streaming()
    yield served[1]
    vae.use_streaming = None


class Gate:
    """Holds the decoding of a clip after some of its chunks."""

    def __init__(self) -> None:
        self.reached, self.opened, self.chunks = threading.Event(), threading.Event(), 0

    def __call__(self, *_) -> None:
        self.chunks += 1
        if self.chunks > BEFORE:
            self.reached.set()
            assert self.opened.wait(60)


@pytest.fixture
def gate(runner):
    gate = Gate()
    hook = next(iter(runner._pipelines.values())).vae.decoder.up_blocks[-1].register_forward_pre_hook(gate)
    yield gate
    gate.opened.set()
    hook.remove()


@contextmanager
def listening(data, database, runner):
    """A server that sends answers while they are made, which the client for tests does not show."""
    settings = Settings(data=data, database=f"sqlite:///{database}", engine=engine_options(), model="tiny")
    server = uvicorn.Server(uvicorn.Config(create_app(settings, runner), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        address = "http://{}:{}".format(*server.servers[0].sockets[0].getsockname())
        with httpx.Client(base_url=address, timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def playable(begun: bytes) -> tuple[int, int]:
    """Frames and samples that a player finds in the beginning of a file."""
    counts = []
    for kind in ("video", "audio"):
        counts.append(0)
        try:
            with av.open(io.BytesIO(begun)) as file:
                for frame in file.decode(**{kind: 0}):
                    counts[-1] += frame.samples if kind == "audio" else 1
        except (av.FFmpegError, IndexError):
            pass
    return counts[0], counts[1]


def test_a_clip_plays_with_its_sound_before_the_rest_of_it_is_decoded(served, runner, gate, tmp_path):
    with listening(served[0], tmp_path / "jobs.db", runner) as client:
        job = create(client, **LONG, stream=True)
        with client.stream("GET", f"/v1/videos/{job}/content") as answer:
            parts, received = answer.iter_bytes(), b""
            while 0 in playable(received):
                received += next(parts)
            assert client.get(f"/v1/videos/{job}").json()["status"] == "in_progress"
            assert not gate.opened.is_set() and gate.chunks <= BEFORE + 1 < CHUNKS
            frames, samples = playable(received)
            assert 0 < frames < 97 and abs(samples / 24000 - frames / 24) < 1
            gate.opened.set()
            received += b"".join(parts)
        assert finished(client, job)["status"] == "completed"
        assert received == content(client, job)
        assert (len(decoded(received)[0]), gate.chunks) == (97, CHUNKS)


def test_a_job_is_cancelled_between_chunks_of_its_decoding(serve, runner, gate):
    with serve(runner) as client:
        job = create(client, **LONG)
        assert gate.reached.wait(60)
        assert client.post(f"/v1/videos/{job}/cancel").json()["status"] == "cancelled"
        gate.opened.set()
        # The next one has to wait for the end of the run.
        assert finished(client, create(client, **JOB))["status"] == "completed"
        own_chunks = 2
        assert gate.chunks - own_chunks <= BEFORE + 2 < CHUNKS
        assert not left(client.app.state.server.settings.results, f"{job}*")


def test_a_job_ends_when_its_time_is_up_while_it_decodes(serve, runner, gate, monkeypatch):
    with serve(runner) as client:
        job = create(client, **LONG, stream=True)
        assert gate.reached.wait(60)
        monkeypatch.setattr(running, "time", SimpleNamespace(perf_counter=lambda: math.inf))
        gate.opened.set()
        video = finished(client, job)
        assert (video["status"], video["error"]["code"]) == ("failed", "time_limit")
        assert gate.chunks <= BEFORE + 2 < CHUNKS
        assert not left(client.app.state.server.settings.results, f"{job}*")


STREAMED = {
    "video from text": {},
    "video in two stages, or silent": {},
    "a stretch of a clip made anew": {},
    "a clip made longer": {"overlap": 9},
    "a clip begun earlier": {"backwards": True},
    "sound for a clip": {},
}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("mode", STREAMED)
@pytest.mark.usefixtures("runner")
def test_a_streamed_clip_is_the_one_that_is_not(client, media, mode):
    own = REQUESTS["a clip made longer" if mode == "a clip begun earlier" else mode]
    wanted = {**filled({**JOB, **own}, media), **STREAMED[mode]}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    clips = []
    for stream in (False, True):
        video = finished(client, create(client, **wanted, stream=stream))
        assert video["status"] == "completed", video
        clips.append(content(client, video["id"]))
    assert [b"moof" in clip for clip in clips] == [False, True]
    for one, other in zip(*(decoded(clip)[:2] for clip in clips)):
        assert np.array_equal(one, other)
