"""What one caller can have the database hold or do: limits that are refused, and what is not.

Those marked `exhaustion` are for `make test-exhaustion`, which prints what docs/security.md tells.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.security.support import public_functions, settle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.security.support import Connection

MANY = 100_000

# Random hexadecimal digits: what indexes cannot compress.
RANDOM = (
    "(select string_agg(md5(%(n)s::text || i::text), '') from generate_series(1, {words}) as g(i))"
)


def random(connection: Connection, words: int, n: int = 0) -> str:
    """Return 32 characters for each of so many words."""
    rows = connection.execute(RANDOM.format(words=words).encode(), {"n": n}).fetchall()
    return str(rows[0][0])


# Texts that no index holds and no name is: they may be as long as one likes.
ENDLESS = {"p_worker_id", "p_reason"}


def test_a_name_of_ten_kilobytes_or_a_megabyte_is_refused_with_a_hint(
    superuser_dsn: str,
) -> None:
    refused = 0
    with psycopg.connect(superuser_dsn, autocommit=True) as connection:
        ids = settle(connection)
        connection.execute("set teguh.steps = '{}'")
        for length in (10_000, 1_000_000):
            endless = random(connection, 1 + length // 32)
            for function in public_functions(connection):
                for name, kind in function.arguments:
                    if kind not in ("text", "text[]") or name in ENDLESS:
                        continue
                    value = [endless] if kind == "text[]" else endless
                    values = function.given(**vars(ids)) | {name: value}
                    said = refusal(connection, function.statement(), values)
                    refused += said is not None
                    # an order holds whatever the handler gave: work() is who refuses it
                    if said and said.sqlstate != "P0004":
                        assert said.message_hint, (function, said.message_primary)
                        assert len(said.message_primary or "") < 500, (function, name)
    assert refused > 200


def refusal(
    connection: Connection, statement: bytes, values: dict[str, object]
) -> psycopg.errors.Diagnostic | None:
    """Return what the error of a statement says, None without one; nothing is left of it."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement, values)
    except psycopg.Error as error:
        return error.diag
    return None


def test_keys_of_the_greatest_length_fit_into_every_index(conn: Connection) -> None:
    one, two, three = (random(conn, 32, n) for n in range(3))  # 1024 bytes each
    conn.execute("select teguh.create_queue('q')")
    conn.execute("select teguh.set_limit('q', 'key', %s, '{\"max_running\": 1}')", (one,))
    conn.execute("select teguh.create_schedule(%s, 'q', %s, '@daily')", (one, two))
    conn.execute("select teguh.pause_queue('q', p_only => %s)", (f'{{"key": "{three}"}}',))
    options = (
        f'{{"idempotency_key": "{one}", "key": "{two}", "correlation_id": "{one}",'
        f' "tags": ["{one}", "{two}"]}}'
    )
    conn.execute("select teguh.spawn_task('q', %s, '{}', %s)", (one, options))
    unique = f'{{"unique": {{"key": "{one}"}}}}'
    conn.execute("select teguh.spawn_task('q', %s, '{}', %s)", (two, unique))
    rows = conn.execute(
        "select run_id, task_id from teguh.claim_any('{q}', 'w', 60, 2, %s)",
        (f'{{"task_names": ["{one}", "{two}"]}}',),
    ).fetchall()
    for run, task in rows:
        conn.execute(
            "select teguh.set_attributes('q', %s, %s)", (run, f'{{"{one}": "{two[:-2]}"}}')
        )
        key = f'{{"idempotency_key": "{three}"}}'
        conn.execute("select teguh.send_message('q', %s, %s, '1', %s)", (task, two, key))
        conn.execute("select teguh.receive_message('q', %s, %s, %s, %s)", (task, run, one, two))
        conn.execute(
            "select teguh.spawn_children('q', %s, %s, '[{\"task_name\": \"c\"}]')", (run, two)
        )
        conn.execute("select teguh.await_event('q', %s, %s, %s, %s)", (task, run, three, one))
    conn.execute("select teguh.emit_event('q', %s)", (one,))
    conn.execute(
        "select teguh.create_workflow_run(%s, %s)", (one, f'{{"idempotency_key": "{two}"}}')
    )
    assert len(rows) == 2


def test_a_worker_id_and_a_reason_may_be_a_megabyte_long(conn: Connection) -> None:
    conn.execute("select teguh.create_queue('q')")
    conn.execute("select teguh.spawn_task('q', 't', '{}')")
    endless = random(conn, 32_768)
    ((task,),) = conn.execute(
        "select task_id from teguh.claim_task('q', %s)", (endless,)
    ).fetchall()
    conn.execute("select teguh.cancel_task('q', %s, %s)", (task, endless))
    assert conn.execute("select length(reason) from teguh.list_actions('q')").fetchall() == [
        (1_048_576,)
    ]


