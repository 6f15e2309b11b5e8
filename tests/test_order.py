"""The order workflow three times: in Python, in SQL, in both; killed at every boundary.

What a worker writes is watched by triggers, row by row before it is written and once more when the
transaction is about to commit. At the n-th of these moments the worker is killed, for n = 1, 2 …
until an order gets through. Another worker goes on; each effect has to be there exactly once.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import teguh
from examples import mixed
from tests.cluster import ROOT
from tools.servers import find_build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

Connection = psycopg.Connection[tuple[Any, ...]]

PATIENCE = 60.0

# A session named as a victim counts its moments; at the chosen one it kills itself, or waits for a
# lock that the test holds.  The count is a sequence: a kill does not take it back.
BOMB = """
create schema bomb;
create sequence bomb.moment;
create table bomb.plan (victim text not null, moment bigint not null, waits boolean not null);
create function bomb.tick() returns trigger language plpgsql as $$
declare
  v_plan bomb.plan;
begin
  select p.* into v_plan
  from bomb.plan as p
  where current_setting('application_name') like p.victim;
  if found and (not v_plan.waits or
    current_setting('bomb.seen', true) is distinct from pg_current_xact_id()::text)
  then
    if v_plan.waits then
      perform set_config('bomb.seen', pg_current_xact_id()::text, false);
    end if;
    if nextval('bomb.moment') = v_plan.moment then
      if v_plan.waits then
        perform pg_advisory_xact_lock(7);
      else
        perform pg_terminate_backend(pg_backend_pid());
        perform pg_sleep(60);
      end if;
    end if;
  end if;
  return coalesce(new, old);
