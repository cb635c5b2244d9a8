"""What there is of host memory within control groups."""

import pytest

from ltx2_diffusers import devices

GIB = 2**30


def group(folder, names, limit, used, inactive):
    folder.mkdir(parents=True, exist_ok=True)
    key = "total_inactive_file" if names[0] != "max" else "inactive_file"
    for name, text in zip(("memory." + names[0], "memory." + names[1]), (limit, used)):
        (folder / name).write_text(f"{text}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{key} {inactive}\n")


@pytest.mark.parametrize(
    ("names", "line", "place"),
    [
        (("max", "current"), "0::/box/one\n", "box"),
        (("limit_in_bytes", "usage_in_bytes"), "4:memory:/box/one\n3:cpuset:/\n0::/\n", "memory/box"),
    ],
    ids=["second version", "first version"],
)
def test_the_least_that_a_group_or_one_above_it_leaves(tmp_path, names, line, place):
    (tmp_path / "own").write_text(line)
    group(tmp_path / place / "one", names, 8 * GIB, 3 * GIB, GIB)
    assert devices._group_bytes(tmp_path, tmp_path / "own") == 6 * GIB
    group(tmp_path / place, names, 4 * GIB, 3 * GIB, 0)
    assert devices._group_bytes(tmp_path, tmp_path / "own") == GIB


@pytest.mark.parametrize("limit", ["max", 2**63 - 4096])
def test_groups_without_a_limit(tmp_path, limit):
    (tmp_path / "own").write_text("0::/\n")
    group(tmp_path, ("max", "current"), limit, GIB, 0)
    assert devices._group_bytes(tmp_path, tmp_path / "own") is None
    assert devices._group_bytes(tmp_path, tmp_path / "nothing") is None


def test_the_host_gives_no_more_than_the_group(monkeypatch, tmp_path):
    (tmp_path / "own").write_text("0::/\n")
    monkeypatch.setattr(devices, "_GROUPS", tmp_path)
    monkeypatch.setattr(devices, "_OWN_GROUP", tmp_path / "own")
    assert devices.host_gib() > 0.5
    group(tmp_path, ("max", "current"), GIB, GIB // 2, 0)
    assert devices.host_gib() == 0.5
