import os

# The suite must pass without a network; a test that reached for the Hub would fail at once instead of hanging.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Workers that run side by side would fight over the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
