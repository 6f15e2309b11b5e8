"""The dashboard over HTTP: what its pages show, what they do, and for whom."""

from __future__ import annotations

import html
import re
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

import teguh
from teguh._types import Metric
from teguh.server import Token, _auth, create_app
from teguh.server._app import PREFIX
from teguh.server._pages.acts import ACTS
from teguh.server._pages.dashboard import PAGES
from teguh.server._pages.samples import Samples, quantile
from teguh.server._pages.text import duration, relative
from tests.dashboard.scene import BIDI, NASTY, Scene, fill, pages_of, target_of
from tests.python.support import until
from tests.server.support import PATIENCE, SECRETS, TOKENS, serving
from tests.test_docs import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from uuid import UUID

    from tools.servers import Server


class Visitor:
    """Somebody with a browser that has no JavaScript."""

    def __init__(self, url: str, scope: str | None = None, root: str = "") -> None:
        self.url = url
        self.root = root
        closed = httpx.Limits(max_keepalive_connections=0)  # so that nothing is left open
        self.http = httpx.Client(base_url=url, timeout=PATIENCE, limits=closed)
        if scope:
            answer = self.send("/sign-in", token=SECRETS[scope])
            assert answer.status_code == 303, answer.text

    def get(self, path: str, **query: Any) -> httpx.Response:
        """Ask for a page."""
        return self.http.get(self.root + path, params=query or None)

    def page(self, path: str, **query: Any) -> str:
        """Return the text of a page that is there."""
        answer = self.get(path, **query)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        return answer.text

    def send(self, path: str, headers: Any = None, **typed: str) -> httpx.Response:
        """Send a form as a browser does from a page of the service."""
        known = {"Origin": self.url} if headers is None else headers
        return self.http.post(self.root + path, data=typed, headers=known)

    def act(
        self, name: str, typed: dict[str, str] | None = None, /, **target: Any
    ) -> httpx.Response:
        """Open the page that asks, and press its button."""
        query = str(httpx.QueryParams({key: str(value) for key, value in target.items()}))
        page = self.page(f"/act/{name}?{query}")
        (action,) = re.findall(r'<form class="ask" method="post" action="([^"]*)"', page)
        return self.http.post(
            html.unescape(action),
            data={**fields(page), **(typed or {})},
            headers={"Origin": self.url},
        )

    def done(self, name: str, typed: Any = None, /, **target: Any) -> str:
        """Do something, and return the page that it leads to."""
        answer = self.act(name, typed, **target)
        assert answer.status_code == 303, (answer.status_code, answer.text)
        return self.http.get(answer.headers["location"]).text


def fields(page: str) -> dict[str, str]:
    """Return what the form of an action holds before anything is typed."""
    form = page[page.index('<form class="ask"') :]
    found = re.findall(
        r'<input (?!type="checkbox")[^>]*?name="([^"]+)"[^>]*? value="([^"]*)"', form
    )
    return {name: html.unescape(value) for name, value in found}


@pytest.fixture
def scene(dsn: str) -> Scene:
    """Queues with a little of everything."""
    with teguh.Client.connect(dsn) as client:
        return fill(client)


@pytest.fixture
def client(dsn: str) -> Iterator[teguh.Client]:
    """A client of the same database."""
    with teguh.Client.connect(dsn) as client:
        yield client


@pytest.fixture
def url(dsn: str, scene: Scene) -> Iterator[str]:
    """A service of the scene, with a token for each scope."""
    del scene
    with serving(create_app(dsn, tokens=TOKENS, ticker_interval=0)) as url:
        yield url


@pytest.fixture
def admin(url: str) -> Visitor:
    """An admin who is signed in."""
    return Visitor(url, "admin")


# What pages show


def test_each_page_is_whole_and_safe(admin: Visitor, scene: Scene) -> None:
    for path in pages_of(scene):
        answer = admin.get(path)
        page = answer.text
        assert answer.status_code == 200, path
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert page.startswith("<!DOCTYPE html>\n<html lang="), path
        assert page.count("<h1") == page.count("<main") == 1, path
        assert not re.search(r"<[^>]* (style|on\w+)=", page), path
        assert re.findall(r"<script[^>]*>", page) == re.findall(
            r'<script src="/assets/script.js\?v=\w+" defer>', page
        )
        assert set(re.findall(r"<th(?![^>]*scope=)[ >]", page)) == set(), path
        for address in re.findall(r'(?:href|src|action)="([^"]*)"', page):
            assert address.startswith(("/", "#")), (path, address)


def test_what_tasks_hold_is_never_markup(admin: Visitor, scene: Scene) -> None:
    for path in pages_of(scene):
        page = admin.page(path)
        assert "<script>" not in page, path
        assert "<img" not in page, path
        assert 'href="javascript:' not in page, path
        assert BIDI not in page, path
        assert "\u202e" not in page, path
        assert "\x07" not in page, path
    nasty = admin.page(f"/queues/orders/tasks/{scene.nasty[0]}")
    assert "<h1>&lt;script&gt;alert(1)&lt;/script&gt;</h1>" in nasty
    assert "invoice\\u202egnp.exe\\u2066\\u0007" in admin.page("/queues/orders/tasks")
    assert "49" not in re.findall(r"<h1>(.*)</h1>", admin.page(pages_of(scene)[-1]))


