"""Several sessions at once: claims, wake-ups, locks, rotation, and what storage they leave.

Nothing here sleeps and hopes.  A test that needs a session to be waiting holds the lock that it
waits for, and goes on when pg_stat_activity shows the session waiting.
"""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.pq import TransactionStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

Connection = psycopg.Connection[tuple[Any, ...]]
Row = tuple[Any, ...]
Values: TypeAlias = "Sequence[Any] | Mapping[str, Any]"

# How long the hammering goes on, in seconds, and how many connections hammer.
HAMMER = 2.0
HAMMERS = 8

PATIENCE = 20.0


class Sessions:
    """Sessions of one database, and threads to call them in."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.pool = ThreadPoolExecutor(32)
        self.opened: list[Connection] = []
        self.watcher = self.open()

    def open(self, now: str | None = None) -> Connection:
        """Open a session in autocommit; `now` stops its clock."""
        connection = psycopg.connect(self.dsn, autocommit=True)
        self.opened.append(connection)
        if now is not None:
            at(connection, now)
        return connection

    def close(self) -> None:
        """End every session, and with it what a thread still does in one."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            ask(
                connection,
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and usename = current_user"
                " and pid <> pg_backend_pid()",
            )
        self.pool.shutdown()
        for connection in self.opened:
            connection.close()

    def start(self, connection: Connection, query: str, values: Values = ()) -> Future[list[Row]]:
        """Run a query in a thread."""
        return self.pool.submit(ask, connection, query, values)

    def wait_until_blocked(self, connection: Connection, by: Connection | None = None) -> None:
        """Return when a session is seen waiting for a lock, or for one that another holds."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if ask(
                self.watcher,
                "select 1 from pg_stat_activity where pid = %s and wait_event_type = 'Lock'"
                " and coalesce(%s = any (pg_blocking_pids(pid)), true)",
                (connection.info.backend_pid, by and by.info.backend_pid),
            ):
                return
            time.sleep(0.002)
        raise AssertionError("the session never waited for a lock")


@pytest.fixture
def sessions(dsn: str) -> Iterator[Sessions]:
    """Sessions of a fresh database with a queue `q`."""
    opened = Sessions(dsn)
    ask(opened.watcher, "select teguh.create_queue('q')")
    try:
        yield opened
    finally:
        opened.close()


def ask(connection: Connection, query: str, values: Values = ()) -> list[Row]:
    """Run one statement; return its rows."""
    cursor = connection.execute(query.encode(), values)
    return cursor.fetchall() if cursor.description else []


def value(connection: Connection, query: str, values: Values = ()) -> Any:
    """Return the only value of the only row."""
    ((found,),) = ask(connection, query, values)
    return found


def at(connection: Connection, now: str) -> None:
    """Stop a session's clock at a time of 1 May 2031."""
    ask(connection, "select set_config('teguh.fake_now', %s, false)", (f"2031-05-01 {now}+00",))


def spawn(connection: Connection, name: str = "a", queue: str = "q", **options: Any) -> Row:
    """Spawn one task; return its id and its run's."""
    (row,) = ask(
        connection,
        "select task_id, run_id from teguh.spawn_task(%s, %s, '{}', %s)",
        (queue, name, json.dumps(options)),
    )
    return row


def spawn_many(connection: Connection, count: int, queue: str = "q", **options: Any) -> None:
    """Spawn many tasks in one call."""
    ask(
        connection,
        "select count(*) from teguh.spawn_tasks(%s, %s)",
        (queue, json.dumps([{"task_name": str(n), "options": options} for n in range(count)])),
    )


def claim(
    connection: Connection, count: int = 1, queue: str = "q", timeout: float = 30
) -> list[Row]:
    """Claim runs; return (run_id, task_id, task_name) of each."""
    return ask(
        connection,
        "select run_id, task_id, task_name from teguh.claim_task(%s, 'w', %s, %s)",
        (queue, timeout, count),
    )


def names(rows: Sequence[Row]) -> list[str]:
    return [str(row[2]) for row in rows]


def states(connection: Connection, queue: str = "q") -> Counter[str]:
    """Count tasks by state."""
    query = sql.SQL("select state, count(*) from {} group by state").format(
        sql.Identifier("teguh", f"t_{queue}")
    )
    return Counter({str(s): int(n) for s, n in connection.execute(query).fetchall()})


def hammer(
    sessions: Sessions, work: Callable[[Connection, random.Random], None], seconds: float = HAMMER
) -> Counter[str]:
    """Let many sessions do `work` again and again; count the SQLSTATEs that they met."""
    met: Counter[str] = Counter()
    lock = threading.Lock()
    end = time.monotonic() + seconds

    def run(number: int) -> None:
        connection = sessions.open()
        dice = random.Random(number)
        while time.monotonic() < end:
            state = "ok"
            try:
                work(connection, dice)
            except psycopg.Error as error:
                state = error.sqlstate or "none"
            with lock:
                met[state] += 1

    for future in [sessions.pool.submit(run, n) for n in range(HAMMERS)]:
        future.result()
    return met


# Claims


def test_claims_of_due_sleepers_never_block_and_never_raise(sessions: Sessions) -> None:
    one, two = sessions.open("12:00:00"), sessions.open("12:00:00")
    spawn_many(one, 5, delay_seconds=10)
    at(one, "12:00:10")
    at(two, "12:00:10")
    ask(two, "set statement_timeout = '10s'")
    ask(one, "begin")
    first = claim(one, 3)
    second = claim(two, 5)
    ask(one, "commit")
    assert len(first) == 3
    assert len(second) == 2
    assert not {row[1] for row in first} & {row[1] for row in second}
    assert claim(two, 5) == []


def test_many_claimers_at_wake_up_time_hand_out_every_sleeper_once(sessions: Sessions) -> None:
    setter = sessions.open("12:00:00")
    for _ in range(20):
        spawn_many(setter, 25, delay_seconds=10)
    claimers = [sessions.open("12:00:10") for _ in range(8)]
    barrier = threading.Barrier(len(claimers))

    def work(connection: Connection) -> list[Row]:
        barrier.wait()
        taken: list[Row] = []
        while len(found := claim(connection, 7)) > 0:
            taken += found
        return taken

    taken = [row for rows in sessions.pool.map(work, claimers) for row in rows]
    taken += claim(claimers[0], 1000)
    assert len(taken) == 500
    assert len({row[0] for row in taken}) == 500
    assert states(setter) == {"running": 500}


