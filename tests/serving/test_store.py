"""Jobs in the database: taken once, kept over the end of a server, and never done twice."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ltx2_diffusers.serving import store as stores
from ltx2_diffusers.serving.jobs import Job
from ltx2_diffusers.serving.store import CANCELLED, DONE, FAILED, QUEUED, RUNNING, QueueFull, Store


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


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.db'}"


@pytest.fixture
def store(url) -> Store:
    return Store(url, "one", 100)


def states(store: Store) -> dict[str, str]:
    return {row.id: row.state for row in store.page("", None, 1000, newest_first=False)}


def test_each_job_is_taken_by_one_of_many_servers(url):
    servers = [Store(url, f"server {index}", 1000) for index in range(4)]
    for index in range(40):
        servers[0].add(job(f"job {index}"), "")
    taken: list[str] = []
    lock = threading.Lock()

    def take(server: Store) -> None:
        while rows := server.claim(1):
            with lock:
                taken.extend(row.id for row in rows)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, servers * 2))
    assert sorted(taken) == sorted(f"job {index}" for index in range(40))


def test_the_oldest_is_taken_first_with_those_of_its_kind(store):
    for name, key in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "x"), ("e", None), ("f", None)):
        store.add(job(name, key), "")
    assert [[row.id for row in store.claim(2)] for _ in range(5)] == [["a", "c"], ["b"], ["d"], ["e"], ["f"]]
    assert store.claim(2) == []


def test_a_server_that_begins_anew_puts_its_own_jobs_back(url, store):
    store.add(job("a"), "")
    store.add(job("b"), "")
    first = store.claim(1)[0]
    other = Store(url, "two", 100)
    other.claim(1)
    store.close()
    again = Store(url, "one", 100)
    assert again.recover(from_this=True) == []
    assert states(again) == {"a": QUEUED, "b": RUNNING}
    second = again.claim(1)[0]
    assert (second.id, second.attempts) == ("a", 2)
    # What the earlier life might still say counts for nothing.
    assert not again.finish(first, DONE, {"file": "a.mp4"})
    assert again.finish(second, DONE, {"file": "a.mp4"})
    assert not again.finish(second, DONE, {"file": "a.mp4"})


def test_jobs_of_a_server_that_says_nothing_any_more_are_taken_over(url, store, monkeypatch):
    store.add(job("a"), "")
    row = store.claim(1)[0]
    other = Store(url, "two", 100)
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


def test_calls_whose_caller_is_gone_are_closed(url, store):
    store.add(job("waits"), "", waited_for=True)
    store.add(job("runs"), "", waited_for=True)
    store.claim(1)
    other = Store(url, "two", 100)
    # Only the server that was called can answer.
    assert other.claim(1) == []
    assert other.recover(from_this=True) == []
    assert sorted(Store(url, "one", 100).recover(from_this=True)) == ["runs", "waits"]
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


def test_the_queue_is_bounded_whoever_adds(url):
    store = Store(url, "one", 5)

    def add(index: int) -> bool:
        try:
            return bool(store.add(job(f"job {index}"), ""))
        except QueueFull as full:
            assert full.retry_after_s >= 1
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(40))) == 5
    assert store.counts() == {QUEUED: 5, RUNNING: 0}


def test_one_request_key_is_one_job_for_each_tenant(store):
    assert store.add(job("a"), "x", request_key="k") == "a"
    assert store.add(job("b"), "x", request_key="k") == "a"
    assert store.add(job("c"), "y", request_key="k") == "c"
    assert store.get("b") is None


def test_one_request_key_is_one_job_whichever_server_is_asked(url):
    servers = [Store(url, f"server {index}", 1000) for index in range(4)]

    def add(index: int) -> str:
        return servers[index % 4].add(job(f"job {index}"), "", request_key="k")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(add, range(40)))) == 1
    assert servers[0].counts()[QUEUED] == 1


def test_old_jobs_are_found(store):
    store.add(job("a"), "")
    store.add(job("b"), "")
    store.finish(store.claim(1)[0], DONE, {"file": "a.mp4"})
    finished = store.get("a").finished
    assert store.expired(finished - 1) == []
    assert store.expired(finished + 1) == ["a"]