def test_names_of_any_kind_lead_where_they_say(admin: Visitor, scene: Scene) -> None:
    page = admin.page("/schedules")
    for name in NASTY:
        (href,) = [
            html.unescape(link)
            for link in re.findall(r'href="(/schedule\?[^"]*)"', page)
            if httpx.URL(html.unescape(link)).params["name"] == name
        ]
        assert admin.http.get(href).status_code == 200
    for task, name in zip(scene.nasty, NASTY, strict=True):
        found = admin.page("/queues/orders/tasks", task_name=name)
        assert re.findall(r'<tr id="task-([^"]*)', found) == [str(task)]
        found = admin.page("/queues/orders/tasks", tag=name, correlation_id=name)
        assert re.findall(r'<tr id="task-([^"]*)', found) == [str(task)]


def test_the_overview_tells_how_queues_stand(admin: Visitor, client: teguh.Client) -> None:
    page = admin.page("/")
    for text in ("orders", "emails", "quiet", "paused", "ship", "of 2", "of 100", ">ok<"):
        assert text in page
    stats = client.queue_stats()
    tiles = re.findall(r'<li class="tile \w+"><span>(\w+)</span><strong>(\d+)<', page)
    assert len(tiles) == 7
    assert all(int(number) == sum(getattr(row, name) for row in stats) for name, number in tiles)
    assert re.findall(r'<tr id="queue-(\w+)"', page) == ["emails", "orders", "quiet"]
    assert re.findall(r'<tr id="queue-(\w+)"', admin.page("/", name="ord")) == ["orders"]
    outside = admin.page("/", namespace="outside")
    assert re.findall(r'<tr id="queue-(\w+)"', outside) == ["emails", "quiet"]
    long_ago = datetime.now(UTC) - timedelta(minutes=10)
    client.connection.execute("select set_config('teguh.fake_now', %s, false)", [str(long_ago)])
    client.spawn_task("quiet", "forgotten")
    page = admin.page("/")
    assert ">degraded<" in page
    assert "nobody works on queue &#34;quiet&#34;" in page
    assert "start a worker" in page


def test_plots_show_what_was_sampled(dsn: str, scene: Scene, client: teguh.Client) -> None:
    del scene
    service = create_app(dsn, tokens=TOKENS, sample_interval=0.05)
    with serving(service) as url:
        visitor = Visitor(url, "observer")
        until(lambda: len(service._samples.points()) > 1, "samples")
        client.spawn_task("quiet", "one")
        (run,) = client.claim_task("quiet")
        client.complete_run("quiet", run.run_id)
        until(lambda: service._samples.completed("quiet"), "a sample of it")
        for path in ("/", "/queues/quiet"):
            page = visitor.page(path)
            assert 'class="line line-completed" points="' in page
            assert 'class="line line-p95" points="' in page
    with serving(create_app(dsn, sample_interval=0)) as url:
        assert "<polyline" not in Visitor(url).page("/queues/quiet")


def test_a_task_shows_its_timeline_and_family(admin: Visitor, scene: Scene) -> None:
    page = admin.page(f"/queues/orders/tasks/{scene.order}")
    kinds = re.findall(r'<rect class="(\w+) \w+"', page)
    assert kinds == [
        "task", "wait", "run", "step", "wait", "run", "wait", "wait", "child", "child"
    ]  # fmt: skip
    rows = re.findall(r'<tr class="\w+">.*?</tr>', page, re.DOTALL)
    assert len(rows) == len(kinds)
    assert "40 s" in next(row for row in rows if ">sleep<" in row)
    assert "26 s" in next(row for row in rows if ">await:courier<" in row)
    child = re.search(r'href="(/queues/emails/tasks/[^"]*)">confirm', page)
    assert child
    assert f'href="/queues/orders/tasks/{scene.order}">order' in admin.page(child[1])
    assert "<dt>Last waited for</dt>" in page
    for text in ("TimeoutError: no answer", "order-4711", "c0ffee", "vip", "p-4711", "r-1"):
        assert text in page


def test_a_family_is_shown_as_far_as_a_page_goes(admin: Visitor, client: teguh.Client) -> None:
    parent = client.spawn_task("quiet", "parent").task_id
    child = client.spawn_task("emails", "child", parent_task_id=parent).task_id
    client.spawn_task("quiet", "grandchild", parent_task_id=child)
    page = admin.page(f"/queues/emails/tasks/{child}")
    tree = re.findall(r'<li class="depth-(\d)">.*?</span>(?:<a [^>]*>|<strong [^>]*>)(\w+)', page)
    assert tree == [("0", "parent"), ("1", "child"), ("2", "grandchild")]
    assert "There may be more" not in page
    client.spawn_tasks(
        "quiet", [teguh.NewTask("many", options={"parent_task_id": str(parent)})] * 205
    )
    page = admin.page(f"/queues/quiet/tasks/{parent}")
    assert len(re.findall(r'<li class="depth-1">', page)) == 200
    assert "There may be more" in page
    lost = client.spawn_task("quiet", "lost", parent_task_id=client.portable_uuidv7()).task_id
    assert "There may be more" in admin.page(f"/queues/quiet/tasks/{lost}")


def test_a_failure_shows_its_traceback_as_text(admin: Visitor, scene: Scene) -> None:
    page = admin.page(f"/queues/orders/tasks/{scene.failed}")
    assert "<strong>CardDeclined</strong>: the bank says no" in page
    assert "File &#34;/srv/shop/orders.py&#34;, line 41, in charge" in page


def test_a_large_value_is_cut_and_a_link_has_it_whole(admin: Visitor, scene: Scene) -> None:
    page = admin.page(f"/queues/orders/tasks/{scene.large}")
    assert len(page) < 30_000
    (link,) = re.findall(r'href="([^"]*/value\?of=params)"', page)
    answer = admin.http.get(link)
    assert len(answer.text) > 1_000_000
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "sandbox" in answer.headers["content-security-policy"]


