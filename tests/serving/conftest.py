"""A server within this process, on a tiny checkpoint of random weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from ltx2_diffusers.serving.app import create_app
from ltx2_diffusers.serving.running import LocalRunner
from ltx2_diffusers.serving.settings import Limits, Settings
from tests.cli.conftest import media, save_loras  # noqa: F401 (a fixture)
from tests.serving.clips import Standing
from tests.serving.databases import PostgreSQL
from tests.tiny_checkpoints import tiny_checkpoint

SMALL = {"width": 64, "height": 64, "num_frames": 9}
QUICK = {"prompt": "waves", "seed": 7, **SMALL, "num_inference_steps": 2}
JOB = {"prompt": "waves", "seed": 7, **SMALL, "steps": 2, "max_sequence_length": 64}
TIME_LIMIT_S = 60.0


def engine_options() -> dict:
    return {"checkpoint": str(tiny_checkpoint("2.0")), "device": "cpu", "dtype": "float32", "offload": "none"}


@pytest.fixture(scope="session")
def served(tmp_path_factory) -> tuple[Path, LocalRunner]:
    """A folder of data, and a runner with a LoRA `strong` that writes its results there."""
    data = tmp_path_factory.mktemp("data")
    loras = tmp_path_factory.mktemp("loras")
    save_loras(loras)
    adapters = {"strong": [loras / "strong.safetensors", 1.0], "reference": [loras / "reference.safetensors", 1.0]}
    return data, LocalRunner({**engine_options(), "adapters": adapters}, data / "results", TIME_LIMIT_S)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    server = PostgreSQL()
    yield server
    server.remove()


@pytest.fixture
def serve(served, tmp_path):
    """Starts a server with limits and settings of a test's own, and gives a client of it; long runs stand still on it."""

    @contextmanager
    def start(runner=None, limits: Limits | None = None, **settings) -> Iterator[TestClient]:
        data, shared = served
        given = {
            "database": f"sqlite:///{tmp_path / 'jobs.db'}",
            "engine": engine_options(),
            "model": "tiny",
            **settings,
        }
        app = create_app(Settings(data=data, limits=limits or Limits(), **given), runner or Standing(shared))
        with TestClient(app, base_url="http://localhost:8000") as client:
            yield client

    return start


@pytest.fixture(scope="module")
def client(served, tmp_path_factory) -> Iterator[TestClient]:
    """A server for all tests of a file, on which long runs stand still."""
    data, runner = served
    database = f"sqlite:///{tmp_path_factory.mktemp('jobs') / 'jobs.db'}"
    settings = Settings(data=data, database=database, engine=engine_options(), model="tiny")
    with TestClient(create_app(settings, Standing(runner)), base_url="http://localhost:8000") as client:
        yield client
