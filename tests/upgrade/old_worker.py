"""A worker of the Python package of another release: python old_worker.py WHEEL DSN QUEUE.

It imports teguh from the wheel, says which one it found, and works until it is told to stop.
"""

from __future__ import annotations

import logging
import sys

wheel, dsn, queue = sys.argv[1:]
sys.path.insert(0, wheel)

import teguh  # noqa: E402 - from the wheel

tasks = teguh.Registry()


@tasks.task("echo")
def echo(ctx: teguh.TaskContext) -> object:
    return ctx.params


@tasks.task("steps")
def steps(ctx: teguh.TaskContext) -> object:
    one = ctx.step("one", lambda: 1)
    ctx.sleep_for(0.05)
    return one + ctx.step("two", lambda: 2)


assert str(teguh.__file__).startswith(wheel), teguh.__file__
logging.basicConfig(level=logging.INFO)
print("ready", flush=True)
teguh.Worker(dsn, queue, tasks, poll_interval=0.2, ticker_interval=0.1).run()
