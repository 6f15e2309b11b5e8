"""Copies of a database: a restored dump, a standby, an upgraded server."""

from __future__ import annotations

import psycopg
import pytest

from tests import every_state
from tests.cluster import install
from tools.servers import OWNER, WORKER, Server, ServerError, Standby, Upgraded, find_build

QUEUES = ("jobs", "q" * 55)


# A task of an SQL function that has done a step and waits for an event.
HANDLED = """
create schema shop;
create function shop.add(n jsonb) returns jsonb
language sql as 'select to_jsonb(n::integer + 1)';
create function shop.handle(job teguh.job) returns jsonb language plpgsql as $$
declare v_n jsonb := teguh.step(job, 'one', 'shop.add', '40');
begin
  perform teguh.await(job, 'wait', 'go');
  return teguh.step(job, 'two', 'shop.add', v_n);
end $$;
select teguh.create_queue('handled');
select teguh.register_handler('handled', 'a', 'shop.handle');
select teguh.spawn_task('handled', 'a', '{}');
"""


def needs(server: Server, *programs: str) -> None:
    """Skip a test when the server comes without these programs."""
    missing = [program for program in programs if not (server.programs / program).exists()]
    if missing:
        pytest.skip(f"the {server.kind} server comes without {', '.join(missing)}")


def origin(server: Server) -> str:
    """Create a database with a task in every state, and a role that may work on them."""
    dsn = server.create_database("origin", owner=OWNER)
    install(dsn, "fresh")
    for queue in QUEUES:
        every_state.fill(dsn, queue)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select teguh.grant_access(%s, 'worker')", (WORKER,))
        connection.execute(HANDLED.encode())
        connection.execute("call teguh.work('handled')")
    return dsn


def go_on(server: Server, database: str) -> None:
    """Work on the queues of a copy, as the role that was allowed to."""
    for queue in QUEUES:
        every_state.go_on(server.dsn(database, OWNER), queue, server.dsn(database, WORKER))
    with psycopg.connect(server.dsn(database, OWNER), autocommit=True) as connection:
        connection.execute("select teguh.emit_event('handled', 'go')")
        connection.execute("call teguh.work('handled')")
        assert connection.execute("select state, result from teguh.t_handled").fetchall() == [
            ("completed", 42)
        ]


@pytest.fixture
def filled(own_server: Server) -> str:
    """A database on a server of its own with a task in every state."""
    dsn = origin(own_server)
    with psycopg.connect(dsn, autocommit=True) as connection:
        # transactions enough that the ids of another server are far behind
        for _ in range(2000):
            connection.execute("select pg_current_xact_id()")
    return dsn


def test_a_restored_dump_goes_on_where_it_was(filled: str, own_server: Server) -> None:
    needs(own_server, "pg_dump", "pg_restore")
    with Server(own_server.kind) as other:
        dump = own_server.home / "dump"
        own_server.run("pg_dump", "--format=custom", f"--file={dump}", own_server.dsn("origin"))
        other.create_database("copy", owner=OWNER)
        dump.chmod(0o644)
        dump.parent.chmod(0o755)
        other.run("pg_restore", "--exit-on-error", f"--dbname={other.dsn('copy')}", str(dump))
        go_on(other, "copy")
        assert other.execute("select grantee, access, queue_name from teguh.grants", "copy") == [
            (WORKER, "worker", "*")
        ]


def test_a_standby_answers_questions_and_goes_on_when_it_is_promoted(
    filled: str, own_server: Server
) -> None:
    needs(own_server, "pg_basebackup")
    with Standby(own_server) as standby:
        dsn = standby.dsn("origin", OWNER)
        with psycopg.connect(dsn, autocommit=True) as connection:
            rows = connection.execute(
                "select r.state, count(*) from teguh.t_jobs as t"
                " cross join lateral teguh.get_task_result('jobs', t.task_id) as r"
                " group by r.state"
            ).fetchall()
            assert (
                sorted(rows)
                == connection.execute(
                    "select state, count(*) from teguh.t_jobs group by state order by state"
                ).fetchall()
            )
            for question in (
                "select * from teguh.list_queues()",
                "select * from teguh.status()",
                "select teguh.version(), teguh.current_time()",
                "select teguh.get_task_checkpoint_state('jobs', task_id, 'b') from teguh.t_jobs",
                "select teguh.get_task_checkpoint_states('jobs', task_id, null) from teguh.t_jobs",
            ):
                assert connection.execute(question.encode()).fetchall()
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                connection.execute("select teguh.claim_task('jobs', 'w')")
        own_server.stop()
        standby.execute("select pg_promote()")
        go_on(standby, "origin")


@pytest.mark.parametrize("kind", ["embedded:17", "embedded"])
def test_a_server_upgraded_by_pg_upgrade_goes_on_where_it_was(kind: str) -> None:
    try:
        find_build("npm:15"), find_build("debian:15"), find_build(kind)
    except ServerError as error:
        pytest.skip(str(error))
    with Server("npm:15") as old:
        origin(old)
        old.stop()
        with Upgraded(kind, old) as new:
            go_on(new, "origin")
