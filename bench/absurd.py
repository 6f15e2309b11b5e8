"""Beside absurd, whose functions sql/compat/absurd.sql has: the same calls, in one run.

"absurd" is the schema that absurdctl installs, "teguh" the same functions carried out by teguh;
both are called by the published Python SDK, or by the statements that it sends, one connection
and one transaction a call. They take turns, each time in a fresh database, and who begins changes
from round to round. A figure is the median of the rounds' medians, with the least and the greatest
of them; "by" says how many times teguh does better.

usage: python bench/absurd.py [--rounds 3] [--backlog 100000] [--flows 500] [--pinned 20000]
                              [--server KIND | --dsn DSN]
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
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

    # the figures of a system, one a round
    Figures = dict[str, list[float]]

ABSURD_SQL = TEGUH_SQL.parent / "compat" / "absurd.sql"
SYSTEMS = ("absurd", "teguh")

# The statements of the SDK.
SPAWN = "select task_id, run_id, attempt from absurd.spawn_task('bench', 'noop', 'null', '{}')"
CLAIM = "select run_id from absurd.claim_task('bench', 'bench', 120, 1)"
COMPLETE = "select absurd.complete_run('bench', %s, 'null')"

SPAWN_MANY = (
    "select count(*) from generate_series(1, %s) as n cross join lateral"
    " absurd.spawn_task('bench', 'noop', to_jsonb(n), '{}')"
)


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


def turns(server: Databases, rounds: int, cell: Callable[[str], list[float]]) -> list[Figures]:
    """Have a cell measured for each system in turns; each of its figures by system and round."""
    found: dict[str, list[list[float]]] = {system: [] for system in SYSTEMS}
    for number in range(rounds):
        for system in SYSTEMS if number % 2 == 0 else reversed(SYSTEMS):
            with database(server, system) as dsn:
                found[system].append(cell(dsn))
    figures = range(len(found[SYSTEMS[0]][0]))
    return [{s: [one[place] for one in found[s]] for s in SYSTEMS} for place in figures]


def show(what: str, figures: Figures, unit: str) -> None:
    """Print a line of the result; less is better, but for rates."""
    texts = []
    for system in SYSTEMS:
        values = figures.get(system)
        texts.append(
            f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f}) {unit}" if values else ""
        )
    by = ""
    if all(system in figures for system in SYSTEMS):
        ratio = median(figures["absurd"]) / median(figures["teguh"])
        by = f"{ratio if unit == 'ms' else 1 / ratio:.1f}"
    print(f"{what:44}" + "".join(f"{text:>28}" for text in texts) + f"{by:>7}", flush=True)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Call; return what it took in ms, and what it returned."""
    began = time.perf_counter()
    found = call()
    return (time.perf_counter() - began) * 1000, found


def cycles(connection: Conn, number: int) -> tuple[list[float], list[float]]:
    """Claim one and complete it, so many times; return what the claims and completions took."""
    claimed, completed = [], []
    for _ in range(number):
        took, row = timed(lambda: connection.execute(CLAIM.encode()).fetchone())
        assert row is not None
        claimed.append(took)
        completed.append(timed(lambda: connection.execute(COMPLETE.encode(), row))[0])  # noqa: B023
    return claimed, completed


def floor(server: Databases, options: argparse.Namespace) -> None:
    """What no call can be faster than: a row inserted by itself, committed."""

    def cell(dsn: str) -> list[float]:
        with connect(dsn) as connection:
            connection.execute("create table floor (n integer)")
            insert = b"insert into floor (n) values (1)"
            return [median(timed(lambda: connection.execute(insert))[0] for _ in range(200))]

    [took] = turns(server, options.rounds, cell)
    show("a row inserted and committed (the floor)", took, "ms")


def claims(server: Databases, options: argparse.Namespace) -> None:
    """Claim cost beside a backlog, which was spawned at once and vacuumed."""
    for pending in (1000, options.backlog):

        def cell(dsn: str, pending: int = pending) -> list[float]:
            with connect(dsn) as connection:
                connection.execute(SPAWN_MANY.encode(), (pending,))
                connection.execute("vacuum analyze")
                cycles(connection, 10)
                claimed, completed = cycles(connection, 100)
            return [median(claimed), median(completed)]

        claim, complete = turns(server, options.rounds, cell)
        show(f"claim one, {pending:,} pending", claim, "ms")
        show("  and complete it", complete, "ms")


