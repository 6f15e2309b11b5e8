"""A worker of the package with a handler that does nothing.

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
    teguh.Worker(sys.argv[1], "bench", tasks, concurrency=int(sys.argv[2])).run()