def test_each_value_can_be_had_whole(admin: Visitor, scene: Scene, client: teguh.Client) -> None:
    def value(task: UUID, of: str, name: str = "") -> str:
        return admin.page(f"/queues/orders/tasks/{task}/value", of=of, name=name)

    assert '"A-1"' in value(scene.order, "params")
    assert '"c0ffee"' in value(scene.order, "headers")
    assert '"p-4711"' in value(scene.order, "result")
    assert '"Traceback' in value(scene.failed, "failure")
    assert value(scene.order, "step", "charge") == '{\n  "receipt": "r-1"\n}'
    assert value(scene.order, "event") == "null"
    (message,) = client.list_messages("orders", scene.waiting)
    assert "hurry" in value(scene.waiting, "message", str(message.message_id))
    for of, status in (("message", 404), ("secret", 400)):
        answer = admin.get(f"/queues/orders/tasks/{scene.order}/value", of=of, name="0")
        assert answer.status_code == status


def test_large_values_of_others_can_be_had_whole(admin: Visitor, client: teguh.Client) -> None:
    large = "y" * 1_000_000
    client.create_schedule("large", "quiet", "import", "@daily", params=large)
    run = client.create_workflow_run("large", inputs=large).workflow_run_id
    for path in ("/schedule?name=large", f"/workflow-runs/{run}"):
        page = admin.page(path)
        assert len(page) < 30_000
        (link,) = re.findall(r'href="([^"]*/value[^"]*)"', page)
        assert large in admin.http.get(html.unescape(link)).text


@pytest.mark.parametrize(
    ("which", "names"),
    [
        ({"state": "running"}, ["ship"]),
        ({"state": ["running", "completed"]}, ["ship", "import", "pack", "order"]),
        ({"task_name": "charge"}, ["charge"]),
        ({"tag": "retry"}, ["charge"]),
        ({"correlation_id": "order-4713"}, ["approve"]),
        ({"attributes": "region=eu, vip=true, total=99.5"}, ["order"]),
        ({"attributes": '{"region": "eu"}'}, ["order"]),
        ({"attributes": "region=us"}, []),
        ({"created_after": "2100-01-01T00:00"}, []),
        ({"created_before": "2000-01-01T00:00:00Z"}, []),
        ({"task_name": "order", "created_after": "2000-01-01T00:00", "tag": ""}, ["order"]),
    ],
)
def test_tasks_are_filtered(admin: Visitor, which: dict[str, Any], names: list[str]) -> None:
    page = admin.page("/queues/orders/tasks", **which)
    assert re.findall(r'<a href="/queues/orders/tasks/[^"?]*">([^<]*)</a><br>', page) == names
    for value in which.values():
        for text in value if isinstance(value, list) else [value]:
            assert f'value="{html.escape(text).replace("&quot;", "&#34;")}"' in page


def test_tasks_are_filtered_by_workflow_run_and_parent(admin: Visitor, scene: Scene) -> None:
    found = admin.page("/queues/orders/tasks", workflow_run_id=str(scene.workflow))
    assert len(re.findall(r'<tr id="task-', found)) == 2
    found = admin.page("/queues/orders/tasks", parent_task_id=str(scene.order))
    assert re.findall(r">(\w+)</a><br>", found) == ["pack"]


def test_pages_of_tasks_follow_one_another(admin: Visitor, client: teguh.Client) -> None:
    client.spawn_tasks("quiet", [teguh.NewTask(f"n{n}") for n in range(120)])
    page, seen = admin.page("/queues/quiet/tasks", state="pending"), []
    while True:
        seen += re.findall(r">(n\d+)</a><br>", page)
        following = re.search(r'rel="next" href="([^"]*)"', page)
        if not following:
            break
        page = admin.http.get(html.unescape(following[1])).text
        assert "First page" in page
        assert 'value="pending" checked' in page
    assert len(seen) == len(set(seen)) == 120
    dead = admin.page("/queues/orders/dead-letters")
    assert len(re.findall('<tr id="task-', dead)) == 6


def test_an_id_is_found_wherever_it_is(admin: Visitor, scene: Scene) -> None:
    place = f"/queues/orders/tasks/{scene.order}"
    assert admin.get("/find", q=f" {scene.order} ").headers["location"] == place
    moved = admin.get("/queues/emails/tasks", task_name=str(scene.order))
    assert moved.headers["location"] == f"/find?q={scene.order}"
    run = f"/workflow-runs/{scene.workflow}"
    assert admin.get("/find", q=str(scene.workflow)).headers["location"] == run
    assert admin.get("/workflow-runs", name=str(scene.workflow)).headers["location"] == run
    nothing = admin.get("/find", q="00000000-0000-7000-8000-000000000000")
    assert nothing.status_code == 404
    assert admin.get("/find", q="order").status_code == 400


def test_workflow_runs_are_filtered(admin: Visitor) -> None:
    def names(**which: str) -> list[str]:
        page = admin.page("/workflow-runs", **which)
        return re.findall(r'<a href="/workflow-runs/[^"]*">([^<]*)</a>', page)

    assert "order 4711" in names()
    assert names(name="order 4711") == ["order 4711"]
    assert names(status="completed", tag="eu") == ["order 4711"]
    assert names(status="failed", name="order 4711") == []


