"""Loading never holds two copies of weights: measured in processes of their own."""

import mmap
import sys
import time

import pytest

from benchmarks import loading_memory

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs /proc/self/status, which tells anonymous memory"
)


def test_peak_memory_is_what_was_held_for_a_moment():
    """Of pages that are new, which those of tensors need not be."""
    size = 64 * 2**20
    with loading_memory.PeakMemory() as peak:
        for held in (size, size // 4):
            with mmap.mmap(-1, held, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
                for start in range(0, held, mmap.PAGESIZE):
                    pages[start] = 1
                time.sleep(0.05)
    assert 0.95 * size < peak.bytes < 1.2 * size


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    loading_memory.build(folder, loading_memory.QUICK_MEGABYTES)
    return folder


CASES = [
    ("transformer, folder", "cast"),
    ("transformer, shards", "as stored"),
    ("transformer, shards", "cast"),
    ("transformer, original file", "as stored"),
    ("transformer, original file", "cast"),
    ("transformer, original file, read", "as stored"),
    ("text encoder, folder", "cast"),
    ("pipeline, folder", "cast"),
    ("pipeline, original file", "cast"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case, kind", CASES)
def test_no_more_than_one_copy_is_held(folder, case, kind):
    found = loading_memory.measure(folder, case, kind)
    assert found["weights"] > 0.3 * loading_memory.QUICK_MEGABYTES * 1e6
    assert found["ratio"] <= loading_memory.BOUND, found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["as stored", "cast"])
def test_blocks_that_stay_on_disk_take_none(folder, kind):
    found = loading_memory.measure(folder, "pipeline, folder, blocks on disk", kind)
    assert found["peak"] < 0.25 * found["in files"], found
    assert found["in files"] > 0.8 * loading_memory.QUICK_MEGABYTES * 1e6
