"""The page of the endpoints, in a browser."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from tests.browser import browsing
from tests.server.support import SECRETS, Api

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


def opened(page: Page, endpoint: str) -> Locator:
    """Open an endpoint of the page and return what belongs to it."""
    found = page.locator("section > details").filter(has=page.get_by_text(endpoint, exact=True))
    found.locator("> summary").click()
    return found


def test_every_endpoint_is_on_the_page_and_has_a_form(service: Api) -> None:
    with browsing() as page:
        page.goto(f"{service.url}/docs")
        page.locator("section > details").last.wait_for()
        paths = service.http.get("/openapi.json").json()["paths"]
        shown = page.locator("section > details > summary code").all_inner_texts()
        assert sorted(shown) == sorted(
            f"{method.upper()} {path}" for path, methods in paths.items() for method in methods
        )
        page.evaluate("document.querySelectorAll('section > details').forEach(d => d.open = true)")
        expect(page.locator("section > details > pre")).to_have_count(len(shown))
        buttons = page.get_by_role("button", name="Send")
        assert buttons.count() == len(shown)


def test_a_form_sends_what_was_written_and_shows_the_answer(service: Api) -> None:
    with browsing() as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{service.url}/docs")
        spawn = opened(page, "POST /api/v1/queues/{queue}/tasks")
        spawn.locator("input[name=queue]").fill("jobs")
        task = {"task_name": "<b>ship</b>", "params": {"order": 7}, "tags": ["eu"]}
        spawn.locator("textarea").fill(json.dumps(task))
        answer = spawn.locator("> pre")
        spawn.get_by_role("button", name="Send").click()
        answer.filter(has_text="401").wait_for()
        page.locator("#token").fill(SECRETS["admin"])
        spawn.get_by_role("button", name="Send").click()
        answer.filter(has_text="task_id").wait_for()
        status, _, body = answer.inner_text().partition("\n")
        assert status == "200"

        found = opened(page, "GET /api/v1/queues/{queue}/tasks")
        found.locator("input[name=queue]").fill("jobs")
        found.locator("input[name=tag]").fill("eu")
        found.locator("input[name=attributes]").fill("{}")
        found.get_by_role("button", name="Send").click()
        answer = found.locator("> pre")
        answer.filter(has_text="task_id").wait_for()
        (row,) = json.loads(answer.inner_text().partition("\n")[2])
        assert (row["task_id"], row["task_name"]) == (
            json.loads(body)["task_id"], "<b>ship</b>"
        )  # fmt: skip
        assert page.locator("pre b").count() == 0
        assert all(url.startswith(service.url) for url in asked)


def test_a_stream_is_shown_as_it_comes(service: Api) -> None:
    with browsing() as page:
        page.goto(f"{service.url}/docs")
        page.locator("#token").fill(SECRETS["admin"])
        stream = opened(page, "GET /api/v1/streams/stats")
        stream.get_by_role("button", name="Send").click()
        answer = stream.locator("> pre")
        answer.filter(has_text='"pending":0').wait_for()
        service.post("/queues/jobs/tasks", task_name="ship")
        answer.filter(has_text='"pending":1').wait_for()