def test_the_next_times_of_a_schedule_are_in_its_zone(admin: Visitor) -> None:
    page = admin.page("/schedule", name="nightly")
    times = re.findall(r"<li><time datetime=\"([^\"]*)\"", page)
    assert len(times) == 5
    assert {datetime.fromisoformat(at).hour for at in times} <= {1, 2}
    assert "It will not fire while it is paused" in admin.page("/schedule", name="old")


def test_events_are_listed(admin: Visitor) -> None:
    page = admin.page("/queues/orders/events")
    assert "courier:4711" in page
    assert "approval:4713" in page
    assert "courier" not in admin.page("/queues/orders/events", emitted="no")
    assert "approval" not in admin.page("/queues/orders/events", emitted="yes")
    assert "approval" not in admin.page("/queues/orders/events", prefix="courier")


# What can be done


def test_a_task_is_cancelled(admin: Visitor, scene: Scene, client: teguh.Client) -> None:
    page = admin.done("cancel-task", {"reason": "a mistake"}, queue="orders", task_id=scene.running)
    assert "The task is cancelled." in page
    assert client.get_task_result("orders", scene.running).state == "cancelled"
    assert client.list_actions("orders")[0].reason == "a mistake"


def test_a_task_is_retried_from_a_step(admin: Visitor, scene: Scene, client: teguh.Client) -> None:
    ask = admin.page(f"/act/retry-task?{target_of(scene, 'retry-task')}")
    assert '<option value="reserve">' in ask
    typed = {"from_step": "reserve", "max_attempts": "7", "reason": "paid now"}
    admin.done("retry-task", typed, queue="orders", task_id=scene.failed)
    task = client.get_task("orders", scene.failed)
    assert (task.state, task.max_attempts) == ("pending", 7)
    assert task.run_id
    assert client.get_task_checkpoint_states("orders", scene.failed, task.run_id) == []
    assert client.list_actions("orders")[0].reason == "paid now"


def test_a_task_is_replayed_as_a_new_one(
    admin: Visitor, scene: Scene, client: teguh.Client
) -> None:
    page = admin.done("replay-task", queue="orders", task_id=scene.order)
    assert "This is the new task." in page
    (new, *_) = client.list_tasks("orders", task_name="order", state="pending")
    assert str(new.task_id) in page
    assert client.get_task_result("orders", scene.order).state == "completed"


def test_a_task_is_requeued(admin: Visitor, scene: Scene, client: teguh.Client) -> None:
    admin.done("requeue-task", {"reason": "it hangs"}, queue="orders", task_id=scene.running)
    assert client.get_task_result("orders", scene.running).state == "pending"
    assert client.list_actions("orders")[0].reason == "it hangs"


def test_what_a_worker_holds_is_requeued(
    admin: Visitor, scene: Scene, client: teguh.Client
) -> None:
    assert "Requeue what it holds" in admin.page("/workers")
    typed = {"limit": "5", "reason": "its machine is gone"}
    page = admin.done("requeue-tasks", typed, queue="orders", worker_id="worker-b:97")
    assert "Requeued: 1." in page
    assert client.list_actions("orders")[0].reason == "its machine is gone"
    assert client.get_task_result("orders", scene.running).state == "pending"


def test_what_matches_is_cancelled(admin: Visitor, client: teguh.Client) -> None:
    client.spawn_tasks("quiet", [teguh.NewTask("a")] * 3 + [teguh.NewTask("b")])
    ask = admin.page("/act/cancel-tasks", queue="quiet", task_name="a")
    assert "<strong>3 tasks</strong> at the moment" in ask
    page = admin.done(
        "cancel-tasks", {"limit": "2", "reason": "spring"}, queue="quiet", task_name="a"
    )
    assert "Cancelled: 2." in page
    assert {action.reason for action in client.list_actions("quiet")} == {"spring"}
    left = [task.task_name for task in client.list_tasks("quiet", state="pending")]
    assert sorted(left) == ["a", "b"]
    # states that are over are not counted
    ask = admin.page("/act/cancel-tasks", queue="quiet", state="cancelled")
    assert "<strong>0 tasks</strong>" in ask


def test_all_of_a_queue_is_cancelled_only_if_that_is_said(
    admin: Visitor, client: teguh.Client
) -> None:
    client.spawn_tasks("quiet", [teguh.NewTask("a")] * 1100)
    assert "<strong>at least 1\u202f000 tasks</strong>" in admin.page(
        "/act/cancel-tasks", queue="quiet"
    )
    answer = admin.act("cancel-tasks", {}, queue="quiet")
    assert answer.status_code == 400
    assert "TG005" in answer.text
    assert client.queue_stats("quiet")[0].pending == 1100
    assert "Cancelled: 1\u202f000." in admin.done(
        "cancel-tasks", {"everything": "yes"}, queue="quiet"
    )


def test_dead_letters_are_replayed_and_purged(
    admin: Visitor, scene: Scene, client: teguh.Client
) -> None:
    ask = admin.page("/act/replay-dead-letters", queue="orders", tag="retry")
    assert "<strong>1 task</strong> at the moment" in ask
    typed = {"per_second": "0.5", "max_attempts": "9", "reason": "the bank is back"}
    page = admin.done("replay-dead-letters", typed, queue="orders", tag="retry")
    assert "Replayed: 1." in page
    assert client.get_task("orders", scene.failed).max_attempts == 9
    assert client.list_actions("orders")[0].reason == "the bank is back"
    assert "<strong>5</strong>" in admin.page("/act/purge-dead-letters", queue="orders")
    assert "Purged: 2." in admin.done(
        "purge-dead-letters", {"ttl_seconds": "0", "limit": "2"}, queue="orders"
    )
    assert client.queue_stats("orders")[0].failed == 3