def wait_for(seen: list[float], number: int) -> None:
    """Wait until a list has so many elements."""
    deadline = time.monotonic() + 120
    while len(seen) < number:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(seen)} of {number} after two minutes")
        time.sleep(0.001)


@contextmanager
def working(run: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    """Have a worker running in a thread."""
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()


def pick_up(server: Databases, options: argparse.Namespace) -> None:
    """From the end of a spawn to the handler of a worker that has been idle for some time."""
    moments = random.Random(1)

    def latency(spawn: Callable[[], Any], begun: list[float]) -> float:
        took = []
        for n in range(30):
            # the SDK's worker polls every 0.25 s: spawn at any point of that
            time.sleep(0.3 + moments.random() / 4)
            spawn()
            spawned = time.perf_counter()
            wait_for(begun, n + 1)
            took.append(max(0.0, begun[-1] - spawned) * 1000)
        return median(took)

    def sdk(dsn: str) -> list[float]:
        begun: list[float] = []
        app = absurd_sdk.Absurd(dsn, "bench")
        app.register_task("noop")(lambda params, ctx: begun.append(time.perf_counter()))
        client = absurd_sdk.Absurd(dsn, "bench")
        with working(app.start_worker, app.stop_worker):
            found = latency(lambda: client.spawn("noop", None, queue="bench"), begun)
        app.close()
        client.close()
        return [found]

    def own(dsn: str) -> float:
        begun: list[float] = []
        tasks = teguh.Registry()
        tasks.task("noop")(lambda ctx: begun.append(time.perf_counter()))
        worker = teguh.Worker(dsn, "bench", tasks)
        with connect(dsn) as connection, working(worker.run, worker.stop):
            return latency(lambda: connection.execute(SPAWN.encode()), begun)

    [found] = turns(server, options.rounds, sdk)
    show("pick-up by the SDK's idle worker", found, "ms")
    ours = []
    for _ in range(options.rounds):
        with database(server, "teguh") as dsn:
            ours.append(own(dsn))
    show("pick-up by teguh's own idle worker", {"absurd": found["absurd"], "teguh": ours}, "ms")


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
        with working(app.start_worker, app.stop_worker):
            wait_for(ended, options.flows)
        app.close()
        return [options.flows / (ended[-1] - began)]

    [rates] = turns(server, options.rounds, cell)
    show("workflows of 3 steps, one worker", rates, "/s")


def pinned(server: Databases, options: argparse.Namespace) -> None:
    """Spawn, claim and complete one by one while an old snapshot is held; in turns of 500."""
    share = options.pinned // 10
    took: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    with ExitStack() as stack:
        connections = {}
        for system in SYSTEMS:
            dsn = stack.enter_context(database(server, system))
            connections[system] = stack.enter_context(connect(dsn))
            snapshot = stack.enter_context(connect(dsn))
            snapshot.execute("begin isolation level repeatable read")
            snapshot.execute("select count(*) from pg_class")
        while len(took["teguh"]) < options.pinned:
            for system, connection in connections.items():
                for _ in range(500):
                    connection.execute(SPAWN.encode())
                    took[system] += cycles(connection, 1)[0]

    def part(figure: Callable[[list[float]], float]) -> Figures:
        return {system: [figure(values)] for system, values in took.items()}

    show(f"claim, old snapshot held: first {share:,}", part(lambda v: median(v[:share])), "ms")
    show(f"  last {share:,} of {options.pinned:,}", part(lambda v: median(v[-share:])), "ms")
    show("  their 99th percentile", part(lambda v: percentile(v[-share:], 0.99)), "ms")


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backlog", type=int, default=100_000)
    parser.add_argument("--flows", type=int, default=500)
    parser.add_argument("--pinned", type=int, default=20_000)
    add_server_options(parser)
    options = parser.parse_args()
    began = time.monotonic()
    with server_of(options) as server:
        print(f"\n{'':44}" + "".join(f"{system:>28}" for system in SYSTEMS) + f"{'by':>7}")
        for cell in (floor, claims, pick_up, workflows, pinned):
            cell(server, options)
    minutes, load = (time.monotonic() - began) / 60, os.getloadavg()[2]
    print(
        f"\nmedian (least-greatest) of {options.rounds} rounds, one for the old snapshot;"
        f" {minutes:.0f} minutes; load of the last 15 minutes {load:.1f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
