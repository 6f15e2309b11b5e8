"""Speed beside the hand-written minimum, in one run on one server.

"limit" (limit.sql, limit.py) is a row per task, claimed under a lease by one UPDATE and completed
by one UPDATE: what any engine on PostgreSQL has to do at least. Systems take turns; figures are
medians of the rounds. The bars are those that the project has set itself.

usage: python bench/run.py [--rounds 3] [--only enqueue,drain,...] [--backlog 1000000]
                           [--many 200000] [--server KIND | --dsn DSN]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from psycopg.conninfo import conninfo_to_dict

from bench.common import (
    HERE,
    TEGUH_SQL,
    Conn,
    add_server_options,
    connect,
    database_of,
    percentile,
    scalar,
    server_of,
)
from bench.flat import TEGUH, arrivals
from bench.limit import CLAIM, COMPLETE, INSERT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tools.servers import Databases

DRAIN = 10_000
BATCH = 100
TICKS = os.sysconf("SC_CLK_TCK")

NOT_MEASURED = (
    "Not measured: a server across a network; for other engines there is make bench-peers."
)


class Row(NamedTuple):
    """A line of the result."""

    what: str
    teguh: str
    limit: str
    ratio: str
    bar: str
    kept: bool | None


class System:
    """What is measured, in a fresh database of its own."""

    name: str
    file: Path
    last: str  # whether the task that was spawned last is completed
    waiting: str  # counts what is not completed

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.connection = connect(dsn)

    def spawn(self) -> None:
        """Spawn one task, in a transaction of its own."""
        raise NotImplementedError

    def spawn_many(self, number: int) -> None:
        """Spawn many tasks by the fastest way there is."""
        raise NotImplementedError

    def claim(self, number: int) -> list[Any]:
        """Claim up to so many runs; return their ids."""
        raise NotImplementedError

    def complete(self, runs: list[Any]) -> None:
        """Complete the runs with one statement."""
        raise NotImplementedError

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run one worker process that has found its queue empty."""
        module = "bench.worker" if self.name == "teguh" else "bench.limit"
        process = subprocess.Popen(
            [sys.executable, "-m", module, self.dsn, str(BATCH)],
            cwd=HERE.parent,
            env={**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'python/src'}"},
        )
        try:
            time.sleep(2)
            yield process
        finally:
            process.kill()
            process.wait()


class Teguh(System):
    """The engine."""

    name = "teguh"
    file = TEGUH_SQL
    last = "select state = 'completed' from teguh.t_bench order by task_id desc limit 1"
    waiting = "select count(*) from teguh.t_bench where state <> 'completed'"

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.connection.execute("select teguh.create_queue('bench')")

    def spawn(self, name: str = "noop", options: str = "{}") -> Any:
        return scalar(
            self.connection,
            "select task_id from teguh.spawn_task('bench', %s, %s, %s)",
            name, '{"i": 1}', options,
        )  # fmt: skip

    def spawn_many(self, number: int, options: dict[str, Any] | None = None) -> None:
        for start in range(0, number, 1000):
            tasks = [
                {"task_name": "noop", "params": {"i": i}, "options": options or {}}
                for i in range(start, min(start + 1000, number))
            ]
            self.connection.execute(
                "select count(*) from teguh.spawn_tasks('bench', %s)", (json.dumps(tasks),)
            )

    def claim(self, number: int) -> list[Any]:
        rows = self.connection.execute(
            "select run_id from teguh.claim_task('bench', 'bench', 30, %s)", (number,)
        ).fetchall()
        return [row[0] for row in rows]

    def complete(self, runs: list[Any]) -> None:
        done = json.dumps([{"run_id": str(run), "state": None} for run in runs])
        self.connection.execute("select count(*) from teguh.complete_runs('bench', %s)", (done,))


class Limit(System):
    """The hand-written minimum."""

    name = "limit"
    file = HERE / "limit.sql"
    last = "select state = 2 from job order by id desc limit 1"
    waiting = "select count(*) from job where state < 2"

    def spawn(self) -> None:
        self.connection.execute(INSERT, ('{"i": 1}',))

    def spawn_many(self, number: int) -> None:
        with self.connection.cursor().copy("copy job (task, params) from stdin") as copy:
            for i in range(number):
                copy.write_row(("noop", json.dumps({"i": i})))
        self.connection.execute("notify job")

    def claim(self, number: int) -> list[Any]:
        return [row[0] for row in self.connection.execute(CLAIM, (number,)).fetchall()]

    def complete(self, runs: list[Any]) -> None:
        self.connection.execute(COMPLETE, (runs, ["null"] * len(runs)))


def each(server: Databases, rounds: int, cell: Callable[[Any], float]) -> list[float]:
    """Return the median of a cell for each system; they take turns, in fresh databases."""
    found: list[list[float]] = [[], []]
    for _ in range(rounds):
        for values, system in zip(found, (Teguh, Limit), strict=True):
            with database_of(server, "bench", system.file) as dsn:
                values.append(cell(system(dsn)))
    return [median(values) for values in found]


