"""A queue with a task in every state, and where each of them has to end.

For tests that copy, restore or upgrade a database: whatever was going on goes on.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg

import teguh
from tests.python.support import running, until

if TYPE_CHECKING:
    from uuid import UUID

SOON = 0.2

# What a task of each name has to come to: state, result, failures.
ENDS: dict[str, tuple[str, object, int]] = {
    "completed": ("completed", "before", 0),
    "failed": ("failed", None, 1),
    "cancelled": ("cancelled", None, 0),
    "retry pending": ("completed", "retry pending", 1),
    "sleeping": ("completed", 42, 0),
    "awaiting": ("completed", "news", 0),
    "awaiting with timeout": ("completed", "timeout", 0),
    "lost": ("completed", 42, 1),
    "running": ("completed", "by hand", 0),
    "pending": ("completed", "pending", 0),
    "delayed": ("completed", "delayed", 0),
    "far away": ("sleeping", None, 0),
    "late for the early event": ("completed", "bird", 0),
}


def fill(dsn: str, queue: str) -> None:
    """Create the queue and its tasks, by the SQL functions alone: they may be an old release's.

    Each task's idempotency key is its name.  The clock stands still, so that nothing is due yet.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:

        def call(function: str, *arguments: object) -> list[tuple[Any, ...]]:
            places = ", ".join(["%s"] * len(arguments))
            schema = "" if "." in function else "teguh."
            query = f"select * from {schema}{function}({places})"
            return connection.execute(query.encode(), arguments).fetchall()

        def spawn(name: str, **options: object) -> UUID:
            given = json.dumps({"idempotency_key": name, **options})
            task: UUID = call("spawn_task", queue, name, "null", given)[0][0]
            return task

        def claim(name: str, seconds: float = 3600, **options: object) -> tuple[UUID, UUID]:
            task = spawn(name, **options)
            ((run, claimed, *_),) = call("claim_task", queue, "gone", seconds)
            assert claimed == task
            return task, run

        ((now,),) = connection.execute(
            "select set_config('teguh.fake_now', now()::text, false)::timestamptz"
        ).fetchall()
        call("create_queue", queue)
        call("emit_event", queue, "early", '"bird"')

        _, run = claim("completed")
        call("complete_run", queue, run, '"before"')
        _, run = claim("failed", max_attempts=1)
        call("fail_run", queue, run, '{"why": "before"}')
        task, _ = claim("cancelled")
        call("cancel_task", queue, task)
        _, run = claim("retry pending")
        call("fail_run", queue, run, "{}", now + timedelta(seconds=SOON))
        task, run = claim("sleeping")
        call("set_task_checkpoint_state", queue, task, "one", "40", run)
        call("schedule_run", queue, run, now + timedelta(seconds=SOON))
        task, run = claim("awaiting")
        call("await_event", queue, task, run, "event", "for awaiting")
        task, run = claim("awaiting with timeout")
        call("await_event", queue, task, run, "event", "for awaiting with timeout", SOON)
        task, run = claim("lost", SOON, retry_strategy={"kind": "none"})
        call("set_task_checkpoint_state", queue, task, "one", "40", run)
        claim("running")
        if call("pg_catalog.to_regproc", "teguh.spawn_children") != [(None,)]:
            ((flow, _),) = call("create_workflow_run", queue)
            task, run = claim("parent", workflow_run_id=str(flow))
            call("set_attributes", queue, run, '{"kept": true}')
            call("spawn_children", queue, run, "children", '[{"task_name": "child"}]')
            call("await_children", queue, task, run, "children")
            ((run, *_),) = call("claim_task", queue, "gone", 3600)
            call("complete_run", queue, run, '"before"')
        if call("pg_catalog.to_regproc", "teguh.send_message") != [(None,)]:
            task, run = claim("listener")
            for n in range(3):
                call("send_message", queue, task, "note", str(n), f'{{"idempotency_key": "{n}"}}')
            call("receive_message", queue, task, run, "receive:note", "note")
            call("release_run", queue, run, SOON)
        spawn("pending")
        spawn("delayed", delay_seconds=SOON)
        spawn("far away", available_at="2100-01-01 00:00:00+00")
        spawn("late for the early event")


def registry() -> teguh.Registry:
    """Return the handler that brings these tasks to their ends."""
    tasks = teguh.Registry()

    @tasks.task("*")
    def handler(ctx: teguh.TaskContext) -> object:
        if ctx.task_name in {"sleeping", "lost"}:
            return ctx.step("one", lambda: 1) + ctx.step("two", lambda: 2)
        if ctx.task_name == "parent":
            ctx.spawn_children([{"task_name": "other"}])
            return [child.result for child in ctx.await_children()]
        if ctx.task_name == "listener":
            return [ctx.receive("note") for _ in range(4)]
        if ctx.task_name == "late for the early event":
            return ctx.await_event("early")
        if ctx.task_name.startswith("awaiting"):
            try:
                return ctx.await_event(f"for {ctx.task_name}", timeout=SOON, step="event")
            except teguh.EventTimeout:
                return "timeout"
        return ctx.task_name

    return tasks


def go_on(dsn: str, queue: str, worker_dsn: str | None = None) -> None:
    """Do what is left to do until each task is where it has to end; then retry the failed one."""
    with teguh.Client.connect(dsn) as client:
        found = {name: client.spawn_task(queue, name, idempotency_key=name) for name in ENDS}
        assert [name for name, task in found.items() if task.created] == []
        client.complete_run(queue, found["running"].run_id, "by hand")
        client.emit_event(queue, "for awaiting", "news")

        def end(name: str) -> tuple[str, object, int]:
            result = client.get_task_result(queue, found[name].task_id)
            return result.state, result.completed_payload, result.failures

        def result(task_id: UUID) -> object:
            return client.get_task_result(queue, task_id).completed_payload

        with running(worker_dsn or dsn, queue, registry(), poll_interval=0.1, ticker_interval=0.1):
            for name, (state, _, _) in ENDS.items():
                until(lambda n=name, s=state: end(n)[0] == s, f"the end of {name!r}")  # type: ignore[misc]
            for parent in client.list_tasks(queue, task_name="parent"):
                until(lambda p=parent: result(p.task_id) == ["before"], "the end of a parent")  # type: ignore[misc]
                assert parent.attributes == {"kept": True}
                (flow,) = client.list_workflow_runs(name=queue)
                assert (flow.status, flow.completed) == ("completed", 2)
            for listener in client.list_tasks(queue, task_name="listener"):
                sent = client.send_message(queue, listener.task_id, "note", 0, idempotency_key="0")
                assert not sent.created
                client.send_message(queue, listener.task_id, "note", 3)
                until(
                    lambda t=listener: result(t.task_id) == [0, 1, 2, 3],  # type: ignore[misc]
                    "the end of a listener",
                )
        assert {name: end(name) for name in ENDS} == ENDS

        retried = client.retry_task(queue, found["failed"].task_id)
        (run,) = client.claim_task(queue)
        assert (run.run_id, run.failures) == (retried.run_id, 1)
        client.complete_run(queue, run.run_id)
