import atexit
import gc
import os
import sys
from collections import defaultdict
from contextlib import contextmanager

import pytest

from ltx2_diffusers.checkpoints import packaged

# The suite must pass without a network; a test that reached for the Hub would fail at once instead of hanging.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Workers that run side by side would fight over the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is imported and collected is a million objects that stay to the end. To look through them for garbage again and
# again was a quarter of the time that the tests took.
gc.disable()
# Libraries complain of what is still there when the interpreter has ended.
atexit.register(gc.unfreeze)
# Since those do not count, all others would be looked through the more often.
gc.set_threshold(700, 10, 40)
_looked_through = set()


def _set_aside():
    """What there is by now is not looked through again."""
    _looked_through.update(sys.modules)
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    _set_aside()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    if len(sys.modules) > len(_looked_through) + 200:
        gc.collect()
        _set_aside()


@pytest.fixture
def golden_sinusoid(monkeypatch):
    """Models see timestep sinusoids with the recorded frequencies, whichever way `exp` rounds here."""
    from tests.golden_data import golden_sinusoid

    monkeypatch.setattr("ltx2_diffusers.models.modulation.timestep_sinusoid", golden_sinusoid)


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    """A folder called `ltx2-mini` that is the tiny checkpoint of 2.0: of its structure, and quicker."""
    from tests.tiny_checkpoints import tiny_checkpoint

    folder = tmp_path_factory.mktemp("packaged") / "ltx2-mini"
    folder.symlink_to(tiny_checkpoint("2.0"), target_is_directory=True)
    return folder


@contextmanager
def _packaged(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(packaged._FOLDERS, "ltx2-mini", str(folder))
        yield


@pytest.fixture
def tiny_is_packaged(stand_in):
    """`ltx2-mini` names a tiny checkpoint of random weights within this process."""
    with _packaged(stand_in):
        yield


@pytest.fixture(scope="module")
def tiny_is_packaged_throughout(stand_in):
    """As `tiny_is_packaged`, for all tests and fixtures of a file."""
    with _packaged(stand_in):
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test with the mark `quick_cases`, all cases are slow but for so many, taken evenly from its list."""
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("quick_cases") and not item.get_closest_marker("slow"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for found in cases.values():
        count = found[0].get_closest_marker("quick_cases").args[0]
        quick = {index * len(found) // count for index in range(count)}
        for index, item in enumerate(found):
            if index not in quick:
                item.add_marker(pytest.mark.slow)
