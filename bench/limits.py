"""What limits keep and what they cost, in a queue that goes by rules.

slots: many sessions hammer a key that is limited, and then workers of the package work it off; when
each run began and ended is written down.  fifo: the order of completion within keys, under
failures, lost leases, sleeps and claims that are rolled back.  fair: where in the order of claims
the few tasks of a tenant come whose big neighbour was there first.  cost: claim + complete beside a
plain queue.  snapshot: the same while an old snapshot is held.

usage: python bench/limits.py [--rounds 3] [--only slots,fifo,fair,cost,snapshot]
                              [--tenant 100000] [--server KIND | --dsn DSN]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from statistics import median
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
    from collections.abc import Callable, Iterator

    from bench.common import Conn
    from tools.servers import Databases

SLOTS = 4
CLAIM = "select run_id, task_id, params from teguh.claim_task('bench', 'bench', %s, %s)"
ORDER = """
select t.flow_key
from teguh.claim_task('bench', 'bench', null, %s) with ordinality as c
cross join lateral (select t.flow_key from teguh.t_bench as t where t.task_id = c.task_id) as t
order by c.ordinality
"""

# What makes a queue go by rules, and the options of each task.
KINDS: dict[str, tuple[str | None, Callable[[int], dict[str, Any]]]] = {
    "plain": (None, lambda _: {}),
    "priority": (None, lambda n: {"priority": n % 10}),
    "key": ('{"max_running": 1000000}', lambda n: {"key": f"tenant {n % 10}"}),
}


def queue(dsn: str, limit: str | None = None) -> Conn:
    """Create the queue, with a limit for each key."""
    connection = connect(dsn)
    connection.execute("select teguh.create_queue('bench')")
    if limit is not None:
        connection.execute("select teguh.set_limit('bench', 'key', '*', %s)", (limit,))
    return connection


def spawn(connection: Conn, number: int, options: Callable[[int], dict[str, Any]]) -> None:
    """Spawn many tasks, a thousand in a statement; their params are their numbers."""
    for start in range(0, number, 1000):
        tasks = [
            {"task_name": "noop", "params": n, "options": options(n)}
            for n in range(start, min(start + 1000, number))
        ]
        connection.execute(
            "select count(*) from teguh.spawn_tasks('bench', %s)", (json.dumps(tasks),)
        )


def at_once(number: int, dsn: str, work: Callable[[Conn, int], None]) -> float:
    """Let so many threads work, each on a connection of its own; return the seconds it took."""
    failed: list[BaseException] = []
    started = threading.Barrier(number + 1)

    def run(n: int) -> None:
        try:
            with connect(dsn) as connection:
                started.wait()
                work(connection, n)
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            failed.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(number)]
    for thread in threads:
        thread.start()
    started.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return time.perf_counter() - began


def spans(times: list[tuple[float, float]], took: float) -> tuple[int, str]:
    """Return how many ran at the same time at most, and a text that tells this and more.

    The slot that the n-th run to end has freed is taken by the run that is the n-th to start
    when all slots were taken.
    """
    steps = sorted([(begin, 1) for begin, _ in times] + [(end, -1) for _, end in times])
    now = most = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    begins, ends = sorted(begin for begin, _ in times), sorted(end for _, end in times)
    empty = [1000 * (b - e) for b, e in zip(begins[SLOTS:], ends, strict=False)]
    return most, (
        f"{most} at a time, {len(times) / took:,.0f} runs/s; a free slot stays empty for "
        f"{median(empty):.1f} ms (p50), {percentile(empty, 0.99):.1f} ms (p99), "
        f"{max(empty):.1f} ms (worst)"
    )


def slots(server: Databases, options: argparse.Namespace) -> Iterator[tuple[str, bool | None]]:
    """Hammer a limited key; then let workers of the package do the same."""
    limit = json.dumps({"max_running": SLOTS})
    yield f"slots: one key, {SLOTS} of it may run, each for 0 to 10 ms", None
    with database_of(server, "limits", TEGUH_SQL) as dsn:
        connection = queue(dsn, limit)
        spawn(connection, 1000, lambda _: {"key": "one"})
        times: list[tuple[float, float]] = []

        def hammer(mine: Conn, n: int) -> None:
            dice = random.Random(n)
            while len(times) < 1000:
                for run_id, *_ in mine.execute(CLAIM, (30, 1)).fetchall():
                    began = time.perf_counter()
                    time.sleep(dice.random() / 100)
                    times.append((began, time.perf_counter()))
                    mine.execute("select teguh.complete_run('bench', %s)", (run_id,))

        most, text = spans(times, at_once(16, dsn, hammer))
        yield f"  16 sessions that claim without a pause: {text}", most == SLOTS

    with database_of(server, "limits", TEGUH_SQL) as dsn:
        connection = queue(dsn, limit)
        spawn(connection, 1000, lambda _: {"key": "one"})
        with ExitStack() as stack:
            for _ in range(4):
                worker = stack.enter_context(
                    subprocess.Popen([sys.executable, "-m", "bench.limits", dsn], **_HERE)
                )
                stack.callback(worker.terminate)
            while scalar(connection, "select count(*) < 1000 from teguh.t_bench" + _COMPLETED):
                time.sleep(0.1)
        rows = connection.execute("select result from teguh.t_bench").fetchall()
        times = [(began, ended) for ((began, ended),) in rows]
        took = max(ended for _, ended in times) - min(began for began, _ in times)
        most, text = spans(times, took)
        yield f"  4 workers of the package: {text}", most == SLOTS


_COMPLETED = " where state = 'completed'"
_HERE: dict[str, Any] = {
    "cwd": HERE.parent,
    "env": {**os.environ, "PYTHONPATH": f"{HERE.parent}:{HERE.parent / 'python/src'}"},
}


def fifo(server: Databases, options: argparse.Namespace) -> Iterator[tuple[str, bool | None]]:
    """Let much go wrong, and look at the order in which the tasks of each key ended."""
    keys, each = 8, 50
    again = {"retry_strategy": {"kind": "none"}, "max_attempts": None}
    done: list[str] = []
    with database_of(server, "limits", TEGUH_SQL) as dsn:
        connection = queue(dsn, '{"fifo": true}')
        spawn(connection, keys * each, lambda n: {"key": f"key {n % keys}", **again})

        def work(mine: Conn, n: int) -> None:
            dice = random.Random(n)
            while done.count("completed") < keys * each:
                chance = dice.random()
                if chance < 0.05:  # a claim that never was
                    with mine.transaction(force_rollback=True):
                        mine.execute(CLAIM, (0.2, 3))
                    done.append("rolled back")
                    continue
                for run_id, *_ in mine.execute(CLAIM, (0.2, dice.randint(1, 3))).fetchall():
                    done.append(_outcome(mine, run_id, dice))
                time.sleep(0.002)

        took = at_once(8, dsn, work)
        rows = connection.execute(
            "select flow_key, array_agg(params order by finished_at)"
            " = array_agg(params order by params), count(distinct finished_at)"
            " from teguh.t_bench where state = 'completed' group by 1"
        ).fetchall()
    kept = [row[1:] for row in rows] == [(True, each)] * keys
    told = ", ".join(f"{done.count(what)} {what}" for what in sorted(set(done)))
    yield f"fifo: {keys} keys with {each} tasks each, 8 sessions, {took:.0f} s: {told}", None
    yield f"  {sum(row[1] for row in rows)} of {keys} keys ended in their order", kept


def _outcome(mine: Conn, run_id: Any, dice: random.Random) -> str:
    """End a turn in one way or another and say in which."""
    chance = dice.random()
    try:
        if chance < 0.1:
            return "lost"  # nobody hears of it again, until its lease ends
        if chance < 0.2:
            mine.execute("select teguh.fail_run('bench', %s, '{}')", (run_id,))
            return "failed"
        if chance < 0.3:
            later = "teguh.current_time() + interval '20 ms'"
            mine.execute(f"select teguh.schedule_run('bench', %s, {later})", (run_id,))
            return "put to sleep"
        mine.execute("select teguh.complete_run('bench', %s)", (run_id,))
    except psycopg.Error as error:
        return f"too late ({error.sqlstate})"
    return "completed"


def fair(server: Databases, options: argparse.Namespace) -> Iterator[tuple[str, bool | None]]:
    """Spawn many tasks of one tenant, then ten of another, and see where in line these are."""
    many: int = options.tenant
    yield f"fair: at which place in the order of claims ten tasks come, behind {many:,}", None
    yield f"  {'':34}{''.join(f'{n:>9}' for n in range(1, 11))}", None
    cases = [
        ("not fair, claims of 1000", None, 1000, 0),
        ("fair, claims of 1000", '{"fair": true}', 1000, 0),
        ("fair, claims of 100", '{"fair": true}', 100, 0),
        ("fair, claims of 10", '{"fair": true}', 10, 0),
        ("fair, claims of 1", '{"fair": true}', 1, 0),
        ("fair, the many are in the lanes", '{"fair": true}', 10, many // 1000 + 1),
    ]
    for name, limit, qty, before in cases:
        with database_of(server, "limits", TEGUH_SQL) as dsn:
            connection = queue(dsn, limit)
            spawn(connection, many, lambda _: {"key": "many"})
            connection.execute("vacuum analyze")
            for _ in range(before):
                connection.execute(CLAIM, (None, 1))
            spawn(connection, 10, lambda _: {"key": "few"})
            keys: list[str] = []
            while keys.count("few") < 10:
                rows = connection.execute(ORDER, (qty,)).fetchall()
                keys += [key for (key,) in rows]
            places = [place for place, key in enumerate(keys, 1) if key == "few"]
            yield f"  {name:34}{''.join(f'{place:>9,}' for place in places)}", None


def cost(server: Databases, options: argparse.Namespace) -> Iterator[tuple[str, bool | None]]:
    """Drain a plain queue and such that go by rules; they take turns, in fresh databases."""
    yield f"cost: claim + complete, tasks/s, medians of {options.rounds} rounds", None
    yield f"  {'':26}{'plain':>10}{'priorities':>12}{'ratio':>8}{'keys':>12}{'ratio':>8}", None
    for clients in (1, 8):
        for batch, number in ((1, 400), (10, 2000), (100, 8000)):
            found: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for _ in range(options.rounds):
                for kind, rates in found.items():
                    with database_of(server, "limits", TEGUH_SQL) as dsn:
                        rates.append(_drain(dsn, kind, clients, batch, number))
            plain, *ruled = (median(rates) for rates in found.values())
            yield (
                (
                    f"  batch {batch:>3}, {clients} client{'s' if clients > 1 else ' '}{'':9}"
                    f"{plain:>10,.0f}{''.join(f'{r:>12,.0f}{r / plain:>8.2f}' for r in ruled)}"
                ),
                None,
            )


def _drain(dsn: str, kind: str, clients: int, batch: int, number: int) -> float:
    """Return how many tasks a second are claimed and completed."""
    limit, given = KINDS[kind]
    spawn(queue(dsn, limit), number, given)
    done: list[int] = []

    def work(mine: Conn, n: int) -> None:
        while sum(done) < number:
            done.append(_round(mine, batch))

    return number / at_once(clients, dsn, work)


def _round(mine: Conn, batch: int) -> int:
    """Claim and complete once; return how many."""
    runs = [row[0] for row in mine.execute(CLAIM, (30, batch)).fetchall()]
    if runs:
        done = json.dumps([{"run_id": str(run), "state": None} for run in runs])
        mine.execute("select count(*) from teguh.complete_runs('bench', %s)", (done,))
    return len(runs)


def snapshot(server: Databases, options: argparse.Namespace) -> Iterator[tuple[str, bool | None]]:
    """Time rounds of ten tasks, more and more of them, while an old snapshot is held."""
    steps, each = 6, 4000
    yield "snapshot: claim 10 + complete, ms (p50), while an old snapshot is held", None
    heads = "".join(f"{(n + 1) * each:>9,}" for n in range(steps))
    yield f"  {'after so many tasks':26}{heads}", None
    for kind, (limit, given) in KINDS.items():
        with database_of(server, "limits", TEGUH_SQL) as dsn, psycopg.connect(dsn) as old:
            connection = queue(dsn, limit)
            old.execute("set transaction isolation level repeatable read")
            old.execute("select 1 from pg_class")
            told = ""
            for _ in range(steps):
                spawn(connection, each, given)
                took = []
                for _ in range(each // 10):
                    began = time.perf_counter()
                    _round(connection, 10)
                    took.append(1000 * (time.perf_counter() - began))
                told += f"{median(took):>9.2f}"
            yield f"  {kind:26}{told}", None


def work(dsn: str) -> None:
    """Be a worker of the package whose handlers take a while and tell when they ran."""
    import asyncio

    import teguh

    tasks = teguh.Registry()

    @tasks.task("noop")
    async def noop(ctx: teguh.AsyncTaskContext) -> list[float]:
        began = time.time()
        await asyncio.sleep(random.random() / 100)
        return [began, time.time()]

    teguh.Worker(dsn, "bench", tasks, concurrency=SLOTS).run()


CELLS = {"slots": slots, "fifo": fifo, "fair": fair, "cost": cost, "snapshot": snapshot}


def main() -> int:
    """Measure what was asked for; fail if a limit was not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(CELLS), help="some of these")
    parser.add_argument("--tenant", type=int, default=100_000, help="tasks of the big tenant")
    add_server_options(parser)
    options = parser.parse_args()
    broken = 0
    with server_of(options) as server:
        for name in options.only.split(","):
            print(flush=True)
            for text, kept in CELLS[name](server, options):
                broken += kept is False
                print(text + {True: " (kept)", False: " BROKEN", None: ""}[kept], flush=True)
    print(f"\nload of the last 5 minutes {os.getloadavg()[1]:.1f}")
    return 1 if broken else 0


if __name__ == "__main__":
    if len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        work(sys.argv[1])
    else:
        sys.exit(main())
