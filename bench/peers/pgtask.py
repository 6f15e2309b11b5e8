"""pgtask: handlers in Python, the worker in Rust."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from bench.peers.base import Peer, fill_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.peers.base import Producer, Sink

# The rows that enqueue() leaves, without its triggers.
FILL = """
insert into pgtask.tasks
  (id, queue_name, task_name, handler_version, payload, run_at, max_attempts)
select gen_random_uuid(), 'bench', 'noop', 1, jsonb_build_object('i', i),
  clock_timestamp() + make_interval(secs => %(delay)s::float8), 5
from generate_series(%(first)s::integer, %(last)s::integer) as i
"""
CALL = """
select count(*) from generate_series(%(first)s::integer, %(last)s::integer) as i
cross join lateral pgtask.enqueue('noop', jsonb_build_object('i', i), 'bench', 1,
  now() + make_interval(secs => %(delay)s::float8), 0::smallint, 5, null, '{}'::jsonb)
"""


def _address(dsn: str) -> str:
    """Return the address with a host: it takes none without, and that of a socket goes before."""
    return dsn.replace("@/", "@localhost/")


class PgtaskProducer:
    """Enqueues by the client."""

    def __init__(self, dsn: str) -> None:
        from pgtask import Client

        self._loop = asyncio.new_event_loop()

        async def open_client() -> Any:
            return await Client.connect(_address(dsn))

        self._client = self._loop.run_until_complete(open_client())

    def _request(self, i: int, name: str = "noop") -> Any:
        from pgtask import EnqueueRequest

        return EnqueueRequest(name, {"i": i}, queue_name="bench")

    def one(self, i: int) -> None:
        """Enqueue one task."""
        self._loop.run_until_complete(self._client.enqueue(self._request(i)))

    def many(self, numbers: Sequence[int], *, flow: bool = False) -> None:
        """Enqueue by a thousand."""
        name = "flow" if flow else "noop"
        for at in range(0, len(numbers), 1000):
            requests = [self._request(i, name) for i in numbers[at : at + 1000]]
            self._loop.run_until_complete(self._client.enqueue_many(requests))

    def close(self) -> None:
        """Stop the loop."""
        self._loop.close()


class Pgtask(Peer):
    """LISTEN and a slow poll."""

    name = "pgtask"
    title = "pgtask"
    pip = ("pgtask==0.4.0",)
    settings: ClassVar = {
        "default": "Worker(...): concurrency 10, LISTEN, poll 30 s",
        "tuned": "concurrency 100",
    }
    keeps = "task, result, steps, for a retention time"
    absent: ClassVar = {"cycle": "no public call claims one task"}
    waiting = """
      select count(*) from pgtask.tasks where state in ('pending', 'running') and run_at <= now()
    """

    def install(self, dsn: str) -> None:
        """Migrate."""
        from pgtask import Client

        async def migrate() -> None:
            client = await Client.connect(_address(dsn))
            await client.migrate()

        asyncio.run(migrate())

    def producer(self, dsn: str) -> Producer:
        """Enqueue by the client."""
        return PgtaskProducer(dsn)

    def fill(self, dsn: str, first: int, number: int, delay: float | None) -> None:
        """Call the SQL function, or for very many insert the rows that it does."""
        if number <= 20_000:
            fill_by(dsn, CALL, first, number, delay)
            return
        fill_by(dsn, CALL, first, 1, delay)  # registers the queue
        fill_by(
            f"{dsn}&options=-csession_replication_role%3Dreplica",
            FILL,
            first + 1,
            number - 1,
            delay,
        )

    def work(self, dsn: str, setting: str, sink: Sink) -> None:
        """Run a worker."""
        from pgtask import Task, TaskRegistry, Worker

        tasks = TaskRegistry(queue_name="bench")

        async def noop(task: Task, payload: Any) -> None:
            sink.hit(payload["i"])

        async def step() -> int:
            return 1

        async def flow(task: Task, payload: Any) -> None:
            sink.hit(payload["i"])
            for name in ("one", "two", "three"):
                await task.step(name, step)

        for handler in (noop, flow):
            # it reads the annotations, which are strings here
            handler.__annotations__ = {"task": Task, "payload": Any, "return": None}
            tasks.task(handler.__name__)(handler)
        concurrency = 100 if setting == "tuned" else 10

        async def run() -> None:
            await Worker(_address(dsn), tasks, concurrency=concurrency).run()

        asyncio.run(run())


PEER = Pgtask()