def test_a_queue_is_paused_and_resumed(admin: Visitor, client: teguh.Client) -> None:
    def paused() -> datetime | None:
        (queue,) = [q for q in client.list_queues() if q.queue_name == "quiet"]
        return queue.paused_until

    page = admin.done("pause-queue", {"seconds": "3600", "reason": "lunch"}, queue="quiet")
    assert "The queue is paused." in page
    assert client.list_actions("quiet")[0].reason == "lunch"
    until_when = paused()
    assert until_when
    left = until_when - datetime.now(UTC)
    assert timedelta(minutes=50) < left < timedelta(minutes=70)
    assert "Resume" in page
    admin.done("resume-queue", queue="quiet")
    assert paused() is None
    admin.done("pause-queue", queue="quiet")
    assert "until resumed" in admin.page("/queues/quiet")
    admin.done("resume-queue", queue="quiet")
    admin.done("pause-queue", {"task_name": "slow"}, queue="quiet")
    assert paused() is None
    (limit,) = client.limit_usage("quiet")
    assert (limit.scope, limit.name) == ("task", "slow")
    assert limit.paused_until
    admin.done("resume-queue", {"task_name": "slow"}, queue="quiet")
    assert client.limit_usage("quiet") == []


def test_an_event_is_emitted(admin: Visitor, scene: Scene, client: teguh.Client) -> None:
    typed = {"event_name": "approval:4713", "payload": ' {"by":\r\n "Ada"} '}
    assert "The event is emitted." in admin.done("emit-event", typed, queue="orders")
    assert client.get_task("orders", scene.waiting).event_payload == {"by": "Ada"}
    answer = admin.act("emit-event", {"event_name": "x", "payload": "{nope"}, queue="orders")
    assert answer.status_code == 400
    assert "payload is not JSON" in answer.text
    assert "{nope" in answer.text


@pytest.mark.parametrize("name", ["nightly", NASTY[1], BIDI, NASTY[4]])
def test_a_schedule_is_paused_resumed_triggered_and_dropped(
    admin: Visitor, client: teguh.Client, name: str
) -> None:
    admin.done("pause-schedule", {"reason": "holidays"}, name=name)
    assert client.get_schedule(name).paused_at
    assert client.list_actions("orders")[0].reason == "holidays"
    admin.done("resume-schedule", name=name)
    assert client.get_schedule(name).paused_at is None
    assert "This is the task that was triggered." in admin.done("trigger-schedule", name=name)
    assert client.get_schedule(name).last_task_id or client.list_tasks("orders", state="pending")
    assert "The schedule is dropped." in admin.done("drop-schedule", name=name)
    with pytest.raises(teguh.ScheduleNotFound):
        client.get_schedule(name)


def test_what_cannot_be_done_is_told_and_what_was_typed_is_kept(
    admin: Visitor, scene: Scene, client: teguh.Client
) -> None:
    target = {"queue": "orders", "task_id": scene.order}
    answer = admin.act("retry-task", {"reason": 'for "fun" & <more>'}, **target)
    assert answer.status_code == 409
    assert 'role="alert"' in answer.text
    assert "TG004" in answer.text
    assert 'value="for &#34;fun&#34; &amp; &lt;more&gt;"' in answer.text
    answer = admin.act("retry-task", {"max_attempts": "many"}, **target)
    assert answer.status_code == 400
    assert client.get_task_result("orders", scene.order).state == "completed"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/queues/nowhere", 404, "TG001"),
        ("/queues/orders/tasks/00000000-0000-7000-8000-000000000000", 404, "TG003"),
        ("/queues/orders/tasks/seven", 400, "TG005"),
        ("/queues/orders/tasks?created_after=soon", 400, "TG005"),
        ("/queues/orders/tasks?attributes=region", 400, "TG005"),
        ("/queues/orders/tasks?attributes=%7B", 400, "TG005"),
        ("/queues/orders/tasks?state=asleep", 400, "TG005"),
        ("/queues/orders/tasks?cursor=x", 400, "TG005"),
        ("/queues/orders/tasks?task_name=%00", 400, "TG005"),
        ("/queues/%FF/tasks", 400, "TG005"),
        ("/schedule?name=none", 404, "TG008"),
        ("/schedule", 404, "TG008"),
        ("/workflow-runs/00000000-0000-7000-8000-000000000000", 404, "TG009"),
        ("/act/nothing", 404, "42883"),
        ("/act/cancel-task?queue=orders", 400, "TG005"),
        ("/assets/passwd", 404, "42883"),
    ],
)
def test_trouble_has_a_page(admin: Visitor, path: str, status: int, code: str) -> None:
    answer = admin.get(path)
    assert answer.status_code == status
    assert f"<code>{code}</code>" in answer.text
    assert "</html>" in answer.text


def test_a_path_that_leads_nowhere_has_a_page_for_browsers(admin: Visitor) -> None:
    answer = admin.http.get("/queues/orders/nowhere", headers={"Accept": "text/html,*/*;q=0.8"})
    assert answer.status_code == 404
    assert "<h1>Not found</h1>" in answer.text
    assert admin.get("/queues/orders/nowhere").json()["code"] == "42883"


# Who may


