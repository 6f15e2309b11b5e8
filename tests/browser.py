"""A page of the system's chromium, for tests that click."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

PATIENCE = 30.0


@contextmanager
def browsing() -> Iterator[Page]:
    """Yield an empty page; the test fails if a script on it did not catch an error.

    Skip the test where there is no chromium.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium")
    with (
        sync_playwright() as driver,
        driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        assert errors == []
