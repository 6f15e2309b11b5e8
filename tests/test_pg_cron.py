"""start() and stop(): with pg_cron sleeping tasks wake while no worker polls; without, a notice.

The tests with pg_cron need a server that has it: Debian's (`TEGUH_PG=debian make test`).  They take
up to two minutes, since pg_cron before 1.5 starts its jobs at full minutes.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.cluster import ROOT, TEGUH_SQL, send
from tools.servers import OWNER, Databases, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

Connection = psycopg.Connection[tuple[Any, ...]]

HOME = "with_cron"
ELSEWHERE = "without_cron"
JOBS = "select jobname, schedule, database from cron.job order by jobname, database"


@contextmanager
def connected(dsn: str) -> Iterator[tuple[Connection, list[tuple[str, str]]]]:
    """Yield a connection in autocommit and the notices that it gets, each with its hint."""
    notices: list[tuple[str, str]] = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.add_notice_handler(
            lambda notice: notices.append((notice.message_primary or "", notice.message_hint or ""))
        )
        yield connection, notices


def sleeper(connection: Connection) -> None:
    """Put a task to sleep for a second; a worker has seen that there is nothing else to do."""
    connection.execute("select teguh.create_queue('jobs')")
    connection.execute("select teguh.spawn_task('jobs', 'a', '{}')")
    connection.execute(
        "select teguh.schedule_run('jobs', run_id, teguh.current_time() + '1 second')"
        " from teguh.claim_task('jobs', 'w')"
    )
    assert connection.execute("select * from teguh.claim_task('jobs', 'w')").fetchall() == []
    connection.execute("listen teguh_jobs")


def was_woken(connection: Connection, seconds: float) -> bool:
    """Wait for a notification, without asking the server for anything."""
    return any(True for _ in connection.notifies(timeout=seconds, stop_after=1))


def last_tick(connection: Connection) -> object:
    """Return when the ticker last ran."""
    ((at,),) = connection.execute("select last_tick_at from teguh.status()").fetchall()
    return at


def test_without_pg_cron_start_gives_a_notice_and_stop_nothing(dsn: str) -> None:
    with connected(dsn) as (connection, notices):
        connection.execute("select teguh.start()")
        connection.execute("select teguh.start('{}')")
        assert len(notices) == 2
        message, hint = notices[0]
        assert message.startswith("pg_cron is not")
        assert hint
        connection.execute("select teguh.stop()")
        assert len(notices) == 2
        ((scheduler, ticker, cleanup),) = connection.execute(
            "select scheduler, ticker_job, cleanup_job from teguh.status()"
        ).fetchall()
        assert (scheduler, ticker, cleanup) == (None, None, None)


def test_without_pg_cron_start_still_refuses_to_work_on_a_queue_without_handlers(
    conn: Connection,
) -> None:
    conn.execute("select teguh.create_queue('orders')")
    with pytest.raises(psycopg.Error) as caught:
        conn.execute('select teguh.start(\'{"work": ["orders"]}\')')
    assert caught.value.sqlstate == "TG004"


def test_start_refuses_an_option_it_does_not_know(conn: Connection) -> None:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("select teguh.start('{\"every\": 1}')")
    assert caught.value.sqlstate == "TG005"


def test_status_says_when_the_ticker_ran_last(conn: Connection) -> None:
    assert last_tick(conn) is None
    conn.execute("select teguh.ticker()")
    ((fresh,),) = conn.execute("select lag_seconds between 0 and 5 from teguh.status()").fetchall()
    assert fresh is True


def test_a_pg_cron_that_is_not_loaded_is_told_from_one_that_is_elsewhere(
    server: Databases,
) -> None:
    if not isinstance(server, Server) or not server.has_extension("pg_cron"):
        pytest.skip("pg_cron is not installed on this server")
    for loaded, says in (("", "not loaded"), ("pg_cron", "not in this database")):
        with Server(server.kind, {"shared_preload_libraries": loaded}) as own:
            dsn = own.create_database(ELSEWHERE, owner=OWNER)
            send(dsn, TEGUH_SQL.read_text(encoding="utf-8"))
            with connected(dsn) as (connection, notices):
                connection.execute("select teguh.start()")
            ((message, hint),) = notices
            assert says in message
            assert hint


@pytest.fixture(scope="module")
def cron_server(server: Databases) -> Iterator[Server]:
    """A server with pg_cron in one database, and teguh in that one and another."""
    if not isinstance(server, Server) or not server.has_extension("pg_cron"):
        pytest.skip(f"pg_cron is not installed on the {server.kind} server; Debian's can have it")
    with Server(server.kind, {"cron.database_name": HOME}) as own:
        for name in (HOME, ELSEWHERE):
            send(own.create_database(name, owner=OWNER), TEGUH_SQL.read_text(encoding="utf-8"))
        own.execute("create extension pg_cron", HOME)
        own.execute(f"grant usage on schema cron to {OWNER}", HOME)
        yield own


@pytest.fixture
def home_dsn(cron_server: Server) -> Iterator[str]:
    """The database with pg_cron; nothing is scheduled before and after."""
    yield cron_server.dsn(HOME, OWNER)
    cron_server.execute("select cron.unschedule(jobid) from cron.job", HOME)


def test_starting_twice_schedules_each_job_once(home_dsn: str) -> None:
    with connected(home_dsn) as (connection, notices):
        connection.execute("select teguh.start()")
        once = connection.execute(JOBS).fetchall()
        connection.execute("select teguh.start()")
        assert connection.execute(JOBS).fetchall() == once
        assert [row[0] for row in once] == ["teguh_maint", "teguh_ticker"]
        ((scheduler, ticker, cleanup),) = connection.execute(
            "select scheduler, ticker_job, cleanup_job from teguh.status()"
        ).fetchall()
        assert scheduler == "pg_cron"
        assert {("teguh_ticker", ticker, HOME), ("teguh_maint", cleanup, HOME)} == set(once)
        assert notices == []


@pytest.mark.parametrize("gone", [["teguh_ticker"], ["teguh_maint", "teguh_ticker"]])
def test_stopping_when_a_job_is_already_gone_is_no_error(home_dsn: str, gone: list[str]) -> None:
    with connected(home_dsn) as (connection, notices):
        connection.execute("select teguh.start()")
        connection.execute(
            "select cron.unschedule(jobid) from cron.job where jobname = any (%s)", (gone,)
        )
        connection.execute("select teguh.stop()")
        connection.execute("select teguh.stop()")
        assert connection.execute(JOBS).fetchall() == []
        assert notices == []


def test_the_maintenance_job_clears_our_rows_of_the_job_log_and_no_others(
    cron_server: Server, home_dsn: str
) -> None:
    with connected(home_dsn) as (connection, _):
        connection.execute("select teguh.start()")
        cron_server.execute(
            "insert into cron.job_run_details (jobid, runid, username, end_time)"
            f" select jobid, 900001, '{OWNER}', now() - interval '1 day' from cron.job"
            f" where jobname = 'teguh_ticker' union all select 0, 900002, '{OWNER}',"
            " now() - interval '1 day'",
            HOME,
        )
        connection.execute("select teguh._maintain()")
    assert cron_server.execute(
        "select runid from cron.job_run_details where runid in (900001, 900002)", HOME
    ) == [(900002,)]


def test_uninstalling_unschedules_the_jobs_of_this_database(cron_server: Server) -> None:
    with connected(cron_server.dsn(HOME, OWNER)) as (connection, _):
        connection.execute("select teguh.start()")
        connection.execute((ROOT / "sql" / "uninstall.sql").read_bytes())
        assert connection.execute(JOBS).fetchall() == []
        connection.execute(TEGUH_SQL.read_bytes())


HANDLERS = """
create schema shop;
create table shop.ledger (what text);
create function shop.charge(a jsonb) returns jsonb language plpgsql as $$
begin insert into shop.ledger values ('charge'); return a; end $$;
create function shop.place_order(job teguh.job) returns jsonb language plpgsql as $$
declare v jsonb;
begin
  v := teguh.step(job, 'charge', 'shop.charge', job.params);
  perform teguh.sleep_for(job, 'rest', 1);
  insert into shop.ledger values ('done');
  return v;