def test_actions_are_for_whoever_may_do_the_same_over_http(url: str, scene: Scene) -> None:
    for scope in SECRETS:
        visitor = Visitor(url, scope)
        seals = re.findall(r'name="seal" value="(\w+)"', visitor.page("/"))
        for name, act in ACTS.items():
            path = f"/act/{name}?{target_of(scene, name)}"
            shown = visitor.get(path)
            if scope in act.scopes:
                assert shown.status_code == 200
            else:
                sent = visitor.send(path, seal=seals[0])
                assert (shown.status_code, sent.status_code) == (403, 403), (scope, name)
                assert "42501" in sent.text


def test_an_observer_sees_no_action(url: str, scene: Scene, client: teguh.Client) -> None:
    observer = Visitor(url, "observer")
    before = client.queue_stats()
    for path in pages_of(scene):
        if not path.startswith("/act/"):
            assert "/act/" not in observer.page(path), path
    assert client.queue_stats() == before or client.queue_stats()[1].failed == before[1].failed


def test_a_client_sees_what_clients_may_do(url: str, scene: Scene) -> None:
    visitor = Visitor(url, "client")
    acts = re.findall(r"/act/([\w-]+)", visitor.page(f"/queues/orders/tasks/{scene.running}"))
    assert acts == ["cancel-task"]
    assert "/act/" not in visitor.page("/queues/orders/dead-letters")


def test_nobody_is_let_in_who_has_not_signed_in(url: str, scene: Scene) -> None:
    stranger = Visitor(url)
    for path in pages_of(scene):
        answer = stranger.get(path)
        assert answer.status_code == 303, path
        assert answer.headers["location"].startswith("/sign-in"), path
    # a token in a header is for the endpoints, a cookie for the pages
    bearer = {"Authorization": f"Bearer {SECRETS['admin']}"}
    assert httpx.get(f"{url}/", headers=bearer).status_code == 303
    admin = Visitor(url, "admin")
    assert admin.get(f"{PREFIX}/queues").status_code == 401
    assert admin.http.post(f"{PREFIX}/queues/quiet/pause", json={}).status_code == 401


def test_signing_in_and_out(url: str) -> None:
    stranger = Visitor(url)
    page = stranger.page("/sign-in", next="/queues/orders/tasks?state=failed")
    assert 'value="/queues/orders/tasks?state=failed"' in page
    wrong = stranger.send("/sign-in", token="-".join(SECRETS))
    assert wrong.status_code == 401
    assert "There is no such token" in wrong.text
    answer = stranger.send(
        "/sign-in", token=SECRETS["observer"], next="/queues/orders/tasks?state=failed"
    )
    assert answer.headers["location"] == "/queues/orders/tasks?state=failed"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie
    assert SECRETS["observer"] not in cookie
    seal = re.findall(r'name="seal" value="(\w+)"', stranger.page("/"))[0]
    assert stranger.send("/sign-out").status_code == 403
    assert stranger.send("/sign-out", seal=seal).headers["location"] == "/sign-in"
    assert stranger.get("/").status_code == 303


def test_a_cookie_is_secure_where_the_browser_speaks_tls(url: str) -> None:
    host = url.partition("://")[2]
    answer = Visitor(url).send("/sign-in", {"Origin": f"https://{host}"}, token=SECRETS["observer"])
    assert "Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize(
    "where",
    ["https://evil.example/", "//evil.example/", "/\\evil.example", "/a\r\nb", "javascript:x", ""],
)
def test_signing_in_leads_nowhere_else(url: str, where: str) -> None:
    answer = Visitor(url).send("/sign-in", token=SECRETS["observer"], next=where)
    assert answer.headers["location"] == "/"


