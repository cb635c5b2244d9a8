"""Servers as processes that share a PostgreSQL: no job is lost or made twice, whoever is killed, the database included."""

import json
import time

import pytest

from benchmarks.serving_load import Server
from tests.serving.conftest import JOB
from tests.tiny_checkpoints import tiny_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture
def start(postgresql, tmp_path):
    """Starts servers of one database and one folder of data, each with a log of its own."""
    servers = []
    (tmp_path / "data").mkdir(mode=0o700)

    def start_one(*options: str) -> Server:
        folder = tmp_path / f"server {len(servers)}"
        folder.mkdir()
        (folder / "data").symlink_to(tmp_path / "data")
        checkpoint = str(tiny_checkpoint("2.0"))
        servers.append(Server(folder / "data", "--checkpoint", checkpoint, "--database", postgresql.url, *options))
        return servers[-1]

    yield start_one
    for server in servers:
        server.kill()


def ends(server: Server) -> list[str]:
    """Names of jobs that a server made."""
    return [line.split()[-2] for line in server.log().splitlines() if line.endswith(" completed")]


def test_two_servers_make_each_job_once_though_one_is_killed(start):
    servers = [start(), start("--max-batch", "2")]
    jobs = [
        servers[index % 2].told("POST", "/v1/videos", {**JOB, "seed": index, "steps": 8})["id"] for index in range(16)
    ]
    while not ends(servers[0]):
        time.sleep(0.02)
    servers[0].kill()
    servers[0].start()
    # Whoever is asked knows them all.
    assert {servers[1].finished(job)["status"] for job in jobs} == {"completed"}
    made = [ends(server) for server in servers]
    assert sorted(made[0] + made[1]) == sorted(jobs)
    assert all(made)
    for job in jobs:
        assert servers[0].ask("GET", f"/v1/videos/{job}/content")[1][4:8] == b"ftyp"


def test_a_job_outlives_a_restart_of_the_database(start, postgresql, tmp_path):
    server = start()
    job = server.told("POST", "/v1/videos", {**JOB, "steps": 40})["id"]
    waits = server.told("POST", "/v1/videos", {**JOB, "seed": 8})["id"]
    while server.told("GET", f"/v1/videos/{job}")["progress"] == 0:
        time.sleep(0.02)
    began = time.monotonic()
    postgresql.stop()
    try:
        status, answer = server.ask("GET", "/health")
        assert (status, json.loads(answer)["status"], json.loads(answer)["queued"]) == (503, "down", None)
        for method, path, body in (
            ("GET", f"/v1/videos/{job}", None),
            ("POST", "/v1/videos", JOB),
            ("GET", "/metrics", None),
        ):
            status, answer = server.ask(method, path, body)
            assert (status, "database" in json.loads(answer)["detail"]) == (503, True)
        # The clip is made while nobody can be told.
        while not list((tmp_path / "data" / "results").glob(f"{job}.*")):
            assert time.monotonic() - began < 120
            time.sleep(0.05)
        time.sleep(2)
    finally:
        postgresql.start()
    assert [server.finished(one)["status"] for one in (job, waits)] == ["completed"] * 2
    assert ends(server) == [job, waits]
    assert server.stop() == 0
    # What is asked for stands in no log, whatever goes wrong.
    assert JOB["prompt"] not in server.log()
