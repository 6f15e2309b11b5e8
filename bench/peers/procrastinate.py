"""procrastinate with psycopg."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from bench.peers.base import Peer, fill_by

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.peers.base import Producer, Sink

FILL = """
insert into procrastinate_jobs (queue_name, task_name, args, scheduled_at)
select 'default', 'noop', jsonb_build_object('i', i),
  case %(delay)s::float8 when 0 then null else now() + make_interval(secs => %(delay)s::float8) end
from generate_series(%(first)s::integer, %(last)s::integer) as i
"""


class ProcrastinateProducer:
    """Defers by the synchronous connector."""

    def __init__(self, dsn: str) -> None:
        from procrastinate import App, SyncPsycopgConnector

        self._app = App(connector=SyncPsycopgConnector(conninfo=dsn))
        self._app.open()

        @self._app.task(name="noop")
        def noop(i: int) -> None: ...

        self._task: Any = noop

    def one(self, i: int) -> None:
        """Defer one job."""
        self._task.defer(i=i)

    def many(self, numbers: Sequence[int], *, flow: bool = False) -> None:
        """Defer all at once."""
        self._task.batch_defer(*[{"i": i} for i in numbers])

    def close(self) -> None:
        """Disconnect."""
        self._app.close()


class Procrastinate(Peer):
    """LISTEN and a poll every five seconds; fetches one job at a time."""

    name = "procrastinate"
    title = "procrastinate"
    pip = ("procrastinate==3.10.0",)
    settings: ClassVar = {
        "default": "run_worker_async(): concurrency 1, LISTEN, poll 5 s",
        "tuned": "concurrency 30, a pool of 10 connections",
    }
    keeps = "no result; the job's row and its events"
    absent: ClassVar = {"steps": "has no steps"}
    waiting = """
      select count(*) from procrastinate_jobs
      where status in ('todo', 'doing') and (scheduled_at is null or scheduled_at <= now())
    """

    def install(self, dsn: str) -> None:
        """Apply the schema."""
        from procrastinate import App, SyncPsycopgConnector

        app = App(connector=SyncPsycopgConnector(conninfo=dsn))
        with app.open():
            app.schema_manager.apply_schema()

    def producer(self, dsn: str) -> Producer:
        """Defer by a task."""
        return ProcrastinateProducer(dsn)

    def fill(self, dsn: str, first: int, number: int, delay: float | None) -> None:
        """Insert the rows that defer() does."""
        fill_by(dsn, FILL, first, number, delay)

    def work(self, dsn: str, setting: str, sink: Sink) -> None:
        """Run a worker."""
        from procrastinate import App, PsycopgConnector

        tuned = setting == "tuned"
        pool = {"max_size": 10} if tuned else {}
        app = App(connector=PsycopgConnector(conninfo=dsn, **pool))

        @app.task(name="noop")
        async def noop(i: int) -> None:
            sink.hit(i)

        async def run() -> None:
            async with app.open_async():
                await app.run_worker_async(
                    concurrency=30 if tuned else 1, install_signal_handlers=False
                )

        asyncio.run(run())

    def cycle(self, dsn: str) -> Callable[[], bool]:
        """What its worker calls, for one job."""
        from procrastinate import App, PsycopgConnector
        from procrastinate.jobs import Status

        app = App(connector=PsycopgConnector(conninfo=dsn))

        @app.task(name="noop")
        async def noop(i: int) -> None: ...

        loop = asyncio.new_event_loop()
        loop.run_until_complete(app.open_async())
        worker = loop.run_until_complete(app.job_manager.register_worker())

        async def once() -> bool:
            await noop.defer_async(i=1)
            job = await app.job_manager.fetch_job(None, worker)
            if job is not None:
                await app.job_manager.finish_job(job, Status.SUCCEEDED, delete_job=False)
            return job is not None

        return lambda: loop.run_until_complete(once())


PEER = Procrastinate()
