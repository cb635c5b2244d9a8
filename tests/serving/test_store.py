"""Jobs in the database: taken once, kept over the end of a server, and never done twice."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sql

from ltx2_diffusers.serving import store as stores
from ltx2_diffusers.serving.jobs import Job
from ltx2_diffusers.serving.store import (
    AWAY,
    CANCELLED,
    DONE,
    FAILED,
    QUEUED,
    RUNNING,
    QueueFull,
    Store,
    database_url,
    open_database,
)


def job(name: str, batch_key: str | None = None) -> Job:
    facts = {"prompt": "waves", "size": None, "seconds": None, "runs": 1, "mode": "video from text"}
    return Job(
        id=name,
        options={},
        seed=1,
        adapters={},
        with_sound=True,
        preview_every=None,
        stream=False,
        batch_key=batch_key,
        **facts,
    )


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def url(request, tmp_path) -> str:
    """An empty database."""
    if request.param == "SQLite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    server = request.getfixturevalue("postgresql")
    engine = open_database(server.url)
    with engine.begin() as connection:
        connection.execute(sql.text("DROP TABLE ltx2_jobs"))
    engine.dispose()
    return server.url


@pytest.fixture
def open_store(url):
    """Opens stores of one database, as servers do that share it."""
    opened = []

    def open_one(owner: str, max_queue: int = 1000) -> Store:
        opened.append(Store(url, owner, max_queue))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def servers(open_store) -> list[Store]:
    return [open_store(f"server {index}") for index in range(4)]


@pytest.fixture
def store(open_store) -> Store:
    return open_store("one")


def states(store: Store) -> dict[str, str]:
    return {row.id: row.state for row in store.page("", None, 1000, newest_first=False)}


@pytest.mark.parametrize("most", [1, 3])
def test_each_job_is_taken_by_one_of_many_servers(servers, most):
    names = [f"job {index}" for index in range(60)]
    # Some are put in while others are taken.
    for name in names[:30]:
        servers[0].add(job(name, batch_key=name[-1]), "")
    taken: list[str] = []
    lock = threading.Lock()

    def take(server: Store) -> None:
        while rows := server.claim(most):
            with lock:
                taken.extend(row.id for row in rows)

    with ThreadPoolExecutor(9) as pool:
        adding = pool.submit(lambda: [servers[0].add(job(name, batch_key=name[-1]), "") for name in names[30:]])
        list(pool.map(take, servers * 2))
        adding.result()
    take(servers[0])
    assert sorted(taken) == sorted(names)


def test_servers_that_start_at_once_share_a_database(open_store):
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(open_store, "abcdefgh"))
    stores[0].add(job("a"), "")
    assert [one.counts()[QUEUED] for one in stores] == [1] * 8


def test_the_oldest_is_taken_first_with_those_of_its_kind(store):
    for name, key in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "x"), ("e", None), ("f", None)):
        store.add(job(name, key), "")
    assert [[row.id for row in store.claim(2)] for _ in range(5)] == [["a", "c"], ["b"], ["d"], ["e"], ["f"]]
    assert store.claim(2) == []


def test_a_server_that_begins_anew_puts_its_own_jobs_back(open_store, store):
    store.add(job("a"), "")
    store.add(job("b"), "")
    first = store.claim(1)[0]
    other = open_store("two")
    other.claim(1)
    store.close()
    again = open_store("one")
    assert again.recover(from_this=True) == []
    assert states(again) == {"a": QUEUED, "b": RUNNING}
    second = again.claim(1)[0]
    assert (second.id, second.attempts) == ("a", 2)
    # What the earlier life might still say counts for nothing.
    assert not again.finish(first, DONE, {"file": "a.mp4"})
    assert again.finish(second, DONE, {"file": "a.mp4"})
    # Said again, since the answer was lost; and what is no repetition.
    assert again.finish(second, DONE, {"file": "a.mp4"})
    assert not again.finish(second, DONE, {"file": "b.mp4"})
    assert not again.finish(second, FAILED)
    assert not again.finish(first, DONE, {"file": "a.mp4"})


def test_jobs_of_a_server_that_says_nothing_any_more_are_taken_over(open_store, store, monkeypatch):
    store.add(job("a"), "")
    row = store.claim(1)[0]
    other = open_store("two")
    other.recover(from_this=False)
    assert states(other) == {"a": RUNNING}
    monkeypatch.setattr(stores, "LEASE_S", -1.0)
    assert store.hold([row]) == []
    other.recover(from_this=False)
    assert states(other) == {"a": QUEUED}
    assert store.hold([row]) == ["a"]


def test_a_job_whose_worker_always_dies_is_given_up(store):
    store.add(job("a"), "")
    for _ in range(3):
        store.hand_back(store.claim(1)[0], counts=True)
    row = store.get("a")
    assert (row.state, row.error["code"], row.attempts) == (FAILED, "worker_died", 3)


def test_a_job_whose_server_always_dies_is_given_up(store):
    store.add(job("a"), "")
    for _ in range(3):
        assert len(store.claim(1)) == 1
        store.recover(from_this=True)
    assert store.get("a").error["code"] == "worker_died"


def test_a_storyboard_that_finishes_shots_between_deaths_goes_on(store):
    store.add(job("a"), "")
    for shots in (1, 1, 1, 2, 2, 2):
        row = store.claim(1)[0]
        store.note_shots(row, shots)
        store.hand_back(row, counts=True)
    assert store.get("a").result == {"shots": 2, "attempts": 4}
    # The third attempt since the latest shot.
    row = store.claim(1)[0]
    store.note_shots(row, 2)
    store.hand_back(row, counts=True)
    assert (store.get("a").state, store.get("a").attempts, store.get("a").result["shots"]) == (FAILED, 7, 2)


def test_a_storyboard_whose_server_dies_goes_on_if_it_finishes_shots(store):
    store.add(job("a"), "")
    for shots in range(5):
        store.note_shots(store.claim(1)[0], shots)
        store.recover(from_this=True)
    assert store.get("a").state == QUEUED
    for _ in range(3):
        store.claim(1)
        store.recover(from_this=True)
    assert store.get("a").error["code"] == "worker_died"


def test_shots_of_another_attempt_are_not_noted(store):
    store.add(job("a"), "")
    row = store.claim(1)[0]
    store.recover(from_this=True)
    store.note_shots(row, 1)
    assert store.get("a").result is None


def test_handing_back_in_order_is_no_attempt(store):
    store.add(job("a"), "")
    for _ in range(5):
        store.hand_back(store.claim(1)[0], counts=False)
    assert (store.get("a").state, store.get("a").attempts) == (QUEUED, 0)


def test_calls_whose_caller_is_gone_are_closed(open_store, store):
    store.add(job("waits"), "", waited_for=True)
    store.add(job("runs"), "", waited_for=True)
    store.claim(1)
    other = open_store("two")
    # Only the server that was called can answer.
    assert other.claim(1) == []
    assert other.recover(from_this=True) == []
    assert sorted(open_store("one").recover(from_this=True)) == ["runs", "waits"]
    assert {store.get(name).state for name in ("waits", "runs")} == {CANCELLED}


def test_a_cancelled_job_is_not_finished_by_its_run(store):
    store.add(job("a"), "")
    row = store.claim(1)[0]
    assert store.cancel("a")
    assert not store.cancel("a")
    assert not store.finish(row, DONE, {"file": "a.mp4"})
    assert store.hold([row]) == ["a"]
    store.hand_back(row, counts=True)
    assert store.get("a").state == CANCELLED


def test_the_queue_is_bounded_whoever_adds(open_store):
    stores = [open_store(name, max_queue=5) for name in "abcd"]

    def add(index: int) -> bool:
        try:
            return bool(stores[index % 4].add(job(f"job {index}"), ""))
        except QueueFull as full:
            assert full.retry_after_s >= 1
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(40))) == 5
    assert stores[0].counts() == {QUEUED: 5, RUNNING: 0}


def test_one_request_key_is_one_job_for_each_tenant(store):
    assert store.add(job("a"), "x", request_key="k") == "a"
    assert store.add(job("b"), "x", request_key="k") == "a"
    assert store.add(job("c"), "y", request_key="k") == "c"
    assert store.get("b") is None


def test_one_request_key_is_one_job_whichever_server_is_asked(servers):
    def add(index: int) -> str:
        return servers[index % 4].add(job(f"job {index}"), "", request_key="k")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(add, range(40)))) == 1
    assert servers[0].counts()[QUEUED] == 1


def test_pages_follow_each_other_to_the_end(store):
    names = [f"job {index}" for index in range(7)]
    for name in names:
        store.add(job(name), "")
    for newest_first in (False, True):
        found, after = [], None
        while rows := store.page("", after, 3, newest_first):
            found += [row.id for row in rows]
            after = found[-1]
        assert found == (names[::-1] if newest_first else names)


def test_no_text_that_a_request_may_hold_is_too_strange(store):
    strange = "a\0b\ud800 \U0001f3ac"
    store.add(replace(job("a", batch_key="k"), prompt=strange), "x", request_key="k\xff")
    assert Job.from_json(store.get("a").job, Path()).prompt == strange
    assert store.get("a\0") is None
    assert store.page("x", "\0", 10, newest_first=True) == []


def test_old_jobs_are_found(store):
    store.add(job("a"), "")
    store.add(job("b"), "")
    store.finish(store.claim(1)[0], DONE, {"file": "a.mp4"})
    finished = store.get("a").finished
    assert store.expired(finished - 1) == []
    assert store.expired(finished + 1) == ["a"]


def test_a_database_that_comes_back_is_used_again(postgresql):
    store = Store(postgresql.url, "one", 10)
    before = store.counts()
    postgresql.stop()
    with pytest.raises(AWAY):
        store.counts()
    postgresql.start()
    assert store.counts() == before
    # Connections that were cut while they lay unused.
    postgresql.stop()
    postgresql.start()
    assert store.counts() == before
    store.close()


def test_who_stops_in_the_middle_of_a_change_holds_up_nobody_for_ever(postgresql, monkeypatch):
    monkeypatch.setattr(stores, "_WAIT_MS", 300)
    stopped, other = (open_database(postgresql.url) for _ in range(2))
    with pytest.raises(AWAY), stores._alone(stopped) as connection:
        began = time.monotonic()
        with stores._alone(other):
            assert 0.2 < time.monotonic() - began < 5
        connection.execute(sql.text("SELECT 1"))
    for engine in (stopped, other):
        engine.dispose()


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_url_of_postgresql_means_the_driver_that_the_extra_brings(monkeypatch, scheme):
    monkeypatch.setattr(stores.importlib.util, "find_spec", lambda name: name)
    url = database_url(f"{scheme}://me:secret@db:5433/jobs?connect_timeout=3&sslmode=require")
    assert (url.drivername, url.host, url.port, url.database) == ("postgresql+psycopg", "db", 5433, "jobs")
    assert url.query == {"connect_timeout": "3", "tcp_user_timeout": "30000", "sslmode": "require"}


def test_a_database_that_cannot_be_used_is_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="but is mysql://"):
        database_url("mysql://db/jobs")
    with pytest.raises(ValueError, match="has to be sqlite:///FILE or postgresql://"):
        database_url("jobs.db")
    with pytest.raises(ValueError, match=r"cannot be used: .*unable to open"):
        open_database(f"sqlite:///{tmp_path}/no/folder/jobs.db")
    monkeypatch.setattr(stores.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"psycopg; install it with: pip install 'ltx2-diffusers\[postgres\]'"):
        database_url("postgresql://db/jobs")


def test_a_password_is_in_no_message(postgresql):
    with pytest.raises(ValueError, match="cannot be used") as refusal:
        open_database(postgresql.url.replace("jobs@", "jobs:secret@").replace("/postgres", "/nothing"))
    assert "secret" not in str(refusal.value)