end $$;
"""


@pytest.fixture
def orders(home_dsn: str) -> Iterator[tuple[Connection, list[tuple[str, str]]]]:
    """A queue `orders` whose orders are handled by a function, where pg_cron is."""
    with connected(home_dsn) as (connection, notices):
        connection.execute(HANDLERS.encode())
        connection.execute("select teguh.create_queue('orders')")
        connection.execute("select teguh.register_handler('orders', 'order', 'shop.place_order')")
        yield connection, notices
        connection.execute("select teguh.drop_queue(queue_name) from teguh.list_queues()")
        connection.execute("drop schema shop cascade")


def work_jobs(connection: Connection) -> list[str]:
    """Return the jobs that work on queues; status() has to agree."""
    rows = connection.execute(JOBS).fetchall()
    found = [str(name).removeprefix("teguh_work_") for name, _, _ in rows if "work" in str(name)]
    ((shown,),) = connection.execute("select work_jobs from teguh.status()").fetchall()
    assert (shown or []) == found
    return found


def test_the_queues_that_have_handlers_are_worked_on_or_those_named(
    orders: tuple[Connection, list[tuple[str, str]]],
) -> None:
    connection, notices = orders
    connection.execute("select teguh.create_queue('other')")
    connection.execute("select teguh.start()")
    assert work_jobs(connection) == ["orders"]
    connection.execute("select teguh.register_handler('other', '*', 'shop.place_order')")
    assert work_jobs(connection) == ["orders"]
    connection.execute("select teguh.start()")
    assert work_jobs(connection) == ["orders", "other"]
    connection.execute('select teguh.start(\'{"work": ["other"]}\')')
    assert work_jobs(connection) == ["other"]
    connection.execute("select teguh.start('{\"work\": []}')")
    assert work_jobs(connection) == []
    connection.execute("select teguh.start()")
    connection.execute("select teguh.drop_queue('other')")
    assert work_jobs(connection) == ["orders"]
    for options, state in (
        ('{"work": ["nowhere"]}', "TG001"),
        ('{"work": "orders"}', "TG005"),
        ('{"work": [1]}', "TG005"),
    ):
        with pytest.raises(psycopg.Error) as caught:
            connection.execute("select teguh.start(%s)", (options,))
        assert caught.value.sqlstate == state
    assert work_jobs(connection) == ["orders"]
    connection.execute("select teguh.stop()")
    assert connection.execute(JOBS).fetchall() == []
    assert notices == []


def test_an_order_goes_through_with_nobody_else_around(
    orders: tuple[Connection, list[tuple[str, str]]],
) -> None:
    connection, _ = orders
    connection.execute("select teguh.spawn_task('orders', 'order', '{\"number\": 42}')")
    connection.execute("select teguh.start()")
    deadline = time.monotonic() + 150
    result = None
    while result is None and time.monotonic() < deadline:
        time.sleep(0.1)
        ((result,),) = connection.execute("select result from teguh.t_orders").fetchall()
    assert result == {"number": 42}
    assert connection.execute("select what from shop.ledger").fetchall() == [("charge",), ("done",)]
    connection.execute("select teguh.stop()")
    connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
        " and query ~ '^call teguh'"
    )


def test_sleepers_wake_without_a_worker_in_pg_crons_database_and_in_another_until_stopped(
    cron_server: Server, home_dsn: str
) -> None:
    with (
        connected(home_dsn) as (home, _),
        connected(cron_server.dsn(ELSEWHERE, OWNER)) as (elsewhere, notices),
    ):
        sleeper(home)
        sleeper(elsewhere)
        home.execute("select teguh.start()")
        elsewhere.execute("select teguh.start()")
        # Where pg_cron is not, start() says which statements to run where it is.
        ((_, hint),) = notices
        _, _, statements = hint.partition("select")
        cron_server.execute(f"select{statements}", HOME)

        assert was_woken(home, 90)
        assert was_woken(elsewhere, 90)
        for connection in (home, elsewhere):
            assert last_tick(connection) is not None
            ((name,),) = connection.execute(
                "select task_name from teguh.claim_task('jobs', 'w')"
            ).fetchall()
            assert name == "a"

        home.execute("select teguh.stop()")
        assert [row[2] for row in cron_server.execute(JOBS, HOME)] == [ELSEWHERE, ELSEWHERE]
        # A loop that runs is over at its minute's end; here it need not be waited for.
        cron_server.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            f" where datname = '{HOME}' and query like '%ticker%' and pid <> pg_backend_pid()",
            HOME,
        )
        stopped_at, other_at = last_tick(home), last_tick(elsewhere)
        deadline = time.monotonic() + 90
        while last_tick(elsewhere) == other_at and time.monotonic() < deadline:
            was_woken(elsewhere, 0.5)
        assert last_tick(elsewhere) != other_at
        assert last_tick(home) == stopped_at
