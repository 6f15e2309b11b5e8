"""absurd: its Python SDK, and the schema that absurdctl installs."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, ClassVar

from bench.peers.base import Peer, connect, fill_by

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.peers.base import Producer, Sink

FILL = """
with numbers as (
  select i, gen_random_uuid() as task_id, gen_random_uuid() as run_id
  from generate_series(%(first)s::integer, %(last)s::integer) as i
),

tasks as (
  insert into absurd.t_bench (task_id, task_name, params, state, attempts, last_attempt_run)
  select task_id, 'noop', jsonb_build_object('i', i),
    case %(delay)s::float8 when 0 then 'pending' else 'sleeping' end, 1, run_id
  from numbers
)

insert into absurd.r_bench (run_id, task_id, attempt, state, available_at)
select run_id, task_id, 1, case %(delay)s::float8 when 0 then 'pending' else 'sleeping' end,
  clock_timestamp() + make_interval(secs => %(delay)s::float8)
from numbers
"""


class AbsurdProducer:
    """Enqueues by the SDK, and many by the function that it calls."""

    def __init__(self, dsn: str) -> None:
        import absurd_sdk

        self._app = absurd_sdk.Absurd(dsn, "bench")
        self._connection = connect(dsn)

    def one(self, i: int) -> None:
        """Spawn one task."""
        self._app.spawn("noop", {"i": i}, queue="bench")

    def many(self, numbers: Sequence[int], *, flow: bool = False) -> None:
        """Spawn in one pipelined transaction: there is no call for many."""
        spawn = "select run_id from absurd.spawn_task('bench', %s, %s, '{}')"
        name = "flow" if flow else "noop"
        rows = [(name, json.dumps({"i": i})) for i in numbers]
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(spawn, rows)

    def close(self) -> None:
        """Disconnect."""
        self._app.close()
        self._connection.close()


class Absurd(Peer):
    """Polls; its tuned worker is the asynchronous one."""

    name = "absurd"
    title = "absurd"
    pip = ("absurd-sdk==0.5.1", "absurdctl==0.5.1")
    settings: ClassVar = {
        "default": "Absurd.start_worker(): one task at a time, poll 0.25 s",
        "tuned": "AsyncAbsurd.start_worker(concurrency=100, batch_size=100), poll 0.25 s",
    }
    keeps = "task, result, checkpoints, every run"
    waiting = """
      select count(*) from absurd.r_bench
      where state in ('pending', 'running') and available_at <= now()
    """

    def install(self, dsn: str) -> None:
        """Send the bundled schema."""
        from absurdctl import BUNDLED_SCHEMA_SQL

        with connect(dsn) as connection:
            connection.execute(BUNDLED_SCHEMA_SQL.encode(), prepare=False)
            connection.execute("select absurd.create_queue('bench')")

    def producer(self, dsn: str) -> Producer:
        """Spawn by the SDK."""
        return AbsurdProducer(dsn)

    def fill(self, dsn: str, first: int, number: int, delay: float | None) -> None:
        """Insert the rows that a spawn leaves, or a first sleep: a spawn has no start time."""
        fill_by(dsn, FILL, first, number, delay)

    def work(self, dsn: str, setting: str, sink: Sink) -> None:
        """Run a worker of the SDK."""
        import absurd_sdk

        if setting == "tuned":
            asyncio.run(self._work_async(dsn, sink))
        app = absurd_sdk.Absurd(dsn, "bench")

        @app.register_task("noop")
        def noop(params: Any, ctx: Any) -> None:
            sink.hit(params["i"])

        @app.register_task("flow")
        def flow(params: Any, ctx: Any) -> None:
            sink.hit(params["i"])
            for name in ("one", "two", "three"):
                ctx.step(name, lambda: 1)

        app.start_worker()

    async def _work_async(self, dsn: str, sink: Sink) -> None:
        import absurd_sdk

        app = absurd_sdk.AsyncAbsurd(dsn, "bench")

        @app.register_task("noop")
        async def noop(params: Any, ctx: Any) -> None:
            sink.hit(params["i"])

        async def step() -> int:
            return 1

        @app.register_task("flow")
        async def flow(params: Any, ctx: Any) -> None:
            sink.hit(params["i"])
            for name in ("one", "two", "three"):
                await ctx.step(name, step)

        await app.start_worker(concurrency=100, batch_size=100)

    def cycle(self, dsn: str) -> Callable[[], bool]:
        """The three calls that the SDK makes."""
        connection = connect(dsn)

        def once() -> bool:
            connection.execute(
                "select task_id, run_id from absurd.spawn_task('bench', 'noop', '{\"i\": 1}', '{}')"
            )
            run = connection.execute(
                "select run_id from absurd.claim_task('bench', 'bench', 120, 1)"
            ).fetchone()
            if run is not None:
                connection.execute("select absurd.complete_run('bench', %s, 'null')", run)
            return run is not None

        return once


PEER = Absurd()