end $$;
"""
WAITING = "select pid from pg_locks where locktype = 'advisory' and objid = 7 and not granted"


class Bombs:
    """Kills the sessions of a name at their n-th moment."""

    def __init__(self, connection: Connection, tables: list[str], victim: str, waits: bool) -> None:
        self.connection = connection
        connection.execute(BOMB)
        connection.execute("insert into bomb.plan values (%s, 0, %s)", (victim, waits))
        for table in tables:
            if not waits:
                connection.execute(
                    f"create trigger bomb before insert or update or delete on {table}"
                    " for each row execute function bomb.tick()".encode()
                )
            connection.execute(
                "create constraint trigger bomb_at_commit after insert or update or delete"
                f" on {table} deferrable initially deferred"
                " for each row execute function bomb.tick()".encode()
            )

    def set(self, moment: int) -> None:
        """Choose the moment, counted from now."""
        self.connection.execute(
            "select setval('bomb.moment', 1, false); update bomb.plan set moment = "
            + str(moment)
        )  # fmt: skip

    def reached(self) -> int:
        """Return how many moments there have been."""
        ((count,),) = self.connection.execute(
            "select last_value - 1 + is_called::integer from bomb.moment"
        ).fetchall()
        return int(count)


def until(connection: Connection, query: str) -> Any:
    """Ask until there is an answer."""
    deadline = time.monotonic() + PATIENCE
    while (row := connection.execute(query.encode()).fetchone()) is None:
        assert time.monotonic() < deadline, query
        time.sleep(0.005)
    return row[0]


def once(connection: Connection, table: str, number: int, *steps: str) -> None:
    """Require that each of the steps, and nothing else, is in the ledger exactly once."""
    rows = connection.execute(
        f"select step from {table} where number = %s order by step".encode(), (number,)
    ).fetchall()
    assert [step for (step,) in rows] == sorted(steps), f"order {number}"


# In SQL


@pytest.fixture
def told(dsn: str) -> str:
    """The story of examples/order.sql, as psql tells it; its schema and queue stay."""
    build = find_build("embedded")  # of any version, psql talks to servers of all
    environment = {
        **os.environ, **build.libraries, "PATH": f"{build.bin}{os.pathsep}{os.environ['PATH']}"
    }  # fmt: skip
    psql = str(build.bin / "psql")
    command = [psql, "--no-psqlrc", f"--dbname={dsn}", "--file=examples/order.sql"]
    story = ""
    for _ in range(2):  # it runs again
        story = subprocess.run(
            command, env=environment, cwd=ROOT, check=True, text=True, capture_output=True
        ).stdout
    return story


def test_the_story_in_sql_ends_well_and_survives_a_kill_at_every_moment(
    dsn: str, told: str, conn: Connection
) -> None:
    assert "Every step happened exactly once." in told
    assert "FATAL:  terminating connection" in told
    assert re.findall(r"(?m)^ (\w+) +\| +(\d) \| +(\d)$", told) == [
        ("charge", "2", "1"), ("pack", "2", "1"), ("ship", "1", "1")
    ]  # fmt: skip

    tables = ["order_story.ledger", *(f"teguh.{prefix}_order_story" for prefix in "tcwr")]
    bombs = Bombs(conn, tables, "victim", waits=False)
    killed = 0
    for number in range(1, 1000):
        bombs.set(number)
        ((task_id,),) = conn.execute(
            "select task_id from teguh.spawn_task('order_story', 'order', %s::jsonb, %s::jsonb)",
            (f'{{"number": {number}, "amount": "1"}}',
             '{"max_attempts": 3, "retry_strategy": {"kind": "none"}}'),
        ).fetchall()  # fmt: skip
        went = sql_worker(dsn, conn, number, task_id, "victim")
        if went:
            break
        killed += 1
        assert sql_worker(dsn, conn, number, task_id, "rescuer")
        once(conn, "order_story.ledger", number, "charge", "pack", "ship")
    assert killed > 30
    assert bombs.reached() < number


def sql_worker(dsn: str, conn: Connection, number: int, task_id: UUID, name: str) -> bool:
    """Let a session work on an order until it is over; return whether it has lived so long."""
    with psycopg.connect(dsn, autocommit=True, application_name=name) as worker:
        for minute in range(20):
            hour = 2 * number + (name != "victim")
            worker.execute(
                "select set_config('teguh.fake_now', (timestamptz '2031-05-01 00:00:00+00'"
                " + make_interval(hours => %s, mins => %s))::text, false)", (hour, minute),
            )  # fmt: skip
            try:
                worker.execute("call teguh.work('order_story')")
            except psycopg.errors.AdminShutdown:
                return False
            ((state, event),) = conn.execute(
                "select state, wake_event from teguh.t_order_story where task_id = %s", (task_id,)
            ).fetchall()
            if state == "sleeping" and event is not None:
                conn.execute(
                    "select teguh.emit_event('order_story', %s, '{\"name\": \"Ayu\"}')", (event,)
                )
            if state not in ("pending", "running", "sleeping"):
                assert state == "completed"
                return True
    raise AssertionError(f"order {number} does not end")


# In Python, and in both


@contextmanager
def worker_process(dsn: str, tasks: str, queue: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `teguh worker` in a process of its own."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "teguh.cli", "worker", tasks, "--queue", queue),
            *("--dsn", make_conninfo(dsn, application_name="victim"), "--poll-interval", "0.1"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Orders:
    """Orders in a queue, one after another."""

    def __init__(self, client: teguh.Client, queue: str, ledger: str) -> None:
        self.client = client
        self.connection = client.connection
        self.queue = queue
        self.ledger = ledger
        self.number = 0
        self.task_id: UUID | None = None

    def spawn(self, number: int) -> None:
        """Spawn an order that takes no longer than it must."""
        self.number = number
        params = {"number": number, "amount": "1", "rest": 0.01, "packing": 0}
        self.task_id = self.client.spawn_task(
            self.queue, "order", params, max_attempts=3, retry_strategy={"kind": "none"}
        ).task_id

    def drive(self) -> int | None:
        """Emit what the order waits for, until it is over, or a victim stands still: its pid."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self.task_id is not None
            task = self.client.get_task(self.queue, self.task_id)
            if task.finished_at is not None:
                assert task.state == "completed", task
                return None
            if task.state == "sleeping" and (task.wake_event or "").startswith("courier:"):
                self.client.emit_event(self.queue, str(task.wake_event), {"name": "Ayu"})
            if stands := self.connection.execute(WAITING.encode()).fetchone():
                return int(stands[0])
            time.sleep(0.005)
        raise AssertionError("the order does not end")

    def end_leases(self, queue: str) -> None:
        """See to it that who is dead holds nothing."""
        with self.connection.transaction():
            self.connection.execute(
                "select set_config('teguh.fake_now', (now() + '1 hour')::text, true)"
            )
            self.client.ticker(queue)


