"""chancy with coroutines as handlers."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, ClassVar

from bench.peers.base import Peer, connect, fill_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.peers.base import Producer, Sink

SINK: Sink | None = None

COLUMNS = "queue, func, limits, meta, state, priority, max_attempts, unique_key"
# Copies of a row that was pushed, in the order of their ids.
FILL = f"""
insert into chancy_jobs (id, kwargs, scheduled_at, {COLUMNS})
select lpad(to_hex(i), 32, '0')::uuid, jsonb_build_object('i', i),
  now() + make_interval(secs => %(delay)s::float8), {COLUMNS}
from chancy_jobs, generate_series(%(first)s::integer, %(last)s::integer) as i
where kwargs ->> 'i' = '-1'
"""


async def noop(*, i: int) -> None:
    """Note the start."""
    assert SINK is not None
    SINK.hit(i)


def _job(i: int) -> Any:
    from chancy import Job

    return Job(func="bench.peers.chancy.noop", queue="default", kwargs={"i": i})


def _chancy(dsn: str) -> Any:
    from chancy import Chancy

    return Chancy(dsn, log=logging.getLogger("chancy"))


class ChancyProducer:
    """Pushes by the synchronous calls."""

    def __init__(self, dsn: str) -> None:
        self._chancy = _chancy(dsn)
        self._chancy.__enter__()

    def one(self, i: int) -> None:
        """Push one job."""
        self._chancy.sync_push(_job(i))

    def many(self, numbers: Sequence[int], *, flow: bool = False) -> None:
        """Push by a thousand."""
        for _ in self._chancy.sync_push_many([_job(i) for i in numbers]):
            pass

    def close(self) -> None:
        """Disconnect."""
        self._chancy.__exit__(None, None, None)


class ChancyPeer(Peer):
    """LISTEN; the state of jobs is written once a second."""

    name = "chancy"
    title = "chancy"
    pip = ("chancy==0.26.0",)
    settings: ClassVar = {
        "default": "Queue(concurrency=10, AsyncExecutor, eager_polling=True), LISTEN",
        "tuned": "the same, concurrency 100",
    }
    keeps = "no result; the job's row, for a day"
    absent: ClassVar = {
        "steps": "workflows of jobs, no steps of one job",
        "cycle": "no public call claims one job",
    }
    waiting = """
      select count(*) from chancy_jobs
      where state in ('pending', 'retrying', 'running')
        and (scheduled_at is null or scheduled_at <= now())
    """

    def install(self, dsn: str) -> None:
        """Migrate."""

        async def migrate() -> None:
            async with _chancy(dsn) as chancy:
                await chancy.migrate()

        asyncio.run(migrate())

    def producer(self, dsn: str) -> Producer:
        """Push by the synchronous calls."""
        return ChancyProducer(dsn)

    def fill(self, dsn: str, first: int, number: int, delay: float | None) -> None:
        """Push one job and copy its row."""
        producer = ChancyProducer(dsn)
        producer.one(-1)
        producer.close()
        fill_by(dsn, FILL, first, number, delay)
        with connect(dsn) as connection:
            connection.execute("delete from chancy_jobs where kwargs ->> 'i' = '-1'")

    def work(self, dsn: str, setting: str, sink: Sink) -> None:
        """Declare the queue and run a worker."""
        from chancy import Queue, Worker

        # handlers are found by their names: in this module under its own name, not as __main__
        globals()["SINK"] = sink
        queue = Queue(
            "default",
            concurrency=100 if setting == "tuned" else 10,
            executor="chancy.executors.asyncex.AsyncExecutor",
            eager_polling=True,
        )

        async def run() -> None:
            async with _chancy(dsn) as chancy:
                await chancy.declare(queue, upsert=True)
                async with Worker(chancy):
                    await asyncio.Event().wait()

        asyncio.run(run())


PEER = ChancyPeer()
