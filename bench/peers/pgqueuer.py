"""pgqueuer with asyncpg."""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from bench.peers.base import Peer, fill_by

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.peers.base import Producer, Sink

FILL = """
insert into pgqueuer (priority, entrypoint, payload, status, execute_after)
select 0, 'noop', convert_to(json_build_object('i', i)::text, 'utf8'), 'queued',
  now() + make_interval(secs => %(delay)s::float8)
from generate_series(%(first)s::integer, %(last)s::integer) as i
"""


async def _driver(dsn: str) -> Any:
    import asyncpg
    from pgqueuer.db import AsyncpgDriver

    return AsyncpgDriver(await asyncpg.connect(dsn))


class PgqueuerProducer:
    """Enqueues by the queries object."""

    def __init__(self, dsn: str) -> None:
        from pgqueuer.queries import Queries

        self._loop = asyncio.new_event_loop()
        self._queries = Queries(self._loop.run_until_complete(_driver(dsn)))

    def one(self, i: int) -> None:
        """Enqueue one job."""
        payload = json.dumps({"i": i}).encode()
        self._loop.run_until_complete(self._queries.enqueue("noop", payload))

    def many(self, numbers: Sequence[int], *, flow: bool = False) -> None:
        """Enqueue all at once."""
        number = len(numbers)
        payloads = [json.dumps({"i": i}).encode() for i in numbers]
        self._loop.run_until_complete(
            self._queries.enqueue(["noop"] * number, payloads, [0] * number)
        )

    def close(self) -> None:
        """Stop the loop."""
        self._loop.close()


class Pgqueuer(Peer):
    """LISTEN and a slow poll."""

    name = "pgqueuer"
    title = "pgqueuer"
    pip = ("pgqueuer==1.6.0", "asyncpg==0.32.0")
    settings: ClassVar = {
        "default": "run(): batch_size 10, LISTEN, dequeue_timeout 30 s",
        "tuned": "run(batch_size=100)",
    }
    keeps = "no result; a line in a log table per change of state"
    absent: ClassVar = {"steps": "has no steps"}
    waiting = """
      select count(*) from pgqueuer where status in ('queued', 'picked') and execute_after <= now()
    """

    def install(self, dsn: str) -> None:
        """Install by its queries."""
        from pgqueuer.queries import Queries

        async def install() -> None:
            await Queries(await _driver(dsn)).install()

        asyncio.run(install())

    def producer(self, dsn: str) -> Producer:
        """Enqueue by the queries object."""
        return PgqueuerProducer(dsn)

    def fill(self, dsn: str, first: int, number: int, delay: float | None) -> None:
        """Insert the rows that enqueue() does."""
        fill_by(dsn, FILL, first, number, delay)

    def work(self, dsn: str, setting: str, sink: Sink) -> None:
        """Run the manager."""
        from pgqueuer import PgQueuer

        async def run() -> None:
            queuer = PgQueuer(await _driver(dsn))

            @queuer.entrypoint("noop")
            async def noop(job: Any) -> None:
                sink.hit(json.loads(job.payload)["i"])

            if setting == "tuned":
                await queuer.run(batch_size=100)
            else:
                await queuer.run()

        asyncio.run(run())

    def cycle(self, dsn: str) -> Callable[[], bool]:
        """What its worker calls, for one job."""
        from pgqueuer.ports.repository import EntrypointExecutionParameter
        from pgqueuer.queries import Queries

        loop = asyncio.new_event_loop()
        queries = Queries(loop.run_until_complete(_driver(dsn)))
        manager: Any = uuid.uuid4()
        entrypoints: Any = {"noop": EntrypointExecutionParameter(0)}

        async def once() -> bool:
            await queries.enqueue("noop", b'{"i": 1}')
            jobs = await queries.dequeue(1, entrypoints, manager, None, timedelta(seconds=30))
            if jobs:
                await queries.log_jobs([(jobs[0], "successful", None)])
            return bool(jobs)

        return lambda: loop.run_until_complete(once())


PEER = Pgqueuer()
