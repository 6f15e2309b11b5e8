"""The hand-written minimum for the same durable work: bench/limit.sql."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar

from bench.common import HERE
from bench.limit import CLAIM, COMPLETE, INSERT
from bench.peers.base import Peer, SqlProducer, connect, fill_by

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.peers.base import Producer, Sink

CHECKPOINT = """
create table checkpoint (
  job_id bigint not null, step text not null, state jsonb, primary key (job_id, step)
)
"""
STEP = "insert into checkpoint select job_id, %s, '1' from unnest(%s::bigint[]) as job_id"
FILL = """
insert into job (task, params, run_at)
select 'noop', jsonb_build_object('i', i), now() + make_interval(secs => %(delay)s)
from generate_series(%(first)s::integer, %(last)s::integer) as i
"""


class LimitProducer(SqlProducer):
    """Enqueues many by COPY."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, INSERT, "")

    def many(self, numbers: Sequence[int], *, flow: bool = False) -> None:
        """Copy rows, then notify."""
        task = "flow" if flow else "noop"
        with self.connection.cursor().copy("copy job (task, params) from stdin") as copy:
            for i in numbers:
                copy.write_row((task, json.dumps({"i": i})))
        self.connection.execute("notify job")


class Limit(Peer):
    """No retries, no sleeps but a start time."""

    name = "limit"
    title = "hand-written limit"
    settings: ClassVar = {
        "default": "one UPDATE claims and one completes a batch of 10, LISTEN",
        "tuned": "the same, batch 100; a step of all workflows of a batch commits at once",
    }
    keeps = "row of the job with its result, checkpoints"
    flows = 5000
    waiting = "select count(*) from job where state < 2 and run_at <= now()"

    def install(self, dsn: str) -> None:
        """Create the two tables."""
        with connect(dsn) as connection:
            connection.execute((HERE / "limit.sql").read_bytes(), prepare=False)
            connection.execute(CHECKPOINT)

    def producer(self, dsn: str) -> Producer:
        """Insert, or copy."""
        return LimitProducer(dsn)

    def fill(self, dsn: str, first: int, number: int, delay: float | None) -> None:
        """Insert from a series."""
        fill_by(dsn, FILL, first, number, delay)

    def work(self, dsn: str, setting: str, sink: Sink) -> None:
        """Claim, execute and complete in batches."""
        batch = 100 if setting == "tuned" else 10
        listener, connection = connect(dsn), connect(dsn)
        listener.execute("listen job")
        while True:
            jobs = connection.execute(CLAIM, (batch,)).fetchall()
            if not jobs:
                for _ in listener.notifies(timeout=30, stop_after=1):
                    pass
                continue
            for job in jobs:
                sink.hit(job[2]["i"])
            flows = [job[0] for job in jobs if job[1] == "flow"]
            for name in ("one", "two", "three") if flows else ():
                connection.execute(STEP, (name, flows))
            connection.execute(COMPLETE, ([job[0] for job in jobs], ["null"] * len(jobs)))

    def cycle(self, dsn: str) -> Callable[[], bool]:
        """Three statements, each its own commit."""
        connection = connect(dsn)
        payload = json.dumps({"i": 1})

        def once() -> bool:
            connection.execute(INSERT, (payload,))
            job = connection.execute(CLAIM, (1,)).fetchone()
            if job is not None:
                connection.execute(COMPLETE, ([job[0]], ["null"]))
            return job is not None

        return once


PEER = Limit()
