"""DBOS Transact for Python."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

from bench.peers.base import Peer, connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.peers.base import Producer, Sink

COLUMNS = """
select string_agg(quote_ident(attname), ', ') from pg_attribute
where attrelid = 'dbos.workflow_status'::regclass and attnum > 0 and not attisdropped
  and attname not in
    ('workflow_uuid', 'status', 'delay_until_epoch_ms', 'created_at', 'creator_xid', 'inputs')
"""
# The row of one workflow that was enqueued, so many times; %(input)s is what stands for its number.
FILL = """
insert into dbos.workflow_status (
  workflow_uuid, creator_xid, status, delay_until_epoch_ms, created_at, inputs, {columns})
select gen_random_uuid()::text, gen_random_uuid()::text, %(status)s, %(until)s::bigint,
  created_at + i, inputs, {columns}
from dbos.workflow_status, generate_series(1, %(number)s::integer) as i
where workflow_uuid = %(id)s
"""


def _config(dsn: str) -> Any:
    return {
        "name": "bench", "system_database_url": dsn, "application_version": "bench",
        "executor_id": "bench", "enable_otlp": False, "log_level": "ERROR",
        "run_admin_server": False,
    }  # fmt: skip


def _options(flow: bool = False) -> Any:
    name = "flow" if flow else "noop"
    return {"workflow_name": name, "queue_name": "bench", "app_version": "bench"}


class DbosProducer:
    """Enqueues by the client."""

    def __init__(self, dsn: str) -> None:
        import sqlalchemy
        from dbos import DBOSClient

        self.client = DBOSClient(system_database_url=dsn)
        self._engine = sqlalchemy.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))

    def one(self, i: int) -> str:
        """Enqueue one workflow; return its id."""
        return str(self.client.enqueue(_options(), i).workflow_id)

    def many(self, numbers: Sequence[int], *, flow: bool = False) -> None:
        """Enqueue one by one in one transaction: there is no call for many."""
        with self._engine.begin() as connection:
            for i in numbers:
                self.client.enqueue_in_transaction(connection, _options(flow), i)

    def close(self) -> None:
        """Disconnect."""
        self.client.destroy()
        self._engine.dispose()


class Dbos(Peer):
    """Polls; a workflow is a function, and every task is one."""

    name = "dbos"
    title = "dbos"
    pip = ("dbos==3.4.0",)
    settings: ClassVar = {
        "default": "register_queue(name): no limit, poll 1 s; synchronous workflows",
        "tuned": "worker_concurrency 100, polling_interval_sec 0.05; asynchronous workflows",
    }
    keeps = "workflow with inputs and output, every step"
    absent: ClassVar = {"cycle": "no public call claims one workflow"}
    flows = 500
    waiting = """
      select count(*) from dbos.workflow_status
      where queue_name = 'bench' and status in ('ENQUEUED', 'PENDING')
    """

    def install(self, dsn: str) -> None:
        """Launch once, which creates the tables."""
        self._launch(dsn, "default")
        from dbos import DBOS

        DBOS.destroy()

    def _launch(self, dsn: str, setting: str) -> None:
        from dbos import DBOS

        DBOS(config=_config(dsn))
        DBOS.launch()
        if setting == "tuned":
            DBOS.register_queue("bench", worker_concurrency=100, polling_interval_sec=0.05)
        else:
            DBOS.register_queue("bench")

    def producer(self, dsn: str) -> Producer:
        """Enqueue by the client."""
        return DbosProducer(dsn)

    def fill(self, dsn: str, first: int, number: int, delay: float | None) -> None:
        """Enqueue by the client, or more than that by copies of one row."""
        producer = DbosProducer(dsn)
        if number <= 10_000 and delay is None:
            producer.many(range(first, first + number))
        else:
            until = None if delay is None else int((time.time() + delay) * 1000)
            one = producer.one(first)
            with connect(dsn) as connection:
                [columns] = connection.execute(COLUMNS).fetchall()[0]
                connection.execute(
                    FILL.format(columns=columns).encode(),
                    {"id": one, "status": "ENQUEUED" if delay is None else "DELAYED",
                     "until": until, "number": number},
                )  # fmt: skip
                connection.execute(
                    "delete from dbos.workflow_status where workflow_uuid = %s", (one,)
                )
        producer.close()

    def work(self, dsn: str, setting: str, sink: Sink) -> None:
        """Run the queue's workflows."""
        from dbos import DBOS

        if setting == "tuned":

            @DBOS.workflow(name="noop")
            async def anoop(i: int) -> None:
                sink.hit(i)

            @DBOS.step(name="step")
            async def astep() -> int:
                return 1

            @DBOS.workflow(name="flow")
            async def aflow(i: int) -> None:
                sink.hit(i)
                for _ in range(3):
                    await astep()

        else:

            @DBOS.workflow(name="noop")
            def noop(i: int) -> None:
                sink.hit(i)

            @DBOS.step(name="step")
            def step() -> int:
                return 1

            @DBOS.workflow(name="flow")
            def flow(i: int) -> None:
                sink.hit(i)
                for _ in range(3):
                    step()

        self._launch(dsn, setting)
        while True:
            time.sleep(3600)


PEER = Dbos()