def compared(what: str, figures: list[float], bar: float | None, note: str = "") -> Row:
    """Make a line of rates: teguh's is to be at least `bar` times limit's."""
    ratio = figures[0] / figures[1]
    return Row(
        what, f"{figures[0]:,.0f}/s", f"{figures[1]:,.0f}/s", f"{ratio:.2f}",
        f">= {bar}" if bar else note, ratio >= bar if bar else None,
    )  # fmt: skip


def enqueue(server: Databases, options: argparse.Namespace) -> Iterator[Row]:
    """Spawn one by one, and in bulk."""

    def single(system: System) -> float:
        system.spawn()
        began = time.perf_counter()
        for _ in range(1000):
            system.spawn()
        return 1000 / (time.perf_counter() - began)

    def bulk(system: System) -> float:
        system.spawn_many(10)
        began = time.perf_counter()
        system.spawn_many(20_000)
        return 20_000 / (time.perf_counter() - began)

    yield compared("enqueue, single", each(server, options.rounds, single), 0.7)
    yield compared("enqueue, bulk", each(server, options.rounds, bulk), 0.25)


def drain(server: Databases, options: argparse.Namespace) -> Iterator[Row]:
    """Let one worker process with batches of 100 work off tasks that appear all at once."""

    def one(system: System) -> float:
        with system.worker():
            with system.connection.transaction():
                system.spawn_many(DRAIN)
            began = time.perf_counter()
            # a look that costs nothing, so that it is not what is measured
            while not scalar(system.connection, system.last):
                time.sleep(0.002)
            while scalar(system.connection, system.waiting):
                time.sleep(0.002)
            return DRAIN / (time.perf_counter() - began)

    yield compared("drain 10,000, one worker", each(server, options.rounds, one), 0.5)


def claim(server: Databases, options: argparse.Namespace) -> Iterator[Row]:
    """Time claim_task(10) with complete_runs beside much of everything; they take turns, too."""
    many = options.many

    def finish(system: Teguh) -> None:
        system.spawn_many(many)
        while runs := system.claim(1000):
            system.complete(runs)

    cases: dict[str, Callable[[Teguh], None]] = {
        "backlog 1,000": lambda _: None,
        "backlog 100,000": lambda system: system.spawn_many(100_000),
        f"backlog {options.backlog:,}": lambda system: system.spawn_many(options.backlog),
        f"{many:,} sleeping": lambda system: system.spawn_many(many, {"delay_seconds": 86400}),
        f"{many:,} finished": finish,
        f"{many:,} with a policy": lambda system: system.spawn_many(
            many, {"cancellation": {"max_delay": 86400, "max_duration": 86400}}
        ),
    }
    with ExitStack() as stack:
        systems = {}
        took: dict[str, list[float]] = {name: [] for name in cases}
        for name, fill in cases.items():
            systems[name] = Teguh(stack.enter_context(database_of(server, "bench", TEGUH_SQL)))
            fill(systems[name])
            systems[name].connection.execute("vacuum analyze")
        for _ in range(max(options.rounds, 3)):
            for name, system in systems.items():
                system.spawn_many(1000)
                for _ in range(100):
                    began = time.perf_counter()
                    system.complete(system.claim(10))
                    took[name].append((time.perf_counter() - began) * 1000)
    base = median(next(iter(took.values())))
    for name, values in took.items():
        ratio = median(values) / base
        yield Row(
            f"claim 10 + complete: {name}", f"{median(values):.2f} ms", "", f"{ratio:.2f}",
            "<= 1.3", ratio <= 1.3,
        )  # fmt: skip


def idle(server: Databases, options: argparse.Namespace) -> Iterator[Row]:
    """Watch a worker that has nothing to do, then spawn for it one by one."""
    with database_of(server, "bench", TEGUH_SQL) as dsn:
        system = Teguh(dsn)
        with system.worker() as process, connect(server.dsn("postgres")) as watch:
            statements, cpu = _idle(watch, system, process, 20)
            spawned = {}
            for _ in range(200):
                task_id = system.spawn("clock")
                spawned[task_id] = time.time()
                time.sleep(0.03)
            time.sleep(0.5)
            rows = system.connection.execute(
                "select task_id, result::float8 from teguh.t_bench where state = 'completed'"
            ).fetchall()
    waits = [(began - spawned[task_id]) * 1000 for task_id, began in rows]
    late = len(spawned) - len(waits)
    p50, p99 = median(waits), percentile(waits, 0.99)
    yield Row("pick-up by an idle worker, p50", f"{p50:.2f} ms", "", "", "<= 3 ms", p50 <= 3)
    yield Row(
        "pick-up by an idle worker, p99",
        f"{p99:.2f} ms",
        "",
        "",
        "<= 15 ms",
        p99 <= 15 and not late,
    )
    yield Row("idle worker, transactions", f"{statements:.2f}/s", "", "", "< 1/s", statements < 1)
    yield Row("idle worker, its own CPU", f"{cpu:.3%}", "", "", "< 0.1 %", cpu < 0.001)


