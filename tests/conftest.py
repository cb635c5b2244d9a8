import os

import pytest

# The suite must pass without a network; a test that reached for the Hub would fail at once instead of hanging.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Workers that run side by side would fight over the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def golden_sinusoid(monkeypatch):
    """Models see timestep sinusoids with the recorded frequencies, whichever way `exp` rounds here."""
    from tests.golden_data import golden_sinusoid

    monkeypatch.setattr("ltx2_diffusers.models.modulation.timestep_sinusoid", golden_sinusoid)
