"""Beside absurd, whose functions sql/compat/absurd.sql has: the same calls, in one run.

"absurd" is the schema that absurdctl installs, "teguh" the same functions carried out by teguh;
both are called by the published Python SDK, or by the statements that it sends. They take turns.

usage: python bench/absurd.py [--rounds 3] [--backlog 100000] [--flows 500] [--pinned 20000]
                              [--server KIND | --dsn DSN]
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

import absurd_sdk
from absurdctl import BUNDLED_SCHEMA_SQL

import teguh
from bench.common import (
    TEGUH_SQL,
    Conn,
    add_server_options,
    connect,
    database_of,
    percentile,
    server_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.servers import Databases

ABSURD_SQL = TEGUH_SQL.parent / "compat" / "absurd.sql"
SYSTEMS = ("absurd", "teguh")

# The statements of the SDK.
SPAWN = "select task_id, run_id, attempt from absurd.spawn_task('bench', 'noop', 'null', '{}')"
CLAIM = "select run_id from absurd.claim_task('bench', 'bench', 120, 1)"
COMPLETE = "select absurd.complete_run('bench', %s, 'null')"


@contextmanager
def database(server: Databases, system: str) -> Iterator[str]:
    """Yield the address of a fresh database with one of the systems, and a queue in it."""
    files = (TEGUH_SQL, ABSURD_SQL) if system == "teguh" else ()
    with database_of(server, "bench", *files) as dsn:
        with connect(dsn) as connection:
            if system == "absurd":
                connection.execute(BUNDLED_SCHEMA_SQL.encode(), prepare=False)
            connection.execute("select absurd.create_queue('bench')")
        yield dsn


def turns(
    server: Databases, rounds: int, cell: Callable[[str], list[float]]
) -> dict[str, list[float]]:
    """Collect the samples of a cell for each system, in turns."""
    found: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    for _ in range(rounds):
        for system in SYSTEMS:
            with database(server, system) as dsn:
                found[system] += cell(dsn)
    return found


def show(what: str, figures: dict[str, str]) -> None:
    """Print a line of the result."""
    print(f"{what:44}" + "".join(f"{figures.get(s, ''):>16}" for s in SYSTEMS), flush=True)


def cycles(connection: Conn, number: int) -> list[float]:
    """Claim one and complete it, so many times; return what each took, in ms."""
    took = []
    for _ in range(number):
        began = time.perf_counter()
        row = connection.execute(CLAIM.encode()).fetchone()
        assert row is not None
        connection.execute(COMPLETE.encode(), row)
        took.append((time.perf_counter() - began) * 1000)
    return took


def claims(server: Databases, options: argparse.Namespace) -> None:
    """Claim cost beside a backlog."""
    for pending in (1000, options.backlog):

        def cell(dsn: str, pending: int = pending) -> list[float]:
            with connect(dsn) as connection:
                connection.execute(
                    b"select count(*) from generate_series(1, %s) as n cross join lateral"
                    b" absurd.spawn_task('bench', 'noop', to_jsonb(n), '{}')",
                    (pending,),
                )
                connection.execute("vacuum analyze")
                cycles(connection, 20)
                return cycles(connection, 200)

        found = turns(server, options.rounds, cell)
        show(
            f"claim and complete one, {pending:,} pending",
            {system: f"{median(took):.2f} ms" for system, took in found.items()},
        )


@contextmanager
def working(app: absurd_sdk.Absurd) -> Iterator[None]:
    """Run the SDK's worker as it comes: it polls every 0.25 s."""
    thread = threading.Thread(target=app.start_worker)
    thread.start()
    try:
        yield
    finally:
        app.stop_worker()
        thread.join()
        app.close()


def wait_for(seen: list[float], number: int) -> None:
    """Wait until a list has so many elements."""
    deadline = time.monotonic() + 60
    while len(seen) < number and time.monotonic() < deadline:
        time.sleep(0.001)


