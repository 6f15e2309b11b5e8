"""What callers' transactions and the server's settings leave of the promises."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import errors

from tests.chaos.verdict import CHECKS
from tests.cluster import install
from tools.servers import OWNER, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "guarantees.md"

Connection = psycopg.Connection[tuple[Any, ...]]


def ask(connection: Connection, statement: str, *values: object) -> list[tuple[Any, ...]]:
    cursor = connection.execute(statement.encode(), values or None)
    return cursor.fetchall() if cursor.description else []


def states(connection: Connection) -> list[tuple[Any, ...]]:
    return ask(connection, "select task_name, state from teguh.list_tasks('q') order by task_id")


@pytest.fixture
def queue(conn: Connection) -> Connection:
    """A connection in autocommit to a database with the queue q and a table of payments."""
    ask(conn, "select teguh.create_queue('q')")
    ask(conn, "create table payments (n integer)")
    return conn


# The caller's transaction


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_worker_may_report_in_a_transaction_of_any_level(queue: Connection, level: str) -> None:
    ask(queue, "select teguh.spawn_task('q', 'a', '1')")
    ((task_id, run_id),) = ask(queue, "select task_id, run_id from teguh.claim_task('q', 'w')")
    ask(queue, f"begin isolation level {level}")
    ask(queue, "insert into payments values (1)")
    ask(queue, "select teguh.set_task_checkpoint_state('q', %s, 'pay', '1', %s)", task_id, run_id)
    ask(queue, "select teguh.spawn_task('q', 'b', '2')")
    ask(queue, "select teguh.complete_run('q', %s)", run_id)
    ask(queue, "commit")
    assert states(queue) == [("a", "completed"), ("b", "pending")]


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_a_report_on_an_old_snapshot_is_refused_whole(
    queue: Connection, dsn: str, level: str
) -> None:
    ask(queue, "select teguh.spawn_task('q', 'a', '1')")
    ((task_id, run_id),) = ask(queue, "select task_id, run_id from teguh.claim_task('q', 'w')")
    with psycopg.connect(dsn, autocommit=True) as other:
        ask(other, f"begin isolation level {level}")
        ask(other, "insert into payments values (1)")
        ask(queue, "select teguh.extend_claim('q', %s, 60)", run_id)
        with pytest.raises(errors.SerializationFailure):
            ask(
                other,
                "select teguh.set_task_checkpoint_state('q', %s, 'pay', '1', %s)",
                task_id,
                run_id,
            )
        ask(other, "rollback")
    assert ask(queue, "select * from payments") == []
    assert (
        ask(queue, "select * from teguh.get_task_checkpoint_states('q', %s, null)", task_id) == []
    )


def test_what_a_savepoint_takes_back_has_not_happened(queue: Connection) -> None:
    ask(queue, "begin")
    ask(queue, "select teguh.spawn_task('q', 'a', '1')")
    ask(queue, "savepoint s")
    ask(queue, "select teguh.spawn_task('q', 'b', '2')")
    assert len(ask(queue, "select teguh.claim_task('q', 'w', 30, 10)")) == 2
    ask(queue, "rollback to s")
    ask(queue, "commit")
    assert states(queue) == [("a", "pending")]
    ((run_id, attempt),) = ask(queue, "select run_id, attempt from teguh.claim_task('q', 'w')")
    assert attempt == 1
    ask(queue, "begin")
    ask(queue, "savepoint s")
    ask(queue, "select teguh.complete_run('q', %s)", run_id)
    ask(queue, "rollback to s")
    ask(queue, "select teguh.fail_run('q', %s, '{}')", run_id)
    ask(queue, "commit")
    assert states(queue) == [("a", "sleeping")]


# Prepared transactions


@pytest.fixture
def two_phase(server: Any) -> Iterator[str]:
    """The DSN of a database on a server that allows prepared transactions."""
    if not isinstance(server, Server):
        pytest.skip("an existing server is not ours to configure")
    with Server(server.kind, settings={"max_prepared_transactions": "4"}) as own:
        dsn = own.create_database("two_phase", owner=OWNER)
        install(dsn, "fresh")
        with psycopg.connect(dsn, autocommit=True) as connection:
            ask(connection, "select teguh.create_queue('q', '{\"notify\": \"off\"}')")
            ask(connection, "create table payments (n integer)")
        yield dsn


def test_a_prepared_transaction_counts_when_it_is_decided(two_phase: str) -> None:
    with (
        psycopg.connect(two_phase, autocommit=True) as one,
        psycopg.connect(two_phase, autocommit=True) as other,
    ):
        for name in ("kept", "dropped"):
            ask(one, "begin")
            ask(one, "select teguh.spawn_task('q', %s, '1')", name)
            ask(one, f"prepare transaction '{name}'")
        for n in range(300):  # which make the position pass what is not decided
            ask(other, "select teguh.spawn_task('q', 'n', %s)", str(n))
        assert len(ask(other, "select teguh.claim_task('q', 'w', 0, 400)")) == 300
        ask(other, "commit prepared 'kept'")
        ask(other, "rollback prepared 'dropped'")
        claimed = ask(other, "select task_name from teguh.claim_task('q', 'w', 0, 400)")
        assert claimed == [("kept",)]


def test_a_step_in_a_prepared_transaction_is_done_when_that_is_committed(two_phase: str) -> None:
    with (
        psycopg.connect(two_phase, autocommit=True) as one,
        psycopg.connect(two_phase, autocommit=True) as other,
    ):
        for connection in (one, other):
            ask(connection, "set teguh.fake_now = '2031-05-01 12:00:00+00'")
        ask(one, "select teguh.spawn_task('q', 'a', '1')")
        ((task_id, run_id),) = ask(one, "select task_id, run_id from teguh.claim_task('q', 'w')")
        ask(one, "begin")
        ask(one, "insert into payments values (1)")
        ask(one, "select teguh.set_task_checkpoint_state('q', %s, 'pay', '1', %s)", task_id, run_id)
        ask(one, "prepare transaction 'step'")
        ask(other, "set teguh.fake_now = '2031-05-01 12:05:00+00'")
        assert ask(other, "select teguh.claim_task('q', 'w')") == []  # the lease is over: it waits
        ask(other, "commit prepared 'step'")
        for minute in (10, 20):  # the run fails, and another follows
            ask(other, f"set teguh.fake_now = '2031-05-01 12:{minute}:00+00'")
            claimed = ask(other, "select checkpoints from teguh.claim_task('q', 'w')")
        assert claimed == [({"pay": 1},)]
        assert ask(other, "select * from payments") == [(1,)]


def test_a_transaction_that_notifies_cannot_be_prepared(two_phase: str) -> None:
    with psycopg.connect(two_phase, autocommit=True) as one:
        ask(one, "select teguh.create_queue('q', '{\"notify\": \"always\"}')")
        ask(one, "begin")
        ask(one, "select teguh.spawn_task('q', 'a', '1')")
        with pytest.raises(errors.FeatureNotSupported):
            ask(one, "prepare transaction 'a'")
        assert states(one) == []


# Durability


def test_a_crash_without_synchronous_commit_leaves_a_state_that_was(own_server: Server) -> None:
    """What the server lost is the end of what happened; steps and payments agree."""
    dsn = own_server.create_database("lost", owner=OWNER)
    install(dsn, "fresh")
    stop = threading.Event()

    def work(number: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            ask(connection, "set synchronous_commit = off")
            while not stop.is_set():
                ask(connection, "select teguh.spawn_task('q', 'a', '1')")
                for task_id, run_id in ask(
                    connection, "select task_id, run_id from teguh.claim_task('q', %s, 600, 2)",
                    f"w{number}",
                ):  # fmt: skip
                    ask(connection, "begin")
                    ask(connection, "insert into payments values (%s)", task_id)
                    ask(
                        connection,
                        "select teguh.set_task_checkpoint_state('q', %s, 'pay', '1', %s)",
                        task_id,
                        run_id,
                    )
                    ask(connection, "commit")
                    ask(connection, "select teguh.complete_run('q', %s)", run_id)

    def worker(number: int) -> None:
        with pytest.raises(psycopg.Error):
            work(number)

    with psycopg.connect(dsn, autocommit=True) as connection:
        ask(connection, "select teguh.create_queue('q')")
        ask(connection, "create table payments (task_id uuid)")
    threads = [threading.Thread(target=worker, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    while own_server.execute("select count(*) from payments", "lost") < [(200,)]:
        time.sleep(0.05)
    own_server.kill()
    for thread in threads:
        thread.join()
    own_server.start()
    with psycopg.connect(dsn, autocommit=True) as connection:
        paid = ask(connection, "select task_id, count(*) from payments group by 1 order by 1")
        assert paid
        assert {count for _, count in paid} == {1}
        steps = ask(connection, "select task_id, count(*) from teguh.c_q group by 1 order by 1")
        assert steps == paid
        for day in (1, 2):  # the leases end, and another run follows each
            ask(connection, f"set teguh.fake_now = '2041-05-0{day} 12:00:00+00'")
            for (run_id,) in ask(
                connection, "select run_id from teguh.claim_task('q', 'w', 600, 10000)"
            ):
                ask(connection, "select teguh.complete_run('q', %s)", run_id)
        assert ask(connection, "select distinct state from teguh.t_q") == [("completed",)]


# Clocks


def test_a_clock_that_steps_ahead_ends_leases_and_lets_no_late_worker_write(
    queue: Connection, dsn: str
) -> None:
    with psycopg.connect(dsn, autocommit=True) as other:
        ask(queue, "set teguh.fake_now = '2031-05-01 12:00:00+00'")
        ask(other, "set teguh.fake_now = '2031-05-01 18:00:00+00'")
        ask(queue, "select teguh.spawn_task('q', 'a', '1')")
        ((task_id, run_id),) = ask(queue, "select task_id, run_id from teguh.claim_task('q', 'w')")
        ask(other, "select teguh.ticker('q')")
        ask(other, "set teguh.fake_now = '2031-05-01 18:01:00+00'")
        claimed = ask(other, "select attempt, failures from teguh.claim_task('q', 'v')")
        assert claimed == [(2, 1)]
        for late in ("complete_run('q', %s)", "extend_claim('q', %s, 60)"):
            with pytest.raises(psycopg.Error) as caught:
                ask(queue, f"select teguh.{late}", run_id)
            assert caught.value.sqlstate == "AB002"
        step = "select teguh.set_task_checkpoint_state('q', %s, 'pay', '1', %s)"
        with pytest.raises(psycopg.Error) as caught:
            ask(queue, step, task_id, run_id)
        assert caught.value.sqlstate == "AB002"


# The page


def test_every_promise_names_what_checks_it() -> None:
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    rows = re.findall(
        r"^\| (?!---|promise|setting)(.+) \| (.+) \|$", PAGE.read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) > 40
    for promise, checked in rows:
        named = re.findall(r"`(test_\w+)`", checked)
        chaos = re.findall(r"storm: \"([^\"]+)\"", checked)
        told = re.findall(r"`(\d\d_\w+)`: \"([^\"]+)\"", checked)
        assert named or chaos or told or "untested" in checked, promise
        for name in named:
            assert f"def {name}(" in tests, name
        assert set(chaos) <= set(CHECKS), promise
        for file, description in told:
            text = (ROOT / "pg_tap" / f"{file}.sql").read_text("utf-8").replace("''", "'")
            assert f"'{description}'" in text, description
