"""The dashboard as somebody with a browser sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

import teguh
from tests.dashboard.scene import NASTY, Scene, pages_of
from tests.python.support import until

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.dashboard.conftest import Open

PHONE = {"viewport": {"width": 360, "height": 740}}
ORDERS = "/queues/orders"

# A page asks again after so long.
REFRESH_MS = 5_000


def press(page: Page, name: str) -> None:
    """Press a button, or follow a link that looks like one."""
    page.get_by_role("button", name=name, exact=True).or_(
        page.get_by_role("link", name=name, exact=True)
    ).click()


def said(page: Page, text: str) -> None:
    """See what the page says of what was done."""
    expect(page.locator(".said")).to_have_text(text)


# Actions


def test_a_task_is_cancelled_retried_and_replayed(
    visit: Open, scene: Scene, client: teguh.Client
) -> None:
    page = visit()
    page.goto(f"{ORDERS}/tasks/{scene.running}")
    press(page, "Cancel…")
    page.get_by_label("Reason").fill("a mistake")
    press(page, "Cancel this task")
    said(page, "The task is cancelled.")
    expect(page.locator("h1 + .badge")).to_have_text("cancelled")
    press(page, "Retry…")
    press(page, "Back")
    press(page, "Retry…")
    page.get_by_label("From step").fill("label")
    press(page, "Retry this task")
    said(page, "The task runs again.")
    assert client.get_task_result("orders", scene.running).state == "pending"
    page.goto(f"{ORDERS}/tasks/{scene.order}")
    press(page, "Replay as new…")
    press(page, "Replay as a new task")
    said(page, "This is the new task.")
    expect(page.locator("h1 + .badge")).to_have_text("pending")


def test_a_running_task_is_requeued_and_so_is_all_of_a_worker(
    visit: Open, scene: Scene, client: teguh.Client
) -> None:
    page = visit()
    page.goto(f"{ORDERS}/tasks/{scene.running}")
    press(page, "Requeue…")
    press(page, "Requeue this task")
    said(page, "The task was taken from its worker.")
    client.claim_task("orders", "worker-z", claim_timeout=600)
    page.get_by_role("link", name="Workers").click()
    press(page, "Requeue what it holds…")
    press(page, "Requeue what this worker holds")
    said(page, "Requeued: 1.")


def test_what_a_filter_finds_is_cancelled(visit: Open, client: teguh.Client) -> None:
    client.spawn_tasks("quiet", [teguh.NewTask("resize", options={"tags": ["eu"]})] * 3)
    page = visit()
    page.get_by_role("link", name="quiet").click()
    page.get_by_role("link", name="Tasks").click()
    page.get_by_label("Tag").fill("eu")
    page.get_by_label("pending").check()
    press(page, "Filter")
    expect(page.locator("tbody tr")).to_have_count(3)
    press(page, "Cancel what matches…")
    expect(page.get_by_text("3 tasks at the moment")).to_be_visible()
    press(page, "Cancel what matches")
    said(page, "Cancelled: 3.")
    expect(page.get_by_text("No tasks match.")).to_be_visible()


def test_dead_letters_are_replayed_and_purged(visit: Open, client: teguh.Client) -> None:
    page = visit()
    page.goto(f"{ORDERS}/dead-letters")
    page.get_by_label("Tag").fill("retry")
    press(page, "Filter")
    press(page, "Replay what matches…")
    press(page, "Replay dead letters")
    said(page, "Replayed: 1.")
    press(page, "Purge…")
    page.get_by_label("Failed more than").fill("0")
    press(page, "Purge dead letters")
    said(page, f"Purged: {len(NASTY)}.")
    assert client.queue_stats("orders")[0].failed == 0


def test_a_queue_is_paused_and_resumed_and_an_event_emitted(
    visit: Open, scene: Scene, client: teguh.Client
) -> None:
    page = visit()
    page.goto("/queues/orders")
    press(page, "Pause…")
    page.get_by_label("For so many seconds").fill("60")
    press(page, "Pause the queue")
    said(page, "The queue is paused.")
    expect(page.locator("h1 + .badge")).to_have_text("paused")
    press(page, "Resume…")
    press(page, "Resume the queue")
    said(page, "The queue is resumed.")
    page.get_by_role("link", name="Events").click()
    press(page, "Emit an event…")
    page.get_by_label("Event name").fill("approval:4713")
    page.get_by_label("Payload").fill('{"by": "Ada"}')
    press(page, "Emit an event")
    said(page, "The event is emitted.")
    assert client.get_task("orders", scene.waiting).event_payload == {"by": "Ada"}


@pytest.mark.parametrize("name", ["nightly", NASTY[1]])
def test_a_schedule_is_paused_resumed_triggered_and_dropped(visit: Open, name: str) -> None:
    page = visit()
    page.get_by_role("link", name="Schedules").click()
    page.get_by_role("link", name=name, exact=True).click()
    press(page, "Pause…")
    press(page, "Pause the schedule")
    said(page, "The schedule is paused.")
    press(page, "Resume…")
    press(page, "Resume the schedule")
    said(page, "The schedule is resumed.")
    press(page, "Trigger…")
    press(page, "Trigger the schedule")
    said(page, "This is the task that was triggered.")
    page.get_by_role("link", name="Schedules").click()
    page.get_by_role("link", name=name, exact=True).click()
    press(page, "Drop…")
    press(page, "Drop the schedule")
    said(page, "The schedule is dropped.")
    expect(page.get_by_role("link", name=name, exact=True)).to_have_count(0)


def test_it_works_without_javascript(visit: Open, scene: Scene) -> None:
    page = visit(java_script_enabled=False)
    page.get_by_label("Id of a task").fill(str(scene.running))
    press(page, "Find")
    press(page, "Cancel…")
    press(page, "Cancel this task")
    said(page, "The task is cancelled.")
    press(page, "Dark")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(page.get_by_role("button", name="Pause", exact=True)).to_be_hidden()
    page.get_by_role("link", name="orders", exact=True).first.click()
    press(page, "Sign out")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


# The keyboard


def focus_by_tab(page: Page, name: str) -> None:
    """Press Tab until something of a name has the focus, which has to be seen."""
    for _ in range(200):
        page.keyboard.press("Tab")
        told: dict[str, Any] = page.evaluate("""() => {
          const it = document.activeElement, style = getComputedStyle(it);
          const label = it.labels && it.labels[0] ? it.labels[0].textContent : "";
          return {name: (label || it.getAttribute("aria-label") || it.textContent).trim(),
                  seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2};
        }""")
        if told["name"] == name:
            assert told["seen"], name
            return
    raise AssertionError(f"Tab does not lead to {name}")


def test_all_can_be_done_with_the_keyboard(visit: Open, scene: Scene) -> None:
    page = visit()
    page.goto("/")
    focus_by_tab(page, "Skip to the content")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    focus_by_tab(page, "orders")
    page.keyboard.press("Enter")
    page.wait_for_url("**/queues/orders")
    focus_by_tab(page, "Tasks")
    page.keyboard.press("Enter")
    page.wait_for_url("**/tasks")
    focus_by_tab(page, "running")
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.wait_for_url("**/tasks?state=running*")
    focus_by_tab(page, "ship")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/{scene.running}")
    focus_by_tab(page, "Cancel…")
    page.keyboard.press("Enter")
    page.wait_for_url("**/act/**")
    focus_by_tab(page, "Reason")
    page.keyboard.type("by hand")
    focus_by_tab(page, "Cancel this task")
    page.keyboard.press("Enter")
    said(page, "The task is cancelled.")
    focus_by_tab(page, "Dark")
    page.keyboard.press("Enter")
    page.locator("html[data-theme=dark]").wait_for()


# Live


def test_a_page_follows_and_keeps_what_the_reader_does(
    visit: Open, client: teguh.Client, scene: Scene
) -> None:
    page = visit(viewport={"width": 900, "height": 400})
    page.clock.install()
    page.goto(f"{ORDERS}/tasks/{scene.running}")
    step = page.locator("#step-1")
    step.locator("summary").click()
    step.locator("summary").focus()
    page.evaluate("window.scrollTo(0, 300); window.same = document.querySelector('#step-1')")
    (run,) = [run.run_id for run in client.list_runs("orders", scene.running)]
    client.set_task_checkpoint_state("orders", scene.running, "hand over", 1, run)
    client.complete_run("orders", run, "done")
    page.clock.fast_forward(REFRESH_MS)
    expect(page.locator("h1 + .badge")).to_have_text("completed")
    expect(page.locator("#step-2")).to_have_count(1)
    expect(page.get_by_role("link", name="Cancel…")).to_have_count(0)
    assert page.evaluate("document.querySelector('#step-1') === window.same && window.same.open")
    assert page.evaluate("document.activeElement.parentElement === window.same")
    assert page.evaluate("window.scrollY") == 300

    page.goto(f"{ORDERS}/tasks")
    page.get_by_label("Tag").fill("half ty")
    page.get_by_label("failed", exact=True).check()
    page.get_by_label("Tag").press("End")
    client.spawn_task("orders", "brand new")
    page.clock.fast_forward(REFRESH_MS)
    expect(page.get_by_role("link", name="brand new")).to_be_visible()
    page.keyboard.type("ped")
    expect(page.get_by_label("Tag")).to_have_value("half typed")
    expect(page.get_by_label("failed", exact=True)).to_be_checked()


def test_a_page_stops_while_it_is_paused_or_hidden(visit: Open) -> None:
    page = visit()
    page.clock.install()
    page.goto("/queues/quiet")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    def pass_time() -> int:
        del asked[:]
        for _ in range(3):
            page.clock.fast_forward(REFRESH_MS)
            page.wait_for_timeout(300)
        return asked.count(page.url)

    assert pass_time() > 1
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_role("button", name="Pause", exact=True)).to_have_attribute(
        "aria-pressed", "true"
    )
    assert pass_time() == 0
    page.reload()
    assert pass_time() == 0
    page.get_by_role("button", name="Pause", exact=True).click()
    assert pass_time() > 1
    hide = """hidden => {
      Object.defineProperty(document, "hidden", {configurable: true, get: () => hidden});
      document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    assert pass_time() == 0
    page.evaluate(hide, False)
    assert pass_time() > 1


def test_what_an_action_did_is_said_once(visit: Open) -> None:
    page = visit()
    page.goto("/queues/quiet?done=resume-queue")
    said(page, "The queue is resumed.")
    page.wait_for_url("**/queues/quiet")
    page.reload()
    expect(page.locator(".said")).to_have_count(0)


def test_a_service_that_does_not_answer_is_told_of(visit: Open, client: teguh.Client) -> None:
    page = visit(trouble=True)
    page.clock.install()
    page.goto("/queues/quiet")
    news = page.get_by_role("status")
    page.route("**/*", lambda route: route.abort())
    page.clock.fast_forward(REFRESH_MS)
    expect(news).to_have_text("The service does not answer; trying again.")
    page.unroute("**/*")
    page.route(
        "**/*", lambda route: route.fulfill(status=503, body="<title>the database is away · teguh")
    )
    page.clock.fast_forward(REFRESH_MS)
    expect(news).to_have_text("the database is away; trying again.")
    expect(page.get_by_role("heading", name="quiet")).to_be_visible()
    page.unroute("**/*")
    client.spawn_task("quiet", "one")
    page.clock.fast_forward(REFRESH_MS)
    expect(news).to_have_text("")
    until(lambda: page.locator(".tile strong").first.text_content() == "1", "the news")


def test_a_session_that_has_ended_leads_to_sign_in(visit: Open) -> None:
    page = visit()
    page.clock.install()
    page.goto("/queues/quiet")
    page.context.clear_cookies()
    page.clock.fast_forward(REFRESH_MS)
    page.wait_for_url("**/sign-in?next=**")


# Looks


def test_light_and_dark_follow_the_system_and_the_switch(visit: Open) -> None:
    def ground(theme: str) -> str:
        page.locator(f'html[data-theme="{theme}"] footer').wait_for()
        page.wait_for_load_state()
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    page = visit(color_scheme="dark")
    dark = ground("auto")
    page.emulate_media(color_scheme="light")
    light = ground("auto")
    assert light != dark
    press(page, "Dark")
    assert ground("dark") == dark
    press(page, "Light")
    assert ground("light") == light
    page.emulate_media(color_scheme="dark")
    assert ground("light") == light
    press(page, "Auto")
    assert ground("auto") == dark


def test_each_page_fits_a_phone(visit: Open, scene: Scene) -> None:
    page = visit(**PHONE)
    for path in pages_of(scene):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path


@pytest.mark.parametrize(
    "look", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"]
)
def test_axe_finds_nothing_serious(visit: Open, scene: Scene, look: dict[str, Any]) -> None:
    page = visit(None, **look)
    page.goto("/sign-in")
    check(page)
    page = visit(**look)
    for path in pages_of(scene):
        page.goto(path)
        check(page)


def check(page: Page) -> None:
    """Let axe look at a page, with all that can be opened open."""
    page.evaluate("for (const it of document.querySelectorAll('details')) it.open = true")
    found = Axe().run(page).response["violations"]
    serious = [
        (it["id"], it["nodes"][0]["html"][:200], it["nodes"][0]["failureSummary"])
        for it in found
        if it["impact"] in ("serious", "critical")
    ]
    assert serious == [], page.url


def test_trouble_is_readable_too(visit: Open) -> None:
    page = visit(trouble=True)
    for path in ("/queues/nowhere", "/queues/orders/tasks?state=asleep"):
        page.goto(path)
        check(page)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
