"""The storm: everybody works on one queue, everything breaks, then it calms down.

Spawners, emitters, cancellers and a ticker are threads of this process; the workers are processes
that are killed with SIGKILL. Sessions are terminated at random, clocks are wrong now and then, the
server is killed over and over, and all the while an old snapshot and an idle writer are held open.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
from psycopg import IsolationLevel

from tests.chaos.actors import CLOCK_OFF, INSIDE, QUEUE, TARGET, Conn, act, send

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.servers import Server

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")

PROCESSES = 4
THREADS = 4
SPAWNERS = 3
STRAGGLERS = 6
INSIDERS = 3
# Of a queue that goes by rules: so many keys, so many tasks of each at a time.
KEYS = 6
AT_ONCE = 2
# When so many tasks are open, spawners wait: what is left is worked off before the checks.
CROWD = 3000

RETRIES = (
    {"kind": "none"},
    {"kind": "fixed", "base_seconds": 0.1},
    {"kind": "exponential", "base_seconds": 0.05, "max_seconds": 0.4, "jitter": 0.5},
)
TIDE = {
    "catch_up": "all",
    "params": {"plan": ["write-0"]},
    "task_options": {"retry_strategy": {"kind": "fixed", "base_seconds": 0.1}},
}
# The queue does not exist, or ceased to exist during the call.
DROPPED = {"TG001", "42P01", "42883", "XX000"}
FLOWS = ("ebb", "flood")
UNFINISHED = "state not in ('completed', 'failed', 'cancelled')"


class Storm:
    """One storm over one database into which teguh was installed."""

    def __init__(
        self,
        dsn: str,
        superuser_dsn: str,
        log: Path,
        *,
        seed: int,
        server: Server | None = None,
        rules: bool = False,
    ) -> None:
        """`server`, if given, is killed each minute, or once; `log` takes the workers' errors.

        `rules`: tasks have keys, which are limited, and priorities.
        """
        self.rules = rules
        self.dsn = dsn
        self.superuser_dsn = superuser_dsn
        self.log = log
        self.seed = seed
        self.server = server
        self.counts: Counter[str] = Counter()
        self.committed: set[UUID] = set()
        self.rolled_back: set[UUID] = set()
        self._errors: list[str] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._shots = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._ended = threading.Event()
        self._crowded = False
        self._number = 0
        self._workers: list[subprocess.Popen[bytes]] = []
        self._pins: list[Conn] = []

    @property
    def errors(self) -> list[str]:
        """What reached a caller and should not have."""
        return self._errors + self.log.read_text(encoding="utf-8").splitlines()

    def rage(self, seconds: float, *, patience: float = 4) -> None:
        """Storm for so long, then wait until all tasks are over or none gets on for `patience`."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(SCHEMA.encode())
            connection.execute("select teguh.create_queue(%s)", (QUEUE,))
            connection.execute("select teguh.create_queue(%s)", (INSIDE,))
            for task_name in ("one", "bred"):
                connection.execute(
                    "select teguh.register_handler(%s, %s, 'chaos.follow')", (INSIDE, task_name)
                )
            connection.execute(
                "select teguh.create_schedule('tide', %s, 'tide', 'every second', %s)",
                (QUEUE, json.dumps(TIDE)),
            )
            connection.execute(
                "select teguh.create_workflow_run(n) from unnest(%s::text[]) as n", (list(FLOWS),)
            )
            if self.rules:
                connection.execute(
                    "select teguh.set_limit(%s, 'key', '*', %s)",
                    (QUEUE, json.dumps({"max_running": AT_ONCE, "fair": True})),
                )
        self._pin()
        with ExitStack() as stack:
            stack.callback(self._end)
            threads = self._start()
            for _ in range(PROCESSES):
                self._add_worker("storm")
            crashes = max(1, round(seconds / 60))
            for _ in range(crashes):
                time.sleep(seconds / (crashes + 1))
                if self.server is not None:
                    self._crash(self.server)
            time.sleep(seconds / (crashes + 1))
            self._over.set()
            for thread in threads:
                thread.join()
            self._replace_workers()
            self._wait(patience)

    # The actors

    def _start(self) -> list[threading.Thread]:
        """Start all actors; return those who stop when the storm is over."""
        bodies: list[tuple[str, Callable[[Conn, Random], None]]] = [
            *((f"spawner {n}", self._spawn) for n in range(SPAWNERS)),
            *((f"straggler {n}", self._straggle) for n in range(STRAGGLERS)),
            ("inside", self._spawn_inside),
            ("emitter", self._emit),
            *((f"sender {n}", partial(self._send, f"sender {n}")) for n in range(2)),
            ("canceller", self._cancel),
            ("retrier", self._retry),
            *((f"builder {n}", self._build) for n in range(2)),
            *([("watcher", self._watch)] if self.rules else []),
        ]
        stormy = [
            self._thread(name, body, self._over, clock_off=CLOCK_OFF) for name, body in bodies
        ]
        stormy.append(threading.Thread(target=self._shoot))
        tireless = [
            self._thread("ticker", self._tick, self._ended, clock_off=CLOCK_OFF),
            *(
                self._thread(f"insider {n}", self._work_inside, self._ended)
                for n in range(INSIDERS)
            ),
        ]
        self._threads = [*stormy, *tireless]
        for thread in self._threads:
            thread.start()
        return stormy

    def _thread(
        self,
        name: str,
        body: Callable[[Conn, Random], None],
        until: threading.Event,
        clock_off: float = 0,
    ) -> threading.Thread:
        return threading.Thread(
            target=act,
            args=(self.dsn, name, self.seed, body),
            kwargs={
                "until": until.is_set,
                "report": self._errors.append,
                "clock_off": clock_off,
            },
        )

    def _spawn(self, connection: Conn, rng: Random) -> None:
        """Spawn some tasks in one transaction, which commits late or not at all."""
        if self._crowded:
            time.sleep(0.1)
            return
        if rng.random() < 0.15:
            connection.isolation_level = IsolationLevel.REPEATABLE_READ
        else:
            connection.isolation_level = IsolationLevel.READ_COMMITTED
        roll_back = rng.random() < 0.1
        task_ids: list[UUID] = []
        try:
            with connection.transaction(force_rollback=roll_back):
                connection.execute("select 1")
                if rng.random() < 0.2:
                    task_ids += self._spawn_keyed(connection, rng)
                else:
                    for _ in range(rng.choice([1, 1, 2, 3])):
                        task_ids += self._spawn_plain(connection, rng)
                connection.execute(
                    "insert into chaos.spawned (task_id) select unnest(%s::uuid[])", (task_ids,)
                )
                time.sleep(rng.choice([0] * 16 + [0.02, 0.1, 0.3, 1, 2]))
        except psycopg.errors.SerializationFailure:
            # two snapshots met at one idempotency key
            if connection.isolation_level != IsolationLevel.REPEATABLE_READ:
                raise
            self._count("serialization failures")
            return
        self._know(task_ids, roll_back=roll_back)
        time.sleep(rng.random() * 0.02)

    def _straggle(self, connection: Conn, rng: Random) -> None:
        """Spawn one task, at once or soon due, while many transactions overtake this one."""
        if self._crowded:
            time.sleep(0.1)
            return
        roll_back = rng.random() < 0.1
        options: dict[str, Any] = {"retry_strategy": rng.choice(RETRIES)}
        if rng.random() < 0.3:
            options["delay_seconds"] = 0.001
        with connection.transaction(force_rollback=roll_back):
            task_ids = _ids(
                connection,
                "teguh.spawn_task(%s, 'late', %s, %s)",
                QUEUE,
                json.dumps({"plan": ["write-0"]}),
                json.dumps(options),
            )
            connection.execute(
                "insert into chaos.spawned (task_id) select unnest(%s::uuid[])", (task_ids,)
            )
            time.sleep(rng.uniform(0.01, 0.4))
        self._know(task_ids, roll_back=roll_back)

    def _spawn_inside(self, connection: Conn, rng: Random) -> None:
        """Spawn a task for a handler in the database."""
        options: dict[str, Any] = {"retry_strategy": rng.choice(RETRIES)}
        with connection.transaction(force_rollback=rng.random() < 0.1):
            connection.execute(
                "select teguh.spawn_task(%s, 'one', %s, %s::jsonb || jsonb_build_object("
                "'workflow_run_id', (select w.workflow_run_id from teguh.workflow_runs as w"
                " where w.name = %s)))",
                (INSIDE, json.dumps(_params(rng)), json.dumps(options), rng.choice(FLOWS)),
            )
        time.sleep(rng.random() * 0.05)

    def _work_inside(self, connection: Conn, rng: Random) -> None:
        """Let the database work."""
        options = {
            "max_seconds": 0.5,
            "poll_seconds": 0.05,
            "claim_timeout": rng.choice([0.3, 1]),
            "batch": rng.choice([1, 1, 3]),
            "known_only": self.rules and rng.random() < 0.5,
        }
        connection.execute("call teguh.work(%s, %s)", (INSIDE, json.dumps(options)))
        self._count("shifts in the database")

    def _spawn_plain(self, connection: Conn, rng: Random) -> list[UUID]:
        """Spawn one task, or many at once."""
        if rng.random() < 0.3:
            tasks = [
                {"task_name": "many", "params": _params(rng), "options": self._options(rng)}
                for _ in range(rng.choice([1, 5, 40]))
            ]
            return _ids(connection, "teguh.spawn_tasks(%s, %s)", QUEUE, json.dumps(tasks))
        return _ids(
            connection,
            "teguh.spawn_task(%s, 'one', %s, %s)",
            QUEUE,
            json.dumps(_params(rng)),
            json.dumps(self._options(rng)),
        )

    def _spawn_keyed(self, connection: Conn, rng: Random) -> list[UUID]:
        """Spawn tasks by idempotency keys that others use at the same time."""
        keys = {f"key {rng.randrange(200)}" for _ in range(rng.choice([1, 1, 4]))}
        tasks = [
            {
                "task_name": "keyed",
                "params": _params(Random(key)),
                "options": {**self._options(rng), "idempotency_key": key},
            }
            for key in keys
        ]
        return _ids(connection, "teguh.spawn_tasks(%s, %s)", QUEUE, json.dumps(tasks))

    def _options(self, rng: Random) -> dict[str, Any]:
        """How a task is to be run."""
        options: dict[str, Any] = {"retry_strategy": rng.choice(RETRIES)}
        if rng.random() < 0.3:
            options["max_attempts"] = rng.choice([1, 2, 3])
        if rng.random() < 0.2:
            options["delay_seconds"] = rng.choice([0.001, 0.05, 0.3, 1])
        if rng.random() < 0.1:
            options["cancellation"] = {
                rng.choice(["max_delay", "max_duration"]): rng.choice([0.2, 1])
            }
        if self.rules and rng.random() < 0.8:
            options["key"] = f"key {rng.randrange(KEYS)}"
        if self.rules and rng.random() < 0.2:
            options["priority"] = rng.randrange(-3, 4)
        if rng.random() < 0.2:
            options["sequence"] = [
                {
                    "task_name": "next",
                    "params": {"plan": ["write-0"]},
                    "options": {"retry_strategy": rng.choice(RETRIES)},
                }
            ] * rng.choice([1, 2])
        return options

    def _emit(self, connection: Conn, rng: Random) -> None:
        """Emit an event, before or after somebody waits for it."""
        with connection.transaction(force_rollback=rng.random() < 0.1):
            _emit(connection, f"event {rng.randrange(300)}")
            time.sleep(rng.choice([0, 0, 0, 0.1]))
        self._count("events emitted")
        time.sleep(rng.random() * 0.05)

    def _send(self, sender: str, connection: Conn, rng: Random) -> None:
        """Send some task messages, before or after it waits for them."""
        with connection.transaction(force_rollback=rng.random() < 0.1):
            rows = connection.execute(
                f"select task_id, params ->> 'topic' from teguh.t_{QUEUE}"
                f" where {UNFINISHED} and params ->> 'plan' ~ 'hear' order by random() limit 1"
            ).fetchall()
            for task_id, topic in rows * rng.choice([1, 1, 3]):
                if send(connection, sender, task_id, topic if rng.random() < 0.9 else "other"):
                    self._count("messages sent")
            time.sleep(rng.choice([0, 0, 0, 0.02, 0.1]))
        time.sleep(rng.random() * 0.02)

    def _cancel(self, connection: Conn, rng: Random) -> None:
        """Cancel some task."""
        connection.execute(
            "select teguh.cancel_task(%s, t.task_id) from ("
            f" select task_id from teguh.t_{QUEUE} where {UNFINISHED} order by random() limit 1"
            ") as t",
            (QUEUE,),
        )
        self._count("cancellations")
        time.sleep(rng.random() * 0.1)

    def _retry(self, connection: Conn, rng: Random) -> None:
        """Run some task again that failed or was cancelled, in place or as a new one."""
        spawn_new = rng.random() < 0.3
        try:
            with connection.transaction():
                task_ids = _ids(
                    connection,
                    f"(select task_id from teguh.t_{QUEUE} where state in ('failed', 'cancelled')"
                    " order by random() limit 1) as t,"
                    " teguh.retry_task(%s, t.task_id, %s)",
                    QUEUE,
                    json.dumps({"spawn_new": spawn_new}),
                    alias="r",
                )
                connection.execute(
                    "insert into chaos.spawned (task_id) select unnest(%s::uuid[])", (task_ids,)
                )
        except psycopg.Error as error:
            if error.sqlstate != "TG004":  # somebody else was first
                raise
        self._count("retries")
        time.sleep(rng.random() * 0.2)

    def _build(self, connection: Conn, rng: Random) -> None:
        """Create a queue of the other builder's choice, too, use it a little, and drop it."""
        queue = f"brief_{rng.randrange(3)}"
        try:
            connection.execute("select teguh.create_queue(%s)", (queue,))
            for _ in range(3):
                connection.execute("select teguh.spawn_task(%s, 'brief', 'null')", (queue,))
                connection.execute("select teguh.claim_task(%s, 'builder')", (queue,))
            if rng.random() < 0.7:
                connection.execute("select teguh.drop_queue(%s)", (queue,))
        except psycopg.Error as error:
            if error.sqlstate not in DROPPED:
                raise
        self._count("queues built")
        time.sleep(rng.random() * 0.2)

    def _tick(self, connection: Conn, rng: Random) -> None:
        """Tick one queue or all, clean old events up, and count what is open."""
        connection.execute("select teguh.ticker(%s)", (rng.choice([QUEUE, QUEUE, None]),))
        if rng.random() < 0.05:
            connection.execute("select teguh.cleanup_events(%s, 0.5, 50)", (QUEUE,))
            rows = connection.execute(
                f"select count(*) > %s from teguh.t_{QUEUE} where {UNFINISHED}".encode(), (CROWD,)
            ).fetchall()
            self._crowded = rows[0][0]
        time.sleep(0.03)

    def _watch(self, connection: Conn, rng: Random) -> None:
        """See to it that no key has more running than it may; set the limit, which stays."""
        over = connection.execute(
            f"select flow_key, count(*) from teguh.t_{QUEUE} where state = 'running'"
            " group by flow_key having flow_key is not null and count(*) > %s".encode(),
            (AT_ONCE,),
        ).fetchall()
        if over:
            self._errors.append(f"more than the limit ran: {over}")
        if rng.random() < 0.005:
            limit = {"max_running": AT_ONCE, "fair": rng.random() < 0.5}
            connection.execute(
                "select teguh.set_limit(%s, 'key', '*', %s)", (QUEUE, json.dumps(limit))
            )
        self._count("looks at what runs")
        time.sleep(0.01)

    # What breaks

    def _shoot(self) -> None:
        """Terminate sessions and kill workers, over and over."""
        rng = Random(f"{self.seed}/shots")
        while not self._over.wait(0.2):
            with self._shots, psycopg.connect(self.superuser_dsn, autocommit=True) as connection:
                connection.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where application_name = %s order by random() limit 1",
                    (TARGET,),
                )
            self._count("sessions terminated")
            if rng.random() < 0.2:
                worker = self._workers.pop(rng.randrange(len(self._workers)))
                worker.kill()
                worker.wait()
                self._count("workers killed")
                self._add_worker("storm")

    def _crash(self, server: Server) -> None:
        """Kill the server with all its sessions, and start it again."""
        with self._shots:
            server.kill()
            server.start()
            self._pin()
        self._count("server killed")

    def _pin(self) -> None:
        """Hold an old snapshot and an idle writer open."""
        snapshot = psycopg.connect(self.dsn)
        snapshot.isolation_level = IsolationLevel.REPEATABLE_READ
        snapshot.execute("select count(*) from pg_class")
        writer = psycopg.connect(self.dsn)
        writer.execute("select pg_current_xact_id()")
        for pin in self._pins:
            pin.close()
        self._pins = [snapshot, writer]

    # Workers, and the calm

    def _add_worker(self, mood: str) -> None:
        self._number += 1
        with self.log.open("ab") as log:
            self._workers.append(
                subprocess.Popen(
                    [
                        sys.executable, "-m", "tests.chaos.worker",
                        self.dsn, str(1000 * self.seed + self._number), str(THREADS), mood,
                    ],
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    stdout=log,
                    stderr=log,
                )
            )  # fmt: skip

    def _replace_workers(self) -> None:
        """Let workers that do as they are told finish what is left."""
        self._stop_workers()
        for _ in range(2):
            self._add_worker("calm")

    def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()
        self._workers.clear()

    def _wait(self, patience: float) -> None:
        """Emit and send what is awaited until all tasks are over or none gets on any more."""
        before, since = "", time.monotonic()
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("select teguh.pause_schedule('tide')")
            while time.monotonic() - since < patience:
                for (name,) in connection.execute(
                    f"select event_name from teguh.e_{QUEUE} where emitted_at is null"
                ).fetchall():
                    _emit(connection, str(name))
                for task_id, topic in connection.execute(
                    "select w.task_id, split_part(w.event_name, ':', 2)"
                    f" from teguh.w_{QUEUE} as w where w.event_name ~ '^.message:' and not exists ("
                    f"  select from teguh.m_{QUEUE} as m where m.task_id = w.task_id"
                    "   and '$message:' || m.topic = w.event_name and m.received_by = '')"
                ).fetchall():
                    send(connection, "calm", task_id, topic)
                rows = connection.execute(
                    "select count(*), sum(turn), sum(attempt) from ("
                    f"select * from teguh.t_{QUEUE} union all select * from teguh.t_{INSIDE}"
                    f") as t where {UNFINISHED}"
                ).fetchall()
                if rows[0][0] == 0:
                    return
                if str(rows) != before:
                    before, since = str(rows), time.monotonic()
                time.sleep(0.05)

    def _end(self) -> None:
        """Stop whoever still runs."""
        self._over.set()
        self._ended.set()
        self._stop_workers()
        for pin in self._pins:
            pin.close()
        for thread in self._threads:
            thread.join(10)

    def _know(self, task_ids: list[UUID], *, roll_back: bool) -> None:
        """Remember how a spawner was told that its transaction ended."""
        with self._lock:
            (self.rolled_back if roll_back else self.committed).update(task_ids)
        self._count("spawns rolled back" if roll_back else "spawns committed")

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1


