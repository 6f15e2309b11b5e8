"""What schedules cost: a tick and a claim while none is due, and the tick in which many are.

idle: an empty queue's tick and claim with none, a thousand and ten thousand schedules that are not
due, and with an old snapshot held after they have fired ten times.  storm: schedules that are due
in the same second, fired by one tick, and then claimed.

usage: python bench/schedules.py [--rounds 300] [--server KIND | --dsn DSN]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from statistics import median
from typing import TYPE_CHECKING

from bench.common import TEGUH_SQL, add_server_options, connect, database_of, scalar, server_of

if TYPE_CHECKING:
    from bench.common import Conn
    from tools.servers import Databases

TICK = "select teguh.ticker('bench')"
CLAIM = "select count(*) from teguh.claim_task('bench', 'bench')"
START = "2031-05-02 00:00:00+00"


def create(connection: Conn, first: int, number: int) -> None:
    """Create hourly schedules, and let a tick see that none is due."""
    connection.execute(
        "select teguh.create_schedule('plan ' || n, 'bench', 'noop', '@hourly')"
        " from generate_series(%s::integer, %s) as n",
        (first, first + number - 1),
    )
    connection.execute(TICK)


def set_clock(connection: Conn, hours: int) -> None:
    """Set the test clock so many hours after the start."""
    connection.execute(
        "select set_config('teguh.fake_now',"
        " (%s::timestamptz + make_interval(hours => %s))::text, false)",
        (START, hours),
    )


def microseconds(connection: Conn, statement: str, rounds: int) -> float:
    """Return the median time of a statement."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        connection.execute(statement.encode())
        times.append(time.perf_counter() - began)
    return median(times) * 1e6


def idle(server: Databases, rounds: int) -> None:
    """Print what a look costs when nothing is due."""
    print("\nidle: microseconds (p50) of a look when none is due\n" + " " * 34 + "tick   claim")
    with database_of(server, "schedules", TEGUH_SQL) as dsn, connect(dsn) as connection:
        connection.execute("select teguh.create_queue('bench')")
        set_clock(connection, 0)

        def row(name: str) -> None:
            tick, claim = (microseconds(connection, text, rounds) for text in (TICK, CLAIM))
            print(f"  {name:28}{tick:8.0f}{claim:8.0f}", flush=True)

        row("no schedule")
        create(connection, 1, 1_000)
        row("1,000 schedules")
        create(connection, 1_001, 9_000)
        row("10,000 schedules")
        with connect(dsn) as snapshot:
            snapshot.execute("begin isolation level repeatable read")
            snapshot.execute("select count(*) from teguh.schedules")
            for hour in range(1, 11):
                set_clock(connection, hour)
                connection.execute(TICK)
                connection.execute(
                    "select count(*) from teguh.complete_runs('bench', (select"
                    " jsonb_agg(jsonb_build_object('run_id', c.run_id, 'state', null))"
                    " from teguh.claim_task('bench', 'bench', 600, 10000) as c))"
                )
            connection.execute(TICK)
            row("fired 10 x under a snapshot")


def storm(server: Databases) -> None:
    """Print how long it takes to fire many at once."""
    print("\nstorm: schedules due in the same second\n" + " " * 13 + "one tick, ms   fired")
    for number in (100, 1_000, 10_000):
        with database_of(server, "schedules", TEGUH_SQL) as dsn, connect(dsn) as connection:
            connection.execute("select teguh.create_queue('bench')")
            set_clock(connection, 0)
            create(connection, 1, number)
            set_clock(connection, 1)
            began = time.perf_counter()
            connection.execute(TICK)
            took = time.perf_counter() - began
            fired = scalar(connection, "select count(*) from teguh.t_bench")
            print(f"  {number:8,}{took * 1e3:15.0f}{fired:8,}", flush=True)


def main() -> int:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    add_server_options(parser)
    options = parser.parse_args()
    with server_of(options) as server:
        idle(server, options.rounds)
        storm(server)
    print(f"\nload of the last 5 minutes {os.getloadavg()[1]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
