"""Fixtures: the system's Chromium, and pages of a service that has a little of everything."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

import teguh
from teguh.server import create_app
from tests.browser import chromium
from tests.dashboard.scene import Scene, fill
from tests.server.support import SECRETS, TOKENS, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

PATIENCE_MS = 20_000

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium, for the tests of a file."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def client(dsn: str) -> Iterator[teguh.Client]:
    """A client of the database that is shown."""
    with teguh.Client.connect(dsn) as client:
        yield client


@pytest.fixture
def scene(client: teguh.Client) -> Scene:
    """What there is to see."""
    return fill(client)


@pytest.fixture
def url(dsn: str, scene: Scene) -> Iterator[str]:
    """A service with a token for each scope."""
    del scene
    with serving(create_app(dsn, tokens=TOKENS, ticker_interval=0)) as url:
        yield url


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Open]:
    """Return what opens a browser of its own, signed in with the token of a scope.

    At the end, nothing may have been complained of in the console, fetched from elsewhere, or
    executed that a task holds. A service that is stopped on purpose is in `trouble`.
    """
    complaints: list[str] = []

    def check_message(message: Any) -> None:
        if message.type in ("error", "warning"):
            complaints.append(f"{message.type}: {message.text}")

    def check_request(request: Any) -> None:
        if not request.url.startswith(f"{url}/"):
            complaints.append(f"request: {request.url}")

    def check_dialog(dialog: Any) -> None:
        complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    with ExitStack() as stack:

        def visit(scope: str | None = "admin", *, trouble: bool = False, **look: Any) -> Page:
            context = stack.enter_context(browser.new_context(base_url=url, **look))
            context.set_default_timeout(PATIENCE_MS)
            page = context.new_page()
            page.on("dialog", check_dialog)
            page.on("request", check_request)
            if not trouble:
                page.on("console", check_message)
                page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
            if scope:
                page.goto("/sign-in")
                page.get_by_label("Token").fill(SECRETS[scope])
                page.get_by_role("button", name="Sign in").click()
                page.get_by_role("button", name="Sign out").wait_for()
            return page

        yield visit
    assert complaints == []
