"""`ltx2 serve --ray`: clips made side by side on replicas of Ray Serve, and what becomes of jobs when one dies."""

import importlib.util
import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.serving_load import Server
from ltx2_diffusers.cli.main import build_parser
from ltx2_diffusers.serving.fleet import pulse
from ltx2_diffusers.serving.fleet.pulse import Pulse, PulseReader
from ltx2_diffusers.serving.fleet.settings import Fleet, fleet_of
from ltx2_diffusers.serving.running import LocalRunner
from ltx2_diffusers.serving.settings import Limits
from ltx2_diffusers.serving.worker import WorkerProcess
from tests.serving.clips import Standing, content, create, decoded, finished, generate
from tests.serving.conftest import JOB, QUICK, TIME_LIMIT_S, engine_options
from tests.serving.test_command import complaint
from tests.tiny_checkpoints import tiny_checkpoint

LONG = {**JOB, "steps": 60, "num_frames": 33}
ENDLESS = {**LONG, "steps": 200, "num_frames": 193}
WAIT_S = 240.0


def fleet(*options: str, device: str = "cpu") -> Fleet | None:
    return fleet_of(vars(build_parser().parse_args(["serve", *options])), device)


def test_replicas_are_options():
    assert fleet() is None
    assert fleet("--ray", "local") == Fleet()
    assert fleet("--ray", "auto", device="cuda") == Fleet(address="auto", gpus=1)
    given = fleet(
        *("--ray", "head:6379", "--replicas", "2:8", "--gpus-per-replica", "0.5", "--cpus-per-replica", "4"),
        *("--replica-resource", "fast_disk=1", "--scale-up-after", "0", "--scale-down-after", "60"),
        device="cuda",
    )
    scale = {"least": 2, "most": 8, "scale_up_after": 0, "scale_down_after": 60}
    assert fleet("--ray", "auto", "--gpus-per-replica", "4", device="cuda") == Fleet(address="auto", gpus=4)
    assert given == Fleet(address="head:6379", gpus=0.5, cpus=4, resources={"fast_disk": 1}, **scale)


@pytest.mark.parametrize(
    ("options", "device", "reason"),
    [
        (["--replicas", "2"], "cpu", "give --ray"),
        (["--ray", "local", "--replicas", "two"], "cpu", "MIN:MAX"),
        (["--ray", "local", "--replicas", "0"], "cpu", "1 <= MIN"),
        (["--ray", "local", "--replicas", "3:2"], "cpu", "1 <= MIN"),
        (["--ray", "ray://head:10001"], "cpu", "--ray auto"),
        (["--ray", "local", "--gpus-per-replica", "1"], "cpu", "use --device cuda"),
        (["--ray", "local", "--gpus-per-replica", "0"], "cuda", "use 1"),
        (["--ray", "local", "--gpus-per-replica", "1.5"], "cuda", "on whole ones; use 2"),
        (["--ray", "local"], "cuda:1", "use --device cuda"),
        (["--ray", "local", "--cpus-per-replica", "0"], "cpu", "greater than 0"),
        (["--ray", "local", "--scale-up-after", "-1"], "cpu", "at least 0"),
        (["--ray", "local", "--replica-resource", "fast_disk"], "cpu", "NAME=AMOUNT"),
        (["--ray", "local", "--replica-resource", "fast_disk=none"], "cpu", "NAME=AMOUNT"),
    ],
)
def test_what_is_wrong_with_replicas_is_said(options, device, reason):
    with pytest.raises(ValueError, match=reason):
        fleet(*options, device=device)


def test_without_ray_it_says_what_installs_it(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    said = "ltx2 serve: --ray needs ray; install it with: pip install 'ltx2-diffusers[serve,ray]'"
    assert complaint(capsys, "--ray", "local") == said


def test_a_replica_sees_whether_it_shares_the_folder(tmp_path):
    server = Pulse(tmp_path / "shared" / "server.pulse")
    PulseReader(server.file, server.token).check()
    with pytest.raises(ValueError, match="all machines share"):
        PulseReader(tmp_path / "other" / "server.pulse", server.token).check()
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "shared", copied)
    server.end()
    anew = Pulse(server.file)
    with pytest.raises(ValueError, match="another folder"):
        PulseReader(copied / "server.pulse", anew.token).check()
    anew.end()
    assert list((tmp_path / "shared").iterdir()) == []