def test_a_cookie_cannot_be_made_up_and_ends(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    token = Token(SECRETS["admin"], frozenset({"observer"}))
    gate = _auth.Gatekeeper([token])
    cookie = gate.sign_in(SECRETS["admin"])
    assert cookie
    ends, nonce, seal = cookie.split(".")
    forged = [
        f"{int(ends) + 1}.{nonce}.{seal}", f"{ends}.{nonce}x.{seal}", f"{ends}.{nonce}.{seal[:-1]}",
        f"{ends}.{nonce}.", "", ".", "..", "x", "\u00ff",
    ]  # fmt: skip
    others = _auth.Gatekeeper([Token("another-secret-of-tests", frozenset({"admin"}))])
    forged.append(others.sign_in("another-secret-of-tests") or "")
    with serving(create_app(dsn, tokens=[token])) as url:

        def status(value: str) -> int:
            header = f"{_auth.COOKIE}={value}".encode("latin-1")
            return httpx.get(url, headers={b"Cookie": header}).status_code

        assert status(cookie) == 200
        assert [status(value) for value in forged] == [303] * len(forged)
        monkeypatch.setattr(_auth, "SESSION_SECONDS", 0)
        assert status(gate.sign_in(SECRETS["admin"]) or "") == 303


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
def test_forms_of_other_sites_are_refused(
    url: str, scene: Scene, client: teguh.Client, headers: dict[str, str]
) -> None:
    admin = Visitor(url, "admin")
    seal = fields(admin.page(f"/act/cancel-task?queue=orders&task_id={scene.running}"))["seal"]
    for path in (
        f"/act/cancel-task?queue=orders&task_id={scene.running}", "/sign-out", "/sign-in", "/theme"
    ):  # fmt: skip
        answer = admin.send(path, headers, seal=seal, token=SECRETS["admin"], theme="dark")
        assert answer.status_code == 403, path
        assert "set-cookie" not in answer.headers
    if headers.get("Origin"):  # what the browser itself says of the site counts
        headers = {**headers, "Sec-Fetch-Site": "cross-site"}
        assert admin.send("/theme", headers, theme="dark").status_code == 403
    assert client.get_task_result("orders", scene.running).state == "running"


def test_a_form_needs_the_seal_of_its_session(url: str, scene: Scene, client: teguh.Client) -> None:
    admin, another = Visitor(url, "admin"), Visitor(url, "admin")
    path = f"/act/cancel-task?queue=orders&task_id={scene.running}"
    seal = fields(another.page(path))["seal"]
    for typed in ({}, {"seal": ""}, {"seal": "x" * 64}, {"seal": seal}):
        answer = admin.send(path, **typed)
        assert answer.status_code == 403
        assert "out of date" in answer.text
    # and nothing is done by asking for a page
    assert admin.get(path).status_code == 200
    assert client.get_task_result("orders", scene.running).state == "running"
    assert another.send(path, seal=seal).status_code == 303


def test_a_browser_that_tells_the_site_needs_no_origin(url: str) -> None:
    answer = Visitor(url).send(
        "/theme", {"Sec-Fetch-Site": "same-origin", "Origin": "http://proxy"}, theme="dark"
    )
    assert answer.status_code == 303


def test_a_form_that_is_too_large_or_broken_is_refused(dsn: str) -> None:
    with serving(create_app(dsn, tokens=TOKENS, max_body=1000)) as url:
        admin = Visitor(url, "admin")
        assert admin.send("/theme", theme="x" * 2000).status_code == 413
        assert admin.send("/theme", theme="blue").status_code == 400
        answer = admin.http.post("/theme", content=b"theme=%FF", headers={"Origin": url})
        assert answer.status_code == 400


def test_read_only_shows_and_does_nothing(dsn: str, scene: Scene, client: teguh.Client) -> None:
    with serving(create_app(dsn, tokens=TOKENS, read_only=True)) as url:
        admin = Visitor(url, "admin")
        for path in pages_of(scene):
            answer = admin.get(path)
            if path.startswith("/act/"):
                assert answer.status_code == 403, path
            else:
                assert answer.status_code == 200, path
                assert "/act/" not in answer.text, path
                assert "Read-only." in answer.text
        seal = re.findall(r'name="seal" value="(\w+)"', admin.page("/"))[0]
        for name in ACTS:
            path = f"/act/{name}?{target_of(scene, name)}"
            assert admin.send(path, seal=seal).status_code == 403
        bearer = {"Authorization": f"Bearer {SECRETS['admin']}"}
        with httpx.Client(base_url=url + PREFIX, headers=bearer) as api:
            assert api.get("/queues").status_code == 200
            answer = api.post("/queues/quiet/tasks", json={"task_name": "x"})
            assert (answer.status_code, answer.json()["code"]) == (403, "42501")
            assert api.delete("/queues/quiet").status_code == 403
            assert api.post("/ticker").status_code == 403
    assert client.queue_stats("quiet")[0].pending == 0
    with pytest.raises(teguh.ConfigurationError, match="read_only"):
        create_app(dsn, read_only=True, ticker_interval=5)


def test_without_tokens_this_machine_sees_and_does_all(
    dsn: str, scene: Scene, client: teguh.Client
) -> None:
    with serving(create_app(dsn)) as url:
        visitor = Visitor(url)
        assert "Sign out" not in visitor.page("/")
        assert visitor.get("/sign-in").headers["location"] == "/"
        visitor.done("cancel-task", queue="orders", task_id=scene.waiting)
        assert client.get_task_result("orders", scene.waiting).state == "cancelled"
        # the name of another site that has come to mean this machine, and pages of another site
        rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
        answer = httpx.get(url, headers=rebound)
        assert answer.status_code == 401
        assert "orders" not in answer.text
        path = f"/act/cancel-task?queue=orders&task_id={scene.running}"
        seal = fields(visitor.page(path))["seal"]
        assert visitor.send(path, rebound, seal=seal).status_code == 401
        assert visitor.send(path, {"Origin": "http://evil.example"}, seal=seal).status_code == 401
        assert client.get_task_result("orders", scene.running).state == "running"


# Where it stands


def test_a_database_that_does_not_answer_has_a_page(own_server: Server, own_dsn: str) -> None:
    with serving(create_app(own_dsn, tokens=TOKENS, ticker_interval=0)) as url:
        admin = Visitor(url, "admin")
        assert admin.get("/").status_code == 200
        own_server.stop()
        for path in ("/", "/queues/jobs", "/act/pause-queue?queue=jobs"):
            answer = admin.get(path)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert "Not available" in answer.text
            assert re.search("<code>(08|57)", answer.text)
        assert Visitor(url).get("/sign-in").status_code == 200


def test_it_can_be_mounted(dsn: str, scene: Scene, client: teguh.Client) -> None:
    service = create_app(dsn, tokens=TOKENS)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = Starlette(routes=[Mount("/durable", service)], lifespan=lifespan)
    root = "/durable"
    with serving(service, app) as url:
        stranger = Visitor(url, root=root)
        moved = stranger.get("/queues/orders/tasks?state=failed").headers["location"]
        assert moved.startswith(f"{root}/sign-in?next=")
        answer = stranger.send("/sign-in", token=SECRETS["admin"])
        cookie = SimpleCookie(answer.headers["set-cookie"])[_auth.COOKIE]
        assert cookie["path"] == root
        admin = Visitor(url, "admin", root=root)
        for path in pages_of(scene):
            page = admin.page(path)
            for address in re.findall(r'(?:href|src|action)="([^"]*)"', page):
                assert address.startswith((root, "#")), (path, address)
        page = admin.page("/")
        for address in re.findall(r'(?:href|src)="([^"]*)"', page):
            if not address.startswith("#"):
                assert admin.http.get(html.unescape(address)).status_code == 200, address
        task = scene.running
        assert "The task is cancelled." in admin.done("cancel-task", queue="orders", task_id=task)
        assert client.get_task_result("orders", task).state == "cancelled"
        assert admin.send("/theme", theme="dark", next="/").headers["location"] == f"{root}/"


def test_the_look_is_kept(url: str) -> None:
    visitor = Visitor(url, "observer")
    assert '<html lang="en" data-theme="auto">' in visitor.page("/")
    answer = visitor.send("/theme", theme="dark", next="/schedules")
    assert answer.headers["location"] == "/schedules"
    page = visitor.page("/")
    assert '<html lang="en" data-theme="dark">' in page
    assert 'value="dark" class="quiet" aria-pressed="true"' in page


def test_assets_are_kept_by_browsers(url: str) -> None:
    page = Visitor(url).page("/sign-in")
    for name, kind in (("style.css", "text/css"), ("script.js", "text/javascript"),
                       ("icon.svg", "image/svg+xml")):  # fmt: skip
        (address,) = re.findall(rf'"(/assets/{name}\?v=\w+)"', page)
        answer = httpx.get(url + address)
        assert answer.headers["content-type"].startswith(kind)
        assert "immutable" in answer.headers["cache-control"]


def test_a_page_costs_no_more_than_it_says(admin: Visitor) -> None:
    for method in ("PUT", "DELETE", "PATCH"):
        assert admin.http.request(method, "/queues/orders").status_code == 405
    assert admin.http.request("POST", "/queues/orders").status_code == 405
    assert admin.http.head("/").status_code == 200


def test_docs_dashboard_md_names_each_page_and_what_it_does() -> None:
    text = (ROOT / "docs" / "dashboard.md").read_text()
    rows = dict(re.findall(r"^\| `(/[^`]*)` \| [^|]* \| ([^|]*) ?\|$", text, re.MULTILINE))
    inner = {"/find", "/schedule", "/workflow-runs/{workflow_run_id}"}
    assert set(rows) == set(PAGES) - inner
    told = " ".join(rows.values())
    for name in ACTS:
        assert name.partition("-")[0] in told, name


# How values read


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "\N{EN DASH}"), (0, "0 ms"), (0.0123, "12 ms"), (1.26, "1.3 s"), (59.4, "59 s"),
        (60, "1 min"), (3599.9, "1 h"), (3661, "1 h 1 min"), (90061, "1 d 1 h"),
        (1108 * 86400, "3 y 13 d"), (-75, "-1 min 15 s"),
    ],
)  # fmt: skip
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_times_are_told_from_now() -> None:
    now = datetime(2031, 5, 1, 12, tzinfo=UTC)
    assert relative(now - timedelta(minutes=5, seconds=7), now) == "5 min ago"
    assert relative(now + timedelta(hours=23, minutes=59), now) == "in 23 h"
    assert relative(now, now) == "now"


