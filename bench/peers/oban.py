"""Oban for Python."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from bench.peers.base import Peer, connect, fill_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.peers.base import Producer, Sink

FILL = """
insert into oban_jobs (worker, args, state, scheduled_at)
select 'bench.peers.oban.Noop', jsonb_build_object('i', i),
  (case %(delay)s::float8 when 0 then 'available' else 'scheduled' end)::oban_job_state,
  timezone('UTC', now()) + make_interval(secs => %(delay)s::float8)
from generate_series(%(first)s::integer, %(last)s::integer) as i
"""


def _noop(sink: Sink | None) -> Any:
    """Return the job's class, which goes by its name and module."""
    import oban

    class Noop:
        async def process(self, job: Any) -> None:
            assert sink is not None
            sink.hit(job.args["i"])

    Noop.__qualname__ = "Noop"
    return oban.worker(queue="default")(Noop)


class ObanProducer:
    """Enqueues by an instance without queues."""

    def __init__(self, dsn: str) -> None:
        from oban import Oban

        self._loop = asyncio.new_event_loop()
        self._noop = _noop(None)

        async def start() -> Any:
            return await Oban(pool=await Oban.create_pool(dsn)).start()

        self._oban = self._loop.run_until_complete(start())

    def one(self, i: int) -> None:
        """Enqueue one job."""
        self._loop.run_until_complete(self._oban.enqueue(self._noop.new({"i": i})))

    def many(self, numbers: Sequence[int], *, flow: bool = False) -> None:
        """Enqueue by a thousand."""
        for at in range(0, len(numbers), 1000):
            jobs = [self._noop.new({"i": i}) for i in numbers[at : at + 1000]]
            self._loop.run_until_complete(self._oban.enqueue_many(jobs))

    def close(self) -> None:
        """Stop."""
        self._loop.run_until_complete(self._oban.stop())


class ObanPeer(Peer):
    """LISTEN; a leader stages what is due every second."""

    name = "oban"
    title = "oban (Python)"
    pip = ("oban==0.7.0",)
    settings: ClassVar = {
        "default": "Oban(queues={'default': 10}), LISTEN, stager 1 s",
        "tuned": "queues={'default': 100}",
    }
    keeps = "no result; the job's row, for a day"
    absent: ClassVar = {
        "steps": "has no steps",
        "cycle": "no public call claims one job",
    }
    waiting = "select count(*) from oban_jobs where state in ('available', 'executing')"

    def install(self, dsn: str) -> None:
        """Send its schema."""
        from oban.schema import install_sql

        with connect(dsn) as connection:
            connection.execute(install_sql(), prepare=False)

    def producer(self, dsn: str) -> Producer:
        """Enqueue by an instance."""
        return ObanProducer(dsn)

    def fill(self, dsn: str, first: int, number: int, delay: float | None) -> None:
        """Insert the rows that enqueue() does."""
        fill_by(dsn, FILL, first, number, delay)

    def work(self, dsn: str, setting: str, sink: Sink) -> None:
        """Run the queue."""
        from oban import Oban

        _noop(sink)

        async def run() -> None:
            pool = await Oban.create_pool(dsn)
            async with Oban(pool=pool, queues={"default": 100 if setting == "tuned" else 10}):
                await asyncio.Event().wait()

        asyncio.run(run())


PEER = ObanPeer()
