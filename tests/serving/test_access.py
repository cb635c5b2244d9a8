"""Keys, web sites and sizes are looked at before a request is read; nobody sees another's jobs."""

import logging

import pytest

from ltx2_diffusers.serving.access import read_keys
from ltx2_diffusers.serving.settings import Limits
from tests.serving.clips import content, create, finished
from tests.serving.conftest import JOB, QUICK

KEYS = ("a" * 32, "b" * 32)
SITE = "https://films.example"


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_a_key_is_asked_for_everywhere_but_at_the_door(serve):
    with serve(api_keys=KEYS) as client:
        assert client.get("/health").status_code == 200
        for path in ("/v1/videos", "/v1/videos/x", "/metrics", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 401
        for headers in ({}, bearing("c" * 32), bearing(""), {"Authorization": KEYS[0]}, {"Authorization": "Basic x"}):
            answer = client.post("/generate", json=QUICK, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/metrics", headers=bearing(KEYS[1])).status_code == 200


def test_holders_of_a_key_see_their_own_jobs_alone(serve):
    with serve(api_keys=KEYS) as client:
        job = create(client, bearing(KEYS[0]), **JOB)
        for ask in (client.get, client.delete):
            assert ask(f"/v1/videos/{job}", headers=bearing(KEYS[1])).status_code == 404
        for path in ("content", "events"):
            assert client.get(f"/v1/videos/{job}/{path}", headers=bearing(KEYS[1])).status_code == 404
        assert client.get("/v1/videos", headers=bearing(KEYS[1])).json()["data"] == []
        client.headers = bearing(KEYS[0])
        finished(client, job)
        assert content(client, job)[4:8] == b"ftyp"


def test_web_sites_may_call_only_if_they_are_allowed(serve):
    with serve() as client:
        for site in (SITE, "null", "http://localhost:9000"):
            assert client.post("/generate", json=QUICK, headers={"Origin": site}).status_code == 403
        answer = client.get("/health", headers={"Origin": "http://localhost:8000"})
        assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (200, False)
    with serve(origins=(SITE,), api_keys=KEYS) as client:
        asked = {
            "Origin": SITE,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        assert client.options("/generate", headers=asked).headers["access-control-allow-origin"] == SITE
        answer = client.get("/v1/videos", headers={"Origin": SITE, **bearing(KEYS[0])})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, SITE)
        assert client.get("/health", headers={"Origin": "https://other.example"}).status_code == 403


def test_a_body_that_is_too_large_is_not_read(serve):
    with serve(limits=Limits(max_body_mb=0.1)) as client:
        long = {**QUICK, "image": "A" * 200_000}
        assert client.post("/generate", json=long).status_code == 413
        read = []

        def pieces():
            for _ in range(100):
                read.append(1)
                yield b"x" * 20_000

        # Without a header that tells how much comes.
        headers = {"Content-Type": "application/json"}
        for path in ("/generate", "/v1/videos"):
            assert client.post(path, content=pieces(), headers=headers).status_code == 413
        files = {"input_reference": ("x.png", b"x" * 200_000, "image/png")}
        assert client.post("/v1/videos", data={"prompt": "waves"}, files=files).status_code == 413


def test_logs_hold_nothing_of_what_is_asked_for(serve, caplog):
    caplog.set_level(logging.DEBUG)
    secret = "a zebra in a red coat"
    with serve(api_keys=KEYS) as client:
        client.headers = bearing(KEYS[0])
        finished(client, create(client, **{**JOB, "prompt": secret}))
        client.post("/generate", json={**QUICK, "prompt": secret, "width": 1})
        client.post("/v1/videos", json={**JOB, "prompt": secret, "stg_blocks": [99]})
    assert caplog.records
    assert not any(word in caplog.text for word in ("zebra", *KEYS))


@pytest.mark.parametrize(
    ("lines", "reason"), [([], "without keys"), (["# none"], "without keys"), (["short"], "fewer than 16")]
)
def test_keys_that_protect_nothing_are_refused(lines, reason):
    with pytest.raises(ValueError, match=reason):
        read_keys(lines)


def test_keys_are_read_from_lines():
    assert read_keys(["# ours", KEYS[0], "", f" {KEYS[1]} "]) == KEYS