def test_a_claim_takes_other_tasks_while_an_open_claim_holds_the_first(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    spawn_many(one, 10)
    ask(one, "begin")
    assert len(claim(one, 4)) == 4
    assert len(claim(two, 10)) == 6
    ask(one, "commit")
    assert states(one) == {"running": 10}


def test_runs_of_a_claim_that_rolls_back_are_claimable_at_once(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    spawn_many(one, 300)
    seen = set()
    for _ in range(40):
        ask(one, "begin")
        claim(one, 20)
        ask(one, "rollback")
        seen |= {row[0] for row in claim(two, 5)}
    seen |= {row[0] for row in claim(two, 300)}
    assert len(seen) == 300


def test_a_claim_whose_session_dies_gives_its_runs_back(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    spawn_many(two, 10)
    ask(one, "begin")
    assert len(claim(one, 10)) == 10
    ask(two, "select pg_terminate_backend(%s, 10000)", (one.info.backend_pid,))
    assert len(claim(two, 10)) == 10


def test_a_claim_never_returns_a_task_that_a_cancel_is_taking_away(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    spawn(one, "cancelled")
    spawn(one, "other")
    task_id = value(one, "select task_id from teguh.t_q where task_name = 'cancelled'")
    ask(one, "begin")
    ask(one, "select teguh.cancel_task('q', %s)", (task_id,))
    assert names(claim(two, 2)) == ["other"]
    ask(one, "commit")
    assert claim(two, 2) == []


def test_a_task_whose_cancel_rolls_back_is_claimable(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    task_id, _ = spawn(one)
    ask(one, "begin")
    ask(one, "select teguh.cancel_task('q', %s)", (task_id,))
    assert claim(two, 2) == []
    ask(one, "rollback")
    assert len(claim(two, 2)) == 1


def test_tasks_that_are_being_cancelled_by_a_filter_are_not_claimed(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    spawn(one, "cancelled", tags=["t"])
    spawn(one, "kept")
    ask(one, "begin")
    assert value(one, "select teguh.cancel_tasks('q', '{\"tag\": \"t\"}')") == 1
    assert names(claim(two, 10)) == ["kept"]
    ask(one, "commit")
    assert claim(two, 10) == []


def test_a_cancel_by_filter_waits_for_a_claim_and_takes_the_run_away(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    spawn(one, "a", tags=["t"])
    ask(one, "begin")
    ((run_id, _, _),) = claim(one)
    cancelled = sessions.start(two, "select teguh.cancel_tasks('q', '{\"tag\": \"t\"}')")
    sessions.wait_until_blocked(two)
    ask(one, "commit")
    assert cancelled.result(PATIENCE) == [(1,)]
    with pytest.raises(psycopg.DatabaseError) as raised:
        ask(one, "select teguh.complete_run('q', %s)", (run_id,))
    assert raised.value.sqlstate == "AB001"


@pytest.mark.parametrize(
    ("first", "second", "sqlstate", "state"),
    [("requeue", "complete", "AB002", "pending"), ("complete", "requeue", "TG004", "completed")],
)
def test_a_requeue_that_races_a_completion_has_one_winner(
    sessions: Sessions, first: str, second: str, sqlstate: str, state: str
) -> None:
    one, two = sessions.open(), sessions.open()
    spawn(one)
    ((run_id, task_id, _),) = claim(one)
    calls = {
        "requeue": ("select teguh.requeue_task('q', %s)", (task_id,)),
        "complete": ("select teguh.complete_run('q', %s)", (run_id,)),
    }
    ask(one, "begin")
    ask(one, *calls[first])
    late = sessions.start(two, *calls[second])
    sessions.wait_until_blocked(two)
    ask(one, "commit")
    with pytest.raises(psycopg.DatabaseError) as raised:
        late.result(PATIENCE)
    assert raised.value.sqlstate == sqlstate
    assert states(one) == {state: 1}


def test_an_emit_that_races_a_cancel_leaves_nothing_to_claim(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    task_id, run_id = spawn(one)
    claim(one)
    ask(one, "select * from teguh.await_event('q', %s, %s, 's', 'e')", (task_id, run_id))
    ask(one, "begin")
    ask(one, "select teguh.cancel_task('q', %s)", (task_id,))
    emit = sessions.start(two, "select teguh.emit_event('q', 'e', '1')")
    sessions.wait_until_blocked(two)
    ask(one, "commit")
    emit.result()
    assert claim(two, 5) == []
    assert states(one) == {"cancelled": 1}


def test_a_cancel_that_races_an_emit_wins(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    task_id, run_id = spawn(one)
    claim(one)
    ask(one, "select * from teguh.await_event('q', %s, %s, 's', 'e')", (task_id, run_id))
    ask(one, "begin")
    ask(one, "select teguh.emit_event('q', 'e', '1')")
    cancel = sessions.start(two, "select teguh.cancel_task('q', %s)", (task_id,))
    sessions.wait_until_blocked(two)
    ask(one, "commit")
    cancel.result()
    assert claim(two, 5) == []
    assert states(one) == {"cancelled": 1}


def test_a_run_that_completes_while_its_lease_expires_ends_once(sessions: Sessions) -> None:
    one, two = sessions.open("12:00:00"), sessions.open("12:01:00")
    _, run_id = spawn(one, retry_strategy={"kind": "none"})
    claim(one)
    ask(one, "begin")
    ask(one, "select teguh.complete_run('q', %s)", (run_id,))
    assert value(two, "select teguh.ticker('q')") == 0
    ask(one, "commit")
    at(two, "12:02:00")
    assert value(two, "select teguh.ticker('q')") == 0
    assert claim(two, 5) == []
    assert states(one) == {"completed": 1}


def test_a_lease_that_ends_while_its_task_is_locked_is_looked_at_again(sessions: Sessions) -> None:
    one, two = sessions.open("12:00:00"), sessions.open("12:01:00")
    _, run_id = spawn(one, retry_strategy={"kind": "none"})
    claim(one)
    ask(one, "begin")
    ask(one, "select teguh.extend_claim('q', %s, 300)", (run_id,))
    assert value(two, "select teguh.ticker('q')") == 0
    ask(one, "rollback")
    at(two, "12:01:01")
    assert value(two, "select teguh.ticker('q')") == 1
    assert states(one) == {"pending": 1}


def test_a_lease_that_is_extended_while_the_sweep_is_at_another_goes_on(sessions: Sessions) -> None:
    one, two, gate = sessions.open("12:00:00"), sessions.open("12:01:00"), sessions.open()
    spawn_many(one, 2, retry_strategy={"kind": "none"})
    _, (run_id, _, _) = sorted(claim(one, 2), key=lambda row: row[1])
    ask(gate, "begin")
    ask(gate, "lock table teguh.r_q in share mode")
    sweep = sessions.start(two, "select teguh.ticker('q')")
    sessions.wait_until_blocked(two, by=gate)
    ask(one, "select teguh.extend_claim('q', %s, 90)", (run_id,))
    ask(gate, "commit")
    assert sweep.result() == [(1,)]
    assert states(one) == {"pending": 1, "running": 1}
    at(two, "12:01:30")
    assert value(two, "select teguh.ticker('q')") == 1
    assert states(one) == {"pending": 2}


def test_a_stale_worker_that_waits_for_the_sweep_meets_ab002(sessions: Sessions) -> None:
    one, two = sessions.open("12:00:00"), sessions.open("12:01:00")
    task_id, run_id = spawn(one, retry_strategy={"kind": "none"})
    claim(one)
    for call in (
        "select teguh.complete_run('q', %(run)s)",
        "select teguh.set_task_checkpoint_state('q', %(task)s, 's', '1', %(run)s)",
        "select teguh.extend_claim('q', %(run)s, 30)",
        "select * from teguh.await_event('q', %(task)s, %(run)s, 's', 'e')",
    ):
        ask(two, "begin")
        ask(two, "select teguh.ticker('q')")
        late = sessions.start(one, call, {"run": run_id, "task": task_id})
        sessions.wait_until_blocked(one)
        ask(two, "commit")
        with pytest.raises(psycopg.Error) as caught:
            late.result()
        assert caught.value.sqlstate == "AB002"
        ((run_id, _, _),) = claim(one)
    assert value(one, "select count(*) from teguh.c_q") == 0


def test_of_two_workers_that_complete_one_run_one_meets_ab002(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    _, run_id = spawn(one)
    claim(one)
    ask(one, "begin")
    ask(one, "select teguh.complete_run('q', %s, '1')", (run_id,))
    second = sessions.start(two, "select teguh.complete_run('q', %s, '2')", (run_id,))
    sessions.wait_until_blocked(two)
    ask(one, "commit")
    with pytest.raises(psycopg.Error) as caught:
        second.result()
    assert caught.value.sqlstate == "AB002"
    assert value(one, "select result from teguh.t_q") == 1


def test_a_claim_outside_of_read_committed_is_refused(sessions: Sessions) -> None:
    one = sessions.open()
    for level in ("repeatable read", "serializable"):
        for call in (
            "select * from teguh.claim_task('q', 'w')",
            "select teguh.ticker('q')",
            "select teguh.emit_event('q', 'e')",
            "select * from teguh.await_event('q', gen_random_uuid(), gen_random_uuid(), 's', 'e')",
        ):
            ask(one, f"begin isolation level {level}")
            with pytest.raises(errors.ActiveSqlTransaction) as caught:
                ask(one, call)
            assert caught.value.diag.message_hint
            ask(one, "rollback")


def test_a_spawn_in_repeatable_read_is_found_by_every_claim(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    ask(one, "begin isolation level repeatable read")
    ask(one, "select 1")
    spawn_many(two, 100)
    assert len(claim(two, 100)) == 100
    spawn(one, "snapshot")
    spawn(one, "snapshot, later", delay_seconds=0)
    ask(one, "commit")
    assert sorted(names(claim(two, 10))) == ["snapshot", "snapshot, later"]


# Spawners that commit late


def test_ready_tasks_of_late_committing_spawners_are_found(sessions: Sessions) -> None:
    busy = sessions.open()
    late = [sessions.open() for _ in range(6)]
    for number, connection in enumerate(late):
        ask(connection, "begin")
        spawn(connection, f"late {number}")
    spawn_many(busy, 700)
    for _ in range(70):
        assert len(claim(busy, 10)) == 10
    assert claim(busy, 10) == []
    for number, connection in enumerate(late):
        spawn(connection, f"later {number}")
        ask(connection, "commit" if number % 2 else "rollback")
        spawn_many(busy, 40)
        claim(busy, 30)
    found = set(names(claim(busy, 1000)))
    found |= set(names(claim(busy, 1000)))
    wanted = {f"{word} {n}" for word in ("late", "later") for n in (1, 3, 5)}
    missing = wanted - {
        str(name)
        for (name,) in ask(busy, "select task_name from teguh.t_q where state = 'running'")
    }
    assert missing == set()
    assert states(busy) == {"running": 700 + 6 * 40 + 6}


def test_delayed_tasks_of_late_committing_spawners_are_found(sessions: Sessions) -> None:
    busy = sessions.open("12:00:00")
    late = [sessions.open("12:00:00") for _ in range(6)]
    for number, connection in enumerate(late):
        ask(connection, "begin")
        spawn(connection, f"late {number}", delay_seconds=1 + number)
    spawn_many(busy, 10, delay_seconds=2)
    at(busy, "12:01:00")
    assert len(claim(busy, 100)) == 10
    for connection in late:
        ask(connection, "commit")
    assert value(busy, "select teguh.next_due('q') <= teguh.current_time()")
    assert sorted(names(claim(busy, 100))) == [f"late {n}" for n in range(6)]


def test_a_timer_of_a_transaction_that_is_newer_than_the_collectors_list_is_found(
    sessions: Sessions,
) -> None:
    # The newest transactions are running although no list of running ones names them.
    busy, late = sessions.open("12:00:00"), sessions.open("12:00:00")
    spawn(busy, "other", delay_seconds=1)
    ask(late, "begin")
    spawn(late, "late", delay_seconds=2)
    at(busy, "12:00:10")
    ask(busy, "begin")
    assert names(claim(busy, 10)) == ["other"]
    ask(late, "commit")
    ask(busy, "commit")
    assert names(claim(busy, 10)) == ["late"]


def test_a_claim_that_has_written_before_passes_no_timer_of_a_newer_transaction(
    sessions: Sessions,
) -> None:
    busy, late = sessions.open("12:00:00"), sessions.open("12:00:00")
    spawn(busy, "other", delay_seconds=1)
    ask(busy, "begin")
    ask(busy, "select pg_current_xact_id()")
    ask(late, "begin")
    spawn(late, "late", delay_seconds=2)
    at(busy, "12:00:10")
    assert names(claim(busy, 10)) == ["other"]
    ask(late, "commit")
    ask(busy, "commit")
    assert names(claim(busy, 10)) == ["late"]


def test_a_sleep_whose_transaction_commits_late_ends(sessions: Sessions) -> None:
    busy, late = sessions.open("12:00:00"), sessions.open("12:00:00")
    _, run_id = spawn(late, "sleeper")
    claim(late, timeout=0)
    ask(late, "begin")
    ask(late, "select teguh.schedule_run('q', %s, '2031-05-01 12:00:05+00')", (run_id,))
    spawn(busy, "other", delay_seconds=5)
    at(busy, "12:01:00")
    assert names(claim(busy, 10)) == ["other"]
    ask(late, "commit")
    assert names(claim(busy, 10)) == ["sleeper"]


def test_leases_of_late_committing_claims_expire(sessions: Sessions) -> None:
    busy, late = sessions.open("12:00:00"), sessions.open("12:00:00")
    spawn(late, "late", retry_strategy={"kind": "none"})
    ask(late, "begin")
    claim(late, timeout=5)
    spawn(busy, "other", delay_seconds=5)
    at(busy, "12:01:00")
    assert names(claim(busy, 10, timeout=0)) == ["other"]
    ask(late, "commit")
    ask(busy, "select teguh.ticker('q')")
    assert names(claim(busy, 10, timeout=0)) == ["late"]


def test_an_idle_writer_and_a_held_snapshot_cost_no_task(sessions: Sessions) -> None:
    writer, reader, busy = sessions.open(), sessions.open(), sessions.open()
    ask(writer, "begin")
    spawn(writer, "early")
    ask(reader, "begin isolation level repeatable read")
    ask(reader, "select count(*) from teguh.t_q")
    taken = 0
    for _ in range(30):
        spawn_many(busy, 40)
        taken += len(claim(busy, 40))
    assert taken == 1200
    ask(writer, "commit")
    assert names(claim(busy, 10)) == ["early"]


def test_rows_that_a_hung_claimer_holds_are_claimed_after_it_is_gone(sessions: Sessions) -> None:
    hung, busy = sessions.open(), sessions.open()
    spawn_many(busy, 50)
    ask(hung, "begin")
    assert len(claim(hung, 50)) == 50
    taken = 0
    for _ in range(30):
        spawn_many(busy, 40)
        taken += len(claim(busy, 40))
    assert taken == 1200
    ask(hung, "rollback")
    assert len(claim(busy, 100)) == 50


def test_many_hung_claimers_cost_no_task(sessions: Sessions) -> None:
    busy = sessions.open()
    hung = [sessions.open() for _ in range(12)]
    for connection in hung:
        spawn_many(busy, 20)
        ask(connection, "begin")
        assert len(claim(connection, 5)) == 5
    taken = len(claim(busy, 1000))
    for _ in range(20):
        spawn_many(busy, 60)
        taken += len(claim(busy, 60))
    assert taken == 12 * 15 + 20 * 60
    for number, connection in enumerate(hung):
        ask(connection, "rollback" if number % 2 else "commit")
    assert len(claim(busy, 1000)) == 6 * 5
    assert states(busy) == {"running": 12 * 20 + 20 * 60}


def test_a_clock_that_steps_back_loses_no_timer(sessions: Sessions) -> None:
    fast, slow = sessions.open("12:00:00"), sessions.open("12:00:00")
    spawn(fast, "first", delay_seconds=1)
    at(fast, "12:10:00")
    ask(fast, "begin")
    assert names(claim(fast, timeout=0)) == ["first"]
    at(slow, "12:05:00")
    spawn(slow, "second", delay_seconds=10)
    ask(fast, "commit")
    spawn(slow, "third", delay_seconds=20)
    assert str(value(slow, "select teguh.next_due('q') at time zone 'UTC'"))[11:] == "12:05:10"
    at(slow, "12:05:30")
    assert names(claim(slow, 10, timeout=0)) == ["second", "third"]


def test_a_slow_clock_that_commits_after_a_fast_one_loses_no_sleeper(sessions: Sessions) -> None:
    fast, slow = sessions.open("12:10:00"), sessions.open("12:00:00")
    spawn(slow, "first", delay_seconds=1)
    assert names(claim(fast, timeout=0)) == ["first"]
    at(slow, "12:05:00")
    ask(slow, "begin")
    spawn(slow, "second", delay_seconds=1)
    spawn(fast, "third", delay_seconds=1)
    at(fast, "12:10:02")
    assert names(claim(fast, timeout=0)) == ["third"]
    ask(slow, "commit")
    at(slow, "12:05:02")
    assert str(value(slow, "select teguh.next_due('q') at time zone 'UTC'"))[11:] == "12:05:01"
    assert names(claim(slow, 10, timeout=0)) == ["second"]


def test_slow_clocks_that_commit_in_the_other_order_lose_no_sleeper(sessions: Sessions) -> None:
    fast, one, other = (sessions.open(f"12:{minute}:00") for minute in ("10", "00", "05"))
    spawn(one, "first", delay_seconds=1)
    assert names(claim(fast, timeout=0)) == ["first"]
    at(one, "12:05:00")
    ask(other, "begin")
    spawn(other, "second", delay_seconds=1)
    spawn(one, "third", delay_seconds=2)
    ask(other, "commit")
    at(one, "12:05:03")
    assert sorted(names(claim(one, 10, timeout=0))) == ["second", "third"]


def test_a_slow_clock_that_commits_after_a_fast_one_loses_no_lease(sessions: Sessions) -> None:
    fast, slow = sessions.open("12:10:00"), sessions.open("12:00:00")
    spawn(slow, "first", retry_strategy={"kind": "none"})
    assert names(claim(slow, timeout=1)) == ["first"]
    assert names(claim(fast, timeout=1)) == ["first"]
    at(slow, "12:05:00")
    spawn(slow, "second", retry_strategy={"kind": "none"})
    ask(slow, "begin")
    assert names(claim(slow, timeout=1)) == ["second"]
    at(fast, "12:10:02")
    assert names(claim(fast, timeout=0)) == ["first"]
    ask(slow, "commit")
    at(slow, "12:05:02")
    assert names(claim(slow, timeout=0)) == ["second"]


def test_a_position_waits_for_slow_clocks_with_newer_ids(sessions: Sessions) -> None:
    fast, slow = sessions.open("12:10:00"), sessions.open("12:00:00")
    spawn(slow, "first", delay_seconds=1)
    ask(fast, "begin")
    ask(fast, "select pg_current_xact_id()")  # as when a claim or a tick has something else first
    ask(slow, "begin")
    spawn(slow, "second", delay_seconds=1)
    assert value(fast, "select teguh._fire_q(teguh.current_time(), 100)") == 1
    ask(fast, "commit")
    ask(slow, "commit")
    at(slow, "12:00:02")
    assert sorted(names(claim(slow, 10, timeout=0))) == ["first", "second"]


def test_while_somebody_sets_the_clock_no_position_moves(sessions: Sessions) -> None:
    one, other = sessions.open("12:00:00"), sessions.open()
    positions = "select count(*) from teguh.k0_q where kind = 's'"
    lock = "hashtextextended('teguh.clock_q', 0)"
    spawn_many(one, 2, delay_seconds=1)
    ask(other, f"select pg_advisory_lock({lock})")
    at(one, "12:00:02")
    assert len(claim(one)) == 1
    assert value(one, positions) == 0
    ask(other, f"select pg_advisory_unlock({lock})")
    assert len(claim(one, 2)) == 1
    assert value(one, positions) == 1
    assert value(one, "select count(*) from pg_locks where locktype = 'advisory'") == 0


@pytest.mark.parametrize("segment_bytes", [8192, 1 << 26])
def test_clocks_that_disagree_lose_no_timer(sessions: Sessions, segment_bytes: int) -> None:
    dice = random.Random(segment_bytes)
    clients = [sessions.open() for _ in range(4)]
    for connection in clients:
        ask(connection, f"set teguh.segment_bytes = {segment_bytes}")
    spawned = 0
    for _ in range(400):
        connection = dice.choice(clients)
        at(connection, f"12:{dice.randrange(60):02}:{dice.randrange(60):02}")
        action = dice.randrange(6)
        if action == 0:
            claim(connection, 3, timeout=0)
        elif action == 1:
            ask(connection, "select teguh.ticker('q')")
        elif action == 2:
            idle = connection.info.transaction_status == TransactionStatus.IDLE
            ask(connection, "begin" if idle else "commit")
        else:
            spawn(connection, delay_seconds=dice.choice([0, 0.5, 7, 900]))
            spawned += 1
    for connection in clients:
        ask(connection, "commit")
    at(clients[0], "14:00:00")
    claim(clients[0], 10000, timeout=0)
    claim(clients[0], 10000, timeout=0)
    assert states(clients[0]) == {"running": spawned}


# Waking


def notified(connection: Connection, seconds: float = 0.0) -> int:
    """Count the notifications a listener gets within some seconds."""
    return len(list(connection.notifies(timeout=seconds, stop_after=1)))


def test_every_spawn_of_a_transaction_notifies_once_with_the_same_payload(
    sessions: Sessions,
) -> None:
    worker, spawner = sessions.open(), sessions.open()
    ask(worker, "listen teguh_q")
    assert claim(worker) == []
    ask(spawner, "begin")
    for _ in range(5):
        spawn(spawner)
    ask(spawner, "commit")
    ask(worker, "select 1")
    found = list(worker.notifies(timeout=1))
    assert [(note.channel, note.payload) for note in found] == [("teguh_q", "")]


def test_a_spawn_wakes_a_worker_that_waits(sessions: Sessions) -> None:
    worker, spawner = sessions.open(), sessions.open()
    ask(worker, "listen teguh_q")
    assert claim(worker) == []
    assert value(worker, "select teguh.next_due('q')") is None
    spawn(spawner)
    assert notified(worker, PATIENCE) == 1
    assert len(claim(worker)) == 1


def test_a_spawn_that_stayed_silent_is_still_picked_up_at_once(sessions: Sessions) -> None:
    worker, spawner = sessions.open(), sessions.open()
    ask(worker, "listen teguh_q")
    ask(spawner, "begin")
    spawn(spawner)  # nobody waits yet: silent
    assert claim(worker) == []  # from here on the worker is counted as waiting
    soon = (
        "select d.at > statement_timestamp() and d.at <= clock_timestamp() + interval '10 ms'"
        " from (select teguh.next_due('q') as at offset 0) as d"
    )
    assert value(worker, soon)  # it may not wait for long: a spawn is open
    ask(spawner, "commit")
    assert notified(worker) == 0
    assert value(worker, "select teguh.next_due('q') <= teguh.current_time()")  # it need not wait
    assert len(claim(worker)) == 1


def test_a_silent_spawn_that_commits_between_claim_and_next_due_is_seen(
    sessions: Sessions,
) -> None:
    worker, spawner = sessions.open(), sessions.open()
    ask(spawner, "begin")
    spawn(spawner)
    assert claim(worker) == []
    ask(spawner, "commit")
    assert value(worker, "select teguh.next_due('q') <= teguh.current_time()")


def test_a_burst_of_spawns_stays_silent_after_the_first_has_been_claimed(
    sessions: Sessions,
) -> None:
    worker, spawner = sessions.open(), sessions.open()
    ask(worker, "listen teguh_q")
    assert claim(worker) == []
    spawn(spawner)
    assert notified(worker, PATIENCE) == 1
    assert len(claim(worker)) == 1  # all it asked for: it does not wait
    for _ in range(50):
        spawn(spawner)
    ask(worker, "select 1")
    assert notified(worker) == 0
    assert len(claim(worker, 50)) == 50


@pytest.mark.parametrize("policy", ["auto", "always", "off"])
def test_no_wake_up_is_lost_under_any_notify_policy(sessions: Sessions, policy: str) -> None:
    ask(sessions.watcher, "select teguh.create_queue('q', %s)", (json.dumps({"notify": policy}),))
    total, spawners = 400, 4
    started: dict[str, float] = {}
    waits: list[float] = []
    stop = threading.Event()

    def work(connection: Connection) -> int:
        """Wait as a worker does; with policy off by the poll interval only."""
        ask(connection, "listen teguh_q")
        poll, done, pause = (0.05 if policy == "off" else 5.0), 0, 0.0
        while not stop.is_set():
            rows = claim(connection, 4)
            now = time.monotonic()
            waits.extend(now - started[str(row[2])] for row in rows)
            done += len(rows)
            if len(rows) == 4:
                continue
            due = value(
                connection,
                "select extract(epoch from teguh.next_due('q') - teguh.current_time())",
            )
            wait = poll if due is None else min(poll, max(0.0, float(due)))
            pause = 0.0 if rows or wait > 0.02 else min(1.0, max(0.005, pause * 2))
            list(connection.notifies(timeout=max(wait, pause), stop_after=1))
        return done

    def produce(number: int) -> None:
        connection, dice = sessions.open(), random.Random(number)
        for n in range(total // spawners):
            name = f"{number} {n}"
            ask(connection, "begin")
            started[name] = time.monotonic()
            spawn(connection, name)
            if dice.random() < 0.1:
                time.sleep(dice.random() * 0.02)
            ask(connection, "commit")
            if dice.random() < 0.2:
                time.sleep(dice.random() * 0.03)

    workers = [sessions.pool.submit(work, sessions.open()) for _ in range(3)]
    for future in [sessions.pool.submit(produce, n) for n in range(spawners)]:
        future.result()
    deadline = time.monotonic() + PATIENCE
    while len(waits) < total and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    ask(sessions.watcher, "notify teguh_q")
    assert sum(future.result() for future in workers) == total
    # A lost wake-up would last for a poll interval.
    assert max(waits) < 4


def test_an_await_and_an_emit_at_the_same_time_lose_no_wake_up(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    for first in ("await", "emit"):
        task_id, run_id = spawn(one)
        claim(one)
        waits = "select should_suspend from teguh.await_event('q', %s, %s, 's', %s)"
        emits = "select teguh.emit_event('q', %s, '1')"
        event = f"{first} first"
        ask(one, "begin")
        if first == "await":
            assert ask(one, waits, (task_id, run_id, event)) == [(True,)]
            second = sessions.start(two, emits, (event,))
        else:
            ask(one, emits, (event,))
            second = sessions.start(two, waits, (task_id, run_id, event))
        sessions.wait_until_blocked(two)
        ask(one, "commit")
        rows = second.result()
        if first == "await":
            assert [row[0] for row in claim(one, 5)] == [run_id]
        else:
            assert rows == [(False,)]
        ask(one, "select teguh.complete_run('q', %s)", (run_id,))


def test_an_emit_waits_for_an_await_of_an_event_that_another_task_awaits(
    sessions: Sessions,
) -> None:
    one, two = sessions.open(), sessions.open()
    spawn_many(one, 2)
    first, second = claim(one, 2)
    waits = "select should_suspend from teguh.await_event('q', %s, %s, 's', 'e')"
    ask(one, waits, (first[1], first[0]))
    ask(one, "begin")
    ask(one, waits, (second[1], second[0]))
    emits = sessions.start(two, "select teguh.emit_event('q', 'e', '1')")
    sessions.wait_until_blocked(two, by=one)
    ask(one, "commit")
    emits.result()
    assert len(claim(one, 5)) == 2


def test_an_emit_leaves_a_task_asleep_that_has_gone_on_meanwhile(sessions: Sessions) -> None:
    one, two, gate = sessions.open("12:00:00"), sessions.open("12:01:00"), sessions.open()
    spawn_many(one, 2)
    first, second = sorted(claim(one, 2), key=lambda row: row[1])
    waits = "select should_suspend from teguh.await_event('q', %s, %s, 's', 'e', %s)"
    ask(one, waits, (first[1], first[0], None))
    ask(one, waits, (second[1], second[0], 10))
    ask(gate, "begin")
    ask(gate, "select 1 from teguh.t_q where task_id = %s for update", (first[1],))
    emits = sessions.start(one, "select teguh.emit_event('q', 'e', '1')")
    sessions.wait_until_blocked(one, by=gate)
    assert [row[0] for row in claim(two)] == [second[0]]
    ask(two, "select teguh.schedule_run('q', %s, '2031-05-01 13:00:00+00')", (second[0],))
    ask(gate, "commit")
    emits.result()
    assert [row[0] for row in claim(two, 5)] == [first[0]]


def test_an_await_whose_event_is_emitted_and_rolled_back_waits_on(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    task_id, run_id = spawn(one)
    claim(one)
    ask(one, "begin")
    ask(one, "select teguh.emit_event('q', 'e', '1')")
    waits = sessions.start(
        two,
        "select should_suspend from teguh.await_event('q', %s, %s, 's', 'e')",
        (task_id, run_id),
    )
    sessions.wait_until_blocked(two)
    ask(one, "rollback")
    assert waits.result() == [(True,)]
    ask(one, "select teguh.emit_event('q', 'e', '2')")
    assert value(two, "select event_payload from teguh.claim_task('q', 'w')") == 2


def test_cleanup_never_takes_an_event_away_under_a_task_that_begins_to_wait(
    sessions: Sessions,
) -> None:
    waiter, cleaner = sessions.open(), sessions.open("14:00:00")
    task_id, run_id = spawn(waiter)
    claim(waiter)
    ask(waiter, "begin")
    ask(waiter, "select * from teguh.await_event('q', %s, %s, 's', 'e')", (task_id, run_id))
    assert value(cleaner, "select teguh.cleanup_events('q', 0)") == 0
    ask(waiter, "commit")
    assert value(cleaner, "select teguh.cleanup_events('q', 0)") == 0
    ask(waiter, "select teguh.emit_event('q', 'e', '1')")
    assert len(claim(waiter)) == 1


def test_cleanup_that_races_a_retry_leaves_the_task(sessions: Sessions) -> None:
    one, cleaner = sessions.open("12:00:00"), sessions.open("14:00:00")
    task_id, run_id = spawn(one, max_attempts=1)
    claim(one)
    ask(one, "select teguh.fail_run('q', %s, '1')", (run_id,))
    ask(one, "begin")
    ask(one, "select * from teguh.retry_task('q', %s)", (task_id,))
    assert value(cleaner, "select teguh.cleanup_tasks('q', 0)") == 0
    ask(one, "commit")
    assert value(cleaner, "select teguh.cleanup_tasks('q', 0)") == 0
    ((again, _, _),) = claim(one)
    ask(one, "select teguh.complete_run('q', %s)", (again,))
    assert value(cleaner, "select teguh.cleanup_tasks('q', 0)") == 1


def test_a_retry_that_waits_for_cleanup_finds_no_task(sessions: Sessions) -> None:
    one, cleaner = sessions.open("12:00:00"), sessions.open("14:00:00")
    task_id, _ = spawn(one)
    ask(one, "select teguh.cancel_task('q', %s)", (task_id,))
    ask(cleaner, "begin")
    assert value(cleaner, "select teguh.cleanup_tasks('q', 0)") == 1
    retry = sessions.start(one, "select * from teguh.retry_task('q', %s)", (task_id,))
    sessions.wait_until_blocked(one)
    ask(cleaner, "commit")
    with pytest.raises(psycopg.Error) as caught:
        retry.result()
    assert caught.value.sqlstate == "TG003"
    assert claim(one, 5) == []


def test_of_two_spawns_with_one_key_at_the_same_time_one_creates_the_task(
    sessions: Sessions,
) -> None:
    one, two = sessions.open(), sessions.open()
    call = (
        "select task_id, created"
        " from teguh.spawn_task('q', 'a', '{}', '{\"idempotency_key\": \"%s\"}')"
    )
    for end in ("commit", "rollback"):
        ask(one, "begin")
        ((first, _),) = ask(one, call % end)
        second = sessions.start(two, call % end)
        sessions.wait_until_blocked(two)
        ask(one, end)
        ((task_id, created),) = second.result()
        assert (task_id == first, created) == ((True, False) if end == "commit" else (False, True))
    assert len(claim(one, 10)) == 2


# Deadlocks: none reaches a caller, whatever is done at the same time


def test_claims_cancels_and_run_ends_do_not_deadlock(sessions: Sessions) -> None:
    spawn_many(sessions.watcher, 300, retry_strategy={"kind": "none"})

    def work(connection: Connection, dice: random.Random) -> None:
        action = dice.randrange(6)
        if action == 0:
            spawn_many(connection, 10, retry_strategy={"kind": "none"})
            return
        if action == 1:
            unfinished = "select task_id from teguh.t_q where state <> 'completed' limit 5"
            tasks = ask(connection, unfinished)
            dice.shuffle(tasks)
            for (task_id,) in tasks:
                ask(connection, "select teguh.cancel_task('q', %s)", (task_id,))
            return
        ask(connection, "begin")
        try:
            for run_id, _, _ in claim(connection, dice.randrange(1, 6), timeout=0.001):
                call = dice.choice(
                    [
                        "select teguh.complete_run('q', %s)",
                        "select teguh.fail_run('q', %s, '1')",
                        "select teguh.release_run('q', %s, 0.001)",
                        "select teguh.extend_claim('q', %s, 0.001)",
                    ]
                )
                ask(connection, call, (run_id,))
        finally:
            ask(connection, dice.choice(["commit", "commit", "rollback"]))

    met = hammer(sessions, work)
    assert met.keys() <= {"ok", "AB001", "AB002"}
    assert met["ok"] > 50


def test_emits_cancels_awaits_and_tickers_do_not_deadlock(sessions: Sessions) -> None:
    spawn_many(sessions.watcher, 100)

    def work(connection: Connection, dice: random.Random) -> None:
        event = f"e{dice.randrange(1000) if dice.random() < 0.5 else dice.randrange(5)}"
        action = dice.randrange(6)
        if action == 0:
            ask(connection, "select teguh.emit_event('q', %s, '1')", (event,))
        elif action == 1:
            for (task_id,) in ask(
                connection, "select task_id from teguh.t_q where state = 'sleeping' limit 3"
            ):
                ask(connection, "select teguh.cancel_task('q', %s)", (task_id,))
        elif action == 2:
            ask(connection, "select teguh.ticker('q')")
        elif action == 3:
            ask(connection, "select * from teguh.cleanup_all_queues()")
            ask(connection, "select teguh.cleanup_events('q', 0), teguh.cleanup_tasks('q', 0, 20)")
        else:
            spawn_many(connection, 3)
            for run_id, task_id, _ in claim(connection, 6):
                ask(
                    connection,
                    "select * from teguh.await_event('q', %s, %s, %s, %s, %s)",
                    (task_id, run_id, f"s{dice.random()}", event, dice.choice([None, 0.01, 5])),
                )

    met = hammer(sessions, work)
    assert met.keys() <= {"ok", "AB001", "AB002", "TG002", "TG003"}
    assert met["ok"] > 50


def test_spawns_with_overlapping_keys_in_different_orders_do_not_deadlock(
    sessions: Sessions,
) -> None:
    def work(connection: Connection, dice: random.Random) -> None:
        ring = dice.randrange(10**6) // 100
        keys = [f"{ring} {n}" for n in range(20)] + [f"common {n}" for n in range(20)]
        dice.shuffle(keys)
        ask(
            connection,
            "select * from teguh.spawn_tasks('q', %s)",
            (json.dumps([{"task_name": "a", "options": {"idempotency_key": k}} for k in keys]),),
        )

    met = hammer(sessions, work)
    assert met.keys() == {"ok"}
    keys = "select count(*) = count(distinct idempotency_key) from teguh.t_q"
    assert value(sessions.watcher, keys)


def test_batches_of_completions_in_different_orders_do_not_deadlock(sessions: Sessions) -> None:
    spawn_many(sessions.watcher, 3000)
    held = [str(row[0]) for row in claim(sessions.watcher, 3000, timeout=0)]
    applied: list[int] = []

    def work(connection: Connection, dice: random.Random) -> None:
        batch = dice.sample(held, 25)
        rows = ask(
            connection,
            "select applied, error from teguh.complete_runs('q', %s)",
            (json.dumps([{"run_id": run_id, "state": 1} for run_id in batch]),),
        )
        assert {error for done, error in rows if not done} <= {"AB002"}
        applied.append(sum(1 for done, _ in rows if done))

    met = hammer(sessions, work)
    assert met.keys() == {"ok"}
    assert sum(applied) == states(sessions.watcher)["completed"]


def test_telling_why_a_run_was_not_completed_waits_for_nobody(sessions: Sessions) -> None:
    spawn_many(sessions.watcher, 2)
    first, second = sorted(str(row[0]) for row in claim(sessions.watcher, 2))
    complete = "select applied, error from teguh.complete_runs('q', %s)"
    one, two, three = sessions.open(), sessions.open(), sessions.open()
    ask(one, "begin")
    ask(one, complete, (json.dumps([{"run_id": first}]),))
    ask(two, "begin")
    ask(two, complete, (json.dumps([{"run_id": second}]),))
    both = json.dumps([{"run_id": first}, {"run_id": second}])
    late = sessions.start(three, complete, (both,))
    sessions.wait_until_blocked(three)
    ask(one, "commit")
    # it has locked the first, which it finds completed, and waits for the second
    sessions.wait_until_blocked(three, by=two)
    assert ask(two, complete, (json.dumps([{"run_id": first}]),)) == [(False, "AB002")]
    ask(two, "commit")
    assert late.result() == [(False, "AB002"), (False, "AB002")]


def test_dropping_a_queue_under_load_does_not_deadlock(sessions: Sessions) -> None:
    def work(connection: Connection, dice: random.Random) -> None:
        if dice.random() < 0.02:
            ask(connection, "select teguh.drop_queue('q')")
        elif dice.random() < 0.05:
            ask(connection, "select teguh.create_queue('q')")
        else:
            spawn_many(connection, 2)
            for run_id, _, _ in claim(connection, 2):
                ask(connection, "select teguh.complete_run('q', %s)", (run_id,))
            ask(connection, "select teguh.ticker('q')")

    met = hammer(sessions, work)
    assert "40P01" not in met
    assert met["ok"] > 50


def test_an_unknown_queue_stays_tg001_while_it_is_dropped(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    claim(two)
    ask(one, "begin")
    ask(one, "select teguh.drop_queue('q')")
    late = sessions.start(two, "select * from teguh.claim_task('q', 'w')")
    sessions.wait_until_blocked(two)
    ask(one, "commit")
    with pytest.raises(psycopg.Error):
        late.result()
    with pytest.raises(psycopg.Error) as caught:
        claim(two)
    assert caught.value.sqlstate == "TG001"


@pytest.mark.parametrize(
    ("verb", "query"),
    [
        ("tick", "select teguh.ticker()"),
        ("purge", "select teguh.cleanup_all_queues()"),
        ("stat", "select teguh.queue_stats()"),
        ("gauge", "select teguh.metrics()"),
        ("held", "select teguh.list_workers()"),
        ("diary", "select teguh.list_schedules()"),
        ("staff", "select teguh.list_handlers()"),
        ("flow", "select teguh.get_workflow_run(%(run)s)"),
        ("member", "select teguh.get_workflow_tree(%(run)s)"),
    ],
)
def test_who_goes_through_all_queues_passes_over_one_that_was_dropped_since(
    sessions: Sessions, verb: str, query: str
) -> None:
    one, two = sessions.open(), sessions.open()
    ask(one, "select teguh.create_queue('r')")
    run = {"run": value(one, "select workflow_run_id from teguh.create_workflow_run('w')")}
    ask(two, query, run)
    text = value(
        one, "select pg_get_functiondef(oid) from pg_proc where proname = %s", (f"_{verb}_q",)
    )
    wait = "\nbegin\n  perform pg_advisory_xact_lock_shared(7);\n"
    ask(one, re.sub(r"\nbegin\n", wait, text, count=1, flags=re.IGNORECASE))
    ask(one, "select pg_advisory_lock(7)")
    late = sessions.start(two, query, run)
    sessions.wait_until_blocked(two)
    ask(one, "select teguh.drop_queue('r')")
    ask(one, "select pg_advisory_unlock(7)")
    late.result()


def test_a_claim_from_all_queues_passes_over_one_that_is_being_dropped(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    spawn(one)
    ask(one, "select teguh.create_queue('r')")
    ask(one, "begin")
    ask(one, "select teguh.drop_queue('r')")
    ask(two, "set lock_timeout = '5s'")
    assert ask(two, "select queue_name from teguh.claim_any(null, 'w', 30, 2)") == [("q",)]
    ask(one, "commit")


def test_creating_one_queue_in_many_sessions_is_no_error(sessions: Sessions) -> None:
    def create(connection: Connection) -> None:
        for number in range(5):
            ask(connection, "select teguh.create_queue(%s)", (f"n{number}",))

    clients = [sessions.open() for _ in range(4)]
    list(sessions.pool.map(create, clients))
    assert value(clients[0], "select count(*) from teguh.list_queues()") == 6


# The ring of segments


def turns(connection: Connection) -> int:
    return int(value(connection, "select pg_sequence_last_value('teguh.ring_q')"))


def test_timers_do_not_multiply_under_concurrent_claims(sessions: Sessions) -> None:
    one, two, holder = sessions.open("12:00:00"), sessions.open("12:00:00"), sessions.open()
    task_id, _ = spawn(one)
    claim(one, timeout=10)
    ask(holder, "begin")
    ask(holder, "select 1 from teguh.t_q where task_id = %s for update", (task_id,))
    for number in range(8):
        for connection in (one, two):
            at(connection, f"12:01:{number * 5:02}")
            ask(connection, "begin")
        for connection in (one, two):
            claim(connection)
        for connection in (one, two):
            ask(connection, "commit")
    timers = value(one, "select count(*) from teguh.p0_q where kind = 'l'")
    assert timers <= 1 + 2 * 8


def test_a_ticker_whose_session_is_killed_loses_nothing(sessions: Sessions) -> None:
    busy = sessions.open("12:00:00")
    ask(busy, "set teguh.segment_bytes = 8192")
    for _ in range(5):
        spawn_many(busy, 200, delay_seconds=60)
        ask(busy, "select teguh.ticker('q')")
        spawn_many(busy, 200)
        doomed = sessions.open("13:00:00")
        ask(doomed, "set teguh.segment_bytes = 8192")
        ask(doomed, "begin")
        ask(doomed, "select teguh.ticker('q')")
        claim(doomed, 100)
        ask(busy, "select pg_terminate_backend(%s, 10000)", (doomed.info.backend_pid,))
        ask(busy, "select teguh.ticker('q')")
    at(busy, "14:00:00")
    assert len(claim(busy, 5000, timeout=0)) == 2000
    assert states(busy) == {"running": 2000}


def test_the_ring_turns_while_old_snapshots_and_idle_writers_are_open(sessions: Sessions) -> None:
    busy, reader, writer = sessions.open(), sessions.open(), sessions.open()
    ask(busy, "set teguh.segment_bytes = 16384")
    ask(reader, "begin isolation level repeatable read")
    ask(reader, "select count(*) from pg_class")
    ask(writer, "begin")
    ask(writer, "create temporary table t as select 1")
    for _ in range(12):
        spawn_many(busy, 300)
        runs = json.dumps([{"run_id": str(run[0])} for run in claim(busy, 300, timeout=0)])
        ended = ask(busy, "select * from teguh.complete_runs('q', %s)", (runs,))
        assert len(ended) == 300
        for _ in range(3):
            ask(busy, "select teguh.ticker('q')")
    assert turns(busy) >= 8
    assert (
        value(busy, "select pg_relation_size('teguh.p0_q') + pg_relation_size('teguh.p1_q')")
        < 6 * 16384
    )


def test_an_open_transaction_with_rows_in_a_segment_keeps_it(sessions: Sessions) -> None:
    busy, writer = sessions.open(), sessions.open()
    ask(busy, "set teguh.segment_bytes = 8192")
    ask(writer, "begin")
    spawn(writer, "kept")
    taken = 0
    for _ in range(10):
        spawn_many(busy, 200)
        taken += len(claim(busy, 300, timeout=0))
        ask(busy, "select teguh.ticker('q')")
    assert taken == 2000
    spawn(writer, "kept too")
    ask(writer, "commit")
    assert sorted(names(claim(busy, 10, timeout=0))) == ["kept", "kept too"]


def test_forty_turns_of_the_ring_under_load_lose_nothing(sessions: Sessions) -> None:
    finished: Counter[str] = Counter()
    spawned: list[int] = []
    stop = threading.Event()
    deadline = time.monotonic() + 60

    def add(connection: Connection, dice: random.Random) -> None:
        count = dice.randrange(1, 60)
        ask(connection, "begin")
        spawn_many(connection, count, delay_seconds=dice.choice([0, 0, 0.001, 0.05]))
        if dice.random() < 0.1:
            ask(connection, "rollback")
        else:
            ask(connection, "commit")
            spawned.append(count)

    def take(connection: Connection, dice: random.Random) -> None:
        ask(connection, "begin")
        tasks = {str(run_id): str(task_id) for run_id, task_id, _ in claim(connection, 100)}
        asleep = [run_id for run_id in tasks if dice.random() < 0.05]
        for run_id in asleep:
            ask(
                connection,
                "select teguh.schedule_run('q', %s, clock_timestamp() + '10 ms')",
                (run_id,),
            )
        runs = json.dumps([{"run_id": run_id} for run_id in tasks.keys() - set(asleep)])
        done = ask(connection, "select run_id, applied from teguh.complete_runs('q', %s)", (runs,))
        if dice.random() < 0.1:
            ask(connection, "rollback")
        else:
            ask(connection, "commit")
            for run_id, applied in done:
                assert applied
                finished[tasks[str(run_id)]] += 1

    def work(number: int) -> None:
        connection, dice = sessions.open(), random.Random(number)
        while not stop.is_set():
            add(connection, dice)
            take(connection, dice)
        while states(connection).keys() - {"completed"} and time.monotonic() < deadline:
            take(connection, dice)

    def tick() -> None:
        connection = sessions.open()
        ask(connection, "set teguh.segment_bytes = 8192")
        while turns(connection) < 80 and time.monotonic() < deadline - 20:
            ask(connection, "select teguh.ticker('q')")
        stop.set()

    for future in [sessions.pool.submit(tick), *(sessions.pool.submit(work, n) for n in range(3))]:
        future.result()
    assert turns(sessions.watcher) >= 80
    assert states(sessions.watcher) == {"completed": sum(spawned)}
    assert len(finished) == sum(spawned)
    assert set(finished.values()) == {1}


# What is left in storage


def statistics(sessions: Sessions, table: str, changes: int) -> dict[str, int]:
    """Return the counters of a table once they tell of so many inserts and updates.

    Sessions report when they end, at the latest, so those that worked must be closed.
    """
    columns = "seq_scan, n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del, n_dead_tup"
    deadline = time.monotonic() + PATIENCE
    while True:
        ask(sessions.watcher, "select pg_stat_clear_snapshot()")
        (row,) = ask(
            sessions.watcher,
            f"select {columns} from pg_stat_user_tables"
            " where schemaname = 'teguh' and relname = %s",
            (table,),
        )
        found = dict(zip(columns.split(", "), map(int, row), strict=True))
        if found["n_tup_ins"] + found["n_tup_upd"] >= changes or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def cycle(connection: Connection, count: int) -> None:
    """Spawn, claim and complete tasks, each in a transaction of its own."""
    for _ in range(count):
        spawn(connection)
        ((run_id, _, _),) = claim(connection)
        ask(connection, "select teguh.complete_run('q', %s, '{\"ok\": true}')", (run_id,))


def test_every_update_of_a_task_is_hot_under_a_pinned_snapshot(sessions: Sessions) -> None:
    pin, worker = sessions.open(), sessions.open()
    ask(pin, "begin isolation level repeatable read")
    ask(pin, "select count(*) from teguh.queues")
    cycle(worker, 400)
    spawn_many(worker, 400)
    for _ in range(8):
        rows = claim(worker, 50)
        runs = json.dumps([{"run_id": str(row[0]), "state": {"ok": 1}} for row in rows])
        ask(worker, "select * from teguh.complete_runs('q', %s)", (runs,))
    worker.close()
    found = statistics(sessions, "t_q", 800 + 1600)
    assert found["n_tup_ins"] == 800
    assert found["n_tup_upd"] == 1600
    assert found["n_tup_hot_upd"] == found["n_tup_upd"]


def test_dispatch_tables_have_no_dead_row(sessions: Sessions) -> None:
    pin, worker = sessions.open(), sessions.open("12:00:00")
    ask(pin, "begin isolation level repeatable read")
    ask(pin, "select 1")
    cycle(worker, 200)
    spawn_many(worker, 200, delay_seconds=5)
    at(worker, "12:00:10")
    for run_id, _, _ in claim(worker, 200):
        ask(worker, "select teguh.fail_run('q', %s, '1')", (run_id,))
    at(worker, "13:00:00")
    claim(worker, 200)
    at(worker, "14:00:00")
    ask(worker, "select teguh.ticker('q')")
    worker.close()
    for table in ("p0_q", "k0_q", "p1_q", "k1_q"):
        found = statistics(sessions, table, {"p0_q": 800, "k0_q": 3}.get(table, 0))
        assert found["n_tup_ins"] >= {"p0_q": 800, "k0_q": 3}.get(table, 0)
        assert (found["n_tup_upd"], found["n_tup_del"], found["n_dead_tup"]) == (0, 0, 0), table


def scanned(connection: Connection, hour: str) -> list[Row]:
    """Work through all there is in one transaction; return the queue's tables it scanned."""
    ask(connection, "begin")
    work_through(connection, hour)
    found = ask(
        connection,
        "select relname, seq_scan from pg_stat_xact_user_tables"
        " where schemaname = 'teguh' and relname ~ '^[a-z0-9]+_q$' and seq_scan > 0",
    )
    ask(connection, "commit")
    return found


def test_hot_statements_go_by_index_planned_on_an_empty_queue_or_on_a_full_one(
    sessions: Sessions,
) -> None:
    # One session makes its plans while the tables are empty and keeps them; another makes
    # them when the tables are full and have statistics.
    early, late = sessions.open(), sessions.open()
    assert scanned(early, "12:00") == []
    at(sessions.watcher, "12:00:00")
    for _ in range(4):
        spawn_many(sessions.watcher, 500, delay_seconds=100_000)
        spawn_many(sessions.watcher, 500)
    assert scanned(early, "13:00") == []
    ask(sessions.watcher, "analyze teguh.t_q")
    assert scanned(late, "14:00") == []


COMPLETE_ONE = (
    "select * from teguh.complete_runs("
    "'q', jsonb_build_array(jsonb_build_object('run_id', %(run)s::uuid)))"
)


def work_through(connection: Connection, hour: str) -> None:
    """Call every function of the hot path."""
    at(connection, f"{hour}:00")
    spawn(connection, delay_seconds=1)
    spawn(connection, cancellation={"max_delay": 1})
    spawn_many(connection, 12, retry_strategy={"kind": "none"})
    ask(
        connection,
        "select * from teguh.spawn_task('q', 'a', '{}', '{\"idempotency_key\": \"k\"}')",
    )
    rows = claim(connection, 10)
    for number, (run_id, task_id, _) in enumerate(rows):
        values = {"run": run_id, "task": task_id, "event": f"{hour} {number}"}
        for call in (
            "select teguh.extend_claim('q', %(run)s, 60)",
            "select teguh.set_task_checkpoint_state('q', %(task)s, 's', '1', %(run)s)",
            "select teguh.get_task_checkpoint_state('q', %(task)s, 's')",
            "select teguh.get_task_checkpoint_states('q', %(task)s, %(run)s)",
            "select * from teguh.get_task_result('q', %(task)s)",
            (
                "select teguh.complete_run('q', %(run)s)",
                "select teguh.fail_run('q', %(run)s, '1')",
                "select teguh.release_run('q', %(run)s)",
                "select teguh.schedule_run('q', %(run)s, teguh.current_time() + '1 s')",
                "select * from teguh.await_event('q', %(task)s, %(run)s, 'w', %(event)s, 1)",
                "select * from teguh.await_event('q', %(task)s, %(run)s, 'w', %(event)s)",
                "select teguh.cancel_task('q', %(task)s)",
                COMPLETE_ONE,
                "select 1",
                "select 1",
            )[number],
            "select teguh.emit_event('q', %(event)s)",
            "select teguh.next_due('q')",
        ):
            ask(connection, call, values)
    at(connection, f"{hour}:30")
    ask(connection, "select teguh.ticker('q')")
    claim(connection, 5)
    at(connection, f"{hour}:59")
    claim(connection, 5)


def buffers(connection: Connection, count: int) -> int:
    """Return how many pages a claim touches."""
    ((plan,),) = ask(
        connection,
        f"explain (analyze, buffers, timing off, format json)"
        f" select * from teguh.claim_task('q', 'w', 0, {count})",
    )
    top = plan[0]["Plan"]
    return int(top["Shared Hit Blocks"]) + int(top["Shared Read Blocks"])


def mean_buffers(connection: Connection, count: int) -> float:
    """Return how many pages a claim touches on average over some moves of the scan position.

    The position moves every 32 rows or so, and a claim walks the rows since.  The first claims,
    which load catalogs and make plans, do not count.
    """
    found = [buffers(connection, count) for _ in range(2 + 128 // count)]
    return sum(found[2:]) / len(found[2:])


def add_ready(connection: Connection, count: int) -> None:
    spawn_many(connection, count)


def add_sleeping(connection: Connection, count: int) -> None:
    spawn_many(connection, count, delay_seconds=1e6)


def add_limited(connection: Connection, count: int) -> None:
    spawn_many(connection, count, delay_seconds=1e6, cancellation={"max_delay": 1e6})


def add_finished(connection: Connection, count: int) -> None:
    spawn_many(connection, count)
    left = count
    while left > 0:
        rows = claim(connection, 500, timeout=0)
        left -= len(rows)
        ask(
            connection,
            "select count(*) from teguh.complete_runs('q', %s)",
            (json.dumps([{"run_id": str(row[0])} for row in rows]),),
        )


@pytest.mark.parametrize("add", [add_ready, add_sleeping, add_limited, add_finished])
def test_claim_cost_depends_on_the_quantity_only(
    sessions: Sessions, add: Callable[[Connection, int], None]
) -> None:
    connection, pin = sessions.open(), sessions.open()
    ask(pin, "begin isolation level repeatable read")
    ask(pin, "select count(*) from teguh.t_q")
    add(connection, 1000)
    spawn_many(connection, 200)
    few = mean_buffers(connection, 10)
    for _ in range(3):
        add(connection, 4000)
    spawn_many(connection, 200)
    many = mean_buffers(connection, 10)
    assert many <= 1.3 * few


def test_claim_cost_stays_flat_under_a_pinned_snapshot_and_an_idle_writer(
    sessions: Sessions,
) -> None:
    pin, writer, worker = sessions.open(), sessions.open(), sessions.open()
    ask(pin, "begin isolation level repeatable read")
    ask(pin, "select count(*) from teguh.t_q")
    ask(writer, "begin")
    ask(writer, "create temporary table t as select 1")
    cycle(worker, 300)
    spawn_many(worker, 130)
    early = mean_buffers(worker, 1)
    cycle(worker, 800)
    spawn_many(worker, 130)
    assert mean_buffers(worker, 1) <= 1.3 * early


def stands(connection: Connection, queue: str = "q") -> dict[str, int]:
    """Return how many tasks of the queue stand where, by its statistics."""
    names = ("pending", "running", "completed")
    row = ask(
        connection,
        f"select {', '.join(names)} from teguh.queue_stats(%s)",
        (queue,),
    )[0]
    return dict(zip(names, row, strict=True))


def test_what_was_open_when_notes_were_summed_up_is_counted_when_it_commits(
    sessions: Sessions,
) -> None:
    late, other = sessions.open(), sessions.open()
    with late.transaction():
        ask(late, "select teguh.spawn_task('q', 'late', '1')")
        for _ in range(2):
            for _ in range(1100):  # a note each
                ask(other, "select teguh.spawn_task('q', 'soon', '1')")
            ask(other, "select teguh.ticker('q')")
        sums = ask(other, "select count(*) from teguh.k0_q where kind = 'n'")
        assert sums == [(2,)]
        assert stands(other)["pending"] == 2200
    assert stands(other)["pending"] == 2201


def test_a_segment_is_not_truncated_under_an_open_note(sessions: Sessions) -> None:
    late, other = sessions.open(), sessions.open()
    ask(other, "set teguh.segment_bytes = 8192")

    def work() -> None:
        ask(other, "select teguh.spawn_task('q', 'soon', '1')")
        ask(
            other,
            "select teguh.complete_run('q', c.run_id)"
            " from teguh.claim_task('q', 'w', 30, 100) as c",
        )
        ask(other, "select teguh.ticker('q')")

    with late.transaction():
        ask(late, "select teguh.spawn_task('q', 'late', '1')")
        for _ in range(200):
            work()
    assert stands(other) == {"pending": 1, "running": 0, "completed": 200}
    for _ in range(200):
        work()
    assert stands(other) == {"pending": 0, "running": 0, "completed": 401}
    assert ask(other, "select last_value >= 2 from teguh.ring_q") == [(True,)]


def test_two_spawns_of_a_unique_key_make_one_task(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    spawn = """
        select created from teguh.spawn_task('q', 't', '1', '{"unique": {"key": "k", %s}}')
    """
    with one.transaction():
        assert ask(one, spawn % '"on_conflict": "error"') == [(True,)]
        waiting = sessions.start(two, spawn % '"on_conflict": "return"')
        sessions.wait_until_blocked(two)
    assert waiting.result() == [(False,)]
    assert ask(one, "select count(*) from teguh.t_q") == [(1,)]


def test_a_task_is_replaced_or_claimed_but_not_both(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    spawn = """
        select created from teguh.spawn_task('q', 't', %s,
          '{"unique": {"key": "k", "on_conflict": "replace"}}')
    """
    ask(one, spawn, ("1",))
    with two.transaction():
        assert ask(two, "select params from teguh.claim_task('q', 'w')") == [(1,)]
        replacing = sessions.start(one, spawn, ("2",))
        sessions.wait_until_blocked(one)
    assert replacing.result() == [(True,)]
    assert ask(two, "select params from teguh.claim_task('q', 'w')") == [(2,)]
    with one.transaction():
        ask(one, spawn, ("3",))
        assert ask(two, "select params from teguh.claim_task('q', 'w')") == []
    assert ask(two, "select params from teguh.claim_task('q', 'w')") == [(3,)]


# Lanes


def limit_queue(connection: Connection, queue: str = "q", **limits: Any) -> None:
    """Limit the whole queue."""
    ask(
        connection,
        "select teguh.set_limit(%s, 'queue', null, %s)",
        (queue, json.dumps(limits)),
    )


CLAIM = "select task_name from teguh.claim_task(%s, 'w', 30, 10)"


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_claim_waits_until_the_one_before_has_decided(sessions: Sessions, end: str) -> None:
    one, two = sessions.open(), sessions.open()
    limit_queue(one, max_running=1)
    spawn(one, "a")
    spawn(one, "b")

    ask(one, "begin")
    assert ask(one, CLAIM, ("q",)) == [("a",)]
    waiting = sessions.start(two, CLAIM, ("q",))
    sessions.wait_until_blocked(two)
    ask(one, end)

    assert waiting.result(PATIENCE) == ([] if end == "commit" else [("a",)])


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_rate_counts_what_another_session_has_started(sessions: Sessions, end: str) -> None:
    one, two = sessions.open("10:00:00"), sessions.open("10:00:00")
    limit_queue(one, rate=1, period_seconds=60)
    spawn(one, "a")
    spawn(one, "b")

    ask(one, "begin")
    assert ask(one, CLAIM, ("q",)) == [("a",)]
    waiting = sessions.start(two, CLAIM, ("q",))
    sessions.wait_until_blocked(two)
    ask(one, end)

    assert waiting.result(PATIENCE) == ([] if end == "commit" else [("a",)])
    at(two, "10:01:00")
    assert ask(two, CLAIM, ("q",)) == [("b",)]


def test_two_transactions_that_claim_crosswise_do_not_wait_for_each_other(
    sessions: Sessions,
) -> None:
    one, two = sessions.open(), sessions.open()
    ask(one, "select teguh.create_queue('r')")
    for queue in "qr":
        limit_queue(one, queue, max_running=5)
        spawn(one, queue, queue)

    ask(one, "begin")
    ask(two, "begin")
    assert ask(one, CLAIM, ("q",)) == [("q",)]
    assert ask(two, CLAIM, ("r",)) == [("r",)]
    spawn(sessions.watcher, "late", "q")
    spawn(sessions.watcher, "late", "r")

    assert sessions.start(one, CLAIM, ("r",)).result(PATIENCE) == []
    assert sessions.start(two, CLAIM, ("q",)).result(PATIENCE) == []
    ask(one, "commit")
    assert ask(two, CLAIM, ("q",)) == [("late",)]
    ask(two, "commit")
    assert ask(one, CLAIM, ("r",)) == [("late",)]


def test_a_limit_over_all_queues_holds_between_sessions(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    ask(one, "select teguh.create_queue('r')")
    ask(one, """select teguh.set_limit(null, 'all', null, '{"max_running": 1}')""")
    spawn(one, "a", "q")
    spawn(one, "b", "r")

    ask(one, "begin")
    assert ask(one, CLAIM, ("q",)) == [("a",)]
    waiting = sessions.start(two, CLAIM, ("r",))
    sessions.wait_until_blocked(two)
    ask(one, "commit")

    assert waiting.result(PATIENCE) == []


def test_the_first_spawns_with_a_priority_do_not_wait_for_each_other(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    spawn(one, "plain")

    ask(one, "begin")
    spawn(one, "first", priority=5)
    sessions.start(
        two, """select from teguh.spawn_task('q', 'second', '{}', '{"priority": 5}')"""
    ).result(PATIENCE)
    ask(one, "rollback")
    spawn(two, "third", priority=5)

    assert ask(two, CLAIM, ("q",)) == [("second",), ("third",), ("plain",)]


def test_workers_that_ask_by_name_do_not_wait_for_an_open_spawn(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    spawn(one, "a")
    ask(one, "begin")
    spawn(one, "b", priority=1)

    claimed = sessions.start(
        two,
        """select task_name from teguh.claim_any('{q}', 'w', 30, 9, '{"task_names": ["a"]}')""",
    )

    assert claimed.result(PATIENCE) == [("a",)]
    ask(one, "commit")
    assert ask(two, CLAIM, ("q",)) == [("b",)]


def test_what_somebody_holds_locked_in_a_lane_is_passed_over(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    limit_queue(one, max_running=5)
    task_id, _ = spawn(one, "a")
    spawn(one, "b")
    ask(one, "begin")
    ask(one, "select teguh.cancel_task('q', %s)", (task_id,))

    assert sessions.start(two, CLAIM, ("q",)).result(PATIENCE) == [("b",)]
    ask(one, "rollback")
    assert ask(two, CLAIM, ("q",)) == [("a",)]


def test_keys_keep_their_order_whatever_breaks(sessions: Sessions) -> None:
    ask(sessions.watcher, """select teguh.set_limit('q', 'key', '*', '{"fifo": true}')""")
    for number in range(20):
        for key in "abc":
            ask(
                sessions.watcher,
                "select from teguh.spawn_task('q', 'n', %s, %s)",
                (
                    json.dumps(number),
                    json.dumps({"key": key, "retry_strategy": {"kind": "none"}}),
                ),
            )
    over: dict[str, list[int]] = {key: [] for key in "abc"}
    lock = threading.Lock()

    def work(seed: int) -> None:
        rng = random.Random(seed)
        connection = sessions.open()
        while sum(map(len, over.values())) < 60:
            lease = rng.choice([0.01, 30])
            for run_id, task_id, number in ask(
                connection,
                "select run_id, task_id, params from teguh.claim_task('q', 'w', %s, 2)",
                (lease,),
            ):
                if lease < 1:  # dies
                    continue
                if rng.random() < 0.3:
                    ask(connection, "select teguh.fail_run('q', %s, '{}')", (run_id,))
                    continue
                key = value(
                    connection, "select flow_key from teguh.t_q where task_id = %s", (task_id,)
                )
                with lock, connection.transaction():
                    ask(connection, "select teguh.complete_run('q', %s)", (run_id,))
                    over[key].append(number)

    for future in [sessions.pool.submit(work, seed) for seed in range(4)]:
        future.result(60)

    assert over == {key: list(range(20)) for key in "abc"}


def limit(connection: Connection, scope: str, name: str | None = None, **limits: Any) -> None:
    """Set a limit of queue `q`."""
    ask(connection, "select teguh.set_limit('q', %s, %s, %s)", (scope, name, json.dumps(limits)))


def test_claims_by_rules_wait_for_one_another_and_keep_the_limit(sessions: Sessions) -> None:
    one, two, three = sessions.open(), sessions.open(), sessions.open()
    limit(one, "queue", max_running=2)
    spawn_many(one, 5)
    ask(one, "begin")
    assert len(claim(one, 1)) == 1
    waiting = sessions.start(two, "select task_id from teguh.claim_task('q', 'w', 30, 9)")
    sessions.wait_until_blocked(two)
    ask(one, "commit")
    assert len(waiting.result()) == 1
    assert claim(three, 9) == []


def test_a_claim_by_rules_that_rolls_back_takes_up_no_room(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    limit(one, "queue", max_running=1, rate=1, period_seconds=1000)
    spawn(one)
    ask(one, "begin")
    assert len(claim(one)) == 1
    ask(one, "rollback")
    assert len(claim(two)) == 1


def test_a_limit_that_is_set_counts_what_an_open_claim_by_rules_took(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    limit(one, "queue", max_running=5)
    spawn_many(one, 5)
    ask(one, "begin")
    assert len(claim(one, 3)) == 3
    setting = sessions.start(
        two, "select teguh.set_limit('q', 'queue', null, '{\"max_running\": 4}')"
    )
    sessions.wait_until_blocked(two)
    ask(one, "commit")
    setting.result()
    assert len(claim(two, 9)) == 1


@pytest.mark.parametrize("fifo", [False, True])
def test_a_task_that_is_locked_in_its_lane_holds_up_nobody_but_its_key(
    sessions: Sessions, fifo: bool
) -> None:
    one, two = sessions.open("12:00:00"), sessions.open("12:00:00")
    limit(one, "key", "*", **({"fifo": True} if fifo else {"max_running": 2}))
    task, _ = spawn(one, "first", key="k")
    for name in ("second", "third"):
        spawn(one, name, key="k")
    spawn(one, "other")
    limit(one, "queue", max_running=0)
    assert claim(one) == []  # they stand in lanes
    limit(one, "queue")
    ask(one, "begin")
    ask(one, "select teguh.cancel_task('q', %s)", (task,))
    ask(two, "set statement_timeout = '10s'")
    assert names(claim(two, 9)) == (["other"] if fifo else ["second", "other"])
    ask(one, "commit")
    assert names(claim(two, 9)) == (["second"] if fifo else ["third"])


def test_limits_hold_whatever_happens_at_the_same_time(sessions: Sessions) -> None:
    setter = sessions.open()
    limit(setter, "queue", max_running=6)
    limit(setter, "task", "x", max_running=3)
    limit(setter, "key", "*", max_running=2)
    limit(setter, "key", "f", fifo=True)
    ends = {
        "complete": "teguh.complete_run('q', run_id)",
        "fail": "teguh.fail_run('q', run_id, '{}', teguh.current_time())",
        "release": "teguh.release_run('q', run_id)",
        "sleep": "teguh.schedule_run('q', run_id, teguh.current_time() + interval '1 ms')",
        "cancel": "teguh.cancel_task('q', task_id)",
    }

    def work(connection: Connection, dice: random.Random) -> None:
        spawn(
            connection, dice.choice("xyz"), priority=dice.randint(-2, 2), max_attempts=50,
            **({"key": dice.choice("fgh")} if dice.random() < 0.8 else {}),
        )  # fmt: skip
        if dice.random() < 0.2:
            ask(
                connection,
                "select teguh.cancel_tasks('q', '{\"state\": \"pending\"}', '{\"limit\": 1}')",
            )
        options = {"task_names": dice.sample("xyz", 2)} if dice.random() < 0.3 else {}
        taken = ask(
            connection, "select run_id, task_id from teguh.claim_any('{q}', 'w', 30, 3, %s)",
            (json.dumps(options),),
        )  # fmt: skip
        (most,) = ask(
            connection,
            """
            select
              count(*) <= 6, count(*) filter (where task_name = 'x') <= 3,
              count(*) filter (where flow_key = 'f') <= 1,
              count(*) filter (where flow_key = 'g') <= 2,
              count(*) filter (where flow_key = 'h') <= 2
            from teguh.t_q where state = 'running'
            """,
        )
        assert all(most), most
        for run, task in taken:
            end = dice.choice(list(ends.values()))
            ask(
                connection,
                f"select {end} from (select %s::uuid as run_id, %s::uuid as task_id) as v",
                (run, task),
            )

    met = hammer(sessions, work)
    assert set(met) <= {"ok", "AB001", "AB002"}, met
    assert met["ok"] > 20

    # What is left can all be had, one after the other.
    ask(setter, "select teguh.cancel_tasks('q', '{\"state\": \"running\"}', '{\"limit\": 9999}')")
    time.sleep(0.01)
    while taken := claim(setter, 100):
        for run, *_ in taken:
            ask(setter, "select teguh.complete_run('q', %s)", (run,))
    assert set(states(setter)) <= {"completed", "cancelled", "failed"}
    for state, count in states(setter).items():
        assert value(setter, f"select {state} from teguh.queue_stats('q')") == count
    assert value(setter, "select count(*) from teguh.l_q") == 0


def test_claims_of_several_queues_in_different_orders_do_not_deadlock(sessions: Sessions) -> None:
    queues = ["q", "r", "s"]
    for queue in queues[1:]:
        ask(sessions.watcher, "select teguh.create_queue(%s)", (queue,))

    def work(connection: Connection, dice: random.Random) -> None:
        spawn_many(connection, 5, dice.choice(queues))
        taken = ask(
            connection, "select queue_name, run_id from teguh.claim_any(%s, 'w', 30, 50, %s)",
            (dice.sample(queues, 3), json.dumps({"task_names": dice.sample("01234", 3)})),
        )  # fmt: skip
        for queue, run in taken:
            ask(connection, "select teguh.complete_run(%s, %s)", (queue, run))

    assert set(hammer(sessions, work)) == {"ok"}


def test_a_claim_that_was_open_when_the_limit_was_set_counts_when_it_is_over(
    sessions: Sessions,
) -> None:
    one, two = sessions.open(), sessions.open()
    for name in "abcd":
        spawn(one, name)

    ask(one, "begin")
    assert ask(one, "select task_name from teguh.claim_task('q', 'w', 30, 2)") == [("a",), ("b",)]
    limit_queue(two, max_running=2)
    ask(one, "commit")

    assert ask(two, CLAIM, ("q",)) == []
    ask(two, "select teguh.cancel_tasks('q', '{\"task_name\": \"a\"}')")
    assert ask(two, CLAIM, ("q",)) == [("c",)]
