"""A browser for the tests of pages: Debian's chromium, installed where that is possible, as run.sh installs venv."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a chromium."""
    with (Path(tempfile.gettempdir()) / "s2video-tests-chromium.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes that run side by side install it once
        found = _find_chromium() or _install_chromium()
    if found is None:
        pytest.skip("needs chromium")
    return found


def _find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _install_chromium() -> str | None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return None
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["update", "-qq"],
        ["install", "-qqy", "--no-install-recommends", "chromium", "fonts-dejavu-core"],
    ):
        subprocess.run(["apt-get", *command], check=True, capture_output=True, env=environment)
    return shutil.which("chromium")


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
