"""Chromium without a window, for the test of the server's page and for its picture."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# It runs as any user, draws without a graphics card and asks nobody else for anything.
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"),
)


def browser_path() -> str | None:
    """The first browser that is installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def open_browser() -> Iterator[Any]:
    """A browser of Playwright, with a profile of its own.

    Raises:
        RuntimeError: If none is installed.
    """
    from playwright.sync_api import sync_playwright

    if (path := browser_path()) is None:
        raise RuntimeError(f"none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(_FLAGS))
        yield browser
        browser.close()
