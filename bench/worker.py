"""A worker of the package with handlers that do nothing.

It claims batches of so many, and has room for two: while one is executed, the next is claimed.

usage: python -m bench.worker DSN BATCH
"""

from __future__ import annotations

import sys
import time

import teguh

tasks = teguh.Registry()


@tasks.task("noop")
async def noop(ctx: teguh.AsyncTaskContext) -> None:
    """Do nothing."""


@tasks.task("clock")
async def clock(ctx: teguh.AsyncTaskContext) -> float:
    """Return when the handler began."""
    return time.time()


if __name__ == "__main__":
    batch = int(sys.argv[2])
    teguh.Worker(sys.argv[1], "bench", tasks, concurrency=2 * batch, batch_size=batch).run()