def test_a_replica_notices_that_its_server_is_gone(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(pulse, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(pulse, "_BEAT_S", 0.01)
    server = Pulse(tmp_path / "server.pulse")
    replica, ends = PulseReader(server.file, server.token), time.monotonic() + 60
    for _ in range(4):
        said = server.file.read_text()
        while server.file.read_text() == said:
            assert time.monotonic() < ends
        clock.now += pulse._SILENCE_S - 1
        assert not replica.lost()
    # Its file is no longer written.
    server.end()
    clock.now += pulse._SILENCE_S - 1
    assert not replica.lost()
    clock.now += 2
    assert replica.lost()
    # It was started anew, and has other replicas.
    anew = Pulse(server.file)
    assert replica.lost()
    assert not PulseReader(anew.file, anew.token).lost()
    anew.end()


class Pair:
    """Two runners as one with two slots."""

    slots = 2

    def __init__(self, *runners: Standing) -> None:
        self.model = runners[0].model
        self._free: queue.SimpleQueue[Standing] = queue.SimpleQueue()
        for runner in runners:
            self._free.put(runner)

    def run(self, *arguments):
        runner = self._free.get_nowait()
        try:
            return runner.run(*arguments)
        finally:
            self._free.put(runner)

    def close(self) -> None:
        """They go on."""


@pytest.fixture(scope="module")
def pair(served) -> Pair:
    data, runner = served
    return Pair(*map(Standing, (runner, LocalRunner(engine_options(), data / "results", TIME_LIMIT_S))))


def side_by_side(told, jobs: list[str], seconds: float = 60) -> None:
    """Wait until jobs run at the same time."""
    ends = time.monotonic() + seconds
    while True:
        videos = [told(job) for job in jobs]
        assert all(video["status"] in ("queued", "in_progress") for video in videos), videos
        if all(video["status"] == "in_progress" and video["progress"] > 0 for video in videos):
            return
        assert time.monotonic() < ends, videos
        time.sleep(0.02)


def test_as_many_jobs_run_as_there_are_slots(serve, pair):
    with serve(runner=pair) as client:
        jobs = [create(client, **LONG) for _ in range(3)]
        side_by_side(lambda job: client.get(f"/v1/videos/{job}").json(), jobs[:2])
        health = client.get("/health").json()
        assert (health["running"], health["queued"]) == (2, 1)
        # The one that is cancelled makes room, and the other goes on.
        client.post(f"/v1/videos/{jobs[0]}/cancel")
        side_by_side(lambda job: client.get(f"/v1/videos/{job}").json(), jobs[1:])
        for job in jobs[1:]:
            client.post(f"/v1/videos/{job}/cancel")
        clips = [decoded(content(client, finished(client, create(client, **JOB))["id"]))[0] for _ in range(2)]
    assert np.array_equal(*clips)


def test_a_server_that_ends_hands_all_its_jobs_back(serve, pair):
    with serve(runner=pair, limits=Limits(grace=0.1)) as client:
        jobs = [create(client, **LONG) for _ in range(2)]
        side_by_side(lambda job: client.get(f"/v1/videos/{job}").json(), jobs)
    with serve(runner=pair) as client:
        side_by_side(lambda job: client.get(f"/v1/videos/{job}").json(), jobs)
        assert [client.app.state.server.store.get(job).attempts for job in jobs] == [1, 1]
        for job in jobs:
            client.post(f"/v1/videos/{job}/cancel")


def test_a_job_that_is_cancelled_while_it_is_taken_ends_at_its_first_step(serve, monkeypatch):
    with serve() as client:
        server = client.app.state.server
        claim = server.store.claim

        def cancelled(most: int):
            rows = claim(most)
            for row in rows:
                server.dispatcher.cancel(row.id)
            return rows

        monkeypatch.setattr(server.store, "claim", cancelled)
        job = create(client, **ENDLESS)
        assert finished(client, job)["status"] == "cancelled"
        monkeypatch.setattr(server.store, "claim", claim)
        # It has to end before another can be made.
        assert finished(client, create(client, **JOB))["status"] == "completed"
        assert server.metrics.registry.get_sample_value("ltx2_steps_total") == JOB["steps"]


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """Where a cluster writes; its sockets bear no long names."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(ray_folder) -> Iterator[str]:
    """The address of a Ray cluster on two CPU cores, of this machine alone."""
    pytest.importorskip("ray", reason="there is no Ray for this version of Python")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--head", "--block"]
    command += ["--disable-usage-stats", "--include-dashboard=false", "--object-store-memory=100000000"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2", f"--temp-dir={ray_folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            ends = time.monotonic() + WAIT_S
            while True:
                assert process.poll() is None and time.monotonic() < ends
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def options(cluster: str, *more: str) -> tuple[str, ...]:
    return ("--checkpoint", str(tiny_checkpoint("2.0")), "--dtype", "float32", "--ray", cluster, *more)


@pytest.fixture(scope="module")
def server(cluster, tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("fleet") / "data", *options(cluster, "--replicas", "2", "--grace", "1"))
    yield server
    if server.process.poll() is None:
        server.stop()


def processes(name: str) -> list[int]:
    """Ids of processes whose command begins so."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes().startswith(name.encode()):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def replicas(server: Server) -> list[int]:
    return processes(f"ray::ServeReplica:ltx2-{socket.gethostname()}-{server.port}:")


def video(server: Server):
    return lambda job: server.told("GET", f"/v1/videos/{job}")


def two_at_a_time(server: Server) -> None:
    """Give two jobs at a time until they run side by side."""
    ends, seen = time.monotonic() + WAIT_S, False
    while not seen:
        jobs = [server.told("POST", "/v1/videos", ENDLESS)["id"] for _ in range(2)]
        while not seen and all((told := video(server)(job))["status"] != "completed" for job in jobs):
            assert time.monotonic() < ends, told
            seen = all(video(server)(job)["progress"] > 0 for job in jobs)
        for job in jobs:
            server.told("POST", f"/v1/videos/{job}/cancel")


def clip(server: Server, job: str) -> np.ndarray:
    assert server.finished(job, WAIT_S)["status"] == "completed"
    assert server.log().count(f"{job} completed") == 1
    return decoded(server.ask("GET", f"/v1/videos/{job}/content")[1])[0]


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> list[np.ndarray]:
    """What a single process makes of `LONG` with seeds 7 and 8, and of `QUICK`."""
    from fastapi.testclient import TestClient

    from ltx2_diffusers.serving.app import create_app
    from ltx2_diffusers.serving.settings import Settings

    settings = Settings(data=tmp_path_factory.mktemp("single"), engine=engine_options())
    runner = WorkerProcess(settings.engine, settings.inputs, settings.results, TIME_LIMIT_S)
    with TestClient(create_app(settings, runner), base_url="http://localhost:8000") as client:
        jobs = [create(client, **{**LONG, "seed": seed}) for seed in (7, 8)]
        clips = [decoded(content(client, finished(client, job, WAIT_S)["id"]))[0] for job in jobs]
        return [*clips, decoded(generate(client, **QUICK)["video"])[0]]


@pytest.mark.slow
def test_clips_are_made_side_by_side_and_equal_those_of_one_process(server, expected):
    jobs = [server.told("POST", "/v1/videos", {**LONG, "seed": seed})["id"] for seed in (7, 8)]
    side_by_side(video(server), jobs)
    for job, frames in zip(jobs, expected):
        assert np.array_equal(clip(server, job), frames)
    assert np.array_equal(decoded(server.told("POST", "/generate", QUICK)["video"])[0], expected[2])
    assert server.told("GET", "/health")["device"] == "cpu"


@pytest.mark.slow
def test_events_and_pictures_come_from_a_replica(server):
    job = server.told("POST", "/v1/videos", {**JOB, "steps": 4, "preview_every": 2})["id"]
    told = server.ask("GET", f"/v1/videos/{job}/events")[1].decode()
    assert told.count("event: progress") == 4 or '"step": 4' in told
    assert "event: preview" in told and '"status": "completed"' in told
    wrong = server.told("POST", "/v1/videos", {**JOB, "stg_blocks": [99]})["id"]
    assert server.finished(wrong)["error"]["code"] == "invalid_request"


@pytest.mark.slow
def test_a_replica_ends_a_cancelled_job_within_a_step(server):
    jobs = [server.told("POST", "/v1/videos", ENDLESS)["id"] for _ in range(2)]
    side_by_side(video(server), jobs)
    for job in jobs:
        assert server.told("POST", f"/v1/videos/{job}/cancel")["status"] == "cancelled"
    following = [server.told("POST", "/v1/videos", JOB)["id"] for _ in range(2)]
    for job in following:
        clip(server, job)
    # Nothing goes on behind the back of the server.
    before = seconds_computed(server)
    time.sleep(2)
    assert seconds_computed(server) - before < 0.5


def seconds_computed(server: Server) -> float:
    """Processor time that replicas have taken."""
    fields = [Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split() for process in replicas(server)]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_the_job_of_a_killed_replica_is_made_by_another(server, expected):
    jobs = [server.told("POST", "/v1/videos", {**LONG, "seed": seed})["id"] for seed in (7, 8)]
    side_by_side(video(server), jobs)
    before = replicas(server)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    for job, frames in zip(jobs, expected):
        assert np.array_equal(clip(server, job), frames)
    assert b"ltx2_worker_deaths_total 1.0" in server.ask("GET", "/metrics")[1]
    # Ray starts another in its place.
    two_at_a_time(server)


@pytest.mark.slow
def test_a_killed_server_goes_on_where_it_was(server, expected):
    jobs = [server.told("POST", "/v1/videos", {**LONG, "seed": seed})["id"] for seed in (7, 8)]
    side_by_side(video(server), jobs)
    before = replicas(server)
    server.kill()
    server.start()
    assert not set(before) & set(replicas(server))
    for job, frames in zip(jobs, expected):
        assert np.array_equal(clip(server, job), frames)


@pytest.mark.slow
def test_a_server_that_is_asked_to_end_hands_its_jobs_back_and_ends_its_replicas(server, ray_folder):
    jobs = [server.told("POST", "/v1/videos", ENDLESS)["id"] for _ in range(2)]
    side_by_side(video(server), jobs)
    assert server.stop() == 0
    assert replicas(server) == []
    assert "Traceback" not in server.log()
    # No log holds what was asked for.
    logs = [server.log(), *(file.read_text(errors="replace") for file in ray_folder.rglob("*.log"))]
    assert len(logs) > 10
    assert not any("waves" in log for log in logs)


@pytest.mark.slow
def test_replicas_follow_the_queue(cluster, tmp_path):
    scale = ("--replicas", "1:2", "--scale-up-after", "1", "--grace", "1")
    server = Server(tmp_path / "data", *options(cluster, *scale))
    try:
        assert len(replicas(server)) == 1
        first, waits = (server.told("POST", "/v1/videos", ENDLESS)["id"] for _ in range(2))
        side_by_side(video(server), [first])
        # One that waits for a replica is cancelled like any other, and another waits in its place.
        told = video(server)(waits)
        assert (told["status"], told["progress"]) == ("in_progress", 0)
        for job in (waits, first):
            assert server.told("POST", f"/v1/videos/{job}/cancel")["status"] == "cancelled"
        two_at_a_time(server)
        assert len(replicas(server)) == 2
        clip(server, server.told("POST", "/v1/videos", JOB)["id"])
    finally:
        assert server.stop() == 0


@pytest.mark.slow
def test_a_replica_may_be_several_processes(cluster, tmp_path, expected):
    both = ("--cpus-per-replica", "2", "--ranks", "2", "--parallel", "passes", "--grace", "1")
    server = Server(tmp_path / "data", *options(cluster, *both))
    try:
        job = server.told("POST", "/v1/videos", {**LONG, "seed": 7})["id"]
        side_by_side(video(server), [job])
        [replica] = replicas(server)
        ranks = [process for process in processes(sys.executable) if child_of(process, replica)]
        assert len(ranks) == 2
        os.kill(ranks[-1], signal.SIGKILL)
        assert np.array_equal(clip(server, job), expected[0])
    finally:
        assert server.stop() == 0
    assert not any(Path(f"/proc/{process}").exists() for process in ranks)


def child_of(process: int, parent: int) -> bool:
    """Whether a process was started by another one, or by one that this has started."""
    while process > 1 and process != parent:
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return process == parent


@pytest.mark.slow
def test_what_keeps_a_replica_from_working_is_said(cluster, tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(RuntimeError, match=r"ltx2 serve: the machine .* cannot load the checkpoint"):
        Server(tmp_path / "data", "--checkpoint", str(tmp_path), "--ray", cluster)
    with pytest.raises(RuntimeError, match="there is no Ray cluster"):
        Server(tmp_path / "data", "--ray", "127.0.0.1:1")


@pytest.mark.slow
# The cluster of the other tests is none of its business.
@pytest.mark.usefixtures("cluster")
def test_ray_is_started_on_this_machine_and_goes_with_the_server(tmp_path, expected):
    with pytest.raises(RuntimeError, match=r"--replicas 4096 of 1 CPU each need 4096, and there are"):
        Server(tmp_path / "small", "--ray", "local", "--replicas", "4096")
    others = set(processes("ray::"))
    server = Server(tmp_path / "data", *options("local"))
    assert np.array_equal(decoded(server.told("POST", "/generate", QUICK)["video"])[0], expected[2])
    assert set(processes("ray::")) > others
    server.kill()
    # The replica ends at once, what watches over the machine after a minute.
    ends = time.monotonic() + WAIT_S
    while set(processes("ray::")) - others:
        assert time.monotonic() < ends
        time.sleep(0.1)
