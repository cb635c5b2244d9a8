"""Requests made up from the OpenAPI description: whatever is sent, the server answers as it says, and never with an error
of its own.
"""

import os
from collections import Counter

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ltx2_diffusers.serving.app import create_app
from ltx2_diffusers.serving.settings import Limits, Settings
from tests.serving.clips import create, finished
from tests.serving.conftest import JOB, QUICK, engine_options

pytestmark = pytest.mark.slow

# More by hand: LTX2_EXAMPLES=2000 LTX2_SEED=1 pytest -m slow tests/serving/test_contract.py
EXAMPLES, SEED = int(os.environ.get("LTX2_EXAMPLES", "40")), os.environ.get("LTX2_SEED")
# What is valid is really made, so it has to be small.
LIMITS = Limits(max_megapixels=0.04, max_steps=3, time_limit=2, max_queue=1000, media_time=5, keep_days=1)


@pytest.fixture(scope="module")
def api(served, tmp_path_factory):
    """The description of a running server, which can be called."""
    data, runner = served
    database = f"sqlite:///{tmp_path_factory.mktemp('jobs') / 'jobs.db'}"
    app = create_app(
        Settings(data=data, database=database, engine=engine_options(), model="tiny", limits=LIMITS), runner
    )
    before, runner._time_limit_s = runner._time_limit_s, LIMITS.time_limit
    with TestClient(app, base_url="http://localhost:8000") as client:
        assert client.post("/generate", json=QUICK).status_code == 200
        assert finished(client, create(client, **JOB))["status"] == "completed"
    yield schemathesis.openapi.from_asgi("/openapi.json", app)
    runner._time_limit_s = before


def test_no_request_breaks_the_server(api, subtests):
    """Each operation of the description in turn, so that none is left out."""
    operations = [one.ok() for one in api.get_all_operations()]
    assert {"POST /generate", "POST /v1/videos", "GET /v1/videos/{video_id}"} <= {one.label for one in operations}
    for operation in operations:
        with subtests.test(operation.label):
            try_operation(operation)


def try_operation(operation) -> None:
    statuses = Counter()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        # With LTX2_SEED another run than the usual one.
        derandomize=SEED is None,
        database=None,
    )
    @given(case=operation.as_strategy())
    def try_it(case):
        response = case.call()
        statuses[response.status_code] += 1
        # A clip that takes too long is answered with 504, as the description says.
        assert response.status_code < 500 or response.status_code == 504, (case.body, response.text)
        status_code_conformance(None, response, case)
        if response.status_code != 405:
            content_type_conformance(None, response, case)
        if response.headers.get("content-type", [""])[0].startswith("application/json"):
            response_schema_conformance(None, response, case)

    (try_it if SEED is None else seed(int(SEED))(try_it))()
    assert statuses