@contextmanager
def measured(connection: Connection, what: str) -> Iterator[None]:
    """Print how long something takes, and how much memory its backend has used at most."""
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    status = Path(f"/proc/{connection.info.backend_pid}/status").read_text(encoding="ascii")
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    print(f"measured: {what}: {seconds:.2f} s, backend at most {int(peak) // 1024} MB")


@pytest.fixture
def large(dsn: str) -> Iterator[Connection]:
    """A connection to a database with a queue `q`."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select teguh.create_queue('q')")
        yield connection


def spawned(connection: Connection, count: int) -> None:
    """Spawn tasks."""
    connection.execute(
        "select count(*) from teguh.spawn_tasks('q', (select jsonb_agg(jsonb_build_object("
        "'task_name', 't')) from generate_series(1, %s)))", (count,)
    )  # fmt: skip


def one(connection: Connection, query: str, *values: object) -> Any:
    """Return the first value of a query's only row."""
    ((value, *_),) = connection.execute(query.encode(), values).fetchall()
    return value


@pytest.mark.exhaustion
def test_a_value_of_255_megabytes_passes_and_one_of_269_is_refused(large: Connection) -> None:
    spawn = "select task_id from teguh.spawn_task('q', 't', to_jsonb(repeat('x', %s)))"
    with measured(large, "spawn with 255 MB of params"):
        one(large, spawn, 255_000_000)
    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
        one(large, spawn, 269_000_000)
    with measured(large, "its claim"):
        size = "select octet_length(params::text) from teguh.claim_task('q', 'w')"
        assert one(large, size) == 255_000_002


@pytest.mark.exhaustion
def test_checkpoints_too_large_for_one_object_fail_their_task_and_no_other(
    large: Connection,
) -> None:
    spawned(large, 2)
    (run, task), (_, other) = large.execute(
        "select run_id, task_id from teguh.claim_task('q', 'w', 3600, 2)"
    ).fetchall()
    for name in ("a", "b"):
        large.execute("select teguh.emit_event('q', %s, to_jsonb(repeat('x', 140000000)))", (name,))
        large.execute(
            "select should_suspend from teguh.await_event('q', %s, %s, %s, %s)",
            (task, run, name, name),
        )
    large.execute("select teguh.release_run('q', run_id) from teguh.t_q order by task_id")
    with measured(large, "claim of a task with 280 MB of checkpoints"):
        claimed = large.execute("select task_id from teguh.claim_task('q', 'w', 30, 10)").fetchall()
    assert claimed == [(other,)]
    reason = one(large, "select failure_reason from teguh.get_task_result('q', %s)", task)
    assert reason["name"] == "$Checkpoints"


@pytest.mark.exhaustion
def test_a_follow_up_too_large_for_one_object_does_not_keep_its_task_from_ending(
    large: Connection,
) -> None:
    large.execute(
        "select teguh.spawn_task('q', 't', to_jsonb(repeat('x', 150000000)),"
        " jsonb_build_object('ttl_seconds', 0.001, 'on_failure', jsonb_build_object("
        "  'task_name', 'u', 'params', jsonb_build_object('y', repeat('y', 150000000)))))"
    )
    spawned(large, 1)
    time.sleep(0.01)
    with measured(large, "ticker ends a task whose follow-up would be 300 MB"):
        large.execute("select teguh.ticker('q')")
    assert large.execute(
        "select state, failure_reason ->> 'name' from teguh.t_q order by task_id limit 1"
    ).fetchall() == [("expired", "$OnFailure")]


@pytest.mark.exhaustion
def test_one_event_wakes_a_hundred_thousand(large: Connection) -> None:
    spawned(large, MANY)
    large.execute(
        "select count(a.should_suspend) from teguh.claim_task('q', 'w', 3600, %s) as c"
        " cross join lateral teguh.await_event('q', c.task_id, c.run_id, 's', 'e') as a",
        (MANY,),
    )
    with measured(large, f"emit_event that {MANY} tasks wait for"):
        large.execute("select teguh.emit_event('q', 'e', '{\"n\": 1}')")
    assert one(large, "select pending from teguh.queue_stats('q')") == MANY
    with measured(large, "claim of 1000 of them"):
        assert one(large, "select count(*) from teguh.claim_task('q', 'w', 60, 1000)") == 1000


@pytest.mark.exhaustion
def test_a_million_events_cost_an_emit_and_a_wait_nothing(large: Connection) -> None:
    large.execute(
        "insert into teguh.e_q (event_name, created_at, emitted_at, payload)"
        " select 'event ' || i, now(), now(), '{}' from generate_series(1, 1000000) as g(i)"
    )
    spawned(large, 1)
    ((run, task),) = large.execute(
        "select run_id, task_id from teguh.claim_task('q', 'w')"
    ).fetchall()
    with measured(large, "emit_event and await_event beside 1000000 events"):
        large.execute("select teguh.emit_event('q', 'new')")
        large.execute("select teguh.await_event('q', %s, %s, 's', 'event 500000')", (task, run))
    large.execute("set teguh.fake_now = '2099-01-01'")
    with measured(large, "cleanup_events of 1000 of them"):
        assert one(large, "select teguh.cleanup_events('q')") == 1000


