"""Queues with a little of everything that the dashboard shows."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import httpx

from teguh.server._pages.acts import ACTS

if TYPE_CHECKING:
    from uuid import UUID

    import teguh

# Names that would do harm, or mislead, where they are taken for more than text.
SCRIPT = "<script>alert(1)</script>"
QUOTES = """"'><img src=x onerror=alert(1)>"""
LINK = "javascript:alert(1)"
BIDI = "invoice\u202egnp.exe\u2066\x07"
NASTY = (SCRIPT, QUOTES, LINK, BIDI, "../../{{ 7 * 7 }}?#&%2F")

TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/orders.py", line 41, in charge
    terminal.take(amount)
  File "/srv/shop/terminal.py", line 12, in take
    raise CardDeclined("the bank says no")
CardDeclined: the bank says no
"""


@dataclass(frozen=True, slots=True)
class Scene:
    """The ids of what there is."""

    order: UUID
    failed: UUID
    running: UUID
    waiting: UUID
    delayed: UUID
    large: UUID
    nasty: list[UUID]
    workflow: UUID


class Clock:
    """The clock of a connection, which is behind the real one and steps towards it."""

    def __init__(self, client: teguh.Client, minutes: float) -> None:
        self._client = client
        self._at = datetime.now(UTC) - timedelta(minutes=minutes)
        self.step(0)

    def step(self, seconds: float) -> datetime:
        """Let time pass."""
        self._at += timedelta(seconds=seconds)
        self._client.connection.execute(
            "select set_config('teguh.fake_now', %s, false)", [self._at.isoformat()]
        )
        return self._at


def fill(client: teguh.Client) -> Scene:
    """Create the queues and their tasks: what is not over stays as it is for an hour."""
    clock = Clock(client, 40)
    client.create_queue("orders", default_max_attempts=3, max_pending=10_000)
    client.create_queue("emails", namespace="outside")
    client.create_queue("quiet", namespace="outside")
    workflow = client.create_workflow_run(
        "order 4711", version="v2", tags=["eu"], created_by="shop", inputs={"order": 4711}
    ).workflow_run_id
    order = _order(client, clock, workflow)
    clock.step(30)
    failed = client.spawn_task(
        "orders", "charge", {"order": 4712, "amount": "12.50"},
        max_attempts=2, retry_strategy={"kind": "none"}, tags=["eu", "retry"],
    ).task_id  # fmt: skip
    for _ in range(2):
        clock.step(4)
        (run,) = client.claim_task("orders", "worker-a:311", claim_timeout=60)
        client.set_task_checkpoint_state("orders", run.task_id, "reserve", {"ok": True}, run.run_id)
        clock.step(1.4)
        reason = {"name": "CardDeclined", "message": "the bank says no", "traceback": TRACEBACK}
        client.fail_run("orders", run.run_id, reason)
    large = client.spawn_task("orders", "import", {"rows": ["x" * 99] * 10_000}).task_id
    (run,) = client.claim_task("orders", "worker-a:311")
    client.complete_run("orders", run.run_id, {"rows": 10_000})
    nasty = _nasty(client)
    waiting = _waiting(client, clock)
    clock.step(600)
    running = client.spawn_task("orders", "ship", {"order": 4714}, key="dhl").task_id
    (run,) = client.claim_task("orders", "worker-b:97", claim_timeout=7200)
    assert run.task_id == running
    client.set_task_checkpoint_state("orders", running, "label", "printed", run.run_id)
    delayed = client.spawn_task("orders", "remind", {"order": 4714}, delay_seconds=86400).task_id
    client.spawn_task("emails", "welcome", {"to": "ada@example.com"})
    client.pause_queue("emails", reason="the provider is down")
    client.set_limit("orders", "task", "ship", max_running=2)
    client.set_limit("orders", "queue", rate=100, period_seconds=60)
    _schedules(client)
    client.connection.execute("select set_config('teguh.fake_now', '', false)")
    client.ticker()
    return Scene(order, failed, running, waiting, delayed, large, nasty, workflow)


def _order(client: teguh.Client, clock: Clock, workflow: UUID) -> UUID:
    """Run an order that fails once, sleeps, waits for an event, and has children."""
    order = client.spawn_task(
        "orders", "order", {"order": 4711, "lines": [{"sku": "A-1", "qty": 2}]},
        headers={"trace": "c0ffee"}, tags=["eu"], correlation_id="order-4711",
        workflow_run_id=workflow, retry_strategy={"kind": "fixed", "base_seconds": 20},
        idempotency_key="order-4711",
    ).task_id  # fmt: skip
    clock.step(3)
    (run,) = client.claim_task("orders", "worker-a:311", claim_timeout=600)
    clock.step(2)
    client.set_task_checkpoint_state("orders", order, "charge", {"receipt": "r-1"}, run.run_id)
    clock.step(6)
    client.fail_run("orders", run.run_id, {"name": "TimeoutError", "message": "no answer"})
    clock.step(21)
    (run,) = client.claim_task("orders", "worker-b:97", claim_timeout=600)
    client.set_attributes("orders", run.run_id, {"region": "eu", "vip": True, "total": 99.5})
    clock.step(1)
    wake_at = clock.step(0) + timedelta(seconds=40)
    state = wake_at.isoformat()
    client.set_task_checkpoint_state("orders", order, "sleep", state, run.run_id)
    client.schedule_run("orders", run.run_id, wake_at)
    clock.step(41)
    (run,) = client.claim_task("orders", "worker-b:97", claim_timeout=600)
    client.await_event("orders", order, run.run_id, "await:courier", "courier:4711")
    clock.step(25)
    client.emit_event("orders", "courier:4711", {"name": "Ada"})
    (run,) = client.claim_task("orders", "worker-b:97", claim_timeout=600)
    clock.step(2)
    client.spawn_children(
        "orders", run.run_id, "children",
        [
            {"task_name": "pack", "params": {"box": 1}},
            {"queue_name": "emails", "task_name": "confirm", "params": {"to": "ada@example.com"}},
        ],
    )  # fmt: skip
    client.await_children("orders", order, run.run_id, "children")
    for queue in ("orders", "emails"):
        clock.step(5)
        (child,) = client.claim_task(queue, "worker-c:5", claim_timeout=600)
        clock.step(9)
        client.complete_run(queue, child.run_id, {"done": True})
    clock.step(1)
    (run,) = client.claim_task("orders", "worker-a:311", claim_timeout=600)
    assert run.task_id == order
    clock.step(4)
    client.complete_run("orders", run.run_id, {"parcel": "p-4711"})
    return order


def _waiting(client: teguh.Client, clock: Clock) -> UUID:
    """Let a task wait for an event, with a message in its mailbox."""
    task = client.spawn_task("orders", "approve", {"order": 4713}, correlation_id="order-4713")
    clock.step(1)
    (run,) = client.claim_task("orders", "worker-b:97")
    client.await_event(
        "orders", task.task_id, run.run_id, "await:approval", "approval:4713", timeout=86400
    )
    client.send_message("orders", task.task_id, "note", {"text": "please hurry"})
    return task.task_id


def _nasty(client: teguh.Client) -> list[UUID]:
    """Put names where they might do harm."""
    tasks = []
    for name in NASTY:
        task = client.spawn_task(
            "orders", name, {name: name}, headers={"x": name}, tags=[name], correlation_id=name,
            max_attempts=1,
        )  # fmt: skip
        tasks.append(task.task_id)
        (run,) = client.claim_task("orders", name)
        client.set_attributes("orders", run.run_id, {name: name})
        client.set_task_checkpoint_state("orders", run.task_id, name, name, run.run_id)
        client.send_message("orders", run.task_id, name, name)
        client.fail_run(
            "orders", run.run_id, {"name": name, "message": name, "traceback": f"{name}\n{name}"}
        )
        client.emit_event("orders", name, name)
        client.create_schedule(name, "orders", name, "@yearly", params=name)
        client.create_workflow_run(name, version=name, tags=[name], created_by=name, inputs=name)
    return tasks


def _schedules(client: teguh.Client) -> None:
    client.create_schedule("nightly", "orders", "sweep", "0 3 * * *", timezone="Europe/Berlin")
    client.create_schedule("every quarter", "orders", "report", "*/15 * * * *")
    client.create_schedule("old", "emails", "digest", "@daily")
    client.pause_schedule("old", reason="nobody reads it")


def pages_of(scene: Scene) -> list[str]:
    """Return a path of each page, and of some in each of their states."""
    orders = "/queues/orders"
    tasks = [scene.order, scene.failed, scene.running, scene.waiting, scene.delayed, scene.large]
    return [
        "/", "/?name=ord", "/?namespace=outside",
        orders, "/queues/emails", "/queues/quiet",
        f"{orders}/tasks", f"{orders}/tasks?state=failed&state=running", "/queues/quiet/tasks",
        *(f"{orders}/tasks/{task}" for task in [*tasks, *scene.nasty]),
        f"{orders}/dead-letters", f"{orders}/events", f"{orders}/actions",
        "/schedules", "/schedule?name=nightly", "/schedule?name=old",
        *(f"/schedule?{httpx.QueryParams(name=name)}" for name in NASTY),
        "/workers", "/workflow-runs", f"/workflow-runs/{scene.workflow}",
        *(f"/act/{name}?{target_of(scene, name)}" for name in ACTS),
    ]  # fmt: skip


def target_of(scene: Scene, name: str) -> str:
    """Return the query of the page of an action."""
    about = {
        "task": {"queue": "orders", "task_id": str(scene.failed)},
        "queue": {"queue": "orders"},
        "filter": {"queue": "orders", "task_name": "charge"},
        "worker": {"queue": "orders", "worker_id": "worker-b:97"},
        "schedule": {"name": "nightly"},
    }[ACTS[name].about]
    return str(httpx.QueryParams(about))