def survive(
    dsn: str, orders: Orders, bombs: Bombs, tasks: str, steps: list[str], *, kept: bool
) -> int:
    """Kill the worker at every moment; return how often.

    It dies while its commit is under way: kept says whether that comes through nevertheless.
    """
    connection = orders.connection
    number = 1
    while True:
        with worker_process(dsn, tasks, orders.queue) as worker:
            if number > 1:
                orders.drive()
                once(connection, orders.ledger, number - 1, *steps)
            connection.execute("select pg_advisory_lock(7)")
            bombs.set(number)
            orders.spawn(number)
            pid = orders.drive()
            if pid is None:
                once(connection, orders.ledger, number, *steps)
                return number - 1
            worker.kill()
            worker.wait()
            if not kept:
                connection.execute("select pg_terminate_backend(%s)", (pid,))
            connection.execute("select pg_advisory_unlock(7)")
            bombs.set(0)
            # what the dead had sent may be carried out still, a claim for instance
            until(
                connection,
                "select 1 where not exists (select from pg_stat_activity"
                " where datname = current_database() and application_name = 'victim')",
            )
            orders.end_leases(orders.queue)
        number += 1


@pytest.mark.parametrize("kept", [True, False])
def test_the_story_in_python_survives_a_kill_at_every_commit(
    dsn: str, conn: Connection, kept: bool
) -> None:
    client = teguh.Client(conn)
    client.create_queue("orders")
    conn.execute("create table ledger (number integer, step text, what text)")
    orders = Orders(client, "orders", "ledger")
    bombs = Bombs(conn, ["ledger", "teguh.t_orders", "teguh.c_orders"], "victim", waits=True)
    killed = survive(
        dsn, orders, bombs, "teguh.demo.orders:tasks", ["charge", "pack", "ship"], kept=kept
    )
    assert killed > 7


class Payments:
    """Sessions that work on the payments of examples/mixed.py in turn."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.deaths = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with teguh.Client.connect(self._dsn) as client:
                    while not self._over.is_set():
                        client.work(mixed.PAYMENTS, max_seconds=0.2, poll_seconds=0.01)
            except psycopg.errors.AdminShutdown:
                self.deaths += 1


@pytest.mark.parametrize("kept", [True, False])
def test_the_story_in_both_survives_a_kill_of_python_at_every_commit(
    dsn: str, conn: Connection, kept: bool
) -> None:
    client = teguh.Client(conn)
    mixed.set_up(client)
    orders = Orders(client, mixed.ORDERS, "mixed_story.ledger")
    tables = [f"teguh.{prefix}_{mixed.ORDERS}" for prefix in "tcj"]
    bombs = Bombs(conn, ["mixed_story.ledger", *tables], "victim", waits=True)
    with Payments(dsn):
        killed = survive(dsn, orders, bombs, "examples.mixed:tasks", ["charge", "ship"], kept=kept)
    assert killed > 7


def until_dead_or_done(orders: Orders, payments: Payments, deaths: int) -> None:
    """Wait until the payment is booked, or a session that was to book it has died."""
    deadline = time.monotonic() + PATIENCE
    while (
        payments.deaths == deaths
        and not orders.connection.execute(
            "select 1 from mixed_story.ledger where step = 'charge' and number = %s",
            (orders.number,),
        ).fetchone()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_story_in_both_survives_a_kill_of_the_database_worker_at_every_moment(
    dsn: str, conn: Connection
) -> None:
    client = teguh.Client(conn)
    mixed.set_up(client)
    orders = Orders(client, mixed.ORDERS, "mixed_story.ledger")
    tables = [
        "mixed_story.ledger", "mixed_story.accounts", f"teguh.t_{mixed.PAYMENTS}",
        f"teguh.r_{mixed.PAYMENTS}", f"teguh.f_{mixed.ORDERS}",
    ]  # fmt: skip
    bombs = Bombs(conn, tables, "payer", waits=False)
    with (
        worker_process(dsn, "examples.mixed:tasks", mixed.ORDERS),
        Payments(make_conninfo(dsn, application_name="payer")) as payments,
    ):
        for number in range(1, 1000):
            bombs.set(number)
            deaths = payments.deaths
            orders.spawn(number)
            until_dead_or_done(orders, payments, deaths)
            bombs.set(0)
            orders.end_leases(mixed.PAYMENTS)
            orders.drive()
            once(conn, "mixed_story.ledger", number, "charge", "ship")
            if payments.deaths == deaths:
                break
        assert payments.deaths == number - 1 > 15
    ((balance,),) = conn.execute(
        "select balance::integer from mixed_story.accounts where name = 'shop'"
    ).fetchall()
    assert balance == number


def test_the_story_in_both_ends_well(dsn: str) -> None:
    for arguments, given in (([dsn], ""), ([], dsn)):  # it runs again
        told = subprocess.run(
            [sys.executable, "examples/mixed.py", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TEGUH_DSN": given},
            check=True,
            text=True,
            capture_output=True,
        ).stdout
        assert "the order is completed" in told
        assert told.splitlines()[-2:] == ["customer: 70.00", "shop: 30.00"]
