import os

# The suite must pass without a network; a test that reached for the Hub would fail at once instead of hanging.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
