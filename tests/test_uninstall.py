"""sql/uninstall.sql takes everything away, but no queue without being told to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.catalog import definitions
from tests.cluster import ROOT, TEGUH_SQL, send

if TYPE_CHECKING:
    from tests.cluster import Cluster

TEXT = (ROOT / "sql" / "uninstall.sql").read_text(encoding="utf-8")
Connection = psycopg.Connection[tuple[Any, ...]]

# Everything in a database that is not PostgreSQL's own: what an uninstallation must bring back.
OBJECTS = """
select 'schema', n.nspname::text from pg_namespace as n where n.nspname !~ '^pg_'
union all
select 'relation', c.oid::regclass::text from pg_class as c
where c.relnamespace in (select oid from pg_namespace where nspname !~ '^pg_')
  and c.oid > 16383
union all
select 'routine', p.oid::regprocedure::text from pg_proc as p where p.oid > 16383
union all
select 'type', t.oid::regtype::text from pg_type as t
where t.oid > 16383 and t.typnamespace in (select oid from pg_namespace where nspname !~ '^pg_')
order by 1, 2
"""


@pytest.fixture
def plain_dsn(empty_dsn: str) -> str:
    """A database where teguh was installed with the file, whatever the session's way."""
    send(empty_dsn, TEGUH_SQL.read_text(encoding="utf-8"))
    return empty_dsn


def refused(dsn: str) -> psycopg.errors.Diagnostic:
    """Return why the script refuses; nothing may have changed."""
    with psycopg.connect(dsn) as connection:
        before = definitions(connection)
    with pytest.raises(psycopg.Error) as caught:
        send(dsn, TEXT)
    with psycopg.connect(dsn) as connection:
        assert definitions(connection) == before
    return caught.value.diag


def test_while_there_are_queues_nothing_is_removed(plain_dsn: str) -> None:
    send(plain_dsn, "select teguh.create_queue('jobs'), teguh.create_queue('orders')")
    said = refused(plain_dsn)
    assert said.sqlstate == "2BP01"
    assert said.message_detail == "Queues: jobs, orders."
    assert "teguh.uninstall_queues" in str(said.message_hint)


def test_what_somebody_built_upon_it_is_not_removed_with_it(plain_dsn: str) -> None:
    send(
        plain_dsn,
        "create view public.states as select * from teguh.status();"
        "create table public.things (at timestamptz default teguh.current_time())",
    )
    said = refused(plain_dsn)
    assert said.sqlstate == "2BP01"
    assert "public.states" in str(said.message_detail)
    assert "public.things" in str(said.message_detail)
    send(plain_dsn, "drop view public.states; drop table public.things")
    send(plain_dsn, TEXT)


def test_without_queues_nothing_is_left(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        before = connection.execute(OBJECTS.encode()).fetchall()
        connection.execute(TEGUH_SQL.read_bytes())
        connection.execute("select teguh.create_queue('jobs')")
        connection.execute("select teguh.drop_queue('jobs')")
        connection.execute(TEXT.encode())
        assert connection.execute(OBJECTS.encode()).fetchall() == before
        connection.execute(TEGUH_SQL.read_bytes())


def test_told_to_it_removes_queues_and_their_tasks(plain_dsn: str) -> None:
    with psycopg.connect(plain_dsn, autocommit=True) as connection:
        connection.execute("select teguh.create_queue('jobs')")
        connection.execute("select teguh.spawn_task('jobs', 'a', '1')")
        connection.execute("set teguh.uninstall_queues = 'drop'")
        connection.execute(TEXT.encode())
        found = connection.execute("select to_regnamespace('teguh') is null").fetchall()
    assert found == [(True,)]


def test_where_there_is_no_teguh_it_says_so(empty_dsn: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        send(empty_dsn, TEXT)
    assert caught.value.sqlstate == "3F000"
    assert caught.value.diag.message_hint


def test_a_role_that_does_not_own_it_removes_nothing(cluster: Cluster, plain_dsn: str) -> None:
    with psycopg.connect(plain_dsn) as connection:
        guest = cluster.guest_dsn(connection.info.dbname)
        before = definitions(connection)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        send(guest, TEXT)
    with psycopg.connect(plain_dsn) as connection:
        assert definitions(connection) == before