def _idle(
    watch: Conn, system: Teguh, process: subprocess.Popen[bytes], seconds: float
) -> tuple[float, float]:
    """Return transactions per second, and the share of a core that the worker's process takes."""
    database = conninfo_to_dict(system.dsn)["dbname"]
    counter = "select xact_commit + xact_rollback from pg_stat_database where datname = %s"
    system.connection.close()
    with _autovacuum_off(watch):  # its transactions are counted, too
        time.sleep(2)
        before, busy = scalar(watch, counter, database), _cpu(process.pid)
        time.sleep(seconds)
        after = scalar(watch, counter, database)
        share = (_cpu(process.pid) - busy) / seconds
    system.connection = connect(system.dsn)
    return (after - before) / seconds, share


@contextmanager
def _autovacuum_off(watch: Conn) -> Iterator[None]:
    """Keep autovacuum from working meanwhile."""
    watch.execute("alter system set autovacuum = off")
    watch.execute("select pg_reload_conf()")
    try:
        yield
    finally:
        watch.execute("alter system reset autovacuum")
        watch.execute("select pg_reload_conf()")


def _cpu(pid: int) -> float:
    """CPU seconds that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def wal(server: Databases, options: argparse.Namespace) -> Iterator[Row]:
    """Weigh the write-ahead log of a task's life."""

    def life(system: System, number: int, batch: int) -> float:
        system.connection.execute("checkpoint")
        system.spawn_many(100)  # images of the first pages are not what is weighed
        system.complete(system.claim(100))
        before = scalar(system.connection, "select pg_current_wal_lsn()")
        for _ in range(number // batch):
            if batch == 1:
                system.spawn()
            else:
                system.spawn_many(batch)
        for _ in range(number // batch):
            system.complete(system.claim(batch))
        return (
            float(
                scalar(
                    system.connection, "select pg_wal_lsn_diff(pg_current_wal_lsn(), %s)", before
                )
            )
            / number
        )

    for what, number, batch in (("single", 1000, 1), ("batches of 100", 10_000, 100)):
        figures = each(server, options.rounds, partial(life, number=number, batch=batch))
        yield Row(
            f"WAL per task, {what}", f"{figures[0]:,.0f} B", f"{figures[1]:,.0f} B",
            f"{figures[0] / figures[1]:.2f}", "<= 1,000 B", figures[0] <= 1000,
        )  # fmt: skip


def clients(server: Databases, options: argparse.Namespace) -> Iterator[Row]:
    """Let 1 and 16 clients cycle spawn, claim one, complete it."""
    rates: dict[int, list[float]] = {1: [], 16: []}
    spreads: list[float] = []
    for _ in range(options.rounds):
        for number, found in rates.items():
            with database_of(server, "bench", TEGUH_SQL) as dsn, connect(dsn) as connection:
                connection.execute(TEGUH.prepare.encode())
                samples = [
                    sample
                    for bucket in arrivals(dsn, TEGUH, 3000 * min(number, 4), number, bucket=1000)
                    for sample in bucket
                ][1000:]
            found.append(len(samples) / (samples[-1][0] - samples[0][0]))
            if number == 16:
                took = [sample[1] for sample in samples]
                spreads.append(percentile(took, 0.99) / median(took))
    one, sixteen = (median(values) for values in rates.values())
    yield Row(
        "16 clients over 1 client", f"{sixteen:,.0f}/s", f"(1: {one:,.0f}/s)",
        f"{sixteen / one:.2f}", ">= 2", sixteen >= 2 * one,
    )  # fmt: skip
    spread = median(spreads)
    yield Row("16 clients, p99 over p50", "", "", f"{spread:.1f}", "<= 10", spread <= 10)


CELLS = {
    "enqueue": enqueue,
    "drain": drain,
    "claim": claim,
    "idle": idle,
    "wal": wal,
    "clients": clients,
}


def main() -> int:
    """Measure, and say whether the bars were kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(CELLS), help="cells: %(default)s")
    parser.add_argument("--backlog", type=int, default=1_000_000)
    parser.add_argument("--many", type=int, default=200_000)
    add_server_options(parser)
    options = parser.parse_args()
    missed = 0
    with server_of(options) as server:
        print(f"\n{'':44}{'teguh':>14}{'limit':>14}{'ratio':>8}  bar", flush=True)
        for name in options.only.split(","):
            for row in CELLS[name](server, options):
                verdict = {True: "kept", False: "MISSED", None: ""}[row.kept]
                missed += row.kept is False
                print(
                    f"{row.what:44}{row.teguh:>14}{row.limit:>14}{row.ratio:>8}"
                    f"  {row.bar:12}{verdict}",
                    flush=True,
                )
    load = os.getloadavg()[2]
    print(f"\nmedians of {options.rounds} rounds; load of the last 15 minutes {load:.1f}")
    print(NOT_MEASURED)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
