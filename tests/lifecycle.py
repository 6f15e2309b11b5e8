"""A queue with a task in every state, and what is to become of each.

Used where a database is copied, restored or upgraded: whatever was going on goes on.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg

import teguh

if TYPE_CHECKING:
    from collections.abc import Mapping

QUEUES = ("jobs", "q" * 55)
FAR = "2100-01-01 00:00:00+00"
PATIENCE = 30.0

# What a task of each name has come to once `go_on` returns.
ENDS: Mapping[str, str] = {
    "ready": "completed",
    "delayed": "completed",
    "far": "sleeping",
    "running": "completed",
    "asleep": "completed",
    "waiting": "completed",
    "waiting with timeout": "completed",
    "retrying": "completed",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}

_SPAWN = "select task_id from teguh.spawn_task(%s, %s, %s, %s)"


def fill(dsn: str, seconds: float = 1) -> None:
    """Bring a task of each name into its state; what waits for a time waits about so long."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for queue in QUEUES:
            connection.execute("select teguh.create_queue(%s)", (queue,))
            for name in ENDS:
                _bring(connection, queue, name, seconds)
            connection.execute("select teguh.emit_event(%s, 'emitted', '1')", (queue,))


def _bring(
    connection: psycopg.Connection[tuple[Any, ...]], queue: str, name: str, seconds: float
) -> None:
    options = {
        "far": f'{{"available_at": "{FAR}"}}',
        "delayed": f'{{"delay_seconds": {seconds}}}',
        "failed": '{"max_attempts": 1}',
    }.get(name, "{}")
    (task_id,) = connection.execute(_SPAWN, (queue, name, "{}", options)).fetchall()[0]
    if name == "cancelled":
        connection.execute("select teguh.cancel_task(%s, %s)", (queue, task_id))
    if name in {"far", "delayed", "cancelled"}:
        return
    rows = connection.execute(
        "select run_id, task_name from teguh.claim_task(%s, 'filler', %s, 100)", (queue, seconds)
    ).fetchall()
    for run_id, claimed in rows:
        if claimed != name:  # "ready" is there to be claimed by any of them
            connection.execute("select teguh.release_run(%s, %s)", (queue, run_id))
            continue
        connection.execute(
            "select teguh.set_task_checkpoint_state(%s, %s, 'before', '7', %s)",
            (queue, task_id, run_id),
        )
        _end(connection, queue, name, run_id, seconds)


def _end(
    connection: psycopg.Connection[tuple[Any, ...]],
    queue: str,
    name: str,
    run_id: object,
    seconds: float,
) -> None:
    end = {
        "ready": "release_run(%(queue)s, %(run)s)",
        "asleep": "schedule_run(%(queue)s, %(run)s, now() + make_interval(secs => %(seconds)s))",
        "waiting": "await_event(%(queue)s, teguh._run_task(%(run)s), %(run)s, 'wait', 'later')",
        "waiting with timeout": "await_event(%(queue)s, teguh._run_task(%(run)s), %(run)s,"
        " 'wait', 'never', %(seconds)s)",
        "retrying": "fail_run(%(queue)s, %(run)s, '{}',"
        " now() + make_interval(secs => %(seconds)s))",
        "completed": "complete_run(%(queue)s, %(run)s, '1')",
        "failed": "fail_run(%(queue)s, %(run)s, '{}')",
    }.get(name)
    if end is not None:
        connection.execute(
            f"select teguh.{end}".encode(), {"queue": queue, "run": run_id, "seconds": seconds}
        )


def registry() -> teguh.Registry:
    """Return handlers for the tasks of `fill`, each of which needs its checkpoint."""
    tasks = teguh.Registry()

    @tasks.task("*")
    def handler(ctx: teguh.TaskContext) -> Any:
        before = ctx.step("before", lambda: "lost" if ctx.attempt > 1 else 7)
        if ctx.task_name == "waiting":
            return ctx.await_event("later", step="wait")
        if ctx.task_name == "waiting with timeout":
            try:
                ctx.await_event("never", timeout=60, step="wait")
            except teguh.EventTimeout:
                return before
        return before

    return tasks


def states(connection: psycopg.Connection[tuple[Any, ...]], queue: str) -> dict[str, str]:
    """Return each task's state by its name."""
    rows = connection.execute(f"select task_name, state from teguh.t_{queue}".encode()).fetchall()
    return {str(name): str(state) for name, state in rows}


def go_on(dsn: str) -> None:
    """Work on the queues until every task has come to its end, or fail."""
    from tests.python.support import running  # it imports fixtures of the package's tests

    for queue in QUEUES:
        with (
            psycopg.connect(dsn, autocommit=True) as connection,
            running(dsn, queue, registry(), poll_interval=0.2, ticker_interval=0.2),
        ):
            connection.execute("select teguh.emit_event(%s, 'later', '7')", (queue,))
            deadline = time.monotonic() + PATIENCE
            while states(connection, queue) != ENDS:
                assert time.monotonic() < deadline, states(connection, queue)
                time.sleep(0.02)
            results = connection.execute(
                f"select task_name, result from teguh.t_{queue} where state = 'completed'".encode()
            ).fetchall()
            assert {name: result for name, result in results if result != 7} == {"completed": 1}
