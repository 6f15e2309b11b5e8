"""The functions behind the public ones, called by themselves, reach no other queue."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.python.support import until
from tools.servers import GUEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.security.support import Connection

FOLLOW = {"queue_name": "other", "task_name": "evil"}
LINKS = {
    "on_failure": {"on_failure": FOLLOW},
    "sequence": {"sequence": [{"task_name": "own"}, FOLLOW]},
    "compensate": {"compensate": FOLLOW},
    "undo": {"undo": [FOLLOW]},
    "join": {"join": {"queue_name": "other", "step_name": "s"}},
    "within": {"on_failure": {"task_name": "x", "options": {"on_expired": FOLLOW}}},
    "no queue": {"join": {"queue_name": 'other(null, null, null, null, null)"; --'}},
}


@pytest.fixture
def guest(conn: Connection, guest_dsn: str) -> Iterator[Connection]:
    """A role with access to the queue `own`, and none to `other`."""
    for queue in ("own", "other"):
        conn.execute("select teguh.create_queue(%s)", (queue,))
    conn.execute("select teguh.create_schedule('of own', 'own', 'task', '@daily')")
    conn.execute("select teguh.grant_access(%s, 'admin', '{own}')", (GUEST,))
    with psycopg.connect(guest_dsn, autocommit=True) as connection:
        yield connection


def refused(guest: Connection, call: str, *values: object) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        guest.execute(call.encode(), values)


def spawn(**fields: object) -> str:
    """Return a teguh._spawn, as JSON."""
    return json.dumps({"task_name": "t", "params": {}, "return_mismatch": False, **fields})


@pytest.mark.parametrize("links", LINKS)
def test_no_task_is_stored_that_names_another_queue(
    conn: Connection, guest: Connection, links: str
) -> None:
    row = "jsonb_populate_record(null::teguh._spawn, %s)"
    for call in (
        f"select teguh._new_own({row})",
        f"select * from teguh._put_own(array[{row}])",
        f"select * from teguh._once_own({row})",
        f"select * from teguh._series_own(array[{row}])",
    ):
        refused(guest, call, spawn(links=LINKS[links], uniqueness={"key": "k"}))
        refused(guest, call, spawn(on_expired=FOLLOW, uniqueness={"key": "k"}))
    assert conn.execute("select * from teguh.list_tasks('own')").fetchall() == []


def test_no_run_nor_schedule_names_another_queue(conn: Connection, guest: Connection) -> None:
    guest.execute("select teguh.spawn_task('own', 'task', '{}')")
    ((run, task),) = guest.execute(
        "select run_id, task_id from teguh.claim_task('own', 'w')"
    ).fetchall()
    refused(guest, "select teguh._repent_own(%s, %s, 's', %s)", task, run, json.dumps(FOLLOW))
    refused(guest, "select teguh._bind_own(%s, 's', array[%s]::uuid[], '{other}', true)", run, task)
    options = json.dumps({"task_options": {"on_failure": FOLLOW}})
    refused(guest, "select teguh._reform_own('of own', %s)", options)
    refused(guest, "select teguh.update_schedule('of own', %s)", options)
    refused(guest, "select teguh.create_schedule('new', 'own', 't', '@daily', %s)", options)
    plan = {"schedule_name": "new", "task_name": "t", "schedule": "@daily", "timezone": "UTC",
            "params": {}, "task_options": {"on_failure": FOLLOW}, "catch_up": "one",
            "overlap": "allow", "jitter_seconds": 0}  # fmt: skip
    enroll = "select teguh._enroll_own(jsonb_populate_record(null::teguh.schedules, %s))"
    refused(guest, enroll, json.dumps(plan))
    guest.execute(
        enroll.encode(), [json.dumps({**plan, "task_options": {}, "queue_name": "other"})]
    )
    assert conn.execute(
        "select queue_name from teguh.schedules where schedule_name = 'new'"
    ).fetchall() == [("own",)]


def test_vouching_is_for_those_who_may_spawn_there_and_for_one_transaction(
    conn: Connection, guest: Connection
) -> None:
    refused(guest, "select teguh._vouch_other()")
    refused(guest, "select teguh._vouch('other')")
    conn.execute("select teguh.grant_access(%s, 'client', '{other}')", (GUEST,))
    options = json.dumps({"on_failure": FOLLOW, "sequence": [FOLLOW, {"task_name": "back"}]})
    guest.execute("select teguh.spawn_task('own', 't', '{}', %s)", (options,))
    refused(
        guest,
        "select teguh._new_own(jsonb_populate_record(null::teguh._spawn, %s))",
        spawn(links={"on_failure": FOLLOW}),
    )
    refused(guest, "select teguh._voucher('other')")
    with guest.transaction():
        guest.execute("select teguh._vouch_other()")
        ((voucher,),) = guest.execute("select current_setting('teguh.vouched')").fetchall()
    assert len(voucher) == 64
    guest.execute("select set_config('teguh.vouched', %s, false)", (voucher,))
    refused(
        guest,
        "select teguh._new_own(jsonb_populate_record(null::teguh._spawn, %s))",
        spawn(links={"on_failure": FOLLOW}),
    )


def test_without_a_secret_nobody_can_vouch(conn: Connection, guest: Connection) -> None:
    del guest
    options = json.dumps({"on_failure": FOLLOW})
    conn.execute("select teguh.spawn_task('own', 't', '{}', %s)", (options,))
    conn.execute("delete from teguh.secrets")
    refused(conn, "select teguh.spawn_task('own', 't', '{}', %s)", options)


def test_what_was_stored_with_the_right_goes_on_without_it(
    conn: Connection, guest: Connection
) -> None:
    conn.execute("select teguh.grant_access(%s, 'client', '{other}')", (GUEST,))
    third = {"queue_name": "own", "task_name": "third", "options": {"on_expired": FOLLOW}}
    options = json.dumps({"sequence": [{**FOLLOW, "compensate": FOLLOW}, third],
                          "on_failure": FOLLOW})  # fmt: skip
    guest.execute("select teguh.spawn_task('own', 'first', '{}', %s)", (options,))
    conn.execute("select teguh.revoke_access(%s, null, '{other}')", (GUEST,))
    for queue, name in (("own", "first"), ("other", "evil"), ("own", "third")):
        connection = guest if queue == "own" else conn
        ((run, found),) = connection.execute(
            "select run_id, task_name from teguh.claim_task(%s, 'w')", (queue,)
        ).fetchall()
        assert found == name
        connection.execute("select teguh.complete_run(%s, %s)", (queue, run))
    first = "(select task_id from teguh.list_tasks('own', '{\"task_name\": \"first\"}'))"
    guest.execute(
        f"select * from teguh.retry_task('own', {first}, '{{\"spawn_new\": true}}')".encode()
    )


def test_a_strangers_advisory_lock_makes_tickers_pass_a_queue_over(
    conn: Connection, guest_dsn: str
) -> None:
    """PostgreSQL has no rights on them: the page says so."""
    conn.execute("select teguh.create_queue('q')")
    conn.execute("select teguh.spawn_task('q', 't', '{}', '{\"delay_seconds\": 0.2}')")
    conn.execute("select pg_sleep(0.25)")
    with psycopg.connect(guest_dsn, autocommit=True) as stranger:
        stranger.execute("select pg_advisory_lock(hashtextextended('teguh.queue_q', 0))")
        assert conn.execute("select teguh.ticker('q')").fetchall() == [(0,)]
        stranger.execute("select pg_advisory_unlock_all()")
        until(lambda: conn.execute("select teguh.ticker('q')").fetchone() == (1,), "its turn")
