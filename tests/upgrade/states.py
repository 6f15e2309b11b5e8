"""A queue with a task in every state, and where each of them has to end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import teguh

if TYPE_CHECKING:
    from uuid import UUID

    import psycopg


AT_ONCE = {"kind": "none"}
SOON = {"kind": "fixed", "base_seconds": 0.2, "jitter": 0}


@dataclass
class Filled:
    """The tasks of a queue by what they are, and the run that is in somebody's hands."""

    queue: str
    tasks: dict[str, UUID] = field(default_factory=dict)
    held: UUID | None = None


def fill(connection: psycopg.Connection[tuple[Any, ...]], queue: str) -> Filled:
    """Create the queue and its tasks with the SQL functions alone."""

    def ask(query: str, *values: object) -> list[tuple[Any, ...]]:
        cursor = connection.execute(query.encode(), values)
        return cursor.fetchall() if cursor.description else []

    filled = Filled(queue)
    ask("select teguh.create_queue(%s)", queue)
    ask("select teguh.emit_event(%s, 'early', '\"bird\"')", queue)

    def spawn(name: str, task: str, **options: object) -> None:
        ((filled.tasks[name],),) = ask(
            "select task_id from teguh.spawn_task(%s, %s, %s, %s)",
            queue, task, json.dumps({"as": name}), json.dumps(options),
        )  # fmt: skip

    def claimed(name: str, task: str, seconds: float = 3600, **options: object) -> UUID:
        spawn(name, task, **options)
        ((run, task_id),) = ask(
            "select run_id, task_id from teguh.claim_task(%s, 'gone', %s)", queue, seconds
        )
        assert task_id == filled.tasks[name]
        return run  # type: ignore[no-any-return]

    run = claimed("completed", "echo")
    ask("select teguh.complete_run(%s, %s, '\"before\"')", queue, run)
    run = claimed("failed", "echo", max_attempts=1)
    ask('select teguh.fail_run(%s, %s, \'{"why": "before"}\')', queue, run)
    run = claimed("cancelled", "echo")
    ask("select teguh.cancel_task(%s, %s)", queue, filled.tasks["cancelled"])
    run = claimed("retry pending", "echo", retry_strategy=SOON)
    ask("select teguh.fail_run(%s, %s, '1')", queue, run)
    run = claimed("sleeping", "steps")
    ask(
        "select teguh.set_task_checkpoint_state(%s, %s, 'one', '40', %s)",
        queue, filled.tasks["sleeping"], run,
    )  # fmt: skip
    ask("select teguh.schedule_run(%s, %s, now() + interval '0.2 seconds')", queue, run)
    for name, timeout in (("awaiting", None), ("awaiting with timeout", 0.2)):
        run = claimed(name, "await")
        ask(
            "select teguh.await_event(%s, %s, %s, 'event', %s, %s)",
            queue, filled.tasks[name], run, f"for {name}", timeout,
        )  # fmt: skip
    claimed("lost", "echo", 0.2, retry_strategy=AT_ONCE)
    filled.held = claimed("running", "echo")
    spawn("pending", "echo", idempotency_key="once", headers={"traceparent": "00"})
    spawn("delayed", "echo", delay_seconds=0.2)
    spawn("late for the early event", "early")
    return filled


def registry() -> teguh.Registry:
    """Return the handlers that bring these tasks to their ends."""
    tasks = teguh.Registry()

    @tasks.task("echo")
    def echo(ctx: teguh.TaskContext) -> object:
        return ctx.params["as"]

    @tasks.task("steps")
    def steps(ctx: teguh.TaskContext) -> object:
        return ctx.step("one", lambda: 1) + ctx.step("two", lambda: 2)

    @tasks.task("await")
    def wait(ctx: teguh.TaskContext) -> object:
        try:
            return ctx.await_event(f"for {ctx.params['as']}", step="event", timeout=0.2)
        except teguh.EventTimeout:
            return "timeout"

    @tasks.task("early")
    def early(ctx: teguh.TaskContext) -> object:
        return ctx.await_event("early")

    return tasks


# What a task of each name has to come to: state, result, failures.
ENDS: dict[str, tuple[str, object, int]] = {
    "completed": ("completed", "before", 0),
    "failed": ("failed", None, 1),
    "cancelled": ("cancelled", None, 0),
    "retry pending": ("completed", "retry pending", 1),
    "sleeping": ("completed", 42, 0),
    "awaiting": ("completed", "news", 0),
    "awaiting with timeout": ("completed", "timeout", 0),
    "lost": ("completed", "lost", 1),
    "running": ("completed", "by hand", 0),
    "pending": ("completed", "pending", 0),
    "delayed": ("completed", "delayed", 0),
    "late for the early event": ("completed", "bird", 0),
}
