"""Teguh's Python worker with its own client."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bench.common import TEGUH_SQL
from bench.peers.base import Peer, SqlProducer, connect, fill_by

if TYPE_CHECKING:
    from bench.peers.base import Producer, Sink

# A copy's dispatch is built anew by its first tick, see ARCHITECTURE.md.
COPIED = "select teguh.create_queue('bench'), teguh.ticker('bench')"

WAITING = """
select count(*) from teguh.t_bench
where state in ('pending', 'running') or (state = 'sleeping' and available_at <= now())
"""

ONE = "select task_id from teguh.spawn_task('bench', 'noop', %s::jsonb)"
MANY = """
select count(*) from teguh.spawn_tasks('bench', (
  select jsonb_agg(jsonb_build_object('task_name', '{}', 'params', jsonb_build_object('i', i)))
  from unnest(%s::integer[]) as i
))
"""
FILL = """
select count(*) from teguh.spawn_tasks('bench', (
  select jsonb_agg(jsonb_build_object(
    'task_name', 'noop', 'params', jsonb_build_object('i', i),
    'options', case %(delay)s::float8 when 0 then '{}'::jsonb
      else jsonb_build_object('delay_seconds', %(delay)s::float8) end))
  from generate_series(%(first)s::integer, %(last)s::integer) as i
))
"""


class Teguh(Peer):
    """The package's worker."""

    name = "teguh"
    title = "teguh, Python worker"
    settings: ClassVar = {
        "default": "Worker(...): concurrency 10, LISTEN, poll 30 s",
        "tuned": "concurrency 200, batch_size 100",
    }
    keeps = "task, result, checkpoints, history of failed runs, until cleanup_ttl"
    absent: ClassVar = {"cycle": "see teguh, plain SQL"}
    waiting = WAITING
    copied = COPIED
    upkeep = "select teguh.ticker('bench')"

    def install(self, dsn: str) -> None:
        """Send the one file."""
        with connect(dsn) as connection:
            connection.execute(TEGUH_SQL.read_bytes(), prepare=False)

    def producer(self, dsn: str) -> Producer:
        """Call the SQL functions."""
        return SqlProducer(dsn, ONE, MANY.format("noop"), MANY.format("flow"))

    def fill(self, dsn: str, first: int, number: int, delay: float | None) -> None:
        """Spawn in bulk."""
        fill_by(dsn, FILL, first, number, delay)

    def work(self, dsn: str, setting: str, sink: Sink) -> None:
        """Run the worker with coroutines as handlers."""
        import teguh

        tasks = teguh.Registry()

        @tasks.task("noop")
        async def noop(ctx: teguh.AsyncTaskContext) -> None:
            sink.hit(ctx.params["i"])

        async def step() -> int:
            return 1

        @tasks.task("flow")
        async def flow(ctx: teguh.AsyncTaskContext) -> None:
            sink.hit(ctx.params["i"])
            for name in ("one", "two", "three"):
                await ctx.step(name, step)

        if setting == "tuned":
            teguh.Worker(dsn, "bench", tasks, concurrency=200, batch_size=100).run()
        else:
            teguh.Worker(dsn, "bench", tasks).run()


PEER = Teguh()
