"""Claim cost under an old snapshot, as a curve.

An open REPEATABLE READ snapshot and an idle writing transaction are held from the start, so that
nothing that dies can be cleaned up. Clients cycle spawn, claim one, complete it, each call its own
commit; somebody calls the ticker every second. The same cycle then runs on a plain queue of
DELETE ... SKIP LOCKED (baseline.sql), which collapses.

usage: python bench/flat.py [--tasks 300000] [--baseline 60000] [--segment-bytes 16777216]
                            [--clients 4] [--server KIND | --dsn DSN]
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import psycopg

from bench.common import (
    HERE,
    TEGUH_SQL,
    add_server_options,
    connect,
    database_of,
    percentile,
    scalar,
    server_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Event as ProcessEvent
    from pathlib import Path

    from tools.servers import Databases

Sample = tuple[float, float]  # when a completion returned, and what it took from the claim on

BUCKET = 10_000
BAR = 1.5


@dataclass(frozen=True)
class Design:
    """A queue to be measured: its three calls, and where it keeps what is ready and leased."""

    name: str
    files: tuple[Path, ...]
    prepare: str
    spawn: str
    claim: str
    complete: str
    tick: str | None
    schema: str
    dispatch: str  # regular expression: tables that must not rot
    tasks: str


TEGUH = Design(
    name="teguh",
    files=(TEGUH_SQL,),
    prepare="select teguh.create_queue('flat')",
    spawn="""select * from teguh.spawn_task('flat', 'flat', '{"some": "payload of usual size"}')""",
    claim="select run_id from teguh.claim_task('flat', 'client', 30, 1)",
    complete="""select teguh.complete_run('flat', %s, '{"done": true}')""",
    tick="select teguh.ticker('flat')",
    schema="teguh",
    dispatch="^[pk][01]_flat$",
    tasks="t_flat",
)
BASELINE = Design(
    name="DELETE ... SKIP LOCKED",
    files=(HERE / "baseline.sql",),
    prepare="select 1",
    spawn="""select baseline.spawn('{"some": "payload of usual size"}')""",
    claim="select baseline.claim('client', 30, 1)",
    complete="""select baseline.complete(%s, '{"done": true}')""",
    tick=None,
    schema="baseline",
    dispatch="^(ready|lease)$",
    tasks="task",
)


def cycle(
    dsn: str, design: Design, until: ProcessEvent, samples: Queue[list[Sample] | None]
) -> None:
    """Be one client: spawn, claim, complete, until told to stop."""
    batch: list[Sample] = []
    with connect(dsn) as connection:
        while not until.is_set():
            connection.execute(design.spawn.encode())
            began = time.perf_counter()
            row = connection.execute(design.claim.encode()).fetchone()
            if row is not None:
                connection.execute(design.complete.encode(), row)
                ended = time.perf_counter()
                batch.append((ended, ended - began))
            if len(batch) == 100:
                samples.put(batch)
                batch = []
    samples.put(batch)
    samples.put(None)


@contextmanager
def pinned(dsn: str) -> Iterator[None]:
    """Hold an old snapshot and an idle writer open."""
    with psycopg.connect(dsn) as snapshot, psycopg.connect(dsn) as writer:
        snapshot.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        snapshot.execute("select count(*) from pg_class")
        writer.execute("create temporary table idle (i integer) on commit drop")
        yield
        ages = [
            scalar(c, "select extract(epoch from clock_timestamp() - now())::integer")
            for c in (snapshot, writer)
        ]
        print(f"held all the while: a snapshot {ages[0]} s, an idle writer {ages[1]} s")


@contextmanager
def ticking(dsn: str, design: Design, segment_bytes: int) -> Iterator[None]:
    """Call the ticker every second."""
    over = Event()

    def tick() -> None:
        with connect(dsn) as connection:
            connection.execute(f"set teguh.segment_bytes = {segment_bytes}".encode())
            while design.tick and not over.wait(1):
                connection.execute(design.tick.encode())

    thread = Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def arrivals(
    dsn: str, design: Design, tasks: int, clients: int, *, bucket: int = BUCKET
) -> Iterator[list[Sample]]:
    """Run the clients; yield their samples in the order of time, a bucket at once."""
    context = get_context("spawn")
    samples: Queue[list[Sample] | None] = context.Queue()
    until = context.Event()
    processes = [
        context.Process(target=cycle, args=(dsn, design, until, samples)) for _ in range(clients)
    ]
    for process in processes:
        process.start()
    waiting: list[Sample] = []
    done, running = 0, clients
    while running:
        batch = samples.get()
        if batch is None:
            running -= 1
            continue
        waiting += batch
        done += len(batch)
        if done >= tasks:
            until.set()
        if len(waiting) >= bucket:
            waiting.sort()
            yield waiting[:bucket]
            waiting = waiting[bucket:]
    for process in processes:
        process.join()


def measure(
    server: Databases, design: Design, tasks: int, clients: int, segment_bytes: int
) -> tuple[float, int, float]:
    """Print the curve of a design; return its slowdown, its dead rows and its share of HOT."""
    print(f"\n{design.name}: {clients} clients, {tasks:,} tasks")
    print("   tasks   median ms   p95 ms   done/s   dispatch MB", flush=True)
    medians: list[float] = []
    with database_of(server, "flat", *design.files) as dsn, ExitStack() as stack:
        watch = stack.enter_context(connect(dsn))
        watch.execute(design.prepare.encode())
        stack.enter_context(pinned(dsn))
        stack.enter_context(ticking(dsn, design, segment_bytes))
        for bucket in arrivals(dsn, design, tasks, clients):
            took = [sample[1] * 1000 for sample in bucket]
            medians.append(median(took))
            print(
                f"{len(medians) * BUCKET:8,}{medians[-1]:12.2f}{percentile(took, 0.95):9.2f}"
                f"{len(bucket) / (bucket[-1][0] - bucket[0][0]):9.0f}{_size(watch, design):14.1f}",
                flush=True,
            )
        time.sleep(1.5)  # counters are sent once a second
        dead, hot = _tables(watch, design)
    return medians[-1] / medians[0], dead, hot


def _size(connection: psycopg.Connection[Any], design: Design) -> float:
    """Megabytes of the dispatch tables with their indexes."""
    return float(
        scalar(
            connection,
            "select sum(pg_total_relation_size(relid)) / 1048576.0 from pg_stat_user_tables"
            " where schemaname = %s and relname ~ %s",
            design.schema,
            design.dispatch,
        )
    )


def _tables(connection: psycopg.Connection[Any], design: Design) -> tuple[int, float]:
    """Print the tables; return the dead rows of dispatch and the share of HOT updates of tasks."""
    print("table        inserted    updated        HOT    deleted       dead       MB")
    dead, hot = 0, 0.0
    for name, inserted, updated, in_place, deleted, lost, size, is_dispatch in connection.execute(
        "select relname, n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del, n_dead_tup,"
        " pg_total_relation_size(relid) / 1048576.0, relname ~ %s"
        " from pg_stat_user_tables where schemaname = %s and n_tup_ins > 0 order by relname",
        (design.dispatch, design.schema),
    ):
        print(
            f"{name:10}{inserted:11,}{updated:11,}{in_place:11,}{deleted:11,}{lost:11,}{size:9.1f}"
        )
        if is_dispatch:
            dead += lost
        if name == design.tasks:
            hot = in_place / updated
    return dead, hot


def main() -> int:
    """Measure, and say whether the bars were kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tasks", type=int, default=300_000)
    parser.add_argument("--baseline", type=int, default=60_000, help="its tasks; 0 leaves it out")
    parser.add_argument("--segment-bytes", type=int, default=16 * 1024 * 1024)
    parser.add_argument("--clients", type=int, default=4)
    add_server_options(parser)
    options = parser.parse_args()
    with server_of(options) as server:
        slower, dead, hot = measure(
            server, TEGUH, options.tasks, options.clients, options.segment_bytes
        )
        if options.baseline:
            collapse, _, _ = measure(server, BASELINE, options.baseline, options.clients, 0)
            print(f"\nbaseline: last 10,000 over first 10,000: {collapse:.2f}")
    kept = slower <= BAR and dead == 0 and hot == 1
    print(f"teguh: last 10,000 over first 10,000: {slower:.2f} (bar {BAR})")
    print(f"teguh: dead rows in dispatch {dead:,} (bar: rolled-back rows, here 0)")
    print(f"teguh: HOT updates of tasks {hot:.2%} (bar 100 %)")
    print("bars kept" if kept else "bars missed")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
