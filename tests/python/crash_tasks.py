"""Tasks that worker processes of the crash tests execute."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import teguh

if TYPE_CHECKING:
    import psycopg

tasks = teguh.Registry()


@tasks.task("steps")
def steps(ctx: teguh.TaskContext) -> int:
    """Write three rows in three transaction steps, the second of which takes its time."""
    for n in range(3):
        ctx.transaction(f"step {n}", write, n, ctx.params["seconds"] if n == 1 else 0)
    return ctx.failures


def write(db: psycopg.Connection[Any], n: int, seconds: float) -> None:
    """Write a row and hold the transaction open."""
    db.execute("insert into ledger (n) values (%s)", (n,))
    time.sleep(seconds)


@tasks.task("waits")
async def waits(ctx: teguh.AsyncTaskContext) -> object:
    """Wait for an event."""
    return await ctx.await_event(ctx.params)


@tasks.task("forever")
def forever(_: teguh.TaskContext) -> None:
    """Never end."""
    while True:
        time.sleep(1)