@pytest.mark.exhaustion
def test_a_hundred_thousand_children_are_spawned_awaited_and_reported(large: Connection) -> None:
    spawned(large, 1)
    ((run, task),) = large.execute(
        "select run_id, task_id from teguh.claim_task('q', 'w', 3600)"
    ).fetchall()
    with measured(large, f"spawn_children of {MANY}"):
        large.execute(
            "select count(*) from teguh.spawn_children('q', %s, 's', (select jsonb_agg("
            "jsonb_build_object('task_name', 'c')) from generate_series(1, %s)))", (run, MANY)
        )  # fmt: skip
    wait = "select should_suspend from teguh.await_children('q', %s, %s, 's')"
    assert one(large, wait, task, run)
    with measured(large, "their completion"):
        large.execute(
            "select count(*) from teguh.complete_runs('q', (select jsonb_agg(jsonb_build_object("
            "'run_id', c.run_id)) from teguh.claim_task('q', 'w', 3600, %s) as c))", (MANY,)
        )  # fmt: skip
    time.sleep(0.1)
    with measured(large, "the parent's next claim"):
        ((run,),) = large.execute("select run_id from teguh.claim_task('q', 'w', 3600)").fetchall()
    with measured(large, "await_children that returns them"):
        assert not one(large, wait, task, run)


@pytest.mark.exhaustion
def test_a_hundred_thousand_messages_lie_in_one_mailbox(large: Connection) -> None:
    spawned(large, 1)
    ((run, task),) = large.execute(
        "select run_id, task_id from teguh.claim_task('q', 'w', 3600)"
    ).fetchall()
    with measured(large, f"send_message, {MANY} times"):
        large.execute(
            "select count(m.created) from generate_series(1, %s) as g(i)"
            " cross join lateral teguh.send_message('q', %s, 'topic', to_jsonb(g.i)) as m",
            (MANY, task),
        )
    with measured(large, "receive_message, 1000 times"):
        large.execute(
            "select count(m.payload) from generate_series(1, 1000) as g(i)"
            " cross join lateral teguh.receive_message('q', %s, %s, 's' || g.i, 'topic') as m",
            (task, run),
        )
    large.execute("select teguh.set_queue_policy('q', '{\"max_messages\": 50}')")
    with measured(large, "send_message refused by max_messages"), pytest.raises(psycopg.Error):
        large.execute("select teguh.send_message('q', %s, 'topic')", (task,))


@pytest.mark.exhaustion
def test_a_hundred_thousand_tags_are_on_one_task(large: Connection) -> None:
    tags = (
        "select jsonb_build_object('tags', jsonb_agg('tag ' || i))"
        " from generate_series(1, %s) as g(i)"
    )
    with measured(large, f"spawn with {MANY} tags"):
        large.execute(f"select teguh.spawn_task('q', 't', '{{}}', ({tags}))".encode(), (MANY,))
    with measured(large, "list_tasks by one of them"):
        assert (
            one(large, "select count(*) from teguh.list_tasks('q', '{\"tag\": \"tag 77\"}')") == 1
        )


@pytest.mark.exhaustion
def test_a_task_repeats_a_hundred_thousand_times(large: Connection) -> None:
    spawned(large, 1)
    half = """
    do $$ begin for i in 1..10000 loop
      perform teguh.repeat_run('q', c.run_id) from teguh.claim_task('q', 'w', 3600) as c;
      commit;
    end loop; end $$
    """
    for n in range(1, 11):
        with measured(large, f"repetitions {(n - 1) * 10_000} to {n * 10_000}"):
            large.execute(half.encode())
        large.execute("select teguh.ticker('q')")
    assert one(large, "select attempts from teguh.list_tasks('q')") == MANY
    task = one(large, "select task_id from teguh.list_tasks('q')")
    with measured(large, "get_task_history"):
        events = one(large, "select count(*) from teguh.get_task_history('q', %s)", task)
    print(f"measured: events of its history: {events}")


@pytest.mark.exhaustion
def test_hundreds_of_queues_and_thousands_of_schedules_are_ticked(large: Connection) -> None:
    with measured(large, "create_queue, 300 times"):
        for n in range(300):
            large.execute("select teguh.create_queue(%s)", (f"many_{n}",))
    with measured(large, "ticker over 301 queues"):
        large.execute("select teguh.ticker()")
    with measured(large, "create_schedule, 10000 times"):
        large.execute(
            "select count(teguh.create_schedule('s' || i, 'q', 't', 'every second'))"
            " from generate_series(1, 10000) as g(i)"
        )
    time.sleep(1.1)
    with measured(large, "ticker that fires them"):
        large.execute("select teguh.ticker('q')")
    print(f"measured: fired in one tick: {one(large, 'select count(*) from teguh.t_q')}")
