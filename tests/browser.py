"""The system's chromium, for tests that click."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

PATIENCE = 30.0


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a browser, one at a time: Playwright's loop holds the thread. Skip without chromium."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with (
        sync_playwright() as driver,
        driver.chromium.launch(executable_path=path, args=arguments) as browser,
    ):
        yield browser


@contextmanager
def browsing() -> Iterator[Page]:
    """Yield an empty page; the test fails if a script on it did not catch an error."""
    with chromium() as browser:
        page = browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        assert errors == []