def _ids(connection: Conn, source: str, *arguments: object, alias: str = "s") -> list[UUID]:
    """Return the task ids that a spawning function gives."""
    rows = connection.execute(
        f"select {alias}.task_id from {source} as {alias}".encode(), arguments
    ).fetchall()
    return [UUID(str(row[0])) for row in rows]


def _emit(connection: Conn, name: str) -> None:
    """Emit an event whose payload is its name."""
    connection.execute("select teguh.emit_event(%s, %s, to_jsonb(%s::text))", (QUEUE, name, name))


def _params(rng: Random) -> dict[str, Any]:
    """What a task has to do: writes, a child, sleeps, waits, children, messages, attributes."""
    kinds = rng.choices(
        ["write", "spawn", "sleep", "wait", "brood", "hear", "say", "tell"],
        [8, 1, 3, 3, 2, 3, 1, 2],
        k=rng.choice([0, 1, 2, 4]),
    )
    return {
        "plan": [f"{kind}-{place}" for place, kind in enumerate(kinds)],
        "event": f"event {rng.randrange(300)}",
        "timeout": rng.choice([None, None, 0, 0.05, 0.5]),
        "topic": rng.choice(["one", "two"]),
        "mode": rng.choice(["all", "all", "any", "2"]),
        "brood": {"on_parent_end": rng.choice(["leave", "cancel"])},
        "options": {
            "on_failure": rng.choice(["collect", "fail_fast"]),
            "cancel_rest": rng.random() < 0.3,
        },
    }