def pick_up(server: Databases, options: argparse.Namespace) -> None:
    """From a spawn to the handler of a worker that had nothing to do."""
    del options
    number = 20

    def spawns(spawn: Callable[[], Any], begun: list[float]) -> list[float]:
        took = []
        for n in range(number):
            time.sleep(0.31)
            spawn()
            spawned = time.perf_counter()
            wait_for(begun, n + 1)
            took.append(max(0.0, begun[-1] - spawned) * 1000)
        return took

    def cell(dsn: str) -> list[float]:
        begun: list[float] = []
        app = absurd_sdk.Absurd(dsn, "bench")
        app.register_task("noop")(lambda params, ctx: begun.append(time.perf_counter()))
        client = absurd_sdk.Absurd(dsn, "bench")
        with working(app):
            took = spawns(lambda: client.spawn("noop", None, queue="bench"), begun)
        client.close()
        return took

    found = turns(server, 1, cell)
    show(
        "pick-up by the SDK's idle worker, p50",
        {system: f"{median(took):.1f} ms" for system, took in found.items()},
    )
    begun: list[float] = []
    tasks = teguh.Registry()
    tasks.task("noop")(lambda ctx: begun.append(time.perf_counter()))
    with database(server, "teguh") as dsn, connect(dsn) as connection:
        worker = teguh.Worker(dsn, "bench", tasks)
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            took = spawns(lambda: connection.execute(SPAWN.encode()), begun)
        finally:
            worker.stop()
            thread.join()
    show("pick-up by teguh's own idle worker, p50", {"teguh": f"{median(took):.1f} ms"})


def workflows(server: Databases, options: argparse.Namespace) -> None:
    """Workflows of three steps, run by one worker of the SDK."""

    def cell(dsn: str) -> list[float]:
        ended: list[float] = []
        app = absurd_sdk.Absurd(dsn, "bench")

        @app.register_task("flow")
        def flow(params: Any, ctx: Any) -> None:
            for step in ("one", "two", "three"):
                ctx.step(step, lambda: {"n": params})
            ended.append(time.perf_counter())

        for n in range(options.flows):
            app.spawn("flow", n)
        began = time.perf_counter()
        with working(app):
            wait_for(ended, options.flows)
        return [options.flows / (ended[-1] - began)]

    found = turns(server, options.rounds, cell)
    show(
        "workflows of 3 steps, one worker",
        {system: f"{median(rates):.0f}/s" for system, rates in found.items()},
    )


def pinned(server: Databases, options: argparse.Namespace) -> None:
    """Spawn, claim and complete one by one while an old snapshot is held."""
    share = options.pinned // 10
    first: dict[str, str] = {}
    last: dict[str, str] = {}
    worst: dict[str, str] = {}
    for system in SYSTEMS:
        with database(server, system) as dsn, connect(dsn) as connection, connect(dsn) as snapshot:
            snapshot.execute("begin isolation level repeatable read")
            snapshot.execute("select count(*) from pg_class")
            took = []
            for _ in range(options.pinned):
                connection.execute(SPAWN.encode())
                took += cycles(connection, 1)
        first[system] = f"{median(took[:share]):.2f} ms"
        last[system] = f"{median(took[-share:]):.2f} ms"
        worst[system] = f"{percentile(took[-share:], 0.99):.2f} ms"
    show(f"old snapshot held: first {share:,} cycles", first)
    show(f"old snapshot held: last {share:,} of {options.pinned:,}", last)
    show("  the 99th percentile of these", worst)


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backlog", type=int, default=100_000)
    parser.add_argument("--flows", type=int, default=500)
    parser.add_argument("--pinned", type=int, default=20_000)
    add_server_options(parser)
    options = parser.parse_args()
    with server_of(options) as server:
        print()
        show("", {system: system for system in SYSTEMS})
        for cell in (claims, pick_up, workflows, pinned):
            cell(server, options)
    load = os.getloadavg()[2]
    print(f"\nmedians of {options.rounds} rounds; load of the last 15 minutes {load:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