# What plots are made of


def metrics(started: float, buckets: dict[str, float], queue: str = "q") -> list[Metric]:
    """Return what the engine would measure of one task name."""
    labels = {"queue": queue, "task": "t"}
    return [
        Metric("teguh_tasks_started_total", labels, started),
        Metric("teguh_tasks_completed_total", labels, started),
        Metric("teguh_tasks_failed_total", labels, 0),
        *(
            Metric("teguh_run_duration_seconds_bucket", {**labels, "le": bound}, value)
            for bound, value in buckets.items()
        ),
    ]


def test_samples_become_rates_and_quantiles() -> None:
    samples = Samples(10)
    samples.add(0, metrics(100, {"1": 50, "2": 100, "+Inf": 100}))
    samples.add(10, metrics(150, {"1": 50, "2": 150, "+Inf": 150}))
    samples.add(20, metrics(150, {"1": 50, "2": 150, "+Inf": 150}))
    samples.add(30, metrics(40, {"1": 40, "2": 40, "+Inf": 40}))  # dropped and made anew
    first, second, third = samples.points("q")
    assert first.rates == {
        "started": 5, "completed": 5, "failed": 0, "p50": 1.5, "p95": pytest.approx(1.95)
    }  # fmt: skip
    assert second.rates["started"] == 0
    assert second.rates["p50"] == 1.5  # of the minute before
    assert third.rates["started"] is None
    assert samples.points() == samples.points("q")
    assert samples.completed("q") == [(10, 5), (20, 0), (30, None)]
    assert samples.completed("none") == []


def test_samples_of_an_hour_are_kept() -> None:
    samples = Samples(10)
    for n in range(1000):
        samples.add(10 * n, metrics(n, {}))
    assert len(samples.points("q")) == 360
    assert samples.points("q")[-1].at == 9990


@pytest.mark.parametrize(
    ("ended", "share", "found"),
    [
        ([], 0.5, None),
        ([(1.0, 0.0)], 0.5, None),
        ([(1.0, 10.0)], 0.5, 0.5),
        ([(1.0, 10.0), (2.0, 10.0)], 0.95, 1.9),
        ([(1.0, 1.0), (float("inf"), 99.0)], 0.5, 1.0),
    ],
)
def test_a_quantile_is_spread_evenly_over_its_bucket(
    ended: list[tuple[float, float]], share: float, found: float | None
) -> None:
    assert quantile(ended, share) == (found if found is None else pytest.approx(found))
